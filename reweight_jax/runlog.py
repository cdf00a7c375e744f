"""The run log: JSON lines for rows of metrics, JSON and NPZ files written whole or not at all."""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

PathLike = str | os.PathLike[str]


def append_row(path: PathLike, row: Mapping[str, Any]) -> None:
  """Adds one line of JSON to a log and flushes it; NaN and infinity are written as null."""
  with open(path, "a", encoding="utf-8") as file:
    file.write(_dumps(row) + "\n")


def read_rows(path: PathLike) -> list[dict[str, Any]]:
  """The rows of a log; [] if there is no file.

  Edge cases: a last line cut short by a kill is left out.

  Raises:
    ValueError: if another line than the last is no JSON object, naming it.
  """
  path = pathlib.Path(path)
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(dict(json.loads(line)))
    except (ValueError, TypeError) as error:
      if number < len(lines):
        raise ValueError(
          f"{path}, line {number}: expected a JSON object, got {line[:80]!r}."
        ) from error
  return rows


def keep_rows_until(path: PathLike, step: int) -> list[dict[str, Any]]:
  """Drops the rows whose "step" lies after `step`, as a run does that resumes from there.

  Returns:
    The rows kept.
  """
  rows = [row for row in read_rows(path) if row["step"] <= step]
  _write_whole(path, lambda file: file.write("".join(_dumps(row) + "\n" for row in rows).encode()))
  return rows


def write_json(path: PathLike, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
  _write_whole(path, lambda file: file.write(text.encode()))


def write_text(path: PathLike, text: str) -> None:
  """Writes a text file whole or not at all."""
  _write_whole(path, lambda file: file.write(text.encode()))


def write_npz(path: PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays to an NPZ file, whole or not at all; `numpy.load(path)` reads it."""
  named: dict[str, Any] = dict(arrays)
  _write_whole(path, lambda file: np.savez_compressed(file, **named))


def _write_whole(path: PathLike, write: Callable[[IO[bytes]], Any]) -> None:
  path = pathlib.Path(path)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      write(file)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _dumps(row: Mapping[str, Any]) -> str:
  return json.dumps(_plain(row), allow_nan=False)


def _plain(value: Any) -> Any:
  """Containers of plain Python values; JSON has no NaN, so it becomes null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, "tolist"):
    return _plain(value.tolist())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value
