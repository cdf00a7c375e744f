"""Pictures of weights, training and difficulty, drawn into axes that the caller owns."""

from reweight_jax.plotting.curves import accuracy_curves
from reweight_jax.plotting.difficulty import (
  difficulty_histogram,
  difficulty_map,
  issue_gallery,
)
from reweight_jax.plotting.emphasis import emphasis_densities
from reweight_jax.plotting.gallery import weight_gallery
from reweight_jax.plotting.roc import confusion_matrix, weight_roc
from reweight_jax.plotting.weights import weight_histogram, weight_histograms

__all__ = [
  "accuracy_curves",
  "confusion_matrix",
  "difficulty_histogram",
  "difficulty_map",
  "emphasis_densities",
  "issue_gallery",
  "weight_gallery",
  "weight_histogram",
  "weight_histograms",
  "weight_roc",
]
