"""How the steps of a run get their meta-gradient, from the flags that all methods share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _learned
from experiments._config import Config
from experiments._errors import UsageError
from experiments._model import Model
from reweight_jax import data, ghost, per_example
from reweight_jax.ghost.layers import plan as recorded_layers
from reweight_jax.types import Batch, PerExampleLoss, make_batch

LOSSES = ("ce", "mae", "gce")
LABELS = ("clean", "noisy")
VIRTUAL_OPTIMIZERS = ("none", "training")
ONLY_CLEAN = ("clean_only", "finetune")
"""The methods that train on the meta set as if its labels were right."""


def check(config: Config, rules: set[str]) -> None:
  """Raises UsageError, one line, for flags that do not go together.

  Args:
    config: of a command.
    rules: the rules of all its methods.
  """
  if config.virtual_steps > 1 and config.route != "nested":
    raise UsageError(
      f"--virtual_steps: {config.virtual_steps} virtual steps need --route=nested; got "
      f"--route={config.route}, which has one"
    )
  learned = sorted(rules & _learned.AT_PRESENT_WEIGHTS)
  if config.virtual_optimizer == "none" and learned:
    raise UsageError(
      f"--virtual_optimizer: {learned[0]} looks at a virtual step of some size, and none has none; "
      "leave it out, or take training"
    )
  if config.meta_every > 1:
    _check_every(config, rules)
  if config.meta_labels == "noisy":
    if config.noise == "none":
      raise UsageError("--meta_labels=noisy goes with a --noise, got --noise=none")
    wrong = [name for name in config.methods if name in ONLY_CLEAN]
    if wrong:
      raise UsageError(
        f"--meta_labels: {wrong[0]} trains on the meta set because its labels are right; leave the "
        "method or --meta_labels=noisy out"
      )


def _check_every(config: Config, rules: set[str]) -> None:
  if config.route == "nested":
    raise UsageError(
      f"--meta_every: {config.meta_every} keeps the meta direction between meta batches, and "
      "--route=nested has none; take forward, ghost or auto"
    )
  learned = sorted(rules & set(_learned.NAMES))
  if learned:
    raise UsageError(
      f"--meta_every: {learned[0]} learns from a meta batch in every step, and goes with 1 alone; "
      f"got {config.meta_every}"
    )


def virtual_optimizer(config: Config, rules: set[str]) -> str:
  """The flag's word, or the default of the rules: training's own where the step's size counts."""
  default = "training" if rules & _learned.AT_PRESENT_WEIGHTS else "none"
  return config.virtual_optimizer or default


def meta_loss_fn(config: Config, model: Model) -> PerExampleLoss:
  """The loss of the meta batch.

  Raises:
    UsageError: if the model has no other than cross-entropy.
  """
  if config.meta_loss == "ce":
    return model.meta_loss_fn
  if model.robust_meta_loss_fn is None:
    raise UsageError(f"--meta_loss: expected ce for this model, got {config.meta_loss}")
  return model.robust_meta_loss_fn(config.meta_loss, config.rule_options.gce_q)


def route(
  config: Config, loss_fn: PerExampleLoss, model: Model, dataset: data.Dataset
) -> tuple[str, str]:
  """The route of the steps, `auto` resolved, and the line that tells what it picked; else "".

  Raises:
    UsageError: if it is ghost, and that would not be exact.
  """
  if config.route not in ("auto", "ghost"):
    return config.route, ""
  inputs = dataset.train_inputs
  shape = (config.batch_size, *inputs.shape[1:])
  return _picked(config.route, loss_fn, model.init, shape, inputs.dtype.name)


@functools.lru_cache(maxsize=32)  # seeds ask the same
def _picked(
  asked: str, loss_fn: PerExampleLoss, init: Any, shape: tuple[int, ...], dtype: str
) -> tuple[str, str]:
  params, model_state, batch, key = _shapes(init, shape, dtype)
  if asked == "auto":
    picked, reason = per_example.pick_route(loss_fn, params, model_state, batch, key=key)
    return picked, f"route {picked}, since {reason}"
  try:
    ghost.check(loss_fn, params, model_state, batch, key=key)
  except ghost.RefusedError as error:
    raise UsageError(
      f"--route=ghost is not exact here: {error}; take --route=auto or forward"
    ) from error
  return asked, ""


def layers(config: Config, model: Model, dataset: data.Dataset) -> tuple[str, ...]:
  """The parameters of `--meta_layers` by the beginnings of their names, `last` resolved.

  Raises:
    UsageError: if one of them begins no parameter's name, or the last layer is not known.
  """
  if not config.meta_layers:
    return ()
  inputs = dataset.train_inputs
  shape = (config.batch_size, *inputs.shape[1:])
  shapes = _shapes(model.init, shape, inputs.dtype.name)
  found = tuple(
    _last(model.meta_loss_fn, shapes) if name == "last" else name.strip("/")
    for name in config.meta_layers
  )
  known = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes[0])
  ]
  for name in found:
    if not any(is_below(parameter, (name,)) for parameter in known):
      first = list(dict.fromkeys(parameter.split("/")[0] for parameter in known))
      raise UsageError(
        f"--meta_layers: expected last, or names of layers such as {', '.join(first)}; got {name!r}"
      )
  return found


def is_below(parameter: str, names: tuple[str, ...]) -> bool:
  """Whether a parameter, as "Dense_0/kernel", is or belongs to one of those named."""
  return any(parameter == name or parameter.startswith(f"{name}/") for name in names)


def _last(loss_fn: PerExampleLoss, shapes: tuple[Any, ...]) -> str:
  recorder = getattr(loss_fn, "recorder", None)
  try:
    if recorder is None:
      raise ghost.RefusedError("its layers are not recorded")
    return "/".join(recorded_layers(recorder, loss_fn, *shapes)[-1].path)
  except ghost.RefusedError as error:
    raise UsageError(
      f"--meta_layers: last is not known for this model, since {error}; name the layers"
    ) from error


@functools.lru_cache(maxsize=8)
def _shapes(init: Any, shape: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
  """Shapes of params, model state, a batch and a key."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  # By itself: nested, its compiler options would be refused.
  params, model_state = jax.eval_shape(init, key, jax.ShapeDtypeStruct((2, *shape[1:]), dtype))

  def make(inputs: Any) -> Batch:
    labels = jnp.zeros(shape[0], jnp.int32)
    return make_batch(inputs, labels, indices=labels)

  return params, model_state, jax.eval_shape(make, jax.ShapeDtypeStruct(shape, dtype)), key
