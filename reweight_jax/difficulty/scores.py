"""Difficulty from one forward pass: what a model's logits say about each example."""

import jax
import jax.numpy as jnp

from reweight_jax import losses
from reweight_jax._arrays import at_least_float32
from reweight_jax.types import Array


def log_probabilities_of_label(logits: Array, labels: Array) -> tuple[Array, Array]:
  """`[batch]` logarithms of p and of 1 - p, p the softmax probability of the label."""
  # Through the margin: both keep their digits where p rounds to 0 or to 1.
  half = jax.vmap(losses.unit_margin)(logits, labels)
  return jax.nn.log_sigmoid(-2 * half), jax.nn.log_sigmoid(2 * half)


def el2n(logits: Array, labels: Array) -> Array:
  """Distance of the probabilities from the one-hot label."""
  others = jax.nn.softmax(_others(logits, labels))
  _, log_error = log_probabilities_of_label(logits, labels)
  return jnp.exp(log_error) * jnp.sqrt(1 + jnp.sum(jnp.square(others), axis=-1))


def negative_margin(logits: Array, labels: Array) -> Array:
  """Minus the margin."""
  at_label = jnp.take_along_axis(at_least_float32(logits), labels[:, None], axis=-1)[:, 0]
  return jnp.max(_others(logits, labels), axis=-1) - at_label


def _others(logits: Array, labels: Array) -> Array:
  """The logits with minus infinity in place of the label's."""
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return jnp.where(is_label, -jnp.inf, at_least_float32(logits))
