"""Which member of an ensemble is trained on which examples. NumPy alone; True is trained on."""

import math
from collections.abc import Sequence

import numpy as np

from reweight_jax._validate import check_number


def subset_masks(
  num_examples: int,
  num_members: int,
  *,
  keep: float = 0.7,
  seed: int,
  min_held_out: int = 5,
) -> np.ndarray:
  """Random subsets of equal size, drawn so that all examples are held out equally often.

  Each member holds out the examples that were held out least so far, ties broken at random.

  Guarantees: every member is trained on ``round(keep * num_examples)`` examples; of any two
  examples one is held out at most once more than the other, and each at least `min_held_out` times;
  each member's subset alone is a uniform draw.
  Edge cases: the subsets are not independent of each other: members that follow each other hold
  out different examples for as long as there are some, as the folds of a cross-validation do.
  Classes are not balanced: a class of a few examples may be missing from a subset.

  Args:
    num_examples: size of the data set, at least 2.
    num_members: how many members, at least 1.
    keep: share of the data set that a member is trained on, in (0, 1). The default is that of the
      source.
    seed: of NumPy's generator.
    min_held_out: how many members must hold an example out, at least 1.

  Returns:
    `[members, examples]` bool.

  Raises:
    ValueError: if the members are too few to hold every example out so often, saying how many would
      do, or a number is out of range.

  Source: Feldman and Zhang, "What Neural Networks Memorize and Why", 2020, arXiv 2008.03703,
    section 2: subsets of a share 0.7. # Departs from it: balanced, not drawn one by one.

  Example:
    >>> masks = subset_masks(10, 20, keep=0.7, seed=0)
    >>> print(masks.shape, set(masks.sum(1).tolist()), set((~masks).sum(0).tolist()))
    (20, 10) {7} {6}
  """
  check_number("subset_masks: num_examples", num_examples, at_least=2, whole=True)
  check_number("subset_masks: num_members", num_members, at_least=1, whole=True)
  check_number("subset_masks: keep", keep, above=0, below=1)
  check_number("subset_masks: min_held_out", min_held_out, at_least=1, whole=True)
  num_held_out = num_examples - round(keep * num_examples)
  if not 0 < num_held_out < num_examples:
    raise ValueError(
      f"subset_masks expects a share of {num_examples} examples that leaves some out and some in, "
      f"got keep {keep:g}. Take one nearer to one half."
    )
  fewest = num_members * num_held_out // num_examples
  if fewest < min_held_out:
    enough = math.ceil(min_held_out * num_examples / num_held_out)
    raise ValueError(
      f"subset_masks expects every example held out by at least {min_held_out} members; "
      f"{num_members} members with keep {keep:g} hold some out by {fewest}. {enough} members would "
      "do; or take a smaller keep."
    )
  rng = np.random.default_rng(seed)
  masks = np.ones((num_members, num_examples), bool)
  times_held_out = np.zeros(num_examples, np.int64)
  for row in masks:
    # In [0, 1) apart: among equal counts the order is random, and no tie is left.
    chosen = np.argsort(times_held_out + rng.permutation(num_examples) / num_examples)
    row[chosen[:num_held_out]] = False
    times_held_out += ~row
  return masks


def fold_masks(
  labels: Sequence[int], num_folds: int, num_repeats: int = 1, *, seed: int
) -> np.ndarray:
  """Repeated stratified cross-validation: each member holds out one fold of one repeat.

  Guarantees: every example is held out by exactly one member of each repeat, `num_repeats` in all;
  the folds of a repeat differ by at most one example, and by at most one of each class.
  Edge cases: with one repeat there is one held-out prediction of an example, and no variance.

  Args:
    labels: `[examples]` integers, at least `num_folds` of each class.
    num_folds: parts that the data set is cut into, at least 2.
    num_repeats: how often it is cut anew, at least 1.
    seed: of NumPy's generator.

  Returns:
    `[members, examples]` bool, the members of the first repeat first.

  Raises:
    ValueError: if a class has fewer examples than folds, naming it, `labels` is no vector of
      integers, or a number is out of range.

  Source: Kohavi, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model
    Selection", 1995, section 3.1.

  Example:
    >>> masks = fold_masks([0, 1, 0, 1, 0, 1], num_folds=3, seed=0)
    >>> print(masks.shape, (~masks).sum(0), (~masks)[:, ::2].sum(1))
    (3, 6) [1 1 1 1 1 1] [1 1 1]
  """
  check_number("fold_masks: num_folds", num_folds, at_least=2, whole=True)
  check_number("fold_masks: num_repeats", num_repeats, at_least=1, whole=True)
  table = np.asarray(labels)
  if table.ndim != 1 or not table.size or not np.issubdtype(table.dtype, np.integer):
    raise ValueError(
      f"fold_masks expects labels [examples] of integers, got {table.dtype} of shape {table.shape}."
    )
  classes, counts = np.unique(table, return_counts=True)
  if counts.min() < num_folds:
    rarest = counts.argmin()
    raise ValueError(
      f"fold_masks expects at least {num_folds} examples of each class, one for each fold; class "
      f"{classes[rarest]} has {counts[rarest]}. Take fewer folds, or subset_masks."
    )
  rng = np.random.default_rng(seed)
  masks = np.ones((num_repeats, num_folds, table.size), bool)
  for repeat in masks:
    shuffled = rng.permutation(table.size)
    by_class = shuffled[np.argsort(table[shuffled], kind="stable")]
    repeat[np.arange(table.size) % num_folds, by_class] = False
  return masks.reshape(-1, table.size)
