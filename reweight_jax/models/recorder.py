"""Makes the layers of an unmodified linen module seen, call by call."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.linear import canonicalize_padding

from reweight_jax.ghost import LayerCall, RefusedError, Tap
from reweight_jax.types import Array, Params


@contextlib.contextmanager
def linen_recorder(params: Params, tap: Tap) -> Iterator[None]:
  """A `ghost.Recorder` of every linen module that is called while it is open.

  A layer is a module that owns parameters and has no children that do: Dense, Conv, Embed, the
  norms, the projections of attention, and whatever a user has written. A module that is called
  twice, or by another method (``Embed.attend``), is a call each time.

  Raises:
    RefusedError: while the model is called, if a layer's parameters are not those of `params` (it
      is scanned, rematerialized, vmapped or jitted, or the model transforms its parameters), or if
      it writes to a collection (BatchNorm in training).
  """
  is_inside = False

  def intercept(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
    nonlocal is_inside
    module = context.module
    own = None if is_inside or module.scope is None else _own_params(module, params)
    if own is None or context.method_name == "setup":
      return call_next(*args, **kwargs)
    is_inside = True
    try:
      return tap(
        _layer_call(module, context.method_name, args, kwargs),
        lambda: _unless_it_writes(module, lambda: call_next(*args, **kwargs)),
      )
    finally:
      is_inside = False

  with nn.intercept_methods(intercept):
    yield


def _own_params(module: nn.Module, params: Params) -> Params | None:
  """The parameters of a module that is a layer; None for any other module."""
  seen = module.variables.get("params")
  if not seen:
    return None
  own = params
  for name in module.path:
    own = own.get(name) if isinstance(own, Mapping) else None
  leaves = jax.tree.leaves(own)
  if [id(leaf) for leaf in leaves] != [id(leaf) for leaf in jax.tree.leaves(seen)]:
    raise RefusedError(
      f"{_name(module)} does not see the parameters that the model was given: it is inside of "
      "nn.scan, nn.remat, nn.vmap or jax.jit, or they were changed on the way"
    )
  return own if all(isinstance(value, jax.Array) for value in own.values()) else None


def _layer_call(module: nn.Module, method: str, args: Any, kwargs: Any) -> LayerCall:
  others = _collections(module)
  leaves, structure = jax.tree.flatten((args, kwargs))
  is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
  arrays = [leaf for leaf, dynamic in zip(leaves, is_array, strict=True) if dynamic]
  constants = [None if dynamic else leaf for leaf, dynamic in zip(leaves, is_array, strict=True)]
  alone = module.clone(parent=None)

  def apply(own: Params, inputs: tuple[list[Array], Any]) -> Array:
    given, collections = inputs
    remaining = iter(given)
    filled = [
      next(remaining) if dynamic else constant
      for constant, dynamic in zip(constants, is_array, strict=True)
    ]
    args, kwargs = jax.tree.unflatten(structure, filled)
    variables = {"params": own, **collections}
    return cast(Array, alone.apply(variables, *args, method=method, **kwargs))

  inputs = (arrays, others)
  return LayerCall(_name(module), tuple(module.path), inputs, apply, _rows(module, method, arrays))


def _collections(module: nn.Module) -> dict[str, Any]:
  """What a module holds beside its parameters."""
  return {name: value for name, value in module.variables.items() if name != "params" and value}


def _unless_it_writes(module: nn.Module, run: Callable[[], Any]) -> Any:
  # Leaves, as the dicts that hold them may be changed in place.
  before = {name: jax.tree.leaves(value) for name, value in _collections(module).items()}
  output = run()
  for name, value in _collections(module).items():
    after = jax.tree.leaves(value)
    if [id(leaf) for leaf in after] != [id(leaf) for leaf in before.get(name, [])]:
      raise RefusedError(f"{_name(module)} writes to {name} in training")
  return output


def _rows(module: nn.Module, method: str, arrays: list[Array]) -> Callable[[Any], Array] | None:
  """How the inputs become the `LayerCall.rows` of a batch on the first axis."""
  if len(arrays) != 1 or _is_replaced(module):
    return None
  kind = type(module), method  # a subclass may compute anything
  if kind in ((nn.Dense, "__call__"), (nn.Embed, "attend")):
    return lambda inputs: _by_position(inputs[0][0], 1)
  if kind == (nn.Embed, "__call__"):
    rows = module.num_embeddings  # -1 is the last row
    return lambda inputs: inputs[0][0].reshape(inputs[0][0].shape[0], -1) % rows
  if kind == (nn.DenseGeneral, "__call__") and not module.batch_dims:
    axes = np.atleast_1d(module.axis).tolist()
    last = range(-len(axes), 0)
    return lambda inputs: _by_position(jnp.moveaxis(inputs[0][0], axes, last), len(axes))
  if kind == (nn.Conv, "__call__"):
    return _patches(cast(nn.Conv, module), arrays[0].ndim)
  return None


def _is_replaced(module: nn.Module) -> bool:
  """Whether another product than the usual one is computed."""
  names = ("dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls")
  return any(getattr(module, name, None) is not None for name in names)


def _by_position(x: Array, num_features: int) -> Array:
  """To [batch, positions, features], the last axes being the features."""
  features = int(np.prod(x.shape[x.ndim - num_features :]))
  return x.reshape(x.shape[0], -1, features)


def _patches(conv: nn.Conv, ndim: int) -> Callable[[Any], Array] | None:
  """What each output position of a convolution sees; None for the rarer kinds."""
  size = tuple(np.atleast_1d(conv.kernel_size).tolist())
  rank = len(size)
  each = lambda value: tuple(np.broadcast_to(1 if value is None else value, rank).tolist())
  padding = canonicalize_padding(conv.padding, rank)
  is_rare = (
    ndim != rank + 2
    or conv.feature_group_count != 1
    or conv.mask is not None
    or set(each(conv.input_dilation)) != {1}
    or padding in ("CIRCULAR", "CAUSAL", "REFLECT")
  )
  spatial = "XYZ"[:rank]
  layout = f"N{spatial}C"

  def rows(inputs: Any) -> Array:
    patches = jax.lax.conv_general_dilated_patches(
      inputs[0][0],
      filter_shape=size,
      window_strides=each(conv.strides),
      padding=padding,
      rhs_dilation=each(conv.kernel_dilation),
      dimension_numbers=(layout, f"{spatial}IO", layout),
      precision=jax.lax.Precision.HIGHEST,
    )
    return _by_position(patches, 1)

  return None if is_rare or rank > 3 else rows


def _name(module: nn.Module) -> str:
  return "/".join(module.path) or type(module).__name__
