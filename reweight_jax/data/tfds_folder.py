"""Prepared folders of TensorFlow Datasets, read without TensorFlow.

A folder is looked at before TensorFlow Datasets is asked to read it, because what that library says
of a folder which is absent, or holds the other file format, misleads. Images are always decoded
with Pillow: decoders disagree in the last digits of a JPEG pixel, so two runs to be compared must
not use two of them.
"""

import contextlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from reweight_jax.data._imports import import_or_explain
from reweight_jax.data.dataset import DataError, Dataset

IMAGE_SHAPES = {
  "mnist": (28, 28, 1),
  "fashion_mnist": (28, 28, 1),
  "cifar10": (32, 32, 3),
  "cifar100": (32, 32, 3),
}
"""The data sets that can be read, and the shape of one image of each."""


def prepare_command(name: str, folder: str = "FOLDER") -> str:
  """The command that prepares a data set, to be put at the end of an error."""
  if name not in IMAGE_SHAPES:
    return (
      f"`tfds build {name} --data_dir={folder} --file_format=array_record` (needs TensorFlow, once)"
    )
  return (
    f"`python -m experiments.prepare_data --dataset={name} --data_dir={folder}` in a clone of "
    "reweight_jax (needs TensorFlow, once)"
  )


def find_folder(name: str, root: pathlib.Path) -> pathlib.Path:
  """The version folder of a data set, or a DataError that says what is wrong with the place."""
  prepare = prepare_command(name)
  if not root.exists():
    raise DataError(
      f"{name}: the data folder {root} does not exist. Set TFDS_DATA_DIR or data_dir to a folder "
      f"prepared by TensorFlow Datasets, or prepare one with {prepare}."
    )
  if not root.is_dir():
    raise DataError(f"{name}: expected a folder, got the file {root}. Give the folder above it.")
  if (root / "dataset_info.json").exists() or _versions(root):
    parent = root.parent.parent if (root / "dataset_info.json").exists() else root.parent
    for _ in range(name.count("/")):  # a configuration is one folder more
      parent = parent.parent
    raise DataError(
      f"{name}: {root} is the folder of a single data set. Give the folder above it, {parent}."
    )
  folder = root / name
  if not folder.is_dir() or not any(folder.iterdir()):
    fault = f"the folder {folder} is empty" if folder.is_dir() else f"there is no folder {folder}"
    known = IMAGE_SHAPES if name in IMAGE_SHAPES else sorted(path.name for path in root.iterdir())
    present = [other for other in known if other != name and (root / other).is_dir()]
    raise DataError(
      f"{name}: {fault}; data sets present: {', '.join(present) or 'none'}. Give another data_dir "
      f"or prepare it with {prepare}."
    )
  versions = _versions(folder)
  if not versions:
    configs = sorted(path.name for path in folder.iterdir() if path.is_dir() and _versions(path))
    if configs:
      raise DataError(
        f"{name}: {folder} holds configurations of the data set. Give one of them as its name: "
        f"{', '.join(f'{name}/{config}' for config in configs)}."
      )
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


def read_folder(name: str, folder: pathlib.Path) -> Dataset:
  """Reads both splits of a version folder.

  Raises:
    DataError: if a file is missing or damaged, naming it.
  """
  builder = open_folder(name, folder)
  with damage_reported(name, folder):
    names = tuple(builder.info.features["label"].names)
  train_inputs, train_labels, ids = _read_split(name, folder, builder, "train", len(names))
  test_inputs, test_labels, _ = _read_split(name, folder, builder, "test", len(names))
  return Dataset(name, train_inputs, train_labels, test_inputs, test_labels, names, ids)


def open_folder(name: str, folder: pathlib.Path) -> Any:
  """TensorFlow Datasets' builder of a version folder, which knows its features and splits."""
  tfds = import_or_explain("tensorflow_datasets")
  with damage_reported(name, folder):
    return tfds.builder_from_directory(folder)


def read_records(name: str, folder: pathlib.Path, builder: Any, split: str) -> list[Any]:
  """The records of one split, each a mapping from the name of a feature to its lists of values."""
  if split not in builder.info.splits:
    raise DataError(f"{name}: {folder} has no {split} split. Prepare the whole data set again.")
  # TensorFlow Datasets' own reader of a record spends three times as long on it.
  parse = import_or_explain("tensorflow_datasets.proto.tf_example_generated_pb2").Example.FromString
  with damage_reported(name, folder):
    return [
      parse(record).features.feature for record in _raw_records(name, builder.info.splits[split])
    ]


