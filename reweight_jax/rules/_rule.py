"""How a rule is written: one function from weights and evidence to weights, or to factors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32
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

  Raises:
    ValueError: when the rule is used, if `weigh` returns another shape than it was given.

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
    weights = jnp.asarray(weigh(updates, **evidence), updates.dtype)
    if weights.shape != updates.shape:
      raise ValueError(
        f"weighting_rule expects one weight for each example, shape {updates.shape}, got shape "
        f"{weights.shape} from its function. Multiply by the weights that it is given."
      )
    return weights, state

  return optax.GradientTransformationExtraArgs(init, update)


def times(weights: Array, factors: Array) -> Array:
  """Weights times factors; 0 where the weight is, though the factor be infinite or NaN there."""
  return jnp.where(weights == 0, 0, weights * factors.astype(weights.dtype))


def of_the_loss(factor: Callable[[Array], Array]) -> WeightingRule:
  """Multiplies by an elementwise function of the losses."""

  def weigh(weights: Array, *, losses: Array, **unused: Any) -> Array:
    return times(weights, factor(losses))

  return weighting_rule(weigh)


def of_the_label(factor: Callable[[Array, Array], Array]) -> WeightingRule:
  """Multiplies by a function of one example's logits, cast up to float32 at least, and label."""

  def weigh(weights: Array, *, logits: Array, labels: Array, **unused: Any) -> Array:
    return times(weights, jax.vmap(factor)(at_least_float32(logits), labels))

  return weighting_rule(weigh)
