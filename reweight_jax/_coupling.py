"""Whether the examples of a batch see each other, as BatchNorm in training mode makes them."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

NUM_PROBES = 6

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

  Runs on six made-up examples and made-up parameters, compiled once for each loss function and
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
  params, model_state, batch = jax.tree.unflatten(structure, leaves)
  _, _, other = made_up(params, model_state, batch, seed=1, parity=1)
  params, model_state, one = made_up(params, model_state, batch)
  swap = lambda a, b: np.concatenate([b[:1], a[1:]])
  changed = one._replace(
    inputs=jax.tree.map(swap, one.inputs, other.inputs),
    labels=jax.tree.map(swap, one.labels, other.labels),
  )

  @jax.jit
  def other_losses(params: Params, model_state: ModelState, *batches: Batch) -> list[Array]:
    """The losses of all examples but the first, with one first example and with another."""
    key = jax.random.key(0) if with_key else None
    return [loss_fn(params, model_state, batch, key).losses[1:] for batch in batches]

  result = run_once(other_losses, params, model_state, one, changed)
  if result is None:
    return False
  before, after = result
  return not np.allclose(before, after, rtol=1e-5, atol=1e-7, equal_nan=True)


def run_once(jitted: Any, *args: Any) -> Any:
  """Compiles ahead of time and runs, also while an outer jit is being traced.

  On a CPU with little optimization, which takes half as long. None where the function closes over
  traced values, so that there is nothing to run on.
  """
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  compiled = jitted.lower(*args).compile(compiler_options=options)
  try:
    return jax.device_get(compiled(*args))
  except TypeError:  # traced values have become hidden arguments
    return None


def made_up(
  params: Params, model_state: ModelState, batch: Batch, seed: int = 0, parity: int = 0
) -> tuple[Params, ModelState, Batch]:
  """NumPy values of the dtypes and shapes given, in a batch of `NUM_PROBES` real examples.

  Handed to a program and not made in it, where two passes may round them differently. Integers are
  0 and 1, which are labels of any model, and those of the two parities differ.
  """
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: _made_up_param(leaf, rng), params)
  model_state = jax.tree.map(lambda leaf: _made_up_values(leaf, rng, 0), model_state)

  def examples(leaf: Any) -> Any:
    shape = jax.ShapeDtypeStruct((NUM_PROBES, *leaf.shape[1:]), leaf.dtype)
    return _made_up_values(shape, rng, parity)

  made = jax.tree.map(examples, batch)
  made = made._replace(indices=np.arange(NUM_PROBES, dtype=np.int32))
  return params, model_state, made._replace(mask=np.ones(NUM_PROBES, bool))


def _made_up_param(leaf: Any, rng: np.random.Generator) -> Any:
  """Random signs, scaled by the fan-in so that activations of deep nets neither grow nor vanish."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return _made_up_values(leaf, rng, 0)
  noise = rng.uniform(-1, 1, leaf.shape)
  fan_in = math.prod(leaf.shape) / leaf.shape[-1] if len(leaf.shape) > 1 else None
  noise = 0.5 + noise / 4 if fan_in is None else noise * math.sqrt(6 / max(fan_in, 1))
  return np.asarray(noise).astype(leaf.dtype)


def _made_up_values(leaf: Any, rng: np.random.Generator, parity: int) -> Any:
  """Floats in (0.1, 1); integers as in `made_up`, neighbors along the batch not all the same."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    with jax.ensure_compile_time_eval():
      return jnp.broadcast_to(jax.random.key(0), leaf.shape)
  if jnp.issubdtype(leaf.dtype, jnp.inexact):
    return np.asarray(rng.uniform(0.1, 1, leaf.shape)).astype(leaf.dtype)
  bits = np.random.default_rng(7).integers(0, 2, leaf.shape)
  return ((bits + parity) % 2).astype(leaf.dtype)
