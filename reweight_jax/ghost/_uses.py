"""Whether any parameter is used outside of the recorded layers, by following the data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from reweight_jax.ghost.layers import Layer, LayerCall, Recorder, RefusedError, shape_of
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

_TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_NO_LEAVES: frozenset[int] = frozenset()


def check_every_use(
  recorder: Recorder,
  layers: Sequence[Layer],
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
) -> None:
  """Follows the data from every parameter with all layers cut out; none may reach the losses.

  What comes into a layer is kept on the way, added to its place with factor 0: without that, all
  that is computed before the layer would look unused.

  Raises:
    RefusedError: naming a parameter that is used outside.
  """

  def run(params: Params, taps: list[Array], *rest: Any) -> Array:
    remaining = iter(taps)

    def tap(call: LayerCall, run: Callable[[], Any]) -> Any:
      output = next(remaining)
      for leaf in jax.tree.leaves(call.inputs):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
          output = output + 0 * jnp.sum(leaf).astype(output.dtype)
      return output

    with recorder(params, tap):
      return loss_fn(params, *rest).losses

  params, *rest = jax.tree.map(shape_of, (params, model_state, batch, key))
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
