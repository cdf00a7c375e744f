"""The one-time checks against ordinary backward passes, on made-up values.

Evidence, no proof: a coupling that shows for special values or sizes alone is not seen.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax import _coupling
from reweight_jax._arrays import at_least_float32
from reweight_jax.ghost import _passes
from reweight_jax.ghost.layers import Recorder, RefusedError, plan, shape_of
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

Errors = Callable[..., Array]


class _Key:
  """Of the cache: the same functions, not equal ones, and the same program outside of layers."""

  def __init__(self, parts: tuple[Any, ...], fingerprint: str):
    self.parts, self.fingerprint = parts, fingerprint

  def __hash__(self) -> int:
    return hash(self.fingerprint)

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, _Key) or self.fingerprint != other.fingerprint:
      return False
    return all(a is b for a, b in zip(self.parts, other.parts, strict=True))


def check_on_made_up_values(
  recorder: Recorder,
  fingerprint: str,
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
  *,
  of_norms: bool = False,
) -> None:
  """Compares push and pull, or the norms, with a backward pass, once for each loss and shape.

  Args:
    recorder: of the model's layers.
    fingerprint: of the program outside of the layers; another one is checked anew.
    loss_fn: as in `linearize`.
    params: as in `linearize`.
    model_state: as in `linearize`.
    batch: as in `linearize`.
    key: as in `linearize`.
    of_norms: whether the norms are checked, against the pulls of single examples.

  Raises:
    RefusedError: if they differ, as they do where examples see each other.
  """
  leaves, structure = jax.tree.flatten(jax.tree.map(shape_of, (params, model_state, batch)))
  errors = _norm_errors if of_norms else _errors
  cache_key = _Key((recorder, loss_fn), fingerprint)
  error = _largest_error(cache_key, errors, tuple(leaves), structure, key is not None)
  if error is None:
    raise RefusedError("the loss or a layer closes over traced values, and so cannot be checked")
  if np.isnan(error):
    raise RefusedError("on made-up values losses or gradients are no finite numbers")
  if not error < 1:
    raise RefusedError(
      "on made-up values push and pull differ from a backward pass, as they do where examples see "
      "each other (BatchNorm in training, a mean over the batch)"
      if not of_norms
      else "on made-up values the norms differ from those of single gradients, as they do where a "
      "layer depends on the batch size"
    )


@functools.lru_cache(maxsize=32)
def _largest_error(
  cache_key: _Key, errors: Errors, leaves: tuple[Any, ...], structure: Any, keyed: bool
) -> float | None:
  """In units of what rounding explains; None where the loss cannot be run."""
  params, model_state, batch = jax.tree.unflatten(structure, leaves)
  direction, *_ = _coupling.made_up(params, model_state, batch, seed=1)
  params, model_state, batch = _coupling.made_up(params, model_state, batch)
  mask: Any = np.arange(_coupling.NUM_PROBES) < _coupling.NUM_PROBES - 1
  batch = batch._replace(mask=mask)
  jitted = jax.jit(functools.partial(errors, *cache_key.parts, keyed))
  with jax.default_matmul_precision("highest"):
    found = _coupling.run_once(jitted, params, model_state, batch, direction)
  return None if found is None else float(np.max(found))


def _errors(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  keyed: bool,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  direction: Params,
) -> Array:
  key = jax.random.key(0) if keyed else None
  layers = plan(recorder, loss_fn, params, model_state, batch, key)
  outputs, tapes = _passes.record(recorder, layers, loss_fn, params, model_state, batch, key)
  # Powers of 2 scale cotangents without rounding, in any dtype and on any path.
  weights = jnp.array([0.5, -2.0, 1.0, 4.0, -0.25, 8.0], outputs.losses.dtype)
  pulled = _passes.pull(tapes, params, weights)
  pushed = _passes.push(tapes, params, outputs.losses, direction)

  def losses_of(params: Params) -> Array:
    losses = at_least_float32(loss_fn(params, model_state, batch, key).losses)
    return jnp.where(batch.mask, losses, 0)

  truth = jax.vjp(losses_of, params)[1](weights)[0]
  wide = lambda tree: [at_least_float32(leaf) for leaf in jax.tree.leaves(tree)]
  expected = wide(truth)
  products = jnp.stack([jnp.vdot(d, e) for d, e in zip(wide(direction), expected, strict=True)])
  size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in expected))
  norms = jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in expected])
  pairs = zip(wide(pulled), expected, strict=True)
  apart = jnp.stack([jnp.linalg.norm((a - b).ravel()) for a, b in pairs])
  of_pull = apart / jnp.maximum(norms, 1e-3 * size)
  of_push = jnp.abs(jnp.vdot(pushed, weights) - products.sum()) / jnp.abs(products).sum()
  return jnp.append(of_pull, of_push) / _tolerance(layers)


def _norm_errors(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  keyed: bool,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  direction: Params,
) -> Array:
  del direction
  key = jax.random.key(0) if keyed else None
  layers = plan(recorder, loss_fn, params, model_state, batch, key)
  outputs, tapes = _passes.record(recorder, layers, loss_fn, params, model_state, batch, key)
  norms = jnp.sqrt(_passes.squared_norms(tapes, params, outputs.losses))

  def of_one(weights: Array) -> Array:
    leaves = jax.tree.leaves(_passes.pull(tapes, params, weights))
    return jnp.sqrt(sum(jnp.sum(jnp.square(at_least_float32(leaf))) for leaf in leaves))

  expected = jax.vmap(of_one)(jnp.eye(batch.mask.size, dtype=norms.dtype))
  return jnp.abs(norms - expected) / expected.max() / _tolerance(layers)


def _tolerance(layers: Any) -> float:
  coarsest = max(float(jnp.finfo(layer.dtype).eps) for layer in layers)
  return 3 * coarsest if coarsest > 1e-4 else 3 * float(coarsest**0.5)
