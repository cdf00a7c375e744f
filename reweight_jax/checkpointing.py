"""Checkpoints of a run: any pytree, by step, through Orbax, written while training goes on."""

import os
import pathlib
import shutil
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN


class CheckpointError(OSError):
  """A checkpoint that could not be written; what was written before is untouched."""


class Checkpoints:
  """The checkpoints of one run in one folder; a context manager, whose end waits for the writing.

  The newest ones stay, and the one of the best score. Keys, optax states and NamedTuples come back
  as they were.

  Guarantees: a checkpoint is there whole or not at all, whenever the process dies; `save` copies
  the tree before it returns, so the caller may donate or change its buffers at once.

  Args:
    folder: made if missing.
    keep: how many of the newest checkpoints stay on disk, at least 1.

  Attributes:
    damaged: where checkpoints that could not be read were moved: beside the folder, as
      `damaged_STEP`.
  """

  def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2):
    self._folder = pathlib.Path(folder).resolve()
    self._keep = keep
    self.damaged: list[pathlib.Path] = []
    self._manager = self._open()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    try:
      self.close()
    except CheckpointError:
      # What ended the block is the better message.
      if error is None:
        raise

  def steps(self) -> list[int]:
    """The steps that have a checkpoint, oldest first; those still being written included."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, None if there is none."""
    return max(self.steps(), default=None)

  def best_step(self) -> int | None:
    """The step of the highest score, the newest of equals; None if none was saved with one."""
    self.wait()
    scores = {step: self._manager.metrics(step) for step in self.steps()}
    known = {step: found["score"] for step, found in scores.items() if found["score"] > -np.inf}
    return max(known, key=lambda step: (known[step], step), default=None)

  def save(self, step: int, tree: Any, *, score: float | None = None) -> None:
    """Begins to write a checkpoint and returns. Does nothing if the step has one.

    Args:
      step: at least 0.
      tree: arrays and keys.
      score: higher is better; the best one is kept.

    Raises:
      CheckpointError: if this checkpoint or the one before could not be written.
    """
    if step in self._manager.all_steps():
      return
    metrics = {"score": -np.inf if score is None else float(score)}
    args = ocp.args.StandardSave(jax.tree.map(_to_host, tree))
    try:
      self._manager.save(step, args=args, metrics=metrics, force=True)
    except Exception as error:  # Orbax raises of every kind, and tells here of the save before too
      raise self._cannot_write(error) from error

  def wait(self) -> None:
    """Waits until all that was saved is on disk.

    Raises:
      CheckpointError: if a checkpoint could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._cannot_write(error) from error

  def restore(self, step: int, like: Any) -> Any:
    """Reads the checkpoint of a step into the structure, shapes and dtypes of `like`.

    Raises:
      ValueError: if it is missing, damaged, or was made of another structure.
    """
    self.wait()
    try:
      args = ocp.args.StandardRestore(jax.tree.map(_to_host, like))
      found = self._manager.restore(step, args=args)
    except Exception as error:  # Orbax raises of every kind, depending on which file is damaged
      raise ValueError(
        f"expected a checkpoint of this run in {self._folder / str(step)}, which cannot be read "
        f"({type(error).__name__}); delete {self._folder} to start from step 0."
      ) from error
    return jax.tree.map(_as_like, found, like)

  def restore_latest(self, like_of: Callable[[int], Any]) -> tuple[int, Any] | None:
    """Reads the newest checkpoint that can be read; newer ones are moved aside, see `damaged`.

    Args:
      like_of: gives the tree to read into, step by step.

    Returns:
      The step and its tree; None if there is none.
    """
    for step in reversed(self.steps()):
      try:
        return step, self.restore(step, like_of(step))
      except ValueError:
        self._manager.close()
        self._move_aside(step)
        self._manager = self._open()
    return None

  def close(self) -> None:
    """Waits until all is on disk and ends the manager's threads.

    Raises:
      CheckpointError: if a checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    score = lambda metrics: metrics["score"]
    best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
      best_fn=score,  # without it Orbax does not write the scores down
      preservation_policy=AnyPreservationPolicy([LatestN(self._keep), best]),
      enable_async_checkpointing=True,
      # Made in the background, a folder that cannot be made holds the process up for minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    while True:
      try:
        return ocp.CheckpointManager(self._folder, options=options)
      except ValueError:  # Orbax reads all scores first; JSON that is cut short is a ValueError
        steps = [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]
        if not steps:
          raise
        self._move_aside(max(steps))

  def _move_aside(self, step: int) -> None:
    place = self._folder.parent / f"damaged_{step}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(self._folder / str(step), place)
    self.damaged.append(place)

  def _cannot_write(self, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return CheckpointError(f"cannot write a checkpoint to {self._folder}: {reason}")


def _to_host(leaf: Any) -> np.ndarray:
  """A copy of its own: on CPU NumPy would share the buffer, which the next step may reuse."""
  if _is_key(leaf):
    leaf = jax.random.key_data(leaf)
  return np.array(leaf)


def _as_like(found: Any, like: Any) -> Any:
  if _is_key(like):
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(like))
  return jax.numpy.asarray(found, like.dtype)


def _is_key(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
