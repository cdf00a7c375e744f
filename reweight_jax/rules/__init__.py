"""Weighting rules: optax gradient transformations whose updates are the weights of one batch.

Compose them with `optax.chain`, `optax.named_chain`, `optax.inject_hyperparams` and the like. A
weight of 1 is an ordinary example; weights start at 1 (0 for padding) and rules multiply.

| file | what its rules look at |
| --- | --- |
| shaping | the weights themselves, and the step |
| baselines | nothing |
| loss_based | the loss: transforms, self-paced, SuperLoss |
| selection | the order of the losses in the batch: small, large, in between |
| probability_based | the probability of the label: the robust losses, bootstrapping |
| focal | the same, for what is not yet fitted: focal and asymmetric focal |
| emphasis | the same, choosing gradient lengths: derivative manipulation |
| tails | the margin of the label: the polynomial tail, margins by class |
| gradient_density | how crowded each gradient length is: GHM |
| class_priors | class counts |
| importance | densities and class shares of another distribution |
| by_index | what is known of each example, by its index: RHO, JTT, smoothing |
"""

from reweight_jax.rules._rule import weighting_rule
from reweight_jax.rules.baselines import RandomWeightsState, random_weights, uniform
from reweight_jax.rules.by_index import (
  SmoothByIndexState,
  just_train_twice,
  reducible_loss,
  smooth_by_index,
)
from reweight_jax.rules.class_priors import class_balanced, class_weights, inverse_frequency
from reweight_jax.rules.emphasis import emphasis, exponential_emphasis
from reweight_jax.rules.focal import (
  asymmetric_focal,
  asymmetric_focal_transform,
  focal,
  focal_transform,
)
from reweight_jax.rules.gradient_density import GradientHarmonizingState, gradient_harmonizing
from reweight_jax.rules.importance import importance_ratio, label_shift, label_shift_ratios
from reweight_jax.rules.loss_based import (
  SuperLossState,
  loss_transform,
  self_paced,
  self_paced_mixture,
  super_loss,
)
from reweight_jax.rules.probability_based import (
  bootstrapped_confidence,
  generalized_cross_entropy,
  symmetric_cross_entropy,
  taylor_cross_entropy,
)
from reweight_jax.rules.selection import hard_mining, large_loss, loss_quantiles, small_loss
from reweight_jax.rules.shaping import (
  NormalizeState,
  after_burn_in,
  clip_weights,
  mix_with_uniform,
  normalize,
  rectify,
  where_examples,
)
from reweight_jax.rules.tails import ldam, polynomial_tail

__all__ = [
  "GradientHarmonizingState",
  "NormalizeState",
  "RandomWeightsState",
  "SmoothByIndexState",
  "SuperLossState",
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
  "gradient_harmonizing",
  "hard_mining",
  "importance_ratio",
  "inverse_frequency",
  "just_train_twice",
  "label_shift",
  "label_shift_ratios",
  "large_loss",
  "ldam",
  "loss_quantiles",
  "loss_transform",
  "mix_with_uniform",
  "normalize",
  "polynomial_tail",
  "random_weights",
  "rectify",
  "reducible_loss",
  "self_paced",
  "self_paced_mixture",
  "small_loss",
  "smooth_by_index",
  "super_loss",
  "symmetric_cross_entropy",
  "taylor_cross_entropy",
  "uniform",
  "weighting_rule",
  "where_examples",
]
