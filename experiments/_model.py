"""A model as the loop calls it: how it starts, its losses in training, its predictions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import reweight_jax as rw
from experiments import _evaluation
from experiments._config import Config
from reweight_jax import data
from reweight_jax.types import ApplyFn, Array, Key, ModelState, Params, PerExampleLoss


class Model(NamedTuple):
  """Functions of uint8 images."""

  init: Callable[[Key, Any], tuple[Params, ModelState]]
  loss_fn: PerExampleLoss  # cross-entropy, in training mode
  meta_loss_fn: PerExampleLoss  # the same without smoothing and mixup
  margin_loss_fn: PerExampleLoss  # the unit margin, which rules of emphasis weigh
  predict: _evaluation.Predict
  # A loss of one example -> the loss on it, in training mode; one function for one loss.
  loss_fn_of: Callable[[Callable[[Array, Array], Array]], PerExampleLoss] | None = None
  # (mae or gce, exponent of gce) -> loss of the meta batch; None if there is no other.
  robust_meta_loss_fn: Callable[[str, float], PerExampleLoss] | None = None


def image_model(config: Config, dataset: data.Dataset) -> Model:
  """The model that a configuration names, for a data set of images.

  Raises:
    ValueError: if the model does not take the norm.
  """
  return make_model(
    config.model_name(),
    dataset.num_classes,
    config.norm,
    dtype=config.dtype,
    label_smoothing=config.label_smoothing,
    mixup=config.mixup,
  )


@functools.lru_cache(maxsize=8)
def make_model(
  name: str,
  num_classes: int,
  norm: str | None,
  *,
  dtype: str = "float32",
  label_smoothing: float = 0.0,
  mixup: float = 0.0,
) -> Model:
  """Builds a model; equal arguments give the same functions, which are then compiled once.

  Raises:
    ValueError: if the model does not take the norm.
  """
  hidden = jnp.dtype(dtype) if dtype != "float32" else None
  net = rw.models.build(name, num_classes, norm=norm, dtype=hidden)
  apply_fn = rw.models.linen_apply(net)
  scaled = lambda params, state, inputs, key, train: apply_fn(
    params, state, rw.models.scale_uint8(inputs), key, train
  )
  scaled.recorder = apply_fn.recorder  # type: ignore[attr-defined]
  loss = rw.losses.softmax_cross_entropy
  if label_smoothing:
    loss = rw.losses.smoothed_cross_entropy(label_smoothing)
  loss_fn = rw.losses.from_apply(scaled, loss)
  if mixup:
    # Pixels are mixed as numbers, so they are scaled before.
    mixed = rw.losses.mixup(apply_fn, mixup, loss)
    loss_fn = lambda params, state, batch, key: mixed(
      params, state, batch._replace(inputs=rw.models.scale_uint8(batch.inputs)), key
    )
  init = lambda key, inputs: rw.models.init_linen(net, rw.models.scale_uint8(inputs), key)
  return from_apply(scaled, init)._replace(loss_fn=loss_fn)


def from_apply(apply_fn: ApplyFn, init: Callable[[Key, Any], tuple[Params, ModelState]]) -> Model:
  """The model of an apply function of the data set's own inputs, and of how its params start."""
  plain = rw.losses.from_apply(apply_fn)
  margin = rw.losses.from_apply(apply_fn, rw.losses.unit_margin)
  predict = _evaluation.make_predictor(rw.losses.from_apply(apply_fn, train=False))

  @functools.cache  # equal arguments, one function: it is part of a compiled step
  def robust(name: str, q: float) -> PerExampleLoss:
    known = {"mae": rw.losses.absolute_error, "gce": rw.losses.generalized_cross_entropy(q)}
    return rw.losses.from_apply(apply_fn, known[name])

  on = functools.cache(lambda loss: rw.losses.from_apply(apply_fn, loss))  # as above
  # Drawing the params compiles 3 times as fast this way, to the same bits.
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return Model(jax.jit(init, compiler_options=options), plain, plain, margin, predict, on, robust)
