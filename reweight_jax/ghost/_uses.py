"""Whether any parameter is used outside of the recorded layers, by following the data."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
) -> str:
  """Follows the data from every parameter with all layers cut out; none may reach the losses.

  What comes into a layer is kept on the way, added to its place with factor 0: without that, all
  that is computed before the layer would look unused.

  Returns:
    A fingerprint of the program outside of the layers, its constants included.

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
  closed = jax.make_jaxpr(run)(params, taps, *rest)
  raw = _dataflow.leaves_that_reach(closed.jaxpr, range(len(paths)))
  if raw:
    name = jax.tree_util.keystr(paths[min(raw)], simple=True, separator="/")
    raise RefusedError(
      f"{name} is used outside of the layer that owns it, as a raw parameter, or as weights that "
      "another layer reads"
    )
  known = [c for c in closed.consts if not isinstance(c, jax.core.Tracer)]
  parts = [str(closed.jaxpr).encode(), *(np.asarray(c).tobytes() for c in known if _is_plain(c))]
  return hashlib.sha256(b"".join(parts)).hexdigest()


def _is_plain(constant: Any) -> bool:
  return not jnp.issubdtype(jnp.result_type(constant), jax.dtypes.extended)
