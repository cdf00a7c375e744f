"""Whether any parameter is used outside of the recorded layers, by following the data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reweight_jax import _dataflow
from reweight_jax.ghost.layers import Layer, LayerCall, Recorder, RefusedError, shape_of
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss


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
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  raw = _dataflow.leaves_that_reach(run, (params, taps, *rest), of=0)
  if raw:
    name = jax.tree_util.keystr(paths[min(raw)], simple=True, separator="/")
    raise RefusedError(
      f"{name} is used outside of the layer that owns it, as a raw parameter, or as weights that "
      "another layer reads"
    )
