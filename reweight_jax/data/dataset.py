"""A data set in memory, and the error that says what is wrong with a user's data."""

from typing import NamedTuple

import numpy as np


class DataError(ValueError):
  """A mistake in the user's data: one line saying what was expected, what came, what to do."""


class Dataset(NamedTuple):
  """A data set in memory, with clean labels.

  Attributes:
    name: one of `data.DATASETS`, or of the user's own.
    train_inputs: `[examples, height, width, channels]` uint8 images, or `[examples, length]` int32
      token ids, 0 for padding.
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
