"""Image data sets as NumPy arrays: scikit-learn's digits, and TensorFlow Datasets' folders.

A prepared folder is looked at before TensorFlow Datasets is asked to read it, because what that
library says of a folder which is absent, or holds the other file format, misleads. Images are
always decoded with Pillow: decoders disagree in the last digits of a JPEG pixel, so two runs to be
compared must not use two of them.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_IMAGE_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}

DATASETS = ("digits", *_IMAGE_SHAPES)
"""The names that `load` knows."""

_DIGITS_TEST_SIZE = 497
_DIGITS_SPLIT_SEED = 0


class DataError(ValueError):
  """A mistake in the user's data: one line saying what was expected, what came, what to do."""


class Dataset(NamedTuple):
  """A data set in memory, with clean labels.

  Attributes:
    name: one of `DATASETS`.
    train_inputs: `[examples, height, width, channels]` uint8.
    train_labels: `[examples]` int32.
    test_inputs: as `train_inputs`.
    test_labels: as `train_labels`.
    class_names: one name per class.
    train_ids: `[examples]` int32, where each training example stood in the original data set: the
      number in the record's `id` (CIFAR-10), the row of `load_digits` (digits), else the row.
  """

  name: str
  train_inputs: np.ndarray
  train_labels: np.ndarray
  test_inputs: np.ndarray
  test_labels: np.ndarray
  class_names: tuple[str, ...]
  train_ids: np.ndarray

  @property
  def num_classes(self) -> int:
    """How many classes there are."""
    return len(self.class_names)


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
  """Loads a whole data set into memory.

  Guarantees: the same examples in the same order at every call; nothing is downloaded or printed;
  TensorFlow is not needed. MNIST and CIFAR-10 take ten to thirty seconds, digits a fraction of one.
  Edge cases: of several version folders the newest is read. Digits comes with scikit-learn, ignores
  `data_dir`, and is split here, by class, into 1300 training and 497 test examples.

  Args:
    name: one of `DATASETS`.
    data_dir: the folder that holds one folder per data set, as TensorFlow Datasets writes it, in
      the `array_record` format. None means the variable `TFDS_DATA_DIR`, or if that is not set
      `~/tensorflow_datasets`.

  Returns:
    The data set.

  Raises:
    DataError: if the name is unknown, or the folder is missing, of another format or damaged.
    ImportError: if a package that the data set needs is not installed.

  Example:
    >>> digits = load("digits")
    >>> print(digits.train_inputs.shape, digits.train_inputs.dtype, digits.num_classes)
    (1300, 8, 8, 1) uint8 10
  """
  if name not in DATASETS:
    raise DataError(f"load expects one of {', '.join(DATASETS)}, got {name!r}.")
  if name == "digits":
    return _load_digits()
  root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  try:
    folder = _find_folder(name, pathlib.Path(root).expanduser())
  except OSError as error:
    raise DataError(
      f"{name}: cannot read {error.filename} ({error.strerror}). Check who may read that folder."
    ) from error
  return _read_folder(name, folder)


def _load_digits() -> Dataset:
  digits = _import("sklearn.datasets").load_digits()
  train, test = _import("sklearn.model_selection").train_test_split(
    np.arange(len(digits.target)),
    test_size=_DIGITS_TEST_SIZE,
    stratify=digits.target,
    random_state=_DIGITS_SPLIT_SEED,
  )
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  names = tuple(str(name) for name in digits.target_names)
  return Dataset(
    "digits",
    images[train],
    labels[train],
    images[test],
    labels[test],
    names,
    train.astype(np.int32),
  )


