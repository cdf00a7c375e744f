"""The weight ledger: what every example of the training set was given over a run.

Small weights point at suspicious labels; the ledger keeps them by the example's index.
"""

from typing import NamedTuple

import jax.numpy as jnp

from reweight_jax.types import Array, Batch


class WeightLedger(NamedTuple):
  """Sums over a run, one entry per example of the training set."""

  total_weight: Array  # [examples] float
  last_weight: Array  # [examples] float, NaN where never seen
  times_seen: Array  # [examples] int32


def init_ledger(num_examples: int) -> WeightLedger:
  """An empty ledger for indices 0 to `num_examples - 1`."""
  zeros = jnp.zeros(num_examples)
  return WeightLedger(zeros, jnp.full_like(zeros, jnp.nan), jnp.zeros(num_examples, jnp.int32))


def record(ledger: WeightLedger, batch: Batch, weights: Array) -> WeightLedger:
  """Enters the weights of one batch; jittable.

  Guarantees: padding, and indices outside the ledger, change nothing.

  Args:
    ledger: the ledger so far.
    batch: the batch, whose `indices` say where to write.
    weights: `[batch]`, from the step's metrics.

  Returns:
    The new ledger.

  Example:
    >>> batch = rw.types.make_batch(jnp.zeros(2), jnp.zeros(2), indices=jnp.array([2, 0]))
    >>> print(mean_weights(record(init_ledger(3), batch, jnp.array([0.5, 1.5]))))
    [1.5 nan 0.5]
  """
  is_known = batch.mask & (batch.indices >= 0)
  places = jnp.where(is_known, batch.indices, ledger.times_seen.shape[0])
  weights = weights.astype(ledger.total_weight.dtype)
  return WeightLedger(
    ledger.total_weight.at[places].add(weights, mode="drop"),
    ledger.last_weight.at[places].set(weights, mode="drop"),
    ledger.times_seen.at[places].add(1, mode="drop"),
  )


def mean_weights(ledger: WeightLedger) -> Array:
  """`[examples]` mean weight over the times an example was seen; NaN where never."""
  times = jnp.maximum(ledger.times_seen, 1).astype(ledger.total_weight.dtype)
  mean = ledger.total_weight / times
  return jnp.where(ledger.times_seen > 0, mean, jnp.nan)
