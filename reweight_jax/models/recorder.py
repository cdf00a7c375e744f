"""Makes the layers of an unmodified linen module seen, call by call."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

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
        _layer_call(module, context.method_name, args, kwargs), lambda: call_next(*args, **kwargs)
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
  others = {name: value for name, value in module.variables.items() if name != "params" and value}
  for name in others:
    if module.is_mutable_collection(name):
      raise RefusedError(f"{_name(module)} writes to {name} in training")
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
    return alone.apply({"params": own, **collections}, *args, method=method, **kwargs)

  return LayerCall(_name(module), tuple(module.path), (arrays, others), apply)


def _name(module: nn.Module) -> str:
  return "/".join(module.path) or type(module).__name__