def read_labels(
  name: str, folder: pathlib.Path, split: str, records: list[Any], num_classes: int
) -> np.ndarray:
  """The feature `label` of records, `[examples]` int32, each checked to be a class."""
  with damage_reported(name, folder):
    labels = np.array([record["label"].int64_list.value[0] for record in records], np.int32)
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if outside.size:
    raise DataError(
      f"{name}: expected labels from 0 to {num_classes - 1} in {folder}, got {labels[outside[0]]} "
      f"in row {outside[0]} of {split}. Prepare the data set again."
    )
  return labels


def _read_split(
  name: str, folder: pathlib.Path, builder: Any, split: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The images, labels and ids of one split, each checked against what the folder promises."""
  records = read_records(name, folder, builder, split)
  with damage_reported(name, folder):
    encoded = [record["image"].bytes_list.value[0] for record in records]
    inputs = _decoded(name, folder, split, encoded)
  labels = read_labels(name, folder, split, records, num_classes)
  return inputs, labels, _original_positions(name, folder, records)


def _decoded(name: str, folder: pathlib.Path, split: str, encoded: list[bytes]) -> np.ndarray:
  pillow = import_or_explain("PIL.Image")
  shape = IMAGE_SHAPES[name]
  inputs = np.empty((len(encoded), *shape), np.uint8)
  for row, image_bytes in enumerate(encoded):
    if shape[2] == 3 and _jpeg_shape(image_bytes) == shape:
      # Twice as fast as `open`, which looks at all that a header may say; to the same pixels.
      image = pillow.frombytes("RGB", shape[:2], image_bytes, "jpeg", "RGB", "")
      inputs[row] = np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
      continue
    with pillow.open(io.BytesIO(image_bytes), formats=("PNG", "JPEG")) as image:
      pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape != shape or pixels.dtype != np.uint8:
      raise DataError(
        f"{name}: expected uint8 images of shape {shape} in {folder}, got {pixels.dtype} "
        f"{pixels.shape} in row {row} of {split}. Prepare the data set again."
      )
    inputs[row] = pixels
  return inputs


def _jpeg_shape(encoded: bytes) -> tuple[int, int, int] | None:
  """Height, width and channels as the header of a JPEG file says; None for other files."""
  if not encoded.startswith(b"\xff\xd8"):
    return None
  place = 2
  while encoded[place + 1] not in (0xC0, 0xC1, 0xC2):  # the markers of a frame
    place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
  number = lambda start: int.from_bytes(encoded[start : start + 2])
  return number(place + 5), number(place + 7), encoded[place + 9]


def _raw_records(name: str, split_info: Any) -> list[bytes]:
  """The records of a split, each file checked: it is there and holds as many as promised."""
  reader = import_or_explain("array_record.python.array_record_module").ArrayRecordReader
  if not split_info.num_examples:
    raise DataError(f"{name}: the {split_info.name} split is empty. Prepare the data set again.")
  records: list[bytes] = []
  for path, expected in zip(split_info.filepaths, split_info.shard_lengths, strict=True):
    if not os.path.exists(path):
      raise DataError(f"{name}: the file {path} is missing. Copy it again or prepare the data set.")
    with damage_reported(name, path):
      shard = reader(os.fspath(path))
      found = shard.num_records()
      records += shard.read_all() if found else []
      shard.close()
    if found != expected:
      raise DataError(
        f"{name}: expected {expected} examples in {path}, got {found}. Copy it again together with "
        "its dataset_info.json, or prepare the data set."
      )
  return records


def _original_positions(name: str, folder: pathlib.Path, records: list[Any]) -> np.ndarray:
  """The number in each record's `id`, such as 16399 in `train_16399`; rows where there is none."""
  if "id" not in records[0]:
    return np.arange(len(records), dtype=np.int32)
  found = [re.fullmatch(rb"\w+_(\d+)", record["id"].bytes_list.value[0]) for record in records]
  numbers = np.array([int(match[1]) if match else -1 for match in found], np.int32)
  if (numbers < 0).any() or len(np.unique(numbers)) < len(numbers):
    raise DataError(
      f"{name}: expected distinct ids such as train_16399 in {folder}, got some that are repeated "
      "or of another form. Prepare the data set again."
    )
  return numbers


@contextlib.contextmanager
def damage_reported(name: str, place: str | os.PathLike[str]) -> Iterator[None]:
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
