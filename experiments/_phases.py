"""From a configuration to the phases of its runs."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments import _base_losses, _meta, _methods, _reference, _steps
from experiments._config import WITHOUT_FLIPS, Config
from experiments._errors import UsageError
from experiments._lane import Phase, Schedule
from experiments._model import Model
from experiments._rule_options import RuleOptions
from experiments._task import Task
from reweight_jax import data
from reweight_jax.types import PerExampleLoss


def total_steps(config: Config, num_train: int | None = None) -> int:
  """Steps of the whole command; `num_train` is needed only with epochs."""
  steps = config.num_steps(num_train or config.batch_size)
  finetunes = sum(_recipe(config, name).finetunes for name in config.run_names())
  per_seed = steps * len(config.run_names()) + config.finetune_steps * finetunes
  return per_seed * len(config.seeds)


def make_schedule(config: Config) -> Schedule:
  """The loop's numbers; on CPU every step is a program of its own, a scan would be far slower."""
  chunk = config.chunk_steps or (1 if jax.default_backend() == "cpu" else 100)
  return Schedule(
    config.batch_size,
    config.num_meta(),
    config.eval_every,
    config.checkpoint_every,
    chunk_steps=chunk,
    keep=config.keep,
    ema_decay=config.ema_decay,
    validates_by_class=config.imbalance != "none",
  )


def make_phases(
  config: Config, model: Model, name: str, dataset: data.Dataset, task: Task, seed: int
) -> list[Phase]:
  """The phases of one run.

  Args:
    config: the command's configuration.
    model: losses in training mode.
    name: the method, one of `config.run_names()`.
    dataset: what the task is drawn from.
    task: the seed's task.
    seed: the seed, of rules that draw.

  Raises:
    ValueError: if a rule does not take its options or the task's class counts.
    UsageError: if what a rule needs beside the task is missing or does not fit it.
  """
  recipe = _recipe(config, name)
  names = set(recipe.rules)
  examples = None
  if names & (_methods.NEEDS_REFERENCE | _methods.NEEDS_RATIOS):
    examples = _reference.read(
      config,
      dataset,
      task,
      seed,
      ratios=bool(names & _methods.NEEDS_RATIOS),
      reference=bool(names & _methods.NEEDS_REFERENCE),
    )
  _check_sizes(config.rule_options, names, task.num_classes)
  loss_fn = _loss_fn(config, model, recipe, task)
  # Where weights follow the loss, or labels are soft, the regimes of fixed weights say nothing.
  is_plain = loss_fn is model.loss_fn and not (config.mixup or config.label_smoothing)
  has_offsets = is_plain and bool(_methods.FIXED & names) and names <= _methods.FIXED_OR_SHAPING
  uses_meta_batch = bool(_methods.NEEDS_META_BATCH & names)
  route, note = _meta.route(config, loss_fn, model, dataset)
  options = _steps.StepOptions(
    route,
    config.augment_kind(),
    config.dataset not in WITHOUT_FLIPS,
    config.ema_decay,
    config.precision,
  )
  meta_loss_fn = model.meta_loss_fn
  if uses_meta_batch:  # other methods share a step, whatever these flags say
    meta_loss_fn = _meta.meta_loss_fn(config, model)
    options = options._replace(
      virtual_optimizer=_meta.virtual_optimizer(config, names),
      virtual_steps=config.virtual_steps,
      meta_layers=_meta.layers(config, model, dataset),
    )

  def phase(source: str, num_steps: int, tx: optax.GradientTransformation) -> Phase:
    # Only what the step needs to know: runs that need the same share the compiled one.
    counts = task.class_counts(source) if _methods.NEEDS_COUNTS & names else ()
    epoch_steps = max(1, len(task.train) // config.batch_size)
    facts = _methods.Facts(counts, task.num_classes, len(task.labels), examples, epoch_steps)
    rule = _methods.compose(recipe.rules, config.rule_options, facts, seed, burn_in)
    step = _loop_step(
      loss_fn,
      meta_loss_fn,
      _Rules(
        recipe.rules,
        _methods.compiled_options(recipe.rules, config.rule_options),
        facts,
        burn_in,
      ),
      tx,
      options,
    )
    sampler = recipe.sampler if source == "train" else "shuffled"
    balanced_from = burn_in if sampler == "balanced" else None
    kept = _undersampled(task, seed) if sampler == "undersampled" else None
    every = config.meta_every if uses_meta_batch else 1
    return Phase(
      source,
      num_steps,
      rule,
      tx,
      uses_meta_batch,
      step,
      loss_fn,
      balanced_from=balanced_from,
      meta_every=every,
      note=note,
      kept=kept,
      has_offsets=has_offsets,
    )

  num_steps = config.num_steps(len(task.train))
  burn_in = round(config.defer_until * num_steps) if recipe.is_deferred else 0
  rate, rest = config.rate(), (config.momentum, config.weight_decay)
  main = _optimizer(rate, config.schedule, config.decay_at, num_steps, *rest)
  phases = [phase(recipe.source, num_steps, main)]
  if recipe.finetunes:
    small = _optimizer(rate / 10, "constant", (), config.finetune_steps, *rest)
    phases.append(phase("meta", config.finetune_steps, small))
  return phases


def _loss_fn(config: Config, model: Model, recipe: _methods.Recipe, task: Task) -> PerExampleLoss:
  """What the recipe's rules weigh."""
  if recipe.loss:
    counts = task.class_counts(recipe.source)
    assert model.loss_fn_of is not None  # every model of a command has it
    return model.loss_fn_of(_base_losses.make(recipe.loss, config.rule_options, counts))
  on_margin = _methods.ON_UNIT_MARGIN.intersection(recipe.rules)
  return model.margin_loss_fn if on_margin else model.loss_fn


def _undersampled(task: Task, seed: int) -> np.ndarray:
  """The training positions of the seed that leave every given label as often as the rarest."""
  rng = np.random.default_rng([seed, 4])  # 1 to 3 draw the task
  return task.train[data.undersampled_indices(task.labels[task.train], task.num_classes, rng)]


@functools.lru_cache(maxsize=32)
def _optimizer(
  rate: float,
  schedule: str,
  decay_at: tuple[float, ...],
  num_steps: int,
  momentum: float,
  weight_decay: float,
) -> optax.GradientTransformationExtraArgs:
  """SGD; weight decay, an L2 penalty, acts on matrices and kernels alone."""
  rates = make_rates(rate, schedule, decay_at, num_steps)
  is_kernel = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=is_kernel), optax.sgd(rates, momentum=momentum)
  )


