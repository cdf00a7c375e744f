"""Data sets as one NPZ file of uint8 images, for machines without tensorflow-datasets."""

import os
import pathlib
import zipfile

import numpy as np

from reweight_jax import runlog
from reweight_jax.data.dataset import DataError, Dataset

_SPLITS = ("train", "test")
MOST_CLASSES = 100_000
"""Labels of this size or larger are taken for a mistake, such as identifiers of examples."""


def save_npz(path: str | os.PathLike[str], dataset: Dataset) -> None:
  """Writes a data set to one compressed file, whole or not at all, that `load(path)` reads.

  Args:
    path: the file; its name ends in `.npz`.
    dataset: what to write.

  Raises:
    DataError: if the name ends otherwise.

  Example:
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "digits.npz")
    ...   save_npz(path, rw.data.load("digits"))
    ...   print(rw.data.load(path).train_inputs.shape)
    (1300, 8, 8, 1)
  """
  if pathlib.Path(path).suffix != ".npz":
    raise DataError(f"{path}: expected a name that ends in .npz.")
  arrays = dataset._asdict()
  del arrays["name"]
  runlog.write_npz(path, arrays | {"class_names": np.array(dataset.class_names)})


def load_npz(path: str | os.PathLike[str]) -> Dataset:
  """Reads a data set that `save_npz` wrote, or arrays of a user's own.

  The file holds `train_inputs` and `test_inputs`, `[examples, height, width, channels]` uint8, and
  `train_labels` and `test_labels`, `[examples]` integers from 0; `class_names` and `train_ids` if
  wanted, else the numbers serve. The data set is named after the file.

  Raises:
    DataError: one line, if the file cannot be read or an array is missing or of another form.
  """
  path = pathlib.Path(path)
  arrays = read_npz(path)
  for split in _SPLITS:
    _check(path, arrays, split)
  inputs, labels = (
    [arrays[f"{split}_{part}"] for split in _SPLITS] for part in ("inputs", "labels")
  )
  if inputs[0].shape[1:] != inputs[1].shape[1:]:
    raise DataError(
      f"{path}: expected images of one shape, got {inputs[0].shape[1:]} in train and "
      f"{inputs[1].shape[1:]} in test."
    )
  num_classes = 1 + int(max(part.max() for part in labels))
  if num_classes > MOST_CLASSES:
    raise DataError(
      f"{path}: expected labels below {MOST_CLASSES}, got {num_classes - 1}; number the classes "
      "from 0 up."
    )
  names = arrays.get("class_names", np.arange(num_classes))
  if len(names) < num_classes:
    raise DataError(f"{path}: expected {num_classes} class_names, got {len(names)}.")
  ids = arrays.get("train_ids", np.arange(len(labels[0])))
  if len(np.unique(ids)) != len(labels[0]):
    raise DataError(f"{path}: expected a train_id of its own for each training example.")
  return Dataset(
    path.stem,
    inputs[0],
    labels[0].astype(np.int32),
    inputs[1],
    labels[1].astype(np.int32),
    tuple(str(name) for name in names),
    ids.astype(np.int32),
  )


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """All arrays of an NPZ file, or a DataError in one line; pickled objects are refused."""
  if not pathlib.Path(path).is_file():
    raise DataError(f"{path}: there is no such file. Give the path of an NPZ file.")
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
    raise DataError(
      f"{path}: expected an NPZ file of plain arrays, which this is not ({error}). It may be cut "
      "short, of another format, or hold pickled objects; write it with numpy.savez."
    ) from error


def _check(path: pathlib.Path, arrays: dict[str, np.ndarray], split: str) -> None:
  for part in ("inputs", "labels"):
    if f"{split}_{part}" not in arrays:
      raise DataError(f"{path}: expected an array {split}_{part}, got {', '.join(sorted(arrays))}.")
  inputs, labels = arrays[f"{split}_inputs"], arrays[f"{split}_labels"]
  if inputs.dtype != np.uint8 or inputs.ndim != 4 or not inputs.size:
    raise DataError(
      f"{path}: expected {split}_inputs to be uint8 of shape [examples, height, width, channels], "
      f"got {inputs.dtype} of shape {inputs.shape}."
    )
  if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise DataError(
      f"{path}: expected {split}_labels to be {len(inputs)} whole numbers, got {labels.dtype} of "
      f"shape {labels.shape}."
    )
  if labels.min() < 0:
    raise DataError(f"{path}: expected {split}_labels of at least 0, got {labels.min()}.")
