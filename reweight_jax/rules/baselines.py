"""Rules that know nothing: what every table needs beside the clever ones."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, Key, Params, WeightingRule


def uniform() -> WeightingRule:
  """Gives every real example weight 1 and padding 0, whatever the weights were.

  Returns:
    A rule needing evidence ``mask`` [batch] bool.

  Source: empirical risk minimization.

  Example:
    >>> print(uniform().update(jnp.array([3.0, 0.0]), (), mask=jnp.array([True, False]))[0])
    [1. 0.]
  """
  return weighting_rule(lambda weights, *, mask, **unused: mask)


class RandomWeightsState(NamedTuple):
  """State of `random_weights`."""

  key: Key  # [] JAX key of the rule
  num_batches: Array  # [] int32, batches seen


def random_weights(seed: int | Key = 0) -> WeightingRule:
  r"""Multiplies by rectified Gaussian noise: :math:`w_i \max(z_i, 0)`, :math:`z_i \sim N(0, 1)`.

  The baseline that tells the effect of random weights from that of good ones. Chain `normalize`
  after it for the published form.

  Guarantees: padding stays at weight 0. Draws belong to the step and the example's index, not to
  its place in the batch: permuting the batch permutes the weights, and sharding does not matter.
  Edge cases: half of the weights are 0; two copies of one index in a batch draw the same number.

  Args:
    seed: integer, or a JAX key.

  Returns:
    A rule needing evidence ``indices`` [batch] int32.

  Source: the Random baseline of Ren et al. 2018, arXiv 1803.09050, section 4.1, the Random row.

  Example:
    >>> rule = random_weights(0)
    >>> weights, _ = rule.update(jnp.ones(4), rule.init(jnp.ones(4)), indices=jnp.arange(4))
    >>> print(weights.shape, bool((weights >= 0).all()))
    (4,) True
  """
  key = jax.random.key(int(seed)) if isinstance(seed, numbers.Integral) else seed

  def init(weights: Array) -> RandomWeightsState:
    del weights
    # A copy: a step may donate its state, and the factory's key must outlive it.
    return RandomWeightsState(jnp.copy(key), jnp.zeros((), jnp.int32))

  def update(
    updates: Array,
    state: RandomWeightsState,
    params: Params = None,
    *,
    indices: Array,
    **unused: Any,
  ) -> tuple[Array, RandomWeightsState]:
    del params, unused
    step_key = jax.random.fold_in(state.key, state.num_batches)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, indices)
    noise = jax.vmap(lambda key: jax.random.normal(key, (), updates.dtype))(keys)
    state = RandomWeightsState(state.key, optax.safe_increment(state.num_batches))
    return updates * jnp.maximum(noise, 0), state

  return optax.GradientTransformationExtraArgs(init, update)
