"""Two small conversions that many rooms need."""

from typing import Any

import jax.numpy as jnp

from reweight_jax.types import Array


def at_least_float32(array: Array) -> Array:
  """Casts floats below float32 up to it; float64 and integers pass as they are."""
  # By hand: strict dtype promotion refuses to promote bfloat16 and float32.
  if jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits < 32:
    return array.astype(jnp.float32)
  return array


def num_real(mask: Array, dtype: Any) -> Array:
  """Number of True entries, at least 1 so that one can divide by it, as a scalar of `dtype`."""
  return jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1).astype(dtype)