def make_rates(
  rate: float, schedule: str, decay_at: tuple[float, ...], num_steps: int
) -> optax.Schedule:
  """The learning rate by step: constant, cosine to 0, or a tenth of it at each share of the run."""
  if schedule == "cosine":
    return optax.cosine_decay_schedule(rate, num_steps)
  if schedule == "step":
    drops = {round(share * num_steps): 0.1 for share in decay_at}
    return optax.piecewise_constant_schedule(rate, drops)
  return optax.constant_schedule(rate)


def _check_sizes(options: RuleOptions, names: set[str], num_classes: int) -> None:
  """Lists of a number for each class must have that length: a rule would clamp the rest."""
  flags = {_methods.NEEDS_OPTIONS[name] for name in names & _methods.NEEDS_OPTIONS.keys()}
  for flag in sorted(flags):
    size = len(getattr(options, flag))
    if size != num_classes:
      raise UsageError(f"--{flag}: expected {num_classes} numbers, one for each class, got {size}")


class _Rules(NamedTuple):
  """What rules are made of, apart from the seed."""

  names: tuple[str, ...]
  options: RuleOptions
  facts: _methods.Facts
  burn_in: int


@functools.lru_cache(maxsize=64)
def _loop_step(
  loss_fn: PerExampleLoss,
  meta_loss_fn: PerExampleLoss,
  rules: _Rules,
  tx: optax.GradientTransformation,
  options: _steps.StepOptions,
) -> _steps.LoopStep:
  # Seed 0 stands for all: rules of several seeds differ in their state alone.
  rule = _methods.compose(rules.names, rules.options, rules.facts, 0, rules.burn_in)
  return _steps.make_loop_step(loss_fn, meta_loss_fn, rule, tx, options)


def _recipe(config: Config, name: str) -> _methods.Recipe:
  return _methods.Recipe(config.rules) if config.rules else _methods.METHODS[name]
