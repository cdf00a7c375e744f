"""Scores of any kind brought into [0, 1], so that maps from difficulty to weight can be shared."""

from collections.abc import Callable

import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32
from reweight_jax.types import Array


def ranks(scores: Array) -> Array:
  """Ranks from 0, the smallest, to 1, the largest; jittable.

  Guarantees: the same for every increasing function of the scores.
  Edge cases: equal scores share the mean of their ranks, infinite ones have theirs; NaN stays NaN
  and counts for nothing. A single score has rank 0.

  Args:
    scores: `[examples]`.

  Returns:
    `[examples]` in [0, 1], float32 or wider.

  Source: mid-ranks, as in the Mann-Whitney statistic.

  Example:
    >>> print(ranks(jnp.array([3.0, jnp.nan, 1.0, 3.0])))
    [0.75  nan 0.   0.75]
  """
  scores = _floating(scores)
  known = ~jnp.isnan(scores)
  filled = jnp.where(known, scores, jnp.inf)  # after all others
  count, ordered = jnp.sum(known, dtype=jnp.int32), jnp.sort(filled)
  below = jnp.searchsorted(ordered, filled, side="left").astype(jnp.int32)
  up_to = jnp.minimum(jnp.searchsorted(ordered, filled, side="right").astype(jnp.int32), count)
  twice = (below + up_to - 1).astype(scores.dtype)
  return jnp.where(known, twice / (2 * jnp.maximum(count - 1, 1)).astype(scores.dtype), jnp.nan)


def share_of_range(scores: Array) -> Array:
  """Scores moved and scaled so that the smallest is 0 and the largest 1; jittable.

  Edge cases: infinite scores count as the nearest finite one; NaN stays NaN; equal scores are all
  0. One outlier presses all others together: then take `ranks`.

  Args:
    scores: `[examples]`.

  Returns:
    `[examples]` in [0, 1], float32 or wider.

  Source: a linear map.

  Example:
    >>> print(share_of_range(jnp.array([3.0, jnp.nan, 1.0, 5.0, jnp.inf])))
    [0.5 nan 0.  1.  1. ]
  """
  # XLA divides by multiplying with the reciprocal, which a range of 2e38 would flush to 0.
  parts = _floating(scores) / 16
  finite = jnp.isfinite(parts)
  low = jnp.min(parts, where=finite, initial=jnp.inf)
  high = jnp.max(parts, where=finite, initial=-jnp.inf)
  spread = high > low
  shares = (jnp.clip(parts, low, high) - low) / jnp.where(spread, high - low, 1)
  return jnp.where(spread | jnp.isnan(parts), shares, 0)


SCALES: dict[str, Callable[[Array], Array]] = {"ranks": ranks, "range": share_of_range}


def _floating(scores: Array) -> Array:
  is_floating = jnp.issubdtype(scores.dtype, jnp.floating)
  return at_least_float32(scores) if is_floating else scores.astype(jnp.result_type(float))
