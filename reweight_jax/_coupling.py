"""Whether the examples of a batch see each other, as BatchNorm in training mode makes them."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

NUM_PROBES = 4

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

  Runs on four made-up examples and made-up parameters, compiled once for each loss function and
  shape; nothing of it enters the caller's program. A loss that closes over traced values cannot be
  run while tracing; it is given the benefit of the doubt.
  """
  shape_of = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype)
  shapes = jax.tree.map(shape_of, (params, model_state, batch))
  leaves, structure = jax.tree.flatten(shapes)
  return _is_coupled(loss_fn, tuple(leaves), structure, key is not None)


@functools.lru_cache(maxsize=8)
def _is_coupled(
  loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, with_key: bool
) -> bool:
  compiled = compile_to_run_once(_other_losses.lower(loss_fn, leaves, structure, with_key))
  try:
    before, after = compiled()
  except TypeError:  # traced values that the loss closes over have become hidden arguments
    return False
  return not np.allclose(before, after, rtol=1e-5, atol=1e-7, equal_nan=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _other_losses(
  loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, with_key: bool
) -> tuple[Array, Array]:
  """The losses of all examples but the first, with one first example and with another."""
  params, model_state, batch = jax.tree.unflatten(structure, leaves)
  other = made_up(params, model_state, batch, first_seed=1000, parity=1)[2]
  params, model_state, one = made_up(params, model_state, batch)
  key = jax.random.key(0) if with_key else None
  swap = lambda a, b: jnp.concatenate([b[:1], a[1:]])
  inputs, labels = (
    jax.tree.map(swap, a, b) for a, b in ((one.inputs, other.inputs), (one.labels, other.labels))
  )
  run = lambda batch: loss_fn(params, model_state, batch, key).losses[1:]
  return run(one), run(one._replace(inputs=inputs, labels=labels))


def compile_to_run_once(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles ahead of time, so that it can run at once also while an outer jit is being traced.

  On a CPU with little optimization, which takes half as long.
  """
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return lowered.compile(compiler_options=options)


def made_up(
  params: Params, model_state: ModelState, batch: Batch, first_seed: int = 0, parity: int = 0
) -> tuple[Params, ModelState, Batch]:
  """Values of the dtypes and shapes given, in a batch of `NUM_PROBES` real examples."""
  seeds = itertools.count(first_seed)
  params = jax.tree.map(lambda leaf: _made_up_param(leaf, next(seeds)), params)
  model_state = jax.tree.map(lambda leaf: _made_up_values(leaf, next(seeds), 0), model_state)

  def examples(leaf: Any) -> Array:
    shape = jax.ShapeDtypeStruct((NUM_PROBES, *leaf.shape[1:]), leaf.dtype)
    return _made_up_values(shape, next(seeds), parity)

  return (
    params,
    model_state,
    jax.tree.map(examples, batch)._replace(mask=jnp.ones(NUM_PROBES, bool)),
  )


def _made_up_param(leaf: Any, seed: int) -> Array:
  """Random signs, scaled by the fan-in so that activations of deep nets neither grow nor vanish."""
  noise = 2 * _noise(leaf.shape, seed) - 1
  fan_in = math.prod(leaf.shape) / leaf.shape[-1] if len(leaf.shape) > 1 else None
  noise = 0.5 + noise / 4 if fan_in is None else noise * math.sqrt(6 / max(fan_in, 1))
  return noise.astype(leaf.dtype)


def _made_up_values(leaf: Any, seed: int, parity: int) -> Array:
  """Floats in (0.1, 1), integers 0 and 1 that differ between neighbors and between parities."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jnp.broadcast_to(jax.random.key(0), leaf.shape)
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    return (0.1 + 0.9 * _noise(leaf.shape, seed)).astype(leaf.dtype)
  rows = jnp.arange(leaf.shape[0]) if leaf.shape else jnp.zeros((), jnp.int32)
  rows = (rows + parity) % 2
  return jnp.broadcast_to(
    rows.reshape(rows.shape + (1,) * (len(leaf.shape) - rows.ndim)), leaf.shape
  ).astype(leaf.dtype)


def _noise(shape: tuple[int, ...], seed: int) -> Array:
  """Uniform in [0, 1) by an integer hash, which compiles far faster than threefry."""
  bits = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  bits = (bits + jnp.uint32((7919 * seed + 1) % 2**32)) * jnp.uint32(2654435761)
  for shift, factor in ((15, 2246822519), (13, 3266489917)):
    bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
  return (bits >> jnp.uint32(8)).astype(jnp.float32) / 2**24
