"""What an audit looks at: a data set, or a part of it, with noise of a known kind where asked."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments import _audit_config, _task
from experiments._audit_config import AuditConfig
from experiments._errors import UsageError
from reweight_jax import data

LARGEST_SIDE = 64  # of images of a folder, unless a size is asked for
LARGEST_EMBEDDING = 32  # sides of images as neighbors are looked for


class Examples(NamedTuple):
  """What is looked at."""

  dataset: data.Dataset
  rows: np.ndarray  # its training examples that are looked at
  labels: np.ndarray  # of those, as given
  true_labels: np.ndarray | None  # of those, where noise was put in
  files: list[str] | None  # of all training examples of a folder
  size_in_words: str  # how the images came to their size


def load(config: AuditConfig) -> Examples:
  """Reads the data set, takes some of it if asked, and puts in the noise asked for.

  Raises:
    UsageError: if the noise does not fit the data set.
    DataError: if the data cannot be read.
  """
  dataset, files, size_in_words = _read(config)
  clean = dataset.train_labels
  rows = np.arange(len(clean))
  if config.max_examples is not None and config.max_examples < len(clean):
    rng, size = np.random.default_rng([config.seed, 4]), config.max_examples
    split = data.split_indices(
      clean, dataset.num_classes, meta_size=0, validation_size=size, rng=rng
    )
    rows = split.validation
  labels, true_labels = clean[rows].astype(np.int32), None
  if config.corrupt:
    kind, rate = _audit_config.parse_corrupt(config.corrupt)
    rng, true_labels = np.random.default_rng([config.seed, 1]), labels
    try:
      flips = (
        data.asymmetric_flips(dataset.name, dataset.class_names) if kind == "asymmetric" else None
      )
      labels = data.corrupt_labels(labels, dataset.num_classes, kind, rate, rng, flips=flips).labels
    except ValueError as error:
      raise UsageError(f"--corrupt: {error}") from error
  elif config.human_labels is not None:
    kind = config.noise.removeprefix(_task.HUMAN)
    true_labels, labels = labels, data.human_labels(config.human_labels, kind, dataset)[rows]
  return Examples(dataset, rows, labels, true_labels, files, size_in_words)


def _read(config: AuditConfig) -> tuple[data.Dataset, list[str] | None, str]:
  """The data set, of a folder the file of each training example, and the images' size in words."""
  if not config.dataset:
    raise UsageError(
      "--dataset: expected a data set, a file FILE.npz or a folder of class folders, got nothing"
    )
  folder = pathlib.Path(config.dataset)
  if config.dataset in data.DATASETS or not folder.is_dir():
    dataset = data.load(config.dataset, config.data_dir)
    return dataset, None, _sides(dataset.train_inputs.shape[1:3])
  found = data.scan_image_folder(folder)
  common = next(iter(found.sizes))
  shrink = min(1.0, LARGEST_SIDE / max(common))
  size = config.image_size or tuple(max(1, round(side * shrink)) for side in common)
  files = [path.relative_to(folder).as_posix() for path in found.train_files]
  kinds = "1 size" if len(found.sizes) == 1 else f"{len(found.sizes)} sizes"
  words = f"{_sides(size)}, read from {kinds}, most of them {_sides(common)}"
  return data.load_image_folder(folder, size), files, words


def _sides(size: Any) -> str:
  height, width = size
  return f"{height} high, {width} wide"


def small(images: np.ndarray) -> np.ndarray:
  """Images whose pixels are means of blocks, so that neither side is above LARGEST_EMBEDDING."""
  size, height, width, channels = images.shape
  block = -(-max(height, width) // LARGEST_EMBEDDING)
  rows, columns = max(height // block, 1), max(width // block, 1)
  cut = images[:, : rows * block, : columns * block]
  return cut.reshape(size, rows, -1, columns, cut.shape[2] // columns, channels).mean((2, 4))


def digest(*arrays: np.ndarray) -> str:
  """A name for arrays by what is in them."""
  found = hashlib.sha256()
  for array in arrays:
    found.update(f"{array.dtype}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()[:16]
