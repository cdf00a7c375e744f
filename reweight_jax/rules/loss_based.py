"""Rules that read the losses."""

from collections.abc import Callable
from typing import Any

import jax

from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, WeightingRule


def loss_transform(transform: Callable[[Array], Array]) -> WeightingRule:
  r"""Trains on a function of the loss: multiplies by :math:`\varphi'(\ell_i)`.

  Exact: the gradient of :math:`\sum_i \varphi(\ell_i)` is
  :math:`\sum_i \varphi'(\ell_i) \nabla \ell_i`, so training with this rule and training on the
  transformed losses are the same thing.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: where the transform falls with the loss the weight is negative, as the calculus says;
  chain `rectify` to ignore those examples. Finite wherever the transform's derivative is.

  Args:
    transform: differentiable scalar function of one loss in nats, written with `jax.numpy`.

  Returns:
    A rule needing evidence ``losses`` [batch] float.

  Raises:
    TypeError: if `transform` is not callable.

  Source: the chain rule.

  Example:
    >>> rule = loss_transform(lambda loss: loss**2 / 2)
    >>> print(rule.update(jnp.ones(2), (), losses=jnp.array([0.5, 3.0]))[0])
    [0.5 3. ]
  """
  if not callable(transform):
    raise TypeError(f"loss_transform expects a function of one loss, got {transform!r}.")

  def weigh(weights: Array, *, losses: Array, **unused: Any) -> Array:
    return weights * jax.vmap(jax.grad(transform))(losses)

  return weighting_rule(weigh)
