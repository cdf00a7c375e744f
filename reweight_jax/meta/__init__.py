"""Weights from a meta batch: the routes to the meta-gradient, and the rules that ask for it."""

from reweight_jax.meta.reweight import align, example_weights, learning_to_reweight
from reweight_jax.meta.routes import ROUTES, forward_alignment, meta_direction, nested_alignment

__all__ = [
  "ROUTES",
  "align",
  "example_weights",
  "forward_alignment",
  "learning_to_reweight",
  "meta_direction",
  "nested_alignment",
]
