r"""Maps from difficulty to weight: easy first, hard first, medium first, two ends first.

One family holds them all. Of a difficulty :math:`d`, larger is harder, brought into [0, 1],

.. math:: w(d) = (d + a)^{\gamma} e^{-\gamma' (d + a)}, \qquad a > 0.

:math:`(\log w)' = \gamma / (d + a) - \gamma'` is 0 only at :math:`d^* = \gamma / \gamma' - a`:

| mode | power :math:`\gamma` | rate :math:`\gamma'` | weight over difficulty |
| --- | --- | --- | --- |
| easy first | 0 (or less) | > 0 (or 0) | falls everywhere |
| hard first | > 0 (or 0) | 0 (or less) | rises everywhere |
| medium first | > 0 | > 0 | rises up to :math:`d^*`, falls after it |
| two ends first | < 0 | < 0 | falls down to :math:`d^*`, rises after it |

With :math:`d^*` outside of [0, 1] the last two are in fact one of the first two.

Source: the four modes, Zhou and Wu, "Which Samples Should be Learned First: Easy or Hard?", 2021,
arXiv 2110.05481, abstract; the table is the sign of the derivative above, and choosing the numbers
by a ratio of weights and a place is ours.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reweight_jax._validate import check_choice, check_number
from reweight_jax.difficulty.scales import SCALES
from reweight_jax.types import Array, ScalarLike


class DifficultyMode(NamedTuple):
  """Which difficulty weighs most: the numbers of the flexible family, made by `flexible` and co."""

  power: ScalarLike  # of d + offset
  rate: ScalarLike  # of the exponential decay
  offset: ScalarLike  # > 0, added to the difficulty


def flexible(power: ScalarLike, rate: ScalarLike, offset: ScalarLike = 1.0) -> DifficultyMode:
  r"""The family itself: :math:`(d + a)^{\gamma} e^{-\gamma' (d + a)}`, before it averages 1.

  Args:
    power: :math:`\gamma`, any sign.
    rate: :math:`\gamma'`, any sign. The table above says which signs give which mode.
    offset: :math:`a`, > 0.

  Raises:
    ValueError: if a Python number is not finite, or `offset` not positive.

  Source: as above.

  Example:
    >>> weights = weights_of_difficulty(jnp.arange(3.0), flexible(power=1.0, rate=0.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.67', '1.00', '1.33']
  """
  check_number("flexible: power", power)
  check_number("flexible: rate", rate)
  check_number("flexible: offset", offset, above=0)
  return DifficultyMode(power, rate, offset)


def easy_first(ratio: ScalarLike = 10.0) -> DifficultyMode:
  """Weights that fall exponentially with difficulty: against wrong labels.

  Args:
    ratio: weight of the easiest over that of the hardest, >= 1. As weights average 1, all lie in
      [1/ratio, ratio]; 1 weighs all alike. The same holds for the other modes.

  Raises:
    ValueError: if `ratio` is a Python number below 1.

  Source: power 0 and rate log(ratio).

  Example:
    >>> weights = weights_of_difficulty(jnp.arange(3.0), easy_first(4.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['1.71', '0.86', '0.43']
  """
  return DifficultyMode(0.0, _log_ratio("easy_first", ratio), 1.0)


def hard_first(ratio: ScalarLike = 10.0, offset: ScalarLike = 1.0) -> DifficultyMode:
  """Weights that rise with a power of difficulty: for rare groups, where labels are right.

  Args:
    ratio: weight of the hardest over that of the easiest, >= 1.
    offset: > 0; the smaller, the sooner the weights rise.

  Raises:
    ValueError: if a Python number is out of range.

  Source: rate 0 and power log(ratio) / log((1 + offset) / offset).

  Example:
    >>> weights = weights_of_difficulty(jnp.arange(3.0), hard_first(4.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.41', '0.93', '1.66']
  """
  check_number("hard_first: offset", offset, above=0)
  return DifficultyMode(_log_ratio("hard_first", ratio) / jnp.log1p(1 / offset), 0.0, offset)


def medium_first(
  ratio: ScalarLike = 10.0, peak: ScalarLike = 0.5, offset: ScalarLike = 1.0
) -> DifficultyMode:
  """Weights that are largest at one difficulty: passes over both what is learned and what is wrong.

  Args:
    ratio: weight at the peak over that of the easiest or hardest, whichever is less, >= 1.
    peak: where the weights are largest, in [0, 1]; 1/2 is the median of ranks.
    offset: > 0; the larger, the more alike both sides are.

  Raises:
    ValueError: if a Python number is out of range.

  Source: power / rate = peak + offset, and the rate that makes the ratio.

  Example:
    >>> weights = weights_of_difficulty(jnp.arange(3.0), medium_first(4.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.45', '1.80', '0.75']
  """
  return _with_extremum("medium_first", _log_ratio("medium_first", ratio), peak, offset)


def two_ends_first(
  ratio: ScalarLike = 10.0, trough: ScalarLike = 0.5, offset: ScalarLike = 1.0
) -> DifficultyMode:
  """Weights that are smallest at one difficulty: those of `medium_first`, upside down.

  Args:
    ratio: weight of the easiest or hardest, whichever is more, over that at the trough, >= 1.
    trough: where the weights are smallest, in [0, 1].
    offset: > 0; the larger, the more alike both sides are.

  Raises:
    ValueError: if a Python number is out of range.

  Source: both numbers of `medium_first` with the other sign.

  Example:
    >>> weights = weights_of_difficulty(jnp.arange(3.0), two_ends_first(4.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['1.62', '0.41', '0.97']
  """
  return _with_extremum("two_ends_first", -_log_ratio("two_ends_first", ratio), trough, offset)


MODES: dict[str, Callable[[ScalarLike], DifficultyMode]] = {
  mode.__name__: mode for mode in (easy_first, hard_first, medium_first, two_ends_first)
}


def weights_of_difficulty(
  scores: Array,
  mode: DifficultyMode,
  *,
  scale: str = "ranks",
  max_weight: ScalarLike | None = None,
) -> Array:
  r"""The weight of every example of a data set, by its difficulty; jittable.

  Guarantees: finite, not negative, averaging 1 over the examples with a score; an increasing
  function of the scores changes nothing where the scale is "ranks".
  Edge cases: an example without a score (NaN: never seen) weighs 1; equal scores weigh alike, all
  of them 1 if all are equal. Numbers of the family so large that float32 cannot hold the ratio
  give weights of 0.

  Args:
    scores: `[examples]`, larger is harder.
    mode: from `easy_first`, `hard_first`, `medium_first`, `two_ends_first` or `flexible`.
    scale: how scores come into [0, 1]: "ranks", or "range" for shares of the range.
    max_weight: the weights are scaled and cut such that all lie in [1/max_weight, max_weight] and
      still average 1; >= 1. None does not cut.

  Returns:
    `[examples]` float32 or wider. `metrics.effective_sample_size` of it is the number of examples
    that it is worth.

  Raises:
    ValueError: if `scale` is another word, `scores` no vector, or `max_weight` below 1.

  Source: as above; the bounds are those of one scale, found by halving, since the mean of the cut
    weights grows with it.

  Example:
    >>> weights = weights_of_difficulty(jnp.array([0.1, 2.0, 0.3]), easy_first(4.0))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['1.71', '0.43', '0.86']
    >>> print(f"{rw.metrics.effective_sample_size(weights):.2f} of 3 examples")
    2.33 of 3 examples
  """
  check_choice("weights_of_difficulty: scale", scale, tuple(SCALES))
  if max_weight is not None:
    check_number("weights_of_difficulty: max_weight", max_weight, at_least=1)
  if jnp.ndim(scores) != 1:
    raise ValueError(
      "weights_of_difficulty expects a vector of one score for each example, got shape "
      f"{jnp.shape(scores)}."
    )
  difficulty = SCALES[scale](jnp.asarray(scores))
  known = ~jnp.isnan(difficulty)
  power, rate, offset = (jnp.asarray(number, difficulty.dtype) for number in mode)
  filled = jnp.where(known, difficulty, 0)
  logs = power * jnp.log1p(filled / offset) - rate * filled  # up to a constant
  logs -= jnp.max(logs, where=known, initial=-jnp.inf)  # the exponential cannot overflow
  if max_weight is None:
    weights = jnp.exp(logs) / jnp.mean(jnp.exp(logs), where=known)
  else:
    weights = _bounded(logs, known, jnp.log(jnp.asarray(max_weight, logs.dtype)))
  return jnp.where(known, weights, 1)


def _bounded(logs: Array, known: Array, limit: Array) -> Array:
  """Weights of mean 1 from logarithms <= 0: shifted, then cut at both limits."""
  cut = lambda shift: jnp.exp(jnp.clip(logs + shift, -limit, limit))

  def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    middle = (ends[0] + ends[1]) / 2
    is_low = jnp.mean(cut(middle), where=known) < 1
    return jnp.where(is_low, middle, ends[0]), jnp.where(is_low, ends[1], middle)

  # At one end all weights are at the lower limit, at the other all at the upper.
  ends = (-limit, limit - jnp.min(logs, where=known, initial=0))
  return cut(jax.lax.fori_loop(0, 50, halve, ends)[1])


def _log_ratio(name: str, ratio: ScalarLike) -> ScalarLike:
  check_number(f"{name}: ratio", ratio, at_least=1)
  return math.log(ratio) if isinstance(ratio, (int, float)) else jnp.log(ratio)


def _with_extremum(
  name: str, log_ratio: ScalarLike, place: ScalarLike, offset: ScalarLike
) -> DifficultyMode:
  """The mode whose only extremum is at `place`, `log_ratio` above the lower end of [0, 1]."""
  check_number(
    f"{name}: {'peak' if name == 'medium_first' else 'trough'}", place, at_least=0, at_most=1
  )
  check_number(f"{name}: offset", offset, above=0)
  at = place + offset
  # (log w(place) - log w(end)) / rate = at (-log(1 - x) - x), x = (place - end) / at.
  per_rate = lambda x: -at * (jnp.log1p(-x) + x)
  rate = log_ratio / jnp.maximum(per_rate(place / at), per_rate((place - 1) / at))
  return DifficultyMode(rate * at, rate, offset)
