"""How a rule is written: one function from weights and evidence to weights."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from reweight_jax.types import Array, Params, WeightingRule


def weighting_rule(weigh: Callable[..., Array]) -> WeightingRule:
  """Makes a stateless weighting rule of `weigh(weights, *, evidence..., **unused) -> weights`.

  The returned rule always takes keyword evidence, so that `optax.chain` hands it on, and returns
  weights of the shape and dtype that came in. Evidence that `weigh` names and the caller forgets is
  an ordinary TypeError that names the keyword.

  Args:
    weigh: takes `[batch]` weights and the evidence that it names as keyword-only arguments, and
      ends with `**unused`.

  Returns:
    A rule without state.

  Example:
    >>> halve = weighting_rule(lambda weights, **unused: weights / 2)
    >>> print(halve.update(jnp.ones(2), halve.init(jnp.ones(2)))[0])
    [0.5 0.5]
  """

  def init(weights: Array) -> optax.EmptyState:
    del weights
    return optax.EmptyState()

  def update(
    updates: Array, state: optax.EmptyState, params: Params = None, **evidence: Any
  ) -> tuple[Array, optax.EmptyState]:
    del params
    return jnp.asarray(weigh(updates, **evidence), updates.dtype), state

  return optax.GradientTransformationExtraArgs(init, update)


def times(weights: Array, factors: Array) -> Array:
  """Weights times factors, 0 where the weight is 0, even if the factor is infinite or NaN."""
  return jnp.where(weights == 0, 0, weights * factors.astype(weights.dtype))
