"""Whether the examples of a batch see each other, as BatchNorm in training mode makes them."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

COUPLED = (
  "per-example gradients expect a model whose examples do not see each other; here the loss of one "
  "example depends on another (BatchNorm in training mode does that), so that vmap over single "
  "examples would compute a different function. Use per_example.linearize, whose push and pull are "
  "exact under coupling, or a norm without batch statistics (GroupNorm, LayerNorm)."
)


def examples_are_coupled(
  loss_fn: PerExampleLoss, params: Params, model_state: ModelState, batch: Batch, key: Key | None
) -> bool:
  """Whether changing one made-up example changes the loss of another.

  Runs on two made-up examples and made-up parameters: at most 2/batch of a forward pass, and under
  jit nothing at all in the compiled program. A loss that closes over traced values cannot be run
  while tracing; it is given the benefit of the doubt.
  """
  pair = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), batch)
  shape_of = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype)
  leaves, structure = jax.tree.flatten((*jax.tree.map(shape_of, (params, model_state)), pair))
  return _is_coupled(loss_fn, tuple(leaves), structure, key is not None)


@functools.lru_cache(maxsize=64)
def _is_coupled(
  loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, with_key: bool
) -> bool:
  # Compiled ahead of time, so that it runs at once also while an outer jit is being traced.
  compiled = _loss_before_and_after.lower(loss_fn, leaves, structure, with_key).compile()
  try:
    before, after = compiled()
  except TypeError:  # traced values that the loss closes over have become hidden arguments
    return False
  return not np.allclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _loss_before_and_after(
  loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, with_key: bool
) -> tuple[Array, Array]:
  """The loss of the second example, with one first example and with another."""
  shapes = jax.tree.unflatten(structure, leaves)
  params, model_state, one = _made_up(shapes, 0)
  other = _made_up(shapes, 1)[2]
  key = jax.random.key(0) if with_key else None
  swapped = jax.tree.map(lambda a, b: jnp.stack([b[0], a[1]]), one.inputs, other.inputs)
  run = lambda inputs: loss_fn(params, model_state, one._replace(inputs=inputs), key).losses[1]
  return run(one.inputs), run(swapped)


def _made_up(shapes: tuple[Params, ModelState, Batch], seed: int) -> tuple[Any, Any, Batch]:
  """Arrays of these shapes: floats in (0.1, 1), of either sign for params; integers `seed`."""

  def fill(position: int, leaf: Any) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.full(leaf.shape, seed, leaf.dtype)
    # Multiples of the golden ratio modulo 1: spread out, and far cheaper to compile than threefry.
    steps = jnp.arange(math.prod(leaf.shape), dtype=jnp.float32).reshape(leaf.shape)
    spread = jnp.modf((steps + 31 * position + 17 * seed + 1) * 0.618034)[0]
    return (0.1 + 0.9 * spread).astype(leaf.dtype)

  def sign(leaf: Array) -> Array:
    # Keeps sums of many terms small and lets a relu pass some of them.
    flips = (-1) ** jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape)
    return leaf * flips.astype(leaf.dtype)

  leaves, structure = jax.tree.flatten(shapes)
  params, model_state, batch = jax.tree.unflatten(
    structure, [fill(*pair) for pair in enumerate(leaves)]
  )
  return jax.tree.map(sign, params), model_state, batch._replace(mask=jnp.ones(2, bool))
