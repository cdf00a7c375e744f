"""Pictures of weights and of training, drawn into axes that the caller owns."""

from reweight_jax.plotting.curves import accuracy_curves
from reweight_jax.plotting.weights import weight_histogram

__all__ = ["accuracy_curves", "weight_histogram"]
