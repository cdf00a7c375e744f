"""Labels that people gave: vectors by original number, joined to a data set."""

import os
import pathlib

import numpy as np

from reweight_jax.data.dataset import DataError, Dataset
from reweight_jax.data.packed import read_npz

CLEAN = "clean_label"
"""The vector of a file that holds the original labels, if it has one: the join is checked by it."""


def human_labels(path: str | os.PathLike[str], kind: str, dataset: Dataset) -> np.ndarray:
  """Reads the labels that people gave to the training examples of a data set.

  The file is an NPZ of label vectors in the data set's original order, as published with CIFAR-10N
  (`worse_label`, `aggre_label`, `random_label1`, ...). They are joined by `dataset.train_ids`,
  never by row: prepared folders hold the examples in another order.

  Guarantees: if the file has a vector `clean_label`, all of it agrees with the data set's labels
  after the join.

  Args:
    path: the NPZ file.
    kind: the name of a vector in it.
    dataset: with `train_ids`, the original numbers.

  Returns:
    `[training examples]` int32, in the order of the data set.

  Raises:
    DataError: if the file cannot be read, has no such vector, one of another length, labels that
      are no classes, or clean labels which are not the data set's.

  Source: Wei, Zhu, Cheng, Liu, Niu, Liu, "Learning with Noisy Labels Revisited", 2022, ICLR.
  """
  vectors, name = read_npz(path), pathlib.Path(path).name
  if kind not in vectors:
    raise DataError(f"{name}: expected a vector {kind!r}, got {', '.join(sorted(vectors))}.")
  labels = _joined(name, kind, vectors[kind], dataset)
  if CLEAN in vectors:
    agree = _joined(name, CLEAN, vectors[CLEAN], dataset) == dataset.train_labels
    if not agree.all():
      raise DataError(
        f"{name}: expected {CLEAN} to be the labels of {dataset.name}, but {agree.sum()} of "
        f"{len(agree)} agree. The file is of another data set or in another order."
      )
  return labels


def _joined(name: str, kind: str, vector: np.ndarray, dataset: Dataset) -> np.ndarray:
  needed = int(dataset.train_ids.max()) + 1
  if vector.ndim != 1 or len(vector) < needed or not np.issubdtype(vector.dtype, np.integer):
    raise DataError(
      f"{name}: expected {kind} to be a vector of {needed} whole numbers for {dataset.name}, got "
      f"{vector.dtype} of shape {vector.shape}."
    )
  labels = vector[dataset.train_ids].astype(np.int32)
  if labels.min() < 0 or labels.max() >= dataset.num_classes:
    raise DataError(
      f"{name}: expected the labels in {kind} to lie from 0 to {dataset.num_classes - 1}, got "
      f"{labels.min()} to {labels.max()}."
    )
  return labels
