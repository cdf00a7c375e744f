"""Checkpoints of a run: any pytree, by step, through Orbax."""

import os
import pathlib
from typing import Any

import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints of one run in one folder, the newest ones kept.

  Keys, optax states and NamedTuples come back as they were. A save is there whole or not at all.

  Args:
    folder: made if missing.
    keep: how many of the newest checkpoints stay on disk.
  """

  def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    self._manager = ocp.CheckpointManager(pathlib.Path(folder).resolve(), options=options)

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Any) -> None:
    """Writes a checkpoint; returns when it is on disk. Does nothing if the step has one."""
    if step != self.latest_step():
      self._manager.save(step, args=ocp.args.StandardSave(tree), force=True)

  def restore(self, step: int, like: Any) -> Any:
    """Reads the checkpoint of a step into the structure, shapes and dtypes of `like`."""
    return self._manager.restore(step, args=ocp.args.StandardRestore(like))

  def close(self) -> None:
    """Ends the manager's threads."""
    self._manager.close()
