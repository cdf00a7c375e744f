"""Checkpoints of a run: any pytree, by step, through Orbax."""

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints of one run in one folder, the newest ones kept; a context manager.

  Keys, optax states and NamedTuples come back as they were. A save is there whole or not at all.

  Args:
    folder: made if missing.
    keep: how many of the newest checkpoints stay on disk.
  """

  def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2):
    self._folder = pathlib.Path(folder).resolve()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Any) -> None:
    """Writes a checkpoint; returns when it is on disk. Does nothing if the step has one.

    Ctrl-C in the middle of it raises KeyboardInterrupt once the checkpoint is written.
    """
    if step not in self._manager.all_steps():
      with _interrupts_held():
        self._manager.save(step, args=ocp.args.StandardSave(tree), force=True)

  def restore(self, step: int, like: Any) -> Any:
    """Reads the checkpoint of a step into the structure, shapes and dtypes of `like`.

    Raises:
      ValueError: if it is missing, damaged, or was made of another structure.
    """
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(like))
    except Exception as error:  # Orbax raises of every kind, depending on which file is damaged
      raise ValueError(
        f"expected a checkpoint of this run in {self._folder / str(step)}, which cannot be read "
        f"({type(error).__name__}); delete {self._folder} to start from step 0."
      ) from error

  def close(self) -> None:
    """Ends the manager's threads."""
    self._manager.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
  """Keeps SIGINT until the end of the block: Orbax's threads and event loop do not survive it."""
  handler = signal.getsignal(signal.SIGINT)
  # Only the main thread may set handlers; an ignored signal stays ignored.
  if threading.current_thread() is not threading.main_thread() or not callable(handler):
    yield
    return
  received: list[int] = []
  signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, handler)
  if received:
    signal.raise_signal(signal.SIGINT)
