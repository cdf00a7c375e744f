"""Splits of a training set into training, meta and validation examples, by class and disjoint."""

import itertools
from typing import NamedTuple

import numpy as np

from reweight_jax.data.dataset import DataError


class Split(NamedTuple):
  """Positions in the training set, each array sorted, no position in two of them.

  Attributes:
    train: int32, the examples to learn from; the only ones whose labels are to be corrupted, apart
      from those of `validation` where model choice is to be honest about noise.
    meta: int32, the small trusted set.
    validation: int32, for model choice.
  """

  train: np.ndarray
  meta: np.ndarray
  validation: np.ndarray


def split_indices(
  labels: np.ndarray,
  num_classes: int,
  *,
  meta_size: int,
  validation_size: int,
  rng: np.random.Generator,
) -> Split:
  """Sets aside a class-balanced meta set and a proportional validation set.

  Every class gives the meta set `meta_size / num_classes` examples; where that is no whole number,
  counts differ by at most one and random classes give the extra one. The validation set takes from
  each class in proportion to what the meta set left of it, rounded so that the total is exact.

  Guarantees: the three parts are disjoint and together hold every example once; equal generators
  give equal splits.
  Edge cases: sizes of 0 give empty parts.

  Args:
    labels: `[examples]` integers, the clean labels.
    num_classes: how many classes there are.
    meta_size: how many examples the meta set holds.
    validation_size: how many examples the validation set holds.
    rng: draws the examples.

  Returns:
    The three parts.

  Raises:
    DataError: if a size is negative, no example is left to train on, or a class is too small for
      its share of the meta set.
    ValueError: if labels are not a vector of integers below `num_classes`.

  Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", 2018,
  arXiv 1803.09050, sec. 4.2 (10 clean images per class). Departs from the authors' program, which
  draws the clean images regardless of class.

  Example:
    >>> labels = np.arange(100) % 2
    >>> split = split_indices(
    ...   labels, 2, meta_size=10, validation_size=20, rng=np.random.default_rng(0)
    ... )
    >>> print(len(split.train), np.bincount(labels[split.meta]), len(split.validation))
    70 [5 5] 20
  """
  labels = check_labels(labels, num_classes)
  if meta_size < 0 or validation_size < 0:
    raise DataError(
      f"sizes are at least 0, got meta_size={meta_size} and validation_size={validation_size}."
    )
  if meta_size + validation_size >= len(labels):
    raise DataError(
      f"meta_size + validation_size must leave some of the {len(labels)} examples to train on, "
      f"got {meta_size} + {validation_size}. Lower one of them."
    )
  class_counts = np.bincount(labels, minlength=num_classes)
  meta_counts = apportion(np.full(num_classes, meta_size / num_classes), rng)
  short = np.flatnonzero(meta_counts > class_counts)
  if short.size:
    raise DataError(
      f"a meta set of {meta_size} needs {meta_counts[short[0]]} examples of class {short[0]}, "
      f"which has {class_counts[short[0]]}. Lower meta_size."
    )
  meta = draw_per_class(labels, meta_counts, rng)
  rest = np.setdiff1d(np.arange(len(labels)), meta)
  left = class_counts - meta_counts
  validation_counts = apportion(left * (validation_size / len(rest)), rng)
  validation = rest[draw_per_class(labels[rest], validation_counts, rng)]
  train = np.setdiff1d(rest, validation)
  split = Split(*(part.astype(np.int32) for part in (train, meta, validation)))
  assert_disjoint(split)
  return split


def assert_disjoint(split: Split) -> None:
  """Raises if two parts of a split share examples.

  Args:
    split: the parts.

  Raises:
    ValueError: naming the two parts, how many indices they share and the first of them.

  Example:
    >>> assert_disjoint(Split(np.array([0, 1]), np.array([2]), np.array([3])))
  """
  for (name, part), (other, other_part) in itertools.combinations(split._asdict().items(), 2):
    shared = np.intersect1d(part, other_part)
    if shared.size:
      raise ValueError(
        f"{name} and {other} must be disjoint, but share {shared.size} indices, first {shared[0]}. "
        "Make the split with split_indices."
      )


def check_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the labels as an int32 vector, or raises ValueError."""
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not labels.size:
    raise ValueError(
      "labels must be a vector of at least one integer, "
      f"got shape {labels.shape} and dtype {labels.dtype}."
    )
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f"labels must lie from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}. "
      "Check num_classes."
    )
  return labels.astype(np.int32)


def apportion(quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Rounds quotas down or up so that their rounded total is kept: largest remainders go up."""
  floors = np.floor(quotas)
  extra = int(np.floor(quotas.sum() - floors.sum() + 0.5))
  # Equal remainders may differ in their last bit; `rng` must decide between those, not the bit.
  remainders = np.round(quotas - floors, 9)
  shuffled = rng.permutation(len(quotas))
  largest = shuffled[np.argsort(-remainders[shuffled], kind="stable")]
  counts = floors.astype(np.int64)
  counts[largest[:extra]] += 1
  return counts


def draw_per_class(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Draws `counts[c]` positions of each class c without replacement, sorted."""
  drawn = [
    rng.choice(np.flatnonzero(labels == label), count, replace=False)
    for label, count in enumerate(counts)
    if count
  ]
  return np.sort(np.concatenate([np.empty(0, np.int64), *drawn]))
