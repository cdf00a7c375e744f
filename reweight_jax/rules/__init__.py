"""Weighting rules: optax gradient transformations whose updates are the weights of one batch.

Compose them with `optax.chain`, `optax.named_chain`, `optax.inject_hyperparams` and the like. A
weight of 1 is an ordinary example; weights start at 1 (0 for padding) and rules multiply.

| file | what its rules look at |
| --- | --- |
| shaping | the weights themselves |
| baselines | nothing |
| loss_based | the losses |
| probability_based | the probability of the label |
| emphasis | the same, choosing gradient lengths: derivative manipulation |
| class_priors | class counts |
"""

from reweight_jax.rules._rule import weighting_rule
from reweight_jax.rules.baselines import RandomWeightsState, random_weights, uniform
from reweight_jax.rules.class_priors import class_balanced, class_weights, inverse_frequency
from reweight_jax.rules.emphasis import emphasis, exponential_emphasis
from reweight_jax.rules.loss_based import loss_transform
from reweight_jax.rules.probability_based import (
  asymmetric_focal,
  asymmetric_focal_transform,
  bootstrapped_confidence,
  focal,
  focal_transform,
  generalized_cross_entropy,
  symmetric_cross_entropy,
  taylor_cross_entropy,
)
from reweight_jax.rules.shaping import (
  NormalizeState,
  after_burn_in,
  clip_weights,
  mix_with_uniform,
  normalize,
  rectify,
  where_examples,
)

__all__ = [
  "NormalizeState",
  "RandomWeightsState",
  "after_burn_in",
  "asymmetric_focal",
  "asymmetric_focal_transform",
  "bootstrapped_confidence",
  "class_balanced",
  "class_weights",
  "clip_weights",
  "emphasis",
  "exponential_emphasis",
  "focal",
  "focal_transform",
  "generalized_cross_entropy",
  "inverse_frequency",
  "loss_transform",
  "mix_with_uniform",
  "normalize",
  "random_weights",
  "rectify",
  "symmetric_cross_entropy",
  "taylor_cross_entropy",
  "uniform",
  "weighting_rule",
  "where_examples",
]
