"""Rules that read the probability which the model gives to the label."""

from typing import Any

import jax
import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.losses import log_error_probability
from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, ScalarLike, WeightingRule


def focal(gamma: ScalarLike = 2.0) -> WeightingRule:
  r"""Turns attention to examples that are not yet fitted: multiplies by :math:`(1-p_i)^\gamma`.

  :math:`p_i` is the softmax probability of the label, treated as a constant. This is not training
  on the focal loss, whose gradient has one more term: `losses.focal_loss` is that.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1] for any
  finite logits.
  Edge cases: `gamma=0` changes nothing; where p rounds to 1 the weight is computed from the other
  logits and only underflows to 0 from margins of about 88/gamma in float32.

  Args:
    gamma: focusing exponent, >= 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `gamma` is a negative Python number.

  Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv 1708.02002, section 3.2,
    the modulating factor of eq. (4). # Departs from eq. (4): the factor is not differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
    >>> print(focal(gamma=2.0).update(jnp.ones(1), (), **evidence)[0])
    [0.5625]
  """
  check_number("focal: gamma", gamma, at_least=0)

  def factor(logits: Array, label: Array) -> Array:
    return jnp.exp(gamma * log_error_probability(logits, label))

  def weigh(weights: Array, *, logits: Array, labels: Array, **unused: Any) -> Array:
    return weights * jax.vmap(factor)(logits, labels).astype(weights.dtype)

  return weighting_rule(weigh)
