"""A model as the loop calls it: how it starts, its loss in training, its accuracy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import reweight_jax as rw
from experiments import _steps
from reweight_jax.types import Key, ModelState, Params, PerExampleLoss


class Model(NamedTuple):
  """Functions of uint8 images."""

  init: Callable[[Key, Any], tuple[Params, ModelState]]
  loss_fn: PerExampleLoss  # in training mode
  evaluate: Callable[..., float]


@functools.lru_cache(maxsize=8)
def make_model(name: str, num_classes: int, norm: str | None) -> Model:
  """Builds a model; equal arguments give the same functions, which are then compiled once.

  Raises:
    ValueError: if the model does not take the norm.
  """
  net = rw.models.build(name, num_classes, norm=norm)
  apply_fn = rw.models.linen_apply(net)
  scaled = lambda params, state, inputs, key, train: apply_fn(
    params, state, rw.models.scale_uint8(inputs), key, train
  )
  init = lambda key, inputs: rw.models.init_linen(net, rw.models.scale_uint8(inputs), key)
  evaluate = _steps.make_evaluator(rw.losses.from_apply(scaled, train=False))
  # Drawing the params compiles 3 times as fast this way, to the same bits.
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return Model(jax.jit(init, compiler_options=options), rw.losses.from_apply(scaled), evaluate)
