r"""Push and pull from one recorded pass, for models whose examples do not see each other.

The gradient of the weighted loss at a layer's output is, for such a model, that of the plain sum
with example i's part times :math:`w_i`. So one backward pass for the layer outputs alone, without
any weight gradient, and the recorded layer inputs serve every push and every pull: with
:math:`\delta` the cotangents of the outputs of :math:`f_\theta(x)`,

.. math:: push(d)_i = \sum_{layers} \langle \delta_i, \partial_\theta f(x)_i\,d \rangle, \quad
  pull(w) = \sum_{layers} (\partial_\theta f(x))^\top (w \delta).

A push costs one forward pass and a pull one pass of weight gradients, half of what they cost by
linearizing the whole model. The layers are found by a recorder, such as that of
`models.linen_apply`. Nothing is assumed of what they compute; what the identity does need is
checked, and a model that fails is refused by name (`RefusedError`): every use of every parameter
must be inside of a recorded call, every recorded output must have the batch on one axis, and on
made-up values of four examples the result must equal an ordinary backward pass.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from reweight_jax import _coupling
from reweight_jax._arrays import at_least_float32
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  Linearized,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
)

_TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_NO_LEAVES: frozenset[int] = frozenset()


class RefusedError(ValueError):
  """The model is none that this route computes exactly; the message says what in it is not."""


class LayerCall(NamedTuple):
  """One call of a layer that owns parameters, as a recorder reports it.

  Attributes:
    name: for messages, such as "encoder/Dense_0".
    path: where the layer's parameters are in the tree of all.
    inputs: pytree of the arrays that the call takes, anything but the parameters.
    apply: (the layer's parameters, inputs) -> output; pure, and the same at any time later.
  """

  name: str
  path: tuple[str, ...]
  inputs: Any
  apply: Callable[[Params, Any], Array]


Tap = Callable[[LayerCall, Callable[[], Any]], Any]
"""(call, what runs it) -> the output that the model goes on with."""


class Recorder(Protocol):
  """What makes a model's layers seen: a context in which every call goes through a tap."""

  def __call__(self, params: Params, tap: Tap) -> contextlib.AbstractContextManager[None]:
    """Opens it for a model called with exactly this tree of (traced) params."""


class _Layer(NamedTuple):
  """What is known of one recorded call before any number is."""

  name: str
  path: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: Any
  axis: int  # of the batch in the output


def linearize(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  recorder: Recorder | None = None,
) -> Linearized:
  """`per_example.linearize` by recorded layers.

  Args:
    loss_fn: per-example loss.
    params: pytree of floating arrays, dicts of dicts where the recorder's paths lead.
    model_state: the model's state, not differentiated.
    batch: the batch.
    key: JAX key for dropout and the like.
    recorder: what makes the layers seen; None for the loss's attribute `recorder`, which losses of
      `losses.from_apply` with `models.linen_apply` have.

  Returns:
    `Linearized(outputs, push, pull)`; parameters that no layer call uses get gradient 0.

  Raises:
    RefusedError: if the model is not computed exactly by this route, saying why.
  """
  recorder = recorder or _recorder_of(loss_fn)
  layers = _plan(recorder, loss_fn, params, model_state, batch, key)
  _check_on_made_up_values(recorder, loss_fn, params, model_state, batch, key)
  return _linearize(recorder, layers, loss_fn, params, model_state, batch, key)


def check(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  recorder: Recorder | None = None,
) -> None:
  """Whether `linearize` would be exact; arguments and errors are its own."""
  recorder = recorder or _recorder_of(loss_fn)
  _plan(recorder, loss_fn, params, model_state, batch, key)
  _check_on_made_up_values(recorder, loss_fn, params, model_state, batch, key)


def _recorder_of(loss_fn: PerExampleLoss) -> Recorder:
  recorder: Recorder | None = getattr(loss_fn, "recorder", None)
  if recorder is None:
    raise RefusedError(
      "the loss has no recorder of its model's layers; losses.from_apply(models.linen_apply(net)) "
      "has one"
    )
  return recorder


def _linearize(
  recorder: Recorder,
  layers: Sequence[_Layer],
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> Linearized:
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

  zeros = [jnp.zeros(layer.shape, layer.dtype) for layer in layers]
  deltas, (outputs, inputs) = jax.grad(total, has_aux=True)(zeros)
  replays = [
    functools.partial(_replay, call.apply, x) for call, x in zip(calls, inputs, strict=True)
  ]

  def push(direction: Params) -> Array:
    pushed = jnp.zeros_like(outputs.losses)
    for layer, replay, delta in zip(layers, replays, deltas, strict=True):
      primal, tangent = _at(params, layer.path), _at(direction, layer.path)
      change = jax.jvp(replay, (primal,), (tangent,))[1]
      axes = tuple(axis for axis in range(delta.ndim) if axis != layer.axis)
      terms = at_least_float32(change) * at_least_float32(delta)
      pushed += jnp.sum(terms, axes).astype(pushed.dtype)
    return pushed

  def pull(weights: Array) -> Params:
    pulled = jax.tree.map(jnp.zeros_like, params)
    for layer, replay, delta in zip(layers, replays, deltas, strict=True):
      shape = [1] * delta.ndim
      shape[layer.axis] = -1
      wide = at_least_float32(delta)
      weighted = (wide * jnp.reshape(weights, shape).astype(wide.dtype)).astype(delta.dtype)
      grads = jax.vjp(replay, _at(params, layer.path))[1](weighted)[0]
      pulled = _add_at(pulled, layer.path, grads)
    return pulled

  return Linearized(outputs, push, pull)


def _replay(apply: Callable[[Params, Any], Array], inputs: Any, params: Params) -> Array:
  return apply(params, inputs)


def _plan(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> list[_Layer]:
  """The calls of a pass and the batch axis of each, by shapes alone.

  Raises:
    RefusedError: see the module.
  """
  shapes = jax.tree.map(_shape_of, (params, model_state, batch, key))
  size = batch.mask.shape[0]
  seen, longer = (_calls(recorder, loss_fn, *_resized(shapes, n)) for n in (size, size + 1))
  if [name for name, *_ in seen] != [name for name, *_ in longer]:
    raise RefusedError("the model calls other layers for another batch size")
  layers = [
    _Layer(name, path, shape, dtype, _batch_axis(name, shape, other, size))
    for (name, path, shape, dtype), (_, _, other, _) in zip(seen, longer, strict=True)
  ]
  if not layers:
    raise RefusedError("no layer with parameters was seen")
  _check_every_use(recorder, layers, loss_fn, *shapes)
  return layers


def _resized(shapes: Any, size: int) -> Any:
  params, model_state, batch, key = shapes
  resize = lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
  return params, model_state, jax.tree.map(resize, batch), key


def _calls(recorder: Recorder, loss_fn: PerExampleLoss, *shapes: Any) -> list[tuple[Any, ...]]:
  found: list[tuple[Any, ...]] = []

  def run(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> Array:
    found.clear()

    def tap(call: LayerCall, run: Callable[[], Any]) -> Any:
      output = run()
      if not isinstance(output, jax.Array):
        raise RefusedError(f"{call.name} returns a {type(output).__name__}, not one array")
      replayed = jax.eval_shape(call.apply, _at(params, call.path), call.inputs)
      if jax.tree.map(_shape_of, replayed) != _shape_of(output):
        raise RefusedError(f"{call.name} does not return the same when it is called alone")
      found.append((call.name, call.path, output.shape, output.dtype))
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


def _batch_axis(name: str, shape: tuple[int, ...], longer: tuple[int, ...], size: int) -> int:
  axes = [axis for axis, (n, m) in enumerate(zip(shape, longer, strict=False)) if n != m]
  if len(shape) == len(longer) and len(axes) == 1 and shape[axes[0]] == size:
    return axes[0]
  if shape == longer:
    raise RefusedError(f"{name} has an output that all examples share, of shape {shape}")
  raise RefusedError(f"{name} merges the batch with another axis, to shape {shape}")


def _check_every_use(
  recorder: Recorder, layers: Sequence[_Layer], loss_fn: PerExampleLoss, *shapes: Any
) -> None:
  """Follows the data from every parameter with all layers cut out; none may reach the losses."""

  def run(params: Params, taps: list[Array], *rest: Any) -> Array:
    remaining = iter(taps)

    def tap(call: LayerCall, run: Callable[[], Any]) -> Any:
      output = next(remaining)
      for leaf in jax.tree.leaves(call.inputs):  # what came in goes on, the layer's own does not
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
          output = output + 0 * jnp.sum(leaf).astype(output.dtype)
      return output

    with recorder(params, tap):
      return loss_fn(params, *rest).losses

  params, *rest = shapes
  taps = [jax.ShapeDtypeStruct(layer.shape, layer.dtype) for layer in layers]
  closed = jax.make_jaxpr(run)(params, taps, *rest)
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  sources = [frozenset([i]) for i in range(len(paths))]
  sources += [_NO_LEAVES] * (len(closed.jaxpr.invars) - len(paths))
  raw = frozenset().union(*_reached(closed.jaxpr, sources))
  if raw:
    name = jax.tree_util.keystr(paths[min(raw)], simple=True, separator="/")
    raise RefusedError(
      f"{name} is used outside of the layer that owns it, as a raw parameter, or as weights that "
      "another layer reads"
    )


def _reached(jaxpr: Any, sources: Sequence[frozenset[int]]) -> list[frozenset[int]]:
  """Which of the sources each result may depend on; more rather than less."""
  known = dict(zip(jaxpr.invars, sources, strict=True))
  read = lambda atom: _NO_LEAVES if isinstance(atom, jex.Literal) else known.get(atom, _NO_LEAVES)
  for equation in jaxpr.eqns:
    given = [read(atom) for atom in equation.invars]
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if equation.primitive.name in _TRANSPARENT and len(inner.invars) == len(given):
      results = _reached(inner, given)
    else:
      results = [frozenset().union(*given)] * len(equation.outvars)
    known |= dict(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _check_on_made_up_values(
  recorder: Recorder,
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> None:
  """Compares with an ordinary backward pass, once for each loss function and shape.

  Raises:
    RefusedError: if they differ, as they do where examples see each other.
  """
  leaves, structure = jax.tree.flatten(jax.tree.map(_shape_of, (params, model_state, batch)))
  error = _largest_error(recorder, loss_fn, tuple(leaves), structure, key is not None)
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
  # Compiled ahead of time, so that it runs at once also while an outer jit is being traced.
  compiled = _errors.lower(recorder, loss_fn, leaves, structure, keyed).compile()
  try:
    return float(np.asarray(compiled()).max())
  except TypeError:  # traced values that the loss closes over have become hidden arguments
    return None


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _errors(
  recorder: Recorder, loss_fn: PerExampleLoss, leaves: tuple[Any, ...], structure: Any, keyed: bool
) -> Array:
  shapes = jax.tree.unflatten(structure, leaves)
  params, model_state, batch = _coupling.made_up(*shapes)
  direction, *_ = _coupling.made_up(*shapes, first_seed=1000)
  key = jax.random.key(0) if keyed else None
  layers = _plan(recorder, loss_fn, params, model_state, batch, key)
  ghost = _linearize(recorder, layers, loss_fn, params, model_state, batch, key)
  weights = jnp.array([0.3, -1.2, 0.7, 1.9], ghost.outputs.losses.dtype)

  def losses_of(params: Params) -> Array:
    return at_least_float32(loss_fn(params, model_state, batch, key).losses)

  truth = jax.vjp(losses_of, params)[1](weights)[0]
  wide = lambda tree: [at_least_float32(leaf) for leaf in jax.tree.leaves(tree)]
  expected, pulled = wide(truth), wide(ghost.pull(weights))
  products = jnp.stack([jnp.vdot(d, e) for d, e in zip(wide(direction), expected, strict=True)])
  size = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in expected))
  norms = jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in expected])
  apart = [jnp.linalg.norm((a - b).ravel()) for a, b in zip(pulled, expected, strict=True)]
  coarsest = max(float(jnp.finfo(layer.dtype).eps) for layer in layers)
  tolerance = 16 * coarsest**0.5 if coarsest > 1e-4 else 3 * coarsest**0.5
  of_pull = jnp.stack(apart) / jnp.maximum(norms, 1e-3 * size)
  of_push = jnp.abs(jnp.vdot(ghost.push(direction), weights) - products.sum())
  return jnp.append(of_pull, of_push / jnp.abs(products).sum()) / tolerance


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype)


def _at(tree: Any, path: Sequence[str]) -> Any:
  return functools.reduce(lambda branch, name: branch[name], path, tree)


def _add_at(tree: Any, path: Sequence[str], value: Any) -> Any:
  if not path:
    return jax.tree.map(jnp.add, tree, value)
  return type(tree)({**tree, path[0]: _add_at(tree[path[0]], path[1:], value)})
