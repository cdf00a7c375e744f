"""Imbalance made and unmade: which examples to keep so that classes become rare, or balanced."""

import numpy as np

from reweight_jax.data.dataset import DataError
from reweight_jax.data.splits import check_labels, draw_per_class

IMBALANCES = ("none", "long_tail", "step")
"""The kinds of imbalance that `imbalanced_indices` knows."""


def imbalanced_indices(
  labels: np.ndarray, num_classes: int, kind: str, ratio: float, rng: np.random.Generator
) -> np.ndarray:
  r"""Draws the examples that stay, so that the largest class is `ratio` times the smallest.

  With :math:`n` the size of the smallest class there is, :math:`K` classes and ratio :math:`\rho`,
  class :math:`c` keeps

  * `long_tail`: :math:`\lfloor n \rho^{-c/(K-1)} \rfloor` examples.
  * `step`: :math:`n` in the first half of the classes, :math:`\lfloor n / \rho \rfloor` in the rest
    (the larger half if :math:`K` is odd).
  * `none`: all of its examples; takes ratio 1 only.

  Args:
    labels: `[examples]` integers.
    num_classes: how many classes there are, at least 2 unless the kind is `none`.
    kind: one of `IMBALANCES`.
    ratio: largest class to smallest, at least 1.
    rng: draws the examples.

  Returns:
    Positions in `labels`, sorted, int64.

  Raises:
    DataError: if a class has no examples, or would be left without.
    ValueError: for an unknown kind, a ratio below 1 or one that the kind does not take, or labels
      that are not a vector of integers below `num_classes`.

  Source: `long_tail`: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number
  of Samples", 2019, arXiv 1901.05555; `step`: Buda, Maki, Mazurowski, "A systematic study of the
  class imbalance problem in convolutional neural networks", 2018, arXiv 1710.05381.

  Example:
    >>> labels = np.repeat(np.arange(3), 100)
    >>> kept = imbalanced_indices(labels, 3, "long_tail", 100, np.random.default_rng(0))
    >>> print(np.bincount(labels[kept]))
    [100  10   1]
  """
  if kind not in IMBALANCES:
    raise ValueError(f"kind must be one of {', '.join(IMBALANCES)}, got {kind!r}.")
  if not ratio >= 1 or (kind == "none" and ratio != 1):
    raise ValueError(f"ratio must be at least 1, and 1 for kind 'none', got {ratio} for {kind!r}.")
  labels = check_labels(labels, num_classes)
  if kind == "none":
    return np.arange(len(labels))
  if num_classes < 2:
    raise ValueError(f"imbalance {kind!r} needs at least 2 classes, got {num_classes}.")
  smallest = int(np.bincount(labels, minlength=num_classes).min())
  classes = np.arange(num_classes)
  shares = classes / (num_classes - 1) if kind == "long_tail" else classes >= num_classes // 2
  # Rounded first: 100 * 100 ** -0.5 must not be 9.999999999999998.
  counts = np.floor(np.round(smallest * ratio ** -shares.astype(float), 9)).astype(int)
  if not smallest:
    absent = int(np.bincount(labels, minlength=num_classes).argmin())
    raise DataError(
      f"imbalance {kind!r} expects examples of every class, got none of class {absent}. Give more "
      "examples, or number the classes without a gap."
    )
  if counts.min() < 1:
    raise DataError(
      f"a ratio of {ratio:g} leaves class {int(counts.argmin())} without examples: the smallest of "
      f"the classes has {smallest}. Lower the ratio."
    )
  return draw_per_class(labels, counts, rng)


def undersampled_indices(
  labels: np.ndarray, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws as many examples of every class as the rarest has, without replacement.

  What stays is balanced for good: a net that fits all its examples forgets class weights, and
  copies of examples, which are weights, but not which examples there were.

  Args:
    labels: `[examples]` integers, as training sees them.
    num_classes: how many classes there are.
    rng: draws the examples.

  Returns:
    Positions in `labels`, sorted, int64; all of them if the classes are equally frequent.

  Raises:
    DataError: if a class has no examples.
    ValueError: if labels are not a vector of integers below `num_classes`.

  Source: undersampling as in Buda, Maki, Mazurowski 2018, arXiv 1710.05381.

  Example:
    >>> kept = undersampled_indices(np.array([0, 0, 1, 0, 1]), 2, np.random.default_rng(0))
    >>> print(np.array([0, 0, 1, 0, 1])[kept].sum(), len(kept))
    2 4
  """
  labels = check_labels(labels, num_classes)
  counts = np.bincount(labels, minlength=num_classes)
  if not counts.all():
    raise DataError(
      f"undersampling expects examples of every class, got none of class {counts.argmin()}. Give "
      "more examples, or number the classes without a gap."
    )
  return draw_per_class(labels, np.full(num_classes, counts.min()), rng)
