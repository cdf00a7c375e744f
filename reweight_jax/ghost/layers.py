"""The layers of a model as a recorder reports them, and where the batch is in each."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss


class RefusedError(ValueError):
  """The model is none that this route computes exactly; the message says what in it is not."""


class LayerCall(NamedTuple):
  """One call of a layer that owns parameters, as a recorder reports it.

  Attributes:
    name: for messages, such as "encoder/Dense_0".
    path: where the layer's parameters are in the tree of all.
    inputs: pytree of the arrays that the call takes, anything but the parameters.
    apply: (the layer's parameters, inputs) -> output; pure, and the same at any time later.
    rows: only for norms, and only of a layer that multiplies rows of numbers by one matrix, alone
      or with a leaf "bias" that it adds: inputs -> `[batch, positions, features]`, or integers
      `[batch, positions]` for one-hot rows. None for any other layer.
  """

  name: str
  path: tuple[str, ...]
  inputs: Any
  apply: Callable[[Params, Any], Array]
  rows: Callable[[Any], Array] | None = None


Tap = Callable[[LayerCall, Callable[[], Any]], Any]
"""(call, what runs it) -> the output that the model goes on with."""


class Recorder(Protocol):
  """What makes a model's layers seen: a context in which every call goes through a tap."""

  def __call__(self, params: Params, tap: Tap) -> contextlib.AbstractContextManager[None]:
    """Opens it for a model called with exactly this tree of (traced) params."""


class Layer(NamedTuple):
  """What is known of one recorded call before any number is.

  Attributes:
    name, path: as in `LayerCall`.
    shape, dtype: of the output.
    axis: of the batch in the output.
    input_axes: of the batch in each leaf of the inputs; None for one that all examples share.
  """

  name: str
  path: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: Any
  axis: int
  input_axes: tuple[int | None, ...]


class _Seen(NamedTuple):
  name: str
  path: tuple[str, ...]
  output: jax.ShapeDtypeStruct
  inputs: tuple[jax.ShapeDtypeStruct, ...]


def plan(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> list[Layer]:
  """The calls of one pass, by shapes alone; the batch is on the axis that a longer batch moves.

  Raises:
    RefusedError: if a layer has no one batch axis, or the calls are others for another size.
  """
  shapes = jax.tree.map(shape_of, (params, model_state, batch, key))
  size = batch.mask.shape[0]
  seen, longer = (_calls(recorder, loss_fn, *_resized(shapes, n)) for n in (size, size + 1))
  if [call.name for call in seen] != [call.name for call in longer]:
    raise RefusedError("the model calls other layers for another batch size")
  if not seen:
    raise RefusedError("no layer with parameters was seen")
  return [_layer(one, other, size) for one, other in zip(seen, longer, strict=True)]


def at(tree: Any, path: Sequence[str]) -> Any:
  """The branch of a tree of dicts that a path leads to."""
  return functools.reduce(lambda branch, name: branch[name], path, tree)


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array, a tracer, or a struct of them."""
  return jax.ShapeDtypeStruct(jax.numpy.shape(leaf), leaf.dtype)


def _resized(shapes: Any, size: int) -> Any:
  params, model_state, batch, key = shapes
  resize = lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
  return params, model_state, jax.tree.map(resize, batch), key


def _calls(recorder: Recorder, loss_fn: PerExampleLoss, *shapes: Any) -> list[_Seen]:
  found: list[_Seen] = []

  def run(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> Array:
    found.clear()

    def tap(call: LayerCall, run: Callable[[], Any]) -> Any:
      output = run()
      if not isinstance(output, jax.Array):
        raise RefusedError(f"{call.name} returns a {type(output).__name__}, not one array")
      replayed = jax.eval_shape(call.apply, at(params, call.path), call.inputs)
      if jax.tree.map(shape_of, replayed) != shape_of(output):
        raise RefusedError(f"{call.name} does not return the same when it is called alone")
      inputs = tuple(shape_of(leaf) for leaf in jax.tree.leaves(call.inputs))
      found.append(_Seen(call.name, call.path, shape_of(output), inputs))
      return output

    with recorder(params, tap):
      return loss_fn(params, model_state, batch, key).losses

  try:
    jax.eval_shape(run, *shapes)
  except RefusedError:
    raise
  except Exception as error:  # whatever a model raises when it is called at another size, or alone
    raise RefusedError(f"recording fails: {type(error).__name__}: {error}") from error
  return found


def _layer(seen: _Seen, longer: _Seen, size: int) -> Layer:
  name, path, output, inputs = seen
  if not jax.numpy.issubdtype(output.dtype, jax.numpy.inexact):
    raise RefusedError(f"{name} has an output of {output.dtype}, which has no gradient")
  axis = _batch_axis(f"{name} has an output", output, longer.output, size)
  if axis is None:
    raise RefusedError(f"{name} has an output that all examples share, of shape {output.shape}")
  input_axes = tuple(
    _batch_axis(f"{name} takes an input", leaf, other, size)
    for leaf, other in zip(inputs, longer.inputs, strict=True)
  )
  return Layer(name, path, output.shape, output.dtype, axis, input_axes)


def _batch_axis(
  what: str, leaf: jax.ShapeDtypeStruct, longer: jax.ShapeDtypeStruct, size: int
) -> int | None:
  if leaf.shape == longer.shape:
    return None
  axes = [
    axis
    for axis, sizes in enumerate(zip(leaf.shape, longer.shape, strict=False))
    if sizes[0] != sizes[1]
  ]
  if len(leaf.shape) == len(longer.shape) and len(axes) == 1 and leaf.shape[axes[0]] == size:
    return axes[0]
  raise RefusedError(f"{what} that merges the batch with another axis, to shape {leaf.shape}")
