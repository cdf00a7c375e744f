"""Wrong labels against rare examples: both are hard, and one number cannot tell them apart.

A mislabeled example of a common kind and a rightly labeled one of a rare kind both have a large
held-out error. A second axis differs: what is left of the error when the example is trained on,
whether the neighbors bear other labels, how far away they are. Each fails somewhere when alone.
"""

import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.difficulty.scales import ranks
from reweight_jax.types import Array


def hardest(error: Array, share: float = 0.25) -> Array:
  """Which examples are among the hardest; jittable.

  Edge cases: of n examples with a score it is share * n, rounded up, and all that are as hard as
  the last of those: more, where many are alike as 0-1 errors are. NaN is never hard.

  Args:
    error: `[examples]`, larger is harder.
    share: in (0, 1].

  Returns:
    `[examples]` bool.

  Raises:
    ValueError: if `share` is out of range, or `error` no vector.

  Source: a quantile.

  Example:
    >>> print(hardest(jnp.array([0.1, 0.9, jnp.nan, 0.8, 0.3]), share=0.5))
    [False  True False  True False]
  """
  check_number("hardest: share", share, above=0, at_most=1)
  _check_vector("hardest: error", error)
  error = jnp.asarray(error)
  known = ~jnp.isnan(error)
  filled = jnp.where(known, error, -jnp.inf)
  # Less a thousandth: 0.1 * 10 in float32 must not be rounded up to 2.
  count = jnp.ceil(jnp.sum(known) * share - 1e-3).astype(jnp.int32)
  return known & (filled >= jnp.sort(filled)[error.size - jnp.maximum(count, 1)])


def noise_or_rare(
  error: Array,
  *,
  memorization: Array | None = None,
  disagreement: Array | None = None,
  distance: Array | None = None,
  hard_share: float = 0.25,
) -> Array:
  r"""Calls the hard examples: towards 1 rather mislabeled, towards -1 rather rare.

  Among the hardest each axis casts a vote, from -1 to 1 by the example's rank in it, and the votes
  are averaged. For noise speak a large error; with `memorization` what is left of it, error minus
  memorization, the error of models that were trained on the example; neighbors with another label.
  For rarity speaks a large distance to the neighbors, whose labels do not matter.

  Which axes: AUROC of mislabeled against rare among the hard on a synthetic problem of 600 examples
  of three Gaussian classes in 10 dimensions, 15 % labels flipped, 20 rare examples of one class
  (scattered; far behind another class, in two widths; in a loose or a tight island beside it), 30
  ridge regressions on 200 random features, each on 70 % of the examples, weakly, moderately or
  strongly regularized. Means of 5 seeds not used to choose; mean and worst of the 14 settings in
  which a rare example was hard at all:

  | axes | mean | worst |
  | --- | --- | --- |
  | error alone | 0.79 | 0.61 |
  | memorization alone, less is noise | 0.74 | 0.53 |
  | distance alone, less is noise | 0.59 | 0.00 |
  | disagreement alone | 0.80 | 0.59 |
  | error, distance | 0.74 | 0.44 |
  | error, memorization | 0.82 | 0.62 |
  | the same, as accuracies | 0.76 | 0.52 |
  | error, disagreement | 0.83 | 0.65 |
  | error, disagreement, distance | 0.85 | 0.70 |
  | error, disagreement, memorization | 0.85 | 0.69 |
  | all four | 0.84 | 0.64 |

  Give disagreement, then, and one of the other two. Distance is wrong about a tight island of rare
  examples, which is dense; memorization about models that fit every label.

  Guarantees: in [-1, 1]; an increasing function of `error`, `disagreement` or `distance` changes
  nothing, but for `error` with `memorization`, whose difference is taken.
  Edge cases: examples that are not among the hardest, and those without all of the numbers, are
  NaN, which `metrics.auroc` does not count. Hard for another reason, as close to a boundary, is
  anywhere in between: it is a call between two, not a proof. Data without noise has a noisiest
  example, too.

  Args:
    error: `[examples]`, held-out error or loss, larger is harder.
    memorization: `[examples]` in the unit of `error`: how much lower it is when trained on. With
      `difficulty.memorization`, of accuracies, `error` is `inconsistency`; with probabilities, as
      in the table, 1 minus that of the label.
    disagreement: `[examples]`, share of the nearest neighbors with another label.
    distance: `[examples]`, mean distance to the nearest neighbors, of whatever label.
    hard_share: share of the examples that is called, in (0, 1].

  Returns:
    `[examples]` in [-1, 1] or NaN, float32 or wider.

  Raises:
    ValueError: if there is no axis besides the error, shapes differ, or `hard_share` is out of
      range.

  Source: memorization, Feldman and Zhang, "What Neural Networks Memorize and Why", 2020, arXiv
    2008.03703, eq. (1); the vote is ours, the simplest of those tried with the best worst case.

  Example:
    >>> disagreement, distance = jnp.array([0.0, 1.0, 0.5, 0.1]), jnp.array([1.0, 1.0, 5.0, 1.0])
    >>> axes = {"disagreement": disagreement, "distance": distance}
    >>> print(noise_or_rare(jnp.array([0.1, 0.9, 0.8, 0.2]), **axes, hard_share=0.5))
    [nan  1. -1. nan]
  """
  axes = {"memorization": memorization, "disagreement": disagreement, "distance": distance}
  given = {name: jnp.asarray(axis) for name, axis in axes.items() if axis is not None}
  if not given:
    raise ValueError(
      "noise_or_rare expects an axis besides the error, which alone cannot tell noise from rarity: "
      "give memorization, or disagreement and distance."
    )
  error = jnp.asarray(error)
  for name, axis in given.items():
    if axis.shape != error.shape:
      raise ValueError(
        f"noise_or_rare expects one number of each axis for each example, shape {error.shape} as "
        f"the error, got shape {axis.shape} of {name}."
      )
  is_hard = hardest(error, hard_share)
  for axis in given.values():
    is_hard &= ~jnp.isnan(axis)
  signs = {"error": 1, "disagreement": 1, "distance": -1}
  left = error - given.pop("memorization") if "memorization" in given else error
  votes = [
    signs[name] * (2 * ranks(jnp.where(is_hard, axis, jnp.nan)) - 1)
    for name, axis in {"error": left, **given}.items()
  ]
  return sum(votes[1:], votes[0]) / len(votes)


def _check_vector(name: str, values: Array) -> None:
  if jnp.ndim(values) != 1 or not jnp.size(values):
    raise ValueError(
      f"{name} expects a vector of one number for each example, got shape {jnp.shape(values)}."
    )
