"""Small functions of arrays that many modules need."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax.types import Array, Params, ScalarLike


def at_least_float32(array: Array) -> Array:
  """Casts floats below float32 up to it; float64 and integers pass as they are."""
  # By hand: strict dtype promotion refuses to promote bfloat16 and float32.
  if jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits < 32:
    return array.astype(jnp.float32)
  return array


def num_real(mask: Array, dtype: Any) -> Array:
  """Number of True entries, at least 1 so that one can divide by it, as a scalar of `dtype`."""
  return jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1).astype(dtype)


def zeros_for_none(tree: Params, like: Params) -> Params:
  """A tree in which None stands for a leaf or branch of zeros, with the zeros written out."""
  zeros = lambda branch: jax.tree.map(jnp.zeros_like, branch)
  fill = lambda given, branch: zeros(branch) if given is None else given
  return jax.tree.map(fill, tree, like, is_leaf=lambda given: given is None)


def moving_average(
  average: Array, count: Array, value: Array, decay: ScalarLike, *, moves: Array
) -> tuple[Array, Array]:
  """One step of an exponential moving average that starts at 0, and how many it has made.

  Computed in the value's dtype. Where `moves` is False both wait.
  """
  # optax.tree.update_moment would say this, but not under strict dtype promotion.
  kept, old = jnp.asarray(decay, value.dtype), average.astype(value.dtype)
  new = jnp.where(moves, kept * old + (1 - kept) * value, old)
  return new, jnp.where(moves, optax.safe_increment(count), count)


def bias_corrected(average: Array, count: Array, decay: ScalarLike) -> Array:
  """The moving average over the share that its steps have filled; 0 before the first."""
  kept = jnp.asarray(decay, average.dtype)
  return average / (1 - kept ** jnp.maximum(count, 1).astype(average.dtype))
