"""Losses of one example, and what lifts one of them and a model to a batch.

A loss here takes the prediction and the label of a *single* example and returns one number in nats;
`from_apply` maps it over the batch, `mixup` over mixtures of its examples. Any function of that
shape works: optax's losses do as they are (`optax.softmax_cross_entropy_with_integer_labels`,
`optax.losses.sigmoid_binary_cross_entropy` for one logit, ...). What stands here is what optax does
not have for one example.
"""

from reweight_jax.losses.one_example import (
  focal_loss,
  log_error_probability,
  smoothed_cross_entropy,
  softmax_cross_entropy,
  squared_error,
  token_cross_entropy,
  unit_margin,
)
from reweight_jax.losses.whole_batch import from_apply, mixup

__all__ = [
  "focal_loss",
  "from_apply",
  "log_error_probability",
  "mixup",
  "smoothed_cross_entropy",
  "softmax_cross_entropy",
  "squared_error",
  "token_cross_entropy",
  "unit_margin",
]
