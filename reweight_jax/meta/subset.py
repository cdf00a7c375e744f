"""Which layers the meta gradient may be restricted to: a choice learned from a few batches."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax import per_example
from reweight_jax._validate import check_choice
from reweight_jax.meta.routes import make_meta_objective, meta_direction
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

BatchPair = tuple[Batch, Batch]


@dataclasses.dataclass(frozen=True)
class ChosenLayers:
  """Some of a model's layers; as a function, whether a parameter belongs to one of them.

  Attributes:
    names: of the layers, the first chosen first: names of parameters without their last part.
    cosines: with each of them added, the mean cosine of the partial alignment with the exact one.
  """

  names: tuple[str, ...]
  cosines: tuple[float, ...]

  def __call__(self, name: str) -> bool:
    """Whether the parameter of that name, such as "Dense_0/kernel", is in a chosen layer."""
    return _layer_of(name) in self.names


def choose_layers(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batches: Sequence[BatchPair],
  num_layers: int,
  *,
  key: Key | None = None,
  route: str = "forward",
  meta_loss_fn: PerExampleLoss | None = None,
) -> ChosenLayers:
  r"""Picks the layers whose part of the alignment points most the way of the whole.

  The alignment of an example is a sum over layers, :math:`a_i = \sum_l \langle \nabla_l \ell_i,
  \nabla_l L^{meta} \rangle`. Greedily, the layer is added whose part brings the sum over the chosen
  ones to the largest cosine with :math:`a`, over the examples of a batch, on average over the
  batches. Give the result to a step as `meta_params`: its meta gradient then stops at the chosen
  layers.

  Guarantees: deterministic; all layers together have cosine 1. A layer is a set of parameters whose
  names differ in the last part alone.
  Edge cases: of equally good layers the first one in the tree is taken; where an alignment is 0 for
  all examples its cosine counts as 0. The choice is that of the parameters given: as training goes
  on it ages. It takes a pass and a push for every layer and batch, once.

  Args:
    loss_fn: per-example loss, in training mode.
    params: pytree of floating arrays.
    model_state: the model's state.
    batches: pairs of a batch and a meta batch, one or more, on which to calibrate. As far as they
      are all of one shape, two functions are compiled.
    num_layers: how many layers to pick, at least 1.
    key: JAX key for dropout and the like; None only for a model that draws nothing.
    route: "forward" or "ghost", or "auto", as in `per_example.linearize`. Same choice.
    meta_loss_fn: loss of the meta batch; None for `loss_fn`.

  Returns:
    The layers, with the cosine that each brought.

  Raises:
    ValueError: if `batches` is empty, `num_layers` is not between 1 and the number of layers, or
      `route` is unknown.

  Source: Xu et al., "Faster Meta Update Strategy for Noise-Robust Deep Learning" (FaMUS), 2021,
  arXiv 2104.15092, eq. (7), for the sum over layers and the idea of learning which ones matter.
  There a net draws them in training; here the cosine is measured.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (
    ...   inputs @ (params["much"] + 0.1 * params["little"]), state)
    >>> loss_fn = rw.losses.from_apply(linear, rw.losses.squared_error)
    >>> batch = rw.types.make_batch(jnp.ones((2, 1)), jnp.array([1.0, 3.0]))
    >>> params = {"little": jnp.zeros(1), "much": jnp.zeros(1)}
    >>> chosen = choose_layers(loss_fn, params, (), [(batch, batch)], 2)
    >>> print(chosen.names[0], chosen("little"))
    little True
  """
  check_choice("route", route, ("forward", "ghost", "auto"))
  layers = tuple(dict.fromkeys(map(_layer_of, _names(params))))
  if not 1 <= num_layers <= len(layers):
    raise ValueError(
      f"choose_layers expects num_layers between 1 and {len(layers)}, the number of layers; got "
      f"{num_layers}."
    )
  if not batches:
    raise ValueError("choose_layers expects a pair (batch, meta_batch) or more, got none.")
  parts = _partial_alignments(
    loss_fn, params, model_state, batches, layers, key, route, meta_loss_fn or loss_fn
  )
  names: list[str] = []
  cosines: list[float] = []
  while len(names) < num_layers:
    candidates = [layer for layer in layers if layer not in names]
    scores = [_mean_cosine(parts, np.isin(layers, [*names, last])) for last in candidates]
    best = int(np.argmax(scores))
    names.append(candidates[best])
    cosines.append(scores[best])
  return ChosenLayers(tuple(names), tuple(cosines))


def _partial_alignments(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batches: Sequence[BatchPair],
  layers: Sequence[str],
  key: Key | None,
  route: str,
  meta_loss_fn: PerExampleLoss,
) -> list[np.ndarray]:
  """Of each batch, `[layers, batch]`: what each layer adds to the alignment."""
  batch_key, meta_key = (None, None) if key is None else jax.random.split(key)

  @jax.jit
  def direction_of(params: Params, meta_batch: Batch) -> Params:
    return meta_direction(
      make_meta_objective(meta_loss_fn, model_state, meta_batch, meta_key), params
    )

  # One layer at a time: all at once would take as many copies of the params, or a larger program.
  @jax.jit
  def push(params: Params, batch: Batch, direction: Params, is_on: Array) -> Array:
    leaves, structure = jax.tree.flatten(direction)
    masked = [jnp.where(on, leaf, 0) for leaf, on in zip(leaves, is_on, strict=True)]
    linearized = per_example.linearize(
      loss_fn, params, model_state, batch, key=batch_key, route=route
    )
    return linearized.push(jax.tree.unflatten(structure, masked))

  masks = [np.array([_layer_of(name) == layer for name in _names(params)]) for layer in layers]
  parts = []
  for batch, meta_batch in batches:
    direction = direction_of(params, meta_batch)
    pushed = [push(params, batch, direction, mask) for mask in masks]
    parts.append(np.stack([np.asarray(part, np.float64) for part in pushed]))
  return parts


def _mean_cosine(parts: Sequence[np.ndarray], is_chosen: np.ndarray) -> float:
  return float(np.mean([_cosine(part[is_chosen].sum(0), part.sum(0)) for part in parts]))


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
  lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
  return float(first @ second) / lengths if lengths > 0 else 0.0


def _names(params: Params) -> list[str]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _layer_of(name: str) -> str:
  return name.rpartition("/")[0] or name
