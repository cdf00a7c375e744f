"""Parts of a long computation, each kept as a file, so that a run that was stopped goes on."""

import json
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments._errors import UsageError


class Parts:
  """A folder of NPZ files, all made with one setting."""

  def __init__(self, folder: pathlib.Path, setting: dict[str, Any]):
    """Opens or makes the folder.

    Raises:
      UsageError: if it holds parts of another setting, or cannot be written.
    """
    self._folder = folder
    written, path = json.dumps(setting, sort_keys=True, indent=1), folder / "setting.json"
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if not path.exists() and any(folder.glob("*.npz")):
        raise UsageError(
          f"--workdir: {folder} holds results without the {path.name} that tells their setting; "
          "delete that folder, or choose another --workdir"
        )
      if not path.exists():
        _write_whole(path, written.encode())
      found = path.read_text()
    except OSError as error:
      raise UsageError(
        f"--workdir: cannot write to {error.filename} ({error.strerror}); choose another --workdir"
      ) from error
    if found != written:
      raise UsageError(
        f"--workdir: {folder} holds results of {_difference(found, setting)}; choose another "
        "--workdir, or delete that folder"
      )

  def has(self, name: str) -> bool:
    """Whether a part is there; one that cannot be read is not."""
    return self._read(name) is not None

  def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """The part of that name: from its file, or made and written, whole or not at all."""
    found = self._read(name)
    if found is not None:
      return found
    arrays = {key: np.asarray(value) for key, value in make().items()}
    path = self._folder / f"{name}.npz"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
      np.savez(file, **arrays)  # type: ignore[arg-type]
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
    return arrays

  def _read(self, name: str) -> dict[str, np.ndarray] | None:
    try:
      with np.load(self._folder / f"{name}.npz") as file:
        return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
      return None


def _write_whole(path: pathlib.Path, content: bytes) -> None:
  partial = path.with_suffix(".partial")
  partial.write_bytes(content)
  partial.replace(path)


def _difference(found: str, setting: dict[str, Any]) -> str:
  """The first entry in which a written setting differs, in words."""
  try:
    before = json.loads(found)
    entries = [(key, before.get(key), value) for key, value in setting.items()]
    key, old, new = next(entry for entry in entries if entry[1] != entry[2])
  except (ValueError, AttributeError, StopIteration):
    return "another setting"
  return f"{key} {old}, not {new}"
