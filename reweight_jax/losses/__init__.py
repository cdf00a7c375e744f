"""Losses of one example, and what lifts one of them and a model to a batch.

A loss here takes the prediction and the label of a *single* example and returns one number in nats;
`from_apply` maps it over the batch, `mixup` over mixtures of its examples. Any function of that
shape works: optax's losses do as they are (`optax.softmax_cross_entropy_with_integer_labels`,
`optax.losses.sigmoid_binary_cross_entropy` for one logit, ...). What stands here is what optax does
not have for one example.
"""

from reweight_jax.losses.emphasis import (
  ARITHMETICS,
  NORMALIZATIONS,
  derivative_manipulation,
  emphasized_margin,
)
from reweight_jax.losses.one_example import (
  focal_loss,
  log_error_probability,
  smoothed_cross_entropy,
  softmax_cross_entropy,
  squared_error,
  token_cross_entropy,
  unit_margin,
)
from reweight_jax.losses.persistent import (
  ldam,
  logit_adjustment,
  polynomial_tail,
  vector_scaling,
  vector_scaling_for,
)
from reweight_jax.losses.robust import (
  absolute_error,
  asymmetric_focal_loss,
  generalized_cross_entropy,
  squared_probability_error,
  symmetric_cross_entropy,
  taylor_cross_entropy,
)
from reweight_jax.losses.whole_batch import from_apply, mixup

__all__ = [
  "ARITHMETICS",
  "NORMALIZATIONS",
  "absolute_error",
  "asymmetric_focal_loss",
  "derivative_manipulation",
  "emphasized_margin",
  "focal_loss",
  "from_apply",
  "generalized_cross_entropy",
  "ldam",
  "log_error_probability",
  "logit_adjustment",
  "mixup",
  "polynomial_tail",
  "smoothed_cross_entropy",
  "softmax_cross_entropy",
  "squared_error",
  "squared_probability_error",
  "symmetric_cross_entropy",
  "taylor_cross_entropy",
  "token_cross_entropy",
  "unit_margin",
  "vector_scaling",
  "vector_scaling_for",
]
