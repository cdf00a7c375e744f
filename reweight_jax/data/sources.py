"""Image data sets as NumPy arrays: digits, TensorFlow Datasets' folders, packed files, folders."""

import os
import pathlib

import numpy as np

from reweight_jax.data._imports import import_or_explain
from reweight_jax.data.dataset import DataError, Dataset
from reweight_jax.data.image_folder import load_image_folder
from reweight_jax.data.packed import load_npz
from reweight_jax.data.tfds_folder import IMAGE_SHAPES, find_folder, read_folder

DATASETS = ("digits", *IMAGE_SHAPES)
"""The names that `load` knows."""

_DIGITS_TEST_SIZE = 497
_DIGITS_SPLIT_SEED = 0


def load(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Dataset:
  """Loads a whole data set into memory.

  Guarantees: the same examples in the same order at every call; nothing is downloaded or printed;
  TensorFlow is not needed. MNIST and CIFAR-10 take five to ten seconds, digits a fraction of one.
  Edge cases: of several version folders the newest is read. Digits comes with scikit-learn, ignores
  `data_dir`, and is split here, by class, into 1300 training and 497 test examples.

  Args:
    name: one of `DATASETS`, the path of a file that `save_npz` wrote, whose name ends in .npz, or
      of a folder of images as `load_image_folder` reads it.
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
  if os.fspath(name).endswith(".npz"):
    return load_npz(name)
  name = os.fspath(name)
  if name not in DATASETS:
    if os.path.isdir(name):
      return load_image_folder(name)
    raise DataError(
      f"load expects one of {', '.join(DATASETS)}, a file FILE.npz, or a folder of class folders "
      f"of images, got {name!r}, which is none."
    )
  if name == "digits":
    return _load_digits()
  try:
    folder = find_folder(name, default_folder(data_dir))
  except OSError as error:
    raise DataError(
      f"{name}: cannot read {error.filename} ({error.strerror}). Check who may read that folder."
    ) from error
  return read_folder(name, folder)


def default_folder(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """The folder given, or that of the variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
  root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(root).expanduser()


def _load_digits() -> Dataset:
  digits = import_or_explain("sklearn.datasets").load_digits()
  train, test = import_or_explain("sklearn.model_selection").train_test_split(
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
