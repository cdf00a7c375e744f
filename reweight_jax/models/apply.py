"""From Flax modules, linen or NNX, to the plain functions that the rest of the package takes."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from reweight_jax.models.recorder import linen_recorder
from reweight_jax.types import ApplyFn, Array, Key, ModelState, Params


def linen_apply(module: nn.Module) -> ApplyFn:
  """Makes an `ApplyFn` of a linen module.

  The model state is the dict of the module's collections other than "params", as `init_linen` gives
  it. In training all of them are mutable and the new ones come back: keeping or discarding them is
  the caller's choice. In evaluation none is mutable and the state comes back as it was.

  Guarantees: pure; the new state has the structure of the old one.
  Edge cases: collections that the state does not hold (``sow`` into "intermediates") are not
  recorded. Without a key a module that needs one raises flax's ``InvalidRngError``.

  Args:
    module: a linen module called as ``module(inputs, train=...)``.

  Returns:
    ``(params, model_state, inputs, key, train) -> (outputs, model_state)``; ``key`` seeds the
    stream "dropout".

  Raises:
    TypeError: if ``module`` is no linen module, or cannot be called with ``train``.

  Example:
    >>> net = nn.BatchNorm(use_running_average=True)
    >>> linen_apply(net)
    Traceback (most recent call last):
    TypeError: linen_apply expects a module called as module(inputs, train=...); \
BatchNorm takes (x, use_running_average, mask). Wrap it in a module that takes train.
  """
  if not isinstance(module, nn.Module):
    raise TypeError(
      f"linen_apply expects an instance of flax.linen.Module, got {module!r}. "
      "For an NNX module use nnx_apply."
    )
  taken = inspect.signature(module.__call__).parameters  # type: ignore[operator]
  if "train" not in taken and all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
    raise TypeError(
      "linen_apply expects a module called as module(inputs, train=...); "
      f"{type(module).__name__} takes ({', '.join(taken)}). Wrap it in a module that takes train."
    )

  def apply_fn(
    params: Params, model_state: ModelState, inputs: Any, key: Key | None, train: bool
  ) -> tuple[Any, ModelState]:
    variables = {"params": params, **dict(model_state)}
    rngs = None if key is None else {"dropout": key}
    if not (train and model_state):
      return module.apply(variables, inputs, train=train, rngs=rngs), model_state
    outputs, new_state = module.apply(
      variables, inputs, train=train, rngs=rngs, mutable=list(model_state)
    )
    return outputs, dict(new_state)

  apply_fn.recorder = linen_recorder  # type: ignore[attr-defined]
  return apply_fn


def init_linen(
  module: nn.Module, sample_inputs: Any, key: Key
) -> tuple[Params, dict[str, ModelState]]:
  """Draws a linen module's params and makes its first state.

  ``module.init`` under one `jax.jit`, with ``train=False``. Only shapes and dtypes of the inputs
  matter.

  Args:
    module: a linen module called as ``module(inputs, train=...)``.
    sample_inputs: `[batch, ...]`, of the shape and dtype of later inputs; one example will do.
    key: seeds the params.

  Returns:
    The params, and the dict of the other collections; empty for a module without state.

  Example:
    >>> from reweight_jax.models import Norm
    >>> params, model_state = init_linen(Norm("batch"), jnp.ones((1, 2)), jax.random.key(0))
    >>> sorted(params), sorted(model_state["batch_stats"])
    (['bias', 'scale'], ['mean', 'var'])
  """
  variables = dict(jax.jit(lambda k, x: module.init(k, x, train=False))(key, sample_inputs))
  return variables.pop("params", {}), variables


def nnx_apply(model: nnx.Module) -> tuple[ApplyFn, Params, ModelState]:
  """Takes an NNX module apart into an `ApplyFn`, its params and its state.

  The params are the ``nnx.Param`` variables, the state everything else but the random streams, both
  as ``nnx.State`` trees. ``nnx.update(model, params, model_state)`` writes trained values back. In
  training the module runs after ``model.train()`` and the new state comes back; in evaluation after
  ``model.eval()``, and the state comes back as it was. So Dropout and BatchNorm follow ``train``,
  and so does any module with an attribute ``deterministic`` or ``use_running_average``.

  Random streams are no state here: in training each stream of the module is seeded anew from
  ``key`` (and the stream's place in the module, so no two share their draws). The same key
  therefore repeats the same draws, and the module's own seeds are never used.

  Guarantees: pure; ``model`` itself is never written to.
  Edge cases: a module that draws random numbers in evaluation uses its own seeds, the same at each
  call.

  Args:
    model: an NNX module called as ``model(inputs)``.

  Returns:
    ``apply_fn, params, model_state``. In training the function raises ValueError for a module with
    random streams and no key.

  Raises:
    TypeError: if ``model`` is no NNX module.

  Example:
    >>> apply_fn, params, model_state = nnx_apply(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> logits, _ = apply_fn(params, model_state, jnp.ones((4, 3)), None, True)
    >>> print(logits.shape)
    (4, 2)
  """
  if not isinstance(model, nnx.Module):
    raise TypeError(
      f"nnx_apply expects an instance of flax.nnx.Module, got {model!r}. "
      "For a linen module use linen_apply."
    )
  graph, params, streams, model_state = _split(model)
  params, streams, model_state = _copy((params, streams, model_state))

  def apply_fn(
    params: Params, model_state: ModelState, inputs: Any, key: Key | None, train: bool
  ) -> tuple[Any, ModelState]:
    if train and key is None and jax.tree.leaves(streams):
      raise ValueError(
        f"nnx_apply expects a key in training: {type(model).__name__} has random streams."
      )
    seeded = _reseed(streams, key) if train and key is not None else streams
    # A merged module shares its variables with the trees it came from, and running it writes to
    # them: without the copy a call would change its own arguments.
    merged = nnx.merge(graph, *_copy((params, seeded, model_state)))
    if not train:
      merged.eval()
      return merged(inputs), model_state
    merged.train()
    outputs = merged(inputs)
    return outputs, _copy(_split(merged)[3])

  return apply_fn, params, model_state


def scale_uint8(inputs: Any) -> Array:
  """Scales images of bytes to [-1, 1]; leaves floating inputs alone.

  Args:
    inputs: `[batch, ...]`, uint8 or floating.

  Returns:
    ``(inputs / 255 - 0.5) * 2`` in float32 for uint8, the inputs themselves for floating ones.

  Raises:
    TypeError: for any other dtype.

  Example:
    >>> print(scale_uint8(jnp.array([0, 255], jnp.uint8)))
    [-1.  1.]
  """
  inputs = jnp.asarray(inputs)
  if jnp.issubdtype(inputs.dtype, jnp.floating):
    return inputs
  if inputs.dtype != jnp.uint8:
    raise TypeError(f"scale_uint8 expects uint8 or floating inputs, got {inputs.dtype}.")
  return (inputs.astype(jnp.float32) / 255 - 0.5) * 2


def _split(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
  """A module as graph, params, random streams, and the rest."""
  parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
  return parts


def _copy(tree: Any) -> Any:
  """New containers and new NNX variables around the same arrays."""
  return jax.tree.map(lambda leaf: leaf, tree)


def _reseed(streams: Any, key: Key) -> Any:
  """Random streams with keys derived from one key, and counters at zero."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  leaves, treedef = jax.tree.flatten(streams)
  for i, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      folded = jax.random.fold_in(key, i)
      leaves[i] = jax.random.split(folded, leaf.shape) if leaf.shape else folded
    else:
      leaves[i] = jnp.zeros_like(leaf)
  return jax.tree.unflatten(treedef, leaves)
