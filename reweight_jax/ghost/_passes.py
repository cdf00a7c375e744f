"""One recorded pass, and what its layer inputs and cotangents serve: push, pull, norms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32, zeros_for_none
from reweight_jax.ghost.layers import Layer, LayerCall, Recorder, at
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
)


class Taped(NamedTuple):
  """A layer call of a pass that has run, with the cotangent of its output."""

  layer: Layer
  call: LayerCall
  delta: Array

  def replay(self, own: Params) -> Array:
    """The output as a function of the layer's own parameters."""
    return self.call.apply(own, self.call.inputs)

  def has_batch_first(self) -> bool:
    return self.layer.axis == 0 and self.layer.input_axes[:1] == (0,)


def record(
  recorder: Recorder,
  layers: Sequence[Layer],
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> tuple[Outputs, list[Taped]]:
  """One forward pass, and one backward pass for the layers' outputs alone."""
  calls: list[LayerCall] = []

  def total(taps: list[Array]) -> tuple[Array, tuple[Outputs, list[Any]]]:
    calls.clear()

    def tap(call: LayerCall, run: Callable[[], Any]) -> Any:
      calls.append(call)
      return run() + taps[len(calls) - 1]

    with recorder(params, tap):
      outputs = loss_fn(params, model_state, batch, key)
    losses = jnp.where(batch.mask, at_least_float32(outputs.losses), 0)
    return losses.sum(), (outputs._replace(losses=losses), [call.inputs for call in calls])

  # A zero of the batch's own: inside of jax.shard_map the taps vary over devices as it does.
  zero = 0 * jnp.sum(batch.mask, dtype=jnp.int32)
  zeros = [jnp.broadcast_to(zero.astype(layer.dtype), layer.shape) for layer in layers]
  deltas, (outputs, inputs) = jax.grad(total, has_aux=True)(zeros)
  tapes = [
    Taped(layer, call._replace(inputs=arrays), delta)
    for layer, call, arrays, delta in zip(layers, calls, inputs, deltas, strict=True)
  ]
  return outputs, tapes


def push(tapes: Sequence[Taped], params: Params, losses: Array, direction: Params) -> Array:
  """`[batch]` inner products of the direction with each example's gradient."""
  pushed = jnp.zeros_like(losses)
  for tape in tapes:
    axis, own = tape.layer.axis, at(params, tape.layer.path)
    tangent = at(direction, tape.layer.path)
    if not jax.tree.leaves(tangent):
      continue  # all None, which is to say zeros
    change = jax.jvp(tape.replay, (own,), (zeros_for_none(tangent, own),))[1]
    others = tuple(other for other in range(change.ndim) if other != axis)
    terms = at_least_float32(change) * at_least_float32(tape.delta)
    pushed += jnp.sum(terms, others).astype(pushed.dtype)
  return pushed


def pull(tapes: Sequence[Taped], params: Params, weights: Array) -> Params:
  """The gradient of the weighted sum of losses, a tree like params."""
  pulled = jax.tree.map(jnp.zeros_like, params)
  weights = jnp.asarray(weights)
  for tape in tapes:
    delta = at_least_float32(tape.delta)
    weights_on_axis = jnp.expand_dims(
      weights, [other for other in range(delta.ndim) if other != tape.layer.axis]
    )
    weighted = (delta * weights_on_axis.astype(delta.dtype)).astype(tape.delta.dtype)
    transpose = jax.vjp(tape.replay, at(params, tape.layer.path))[1]
    pulled = _add_at(pulled, tape.layer.path, transpose(weighted)[0])
  return pulled


def squared_norms(tapes: Sequence[Taped], params: Params, losses: Array) -> Array:
  """`[batch]` squared Euclidean norms of each example's gradient."""
  total = jnp.zeros_like(losses)
  for path in dict.fromkeys(tape.layer.path for tape in tapes):
    calls = [tape for tape in tapes if tape.layer.path == path]
    own = at(params, path)
    if len(calls) == 1 and calls[0].call.rows is not None and calls[0].has_batch_first():
      total += _squared_norms_of_matrix(calls[0], own).astype(total.dtype)
    else:
      total += _squared_norms_of_rows(calls, own).astype(total.dtype)
  return total


def _squared_norms_of_matrix(tape: Taped, own: Params) -> Array:
  r"""Of a layer with gradient :math:`X_i^\top \delta_i`, by the cheaper of two forms.

  Direct, the matrix is made; by the Gram matrices of the rows it is not, since
  :math:`|X^\top \delta|^2 = \langle X X^\top, \delta \delta^\top \rangle`.
  """
  assert tape.call.rows is not None
  rows = tape.call.rows(tape.call.inputs)
  num_examples, num_positions = rows.shape[:2]
  delta = jnp.moveaxis(at_least_float32(tape.delta), tape.layer.axis, 0)
  delta = delta.reshape(num_examples, num_positions, -1)
  norms = jnp.zeros(num_examples, delta.dtype)
  if "bias" in own:
    norms += jnp.sum(jnp.square(delta.sum(1)), 1)
  one_hot = jnp.issubdtype(rows.dtype, jnp.integer)
  num_features = 0 if one_hot else rows.shape[2]
  if one_hot or num_positions * (num_features + delta.shape[2]) < num_features * delta.shape[2]:
    gram = _equal(rows) if one_hot else _gram(at_least_float32(rows))
    return norms + jnp.sum(gram * _gram(delta), (1, 2))
  matrix = jnp.einsum("btk,bto->bko", at_least_float32(rows), delta)
  return norms + jnp.sum(jnp.square(matrix), (1, 2))


def _gram(rows: Array) -> Array:
  return jnp.einsum("bsk,btk->bst", rows, rows)


def _equal(rows: Array) -> Array:
  return rows[:, :, None] == rows[:, None, :]


def _squared_norms_of_rows(tapes: Sequence[Taped], own: Params) -> Array:
  """Of any layer, or of one that is called more than once: one example's gradient at a time."""
  leaves, structures = zip(*(jax.tree.flatten(tape.call.inputs) for tape in tapes), strict=True)

  def of_one(inputs: list[list[Array]], deltas: list[Array]) -> Array:
    def outputs(own: Params) -> list[Array]:
      return [
        tape.call.apply(own, jax.tree.unflatten(structure, _as_batches(arrays, tape)))
        for tape, structure, arrays in zip(tapes, structures, inputs, strict=True)
      ]

    cotangents = [
      jnp.expand_dims(delta, tape.layer.axis) for tape, delta in zip(tapes, deltas, strict=True)
    ]
    gradient = jax.vjp(outputs, own)[1](cotangents)[0]
    squares = [jnp.sum(jnp.square(at_least_float32(leaf))) for leaf in jax.tree.leaves(gradient)]
    return jnp.stack(squares).sum()

  axes = [list(tape.layer.input_axes) for tape in tapes]
  return jax.vmap(of_one, (axes, [tape.layer.axis for tape in tapes]))(
    list(leaves), [tape.delta for tape in tapes]
  )


def _as_batches(arrays: Sequence[Array], tape: Taped) -> list[Array]:
  """Batches of one example, where the batch was taken away."""
  return [
    array if axis is None else jnp.expand_dims(array, axis)
    for array, axis in zip(arrays, tape.layer.input_axes, strict=True)
  ]


def _add_at(tree: Any, path: Sequence[str], value: Any) -> Any:
  if not path:
    return jax.tree.map(jnp.add, tree, value)
  return type(tree)({**tree, path[0]: _add_at(tree[path[0]], path[1:], value)})