def _find_folder(name: str, root: pathlib.Path) -> pathlib.Path:
  """The version folder of a data set, or a DataError that says what is wrong with the place."""
  prepare = (
    f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
    "data_dir='FOLDER', file_format='array_record').download_and_prepare()\" "
    "(needs TensorFlow, once)"
  )
  if not root.exists():
    raise DataError(
      f"{name}: the data folder {root} does not exist. Set TFDS_DATA_DIR or data_dir to a folder "
      f"prepared by TensorFlow Datasets, or prepare one with {prepare}."
    )
  if not root.is_dir():
    raise DataError(f"{name}: expected a folder, got the file {root}. Give the folder above it.")
  if (root / "dataset_info.json").exists() or _versions(root):
    parent = root.parent.parent if (root / "dataset_info.json").exists() else root.parent
    raise DataError(
      f"{name}: {root} is the folder of a single data set. Give the folder above it, {parent}."
    )
  folder = root / name
  if not folder.is_dir() or not any(folder.iterdir()):
    fault = f"the folder {folder} is empty" if folder.is_dir() else f"there is no folder {folder}"
    present = [known for known in _IMAGE_SHAPES if known != name and (root / known).is_dir()]
    raise DataError(
      f"{name}: {fault}; data sets present: {', '.join(present) or 'none'}. Give another data_dir "
      f"or prepare it with {prepare}."
    )
  versions = _versions(folder)
  if not versions:
    raise DataError(
      f"{name}: {folder} holds no version folder such as 3.0.2, so preparing it was not finished. "
      f"Prepare it with {prepare}."
    )
  folder = versions[-1]
  file_format = _file_format(name, folder, prepare)
  if file_format == "tfrecord":
    raise DataError(
      f"{name}: the files in {folder} are TFRecord, which cannot be read without TensorFlow. "
      f"Prepare them as array_record in a new FOLDER and pass it as data_dir: {prepare}."
    )
  if file_format != "array_record":
    raise DataError(
      f"{name}: expected array_record files in {folder}, got the format {file_format!r}. "
      f"Prepare them in a new FOLDER with {prepare}."
    )
  return folder


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
  """The version folders inside a folder, oldest first."""
  found = [path for path in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
  return sorted(
    (path for path in found if path.is_dir()),
    key=lambda path: [int(part) for part in path.name.split(".")],
  )


def _file_format(name: str, folder: pathlib.Path, prepare: str) -> str:
  path = folder / "dataset_info.json"
  if not path.exists():
    raise DataError(
      f"{name}: {folder} has no dataset_info.json, so preparing it was not finished. "
      f"Prepare it again with {prepare}."
    )
  try:
    # Folders written before the field existed hold TFRecord.
    return str(json.loads(path.read_text(encoding="utf-8")).get("fileFormat", "tfrecord"))
  except (ValueError, AttributeError) as error:
    raise DataError(
      f"{name}: {path} is not valid JSON. Prepare it again with {prepare}."
    ) from error


def _read_folder(name: str, folder: pathlib.Path) -> Dataset:
  tfds = _import("tensorflow_datasets")
  with _damage_reported(name, folder):
    builder = tfds.builder_from_directory(folder)
    names = tuple(builder.info.features["label"].names)
  train_inputs, train_labels, ids = _read_split(name, folder, builder, "train", len(names))
  test_inputs, test_labels, _ = _read_split(name, folder, builder, "test", len(names))
  return Dataset(name, train_inputs, train_labels, test_inputs, test_labels, names, ids)


def _read_split(
  name: str, folder: pathlib.Path, builder: Any, split: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The images, labels and ids of one split, each checked against what the folder promises."""
  skip = _import("tensorflow_datasets").decode.SkipDecoding()
  pillow = _import("PIL.Image")
  if split not in builder.info.splits:
    raise DataError(f"{name}: {folder} has no {split} split. Prepare the whole data set again.")
  _check_shards(name, builder.info.splits[split])
  with _damage_reported(name, folder):
    source = builder.as_data_source(split=split, decoders={"image": skip})
    records = source.__getitems__(range(len(source)))
    shape = _IMAGE_SHAPES[name]
    inputs = np.empty((len(records), *shape), np.uint8)
    for row, record in enumerate(records):
      with pillow.open(io.BytesIO(record["image"])) as image:
        pixels = np.asarray(image)
      pixels = pixels[..., None] if pixels.ndim == 2 else pixels
      if pixels.shape != shape or pixels.dtype != np.uint8:
        raise DataError(
          f"{name}: expected uint8 images of shape {shape} in {folder}, got {pixels.dtype} "
          f"{pixels.shape} in row {row} of {split}. Prepare the data set again."
        )
      inputs[row] = pixels
    labels = np.array([record["label"] for record in records], np.int32)
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if outside.size:
    raise DataError(
      f"{name}: expected labels from 0 to {num_classes - 1} in {folder}, got {labels[outside[0]]} "
      f"in row {outside[0]} of {split}. Prepare the data set again."
    )
  return inputs, labels, _original_positions(name, folder, records)


def _check_shards(name: str, split_info: Any) -> None:
  """Checks that each file of a split is there and holds as many records as promised."""
  reader = _import("array_record.python.array_record_module").ArrayRecordReader
  if not split_info.num_examples:
    raise DataError(f"{name}: the {split_info.name} split is empty. Prepare the data set again.")
  for path, expected in zip(split_info.filepaths, split_info.shard_lengths, strict=True):
    if not os.path.exists(path):
      raise DataError(f"{name}: the file {path} is missing. Copy it again or prepare the data set.")
    with _damage_reported(name, path):
      records = reader(os.fspath(path))
      found = records.num_records()
      records.close()
    if found != expected:
      raise DataError(
        f"{name}: expected {expected} examples in {path}, got {found}. Copy it again together with "
        "its dataset_info.json, or prepare the data set."
      )


def _original_positions(name: str, folder: pathlib.Path, records: list[Any]) -> np.ndarray:
  """The number in each record's `id`, such as 16399 in `train_16399`; rows where there is none."""
  if "id" not in records[0]:
    return np.arange(len(records), dtype=np.int32)
  ids = [re.fullmatch(rb"\w+_(\d+)", record["id"]) for record in records]
  numbers = np.array([int(found[1]) if found else -1 for found in ids], np.int32)
  if (numbers < 0).any() or len(np.unique(numbers)) < len(numbers):
    raise DataError(
      f"{name}: expected distinct ids such as train_16399 in {folder}, got some that are repeated "
      "or of another form. Prepare the data set again."
    )
  return numbers


@contextlib.contextmanager
def _damage_reported(name: str, place: str | os.PathLike[str]) -> Iterator[None]:
  """Turns whatever the readers raise on damaged files into one line that names the place."""
  try:
    yield
  except (DataError, MemoryError, ImportError):
    raise
  except Exception as error:  # RuntimeError, DecodeError, KeyError, OSError, SyntaxError, ...
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise DataError(
      f"{name}: {place} cannot be read; it looks damaged or cut short. "
      f"Copy it again or prepare the data set again. The reader said: {reason}"
    ) from error


def _import(module: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f"this data set needs {module}, which cannot be imported ({error}); "
      'install it with pip install "reweight_jax[experiments]".'
    ) from error
