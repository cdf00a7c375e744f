"""The one-time check against an ordinary backward pass, on made-up values."""

import functools
from collections.abc import Hashable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax import _coupling
from reweight_jax._arrays import at_least_float32
from reweight_jax.ghost import _passes
from reweight_jax.ghost.layers import Recorder, RefusedError, plan, shape_of
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss


def check_on_made_up_values(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> None:
  """Compares push and pull with a backward pass, once for each loss function and shape.

  Raises:
    RefusedError: if they differ, as they do where examples see each other.
  """
  leaves, structure = jax.tree.flatten(jax.tree.map(shape_of, (params, model_state, batch)))
  error = _largest_error(
    cast(Hashable, recorder), loss_fn, tuple(leaves), structure, key is not None
  )
  if error is None:
    raise RefusedError("the loss closes over traced values, and so cannot be checked")
  if not error < 1:
    raise RefusedError(
      "on made-up values push and pull differ from a backward pass, as they do where examples see "
      "each other (BatchNorm in training, a mean over the batch)"
    )


@functools.lru_cache(maxsize=8)
def _largest_error(
  recorder: Recorder, loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, keyed: bool
) -> float | None:
  """In units of what rounding explains; None where the loss cannot be run."""
  with jax.default_matmul_precision("highest"):
    lowered = _errors.lower(recorder, loss_fn, leaves, structure, keyed)
    compiled = _coupling.compile_to_run_once(lowered)
  try:
    return float(np.asarray(compiled()).max())
  except TypeError:  # traced values that the loss closes over have become hidden arguments
    return None


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _errors(
  recorder: Recorder, loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, keyed: bool
) -> Array:
  params, model_state, batch = jax.tree.unflatten(structure, leaves)
  direction, *_ = _coupling.made_up(params, model_state, batch, first_seed=1000)
  params, model_state, batch = _coupling.made_up(params, model_state, batch)
  key = jax.random.key(0) if keyed else None
  layers = plan(recorder, loss_fn, params, model_state, batch, key)
  outputs, tapes = _passes.record(recorder, layers, loss_fn, params, model_state, batch, key)
  # Powers of 2 scale cotangents without rounding, in any dtype and on any path.
  weights = jnp.array([0.5, -2.0, 1.0, 4.0], outputs.losses.dtype)
  pulled = _passes.pull(tapes, params, weights)
  pushed = _passes.push(tapes, params, outputs.losses, direction)

  def losses_of(params: Params) -> Array:
    return at_least_float32(loss_fn(params, model_state, batch, key).losses)

  truth = jax.vjp(losses_of, params)[1](weights)[0]
  wide = lambda tree: [at_least_float32(leaf) for leaf in jax.tree.leaves(tree)]
  expected = wide(truth)
  products = jnp.stack([jnp.vdot(d, e) for d, e in zip(wide(direction), expected, strict=True)])
  size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in expected))
  norms = jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in expected])
  pairs = zip(wide(pulled), expected, strict=True)
  apart = jnp.stack([jnp.linalg.norm((a - b).ravel()) for a, b in pairs])
  coarsest = max(float(jnp.finfo(layer.dtype).eps) for layer in layers)
  tolerance = 8 * coarsest if coarsest > 1e-4 else 3 * coarsest**0.5
  of_pull = apart / jnp.maximum(norms, 1e-3 * size)
  of_push = jnp.abs(jnp.vdot(pushed, weights) - products.sum()) / jnp.abs(products).sum()
  return jnp.append(of_pull, of_push) / tolerance
