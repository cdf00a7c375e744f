"""Weights from a meta batch: the routes to the meta-gradient, and the rules that ask for it.

| file | what it holds |
| --- | --- |
| routes | the meta-gradient of the virtual weights |
| reweight | learning to reweight: the weights are the gradient itself |
| learned | rules whose factors have parameters, learned by the meta-gradient: the engine |
| weight_net | such factors from a net of the loss: Meta-Weight-Net, CMW-Net |
| lilaw | such factors from three numbers, learned as published or by the meta-gradient |
| subset | which layers the meta-gradient may be restricted to |
"""

from reweight_jax.meta.learned import LearnedWeightsState, learned_params, learned_weights
from reweight_jax.meta.lilaw import LilawScalars, lilaw, lilaw_meta_gradient
from reweight_jax.meta.reweight import align, example_weights, learning_to_reweight
from reweight_jax.meta.routes import ROUTES, forward_alignment, meta_direction, nested_alignment
from reweight_jax.meta.subset import ChosenLayers, choose_layers
from reweight_jax.meta.weight_net import (
  class_aware_weight_net,
  class_size_groups,
  meta_weight_net,
  weight_curve,
)

__all__ = [
  "ROUTES",
  "ChosenLayers",
  "LearnedWeightsState",
  "LilawScalars",
  "align",
  "choose_layers",
  "class_aware_weight_net",
  "class_size_groups",
  "example_weights",
  "forward_alignment",
  "learned_params",
  "learned_weights",
  "learning_to_reweight",
  "lilaw",
  "lilaw_meta_gradient",
  "meta_direction",
  "meta_weight_net",
  "nested_alignment",
  "weight_curve",
]
