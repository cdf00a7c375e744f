"""From a configuration to the phases of its runs."""

import functools
from collections.abc import Callable

import numpy as np
import optax

from experiments import _methods, _run, _steps
from experiments._config import Config
from experiments._task import Task
from reweight_jax.types import PerExampleLoss


def total_steps(config: Config, num_train: int | None = None) -> int:
  """Steps of the whole command; `num_train` is needed only with epochs."""
  steps = config.num_steps(num_train or config.batch_size)
  finetunes = sum(_recipe(config, name).finetunes for name in config.run_names())
  per_seed = steps * len(config.run_names()) + config.finetune_steps * finetunes
  return per_seed * len(config.seeds)


def make_phases(
  config: Config, loss_fn: PerExampleLoss, name: str, task: Task, seed: int
) -> list[_run.Phase]:
  """The phases of one run.

  Args:
    config: the command's configuration.
    loss_fn: per-example loss, in training mode.
    name: the method, one of `config.run_names()`.
    task: the seed's task.
    seed: the seed, of rules that draw.

  Raises:
    ValueError: if a rule does not take its options or the task's class counts.
  """
  recipe = _recipe(config, name)

  def phase(source: str, num_steps: int, rate: float) -> _run.Phase:
    labels = (task.train if source == "train" else task.meta).labels
    counts = tuple(np.bincount(labels, minlength=task.num_classes).tolist())
    # Only what the step needs to know: runs that need the same share the compiled one.
    counts = counts if "class_balanced" in recipe.rules else ()
    rule = _methods.compose(recipe.rules, config.rule_options, counts, seed)
    tx = _optimizer(rate, config.momentum, config.weight_decay)
    step = _loop_step(loss_fn, recipe.rules, config.rule_options, counts, tx, config.route)
    uses_meta_batch = bool(_methods.NEEDS_META_BATCH & set(recipe.rules))
    return _run.Phase(source, num_steps, rule, tx, uses_meta_batch, step)

  phases = [phase(recipe.source, config.num_steps(len(task.train.labels)), config.rate())]
  if recipe.finetunes:
    phases.append(phase("meta", config.finetune_steps, config.rate() / 10))
  return phases


@functools.lru_cache(maxsize=32)
def _optimizer(
  rate: float, momentum: float, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=momentum))


@functools.lru_cache(maxsize=32)
def _loop_step(
  loss_fn: PerExampleLoss,
  rules: tuple[str, ...],
  options: _methods.RuleOptions,
  counts: tuple[int, ...],
  tx: optax.GradientTransformation,
  route: str,
) -> Callable[..., _steps.Carry]:
  # Seed 0 stands for all: rules of several seeds differ in their state alone.
  rule = _methods.compose(rules, options, counts, 0)
  return _steps.make_loop_step(loss_fn, rule, tx, route)


def _recipe(config: Config, name: str) -> _methods.Recipe:
  return _methods.Recipe(config.rules) if config.rules else _methods.METHODS[name]
