"""Pictures of weights and of training, drawn into axes or figures that the caller owns."""

from reweight_jax.plotting.curves import accuracy_curves
from reweight_jax.plotting.emphasis import emphasis_densities
from reweight_jax.plotting.gallery import weight_gallery
from reweight_jax.plotting.roc import confusion_matrix, weight_roc
from reweight_jax.plotting.weights import weight_histogram, weight_histograms

__all__ = [
  "accuracy_curves",
  "confusion_matrix",
  "emphasis_densities",
  "weight_gallery",
  "weight_histogram",
  "weight_histograms",
  "weight_roc",
]
