"""Does example weighting help to train on wrong labels, and by how much?

    python -m experiments.cifar_noisy --dataset=digits --method=ce,l2rw --seeds=0,1,2

Corrupts the labels of an image data set, keeps a small clean meta set aside, trains each method
with each seed and prints a table. Every run leaves its files under WORKDIR/METHOD/seed_N/; the same
command again finishes what was not finished. Expected on digits with pair noise 45 %: seconds a
run on two cores.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from absl import flags

import reweight_jax as rw
from experiments import _errors, _methods, _progress, _report, _run, _task, _workdir
from experiments._config import Config, check
from experiments._errors import UsageError
from reweight_jax import data, runlog
from reweight_jax.types import PerExampleLoss

MODEL_OF = {"digits": "mlp", "mnist": "lenet", "fashion_mnist": "lenet", "cifar10": "resnet20"}

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  words = lambda known: f"one of {', '.join(known)}"
  flags.DEFINE_string("dataset", default.dataset, words(data.DATASETS))
  flags.DEFINE_string("data_dir", None, "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  flags.DEFINE_string("method", None, f"list of {', '.join(_methods.METHODS)}; default ce,l2rw")
  flags.DEFINE_string("rules", None, f"instead of --method, a chain of {', '.join(_methods.RULES)}")
  flags.DEFINE_string("seeds", "0", "list of whole numbers, one run each")
  flags.DEFINE_string("noise", default.noise, words(data.NOISES))
  flags.DEFINE_float("noise_rate", None, "share of the labels to corrupt, in [0, 1); default 0.45")
  flags.DEFINE_integer("meta_size", default.meta_size, "clean examples, stratified by class")
  flags.DEFINE_integer("validation_size", default.validation_size, "noisy examples for selection")
  flags.DEFINE_string("model", None, f"{words(rw.models.MODELS)}; default by data set")
  flags.DEFINE_string("norm", None, f"{words(rw.models.NORMS)}; default the model's own")
  flags.DEFINE_integer("batch_size", default.batch_size, "training examples a step")
  flags.DEFINE_integer("meta_batch_size", default.meta_batch_size, "clean examples a step, at most")
  flags.DEFINE_integer("steps", None, "steps of a run; default 600")
  flags.DEFINE_float("epochs", None, "instead of --steps, passes over the training set")
  flags.DEFINE_integer("finetune_steps", default.finetune_steps, "steps on the clean set after ce")
  flags.DEFINE_float("learning_rate", default.learning_rate, "of SGD; a tenth of it fine-tunes")
  flags.DEFINE_float("momentum", default.momentum, "of SGD")
  flags.DEFINE_float("weight_decay", default.weight_decay, "L2 penalty's factor, on all params")
  flags.DEFINE_string("route", default.route, f"to the meta-gradient, {words(rw.meta.ROUTES)}")
  flags.DEFINE_integer("eval_every", default.eval_every, "steps between evaluations")
  flags.DEFINE_integer("checkpoint_every", default.checkpoint_every, "steps between checkpoints")
  flags.DEFINE_string("workdir", None, "folder of the results; default runs/SETTING")
  options = default.rule_options
  flags.DEFINE_float("focal_gamma", options.focal_gamma, "exponent of the rule focal")
  flags.DEFINE_float("class_balanced_beta", options.class_balanced_beta, "of class_balanced")
  flags.DEFINE_float("clip_max_weight", options.clip_max_weight, "largest weight of the rule clip")
  flags.DEFINE_float("mix_share", options.mix_share, "uniform share of mix_with_uniform")
  flags.DEFINE_float("normalize_decay", None, "moving average of normalize; default each batch")


def run(config: Config, progress: _progress.Progress | None = None) -> dict[str, Any]:
  """Runs every method with every seed and returns the summary, method by method.

  Args:
    config: what to run.
    progress: the bar to count on; None for one of its own.

  Raises:
    UsageError: for a setting that cannot be run, or a workdir that holds another one.
    DataError: if the data cannot be read.
    RunError: if a loss is not finite.
  """
  check(config)
  dataset = data.load(config.dataset, config.data_dir)
  try:
    tasks = {seed: _make_task(config, dataset, seed) for seed in config.seeds}
    net = rw.models.build(
      config.model or MODEL_OF[config.dataset], dataset.num_classes, norm=config.norm
    )
    apply_fn = rw.models.linen_apply(net)
  except ValueError as error:
    raise UsageError(str(error)) from error
  num_train = len(next(iter(tasks.values())).train.labels)
  if config.batch_size > num_train:
    raise UsageError(
      f"--batch_size: expected at most the {num_train} training examples, got {config.batch_size}"
    )
  steps = config.num_steps(num_train)
  _workdir.prepare(config)

  scaled = lambda params, state, inputs, key, train: apply_fn(
    params, state, rw.models.scale_uint8(inputs), key, train
  )
  loss_fn = rw.losses.from_apply(scaled)
  evaluate = _run.make_evaluator(rw.losses.from_apply(scaled, train=False))
  make_phases = _phase_maker(config, loss_fn, steps)
  own_progress = progress is None
  progress = progress or _progress.Progress(total_steps(config, num_train))
  init = jax.jit(lambda key, inputs: rw.models.init_linen(net, inputs, key))
  results: dict[str, list[dict[str, Any]]] = {}
  for name in config.run_names():
    for seed, task in tasks.items():
      folder = _workdir.run_folder(config, name, seed)
      progress.begin(f"{config.noise} {config.noise_rate:g}, {name}, seed {seed}")
      phases = make_phases(name, task, seed)
      if (folder / "weights.npz").exists():
        progress.advance(sum(phase.num_steps for phase in phases))
      else:
        sample = rw.models.scale_uint8(task.train.inputs[:2])
        params, state = init(jax.random.key(seed), sample)
        _run.run(
          task,
          params,
          state,
          phases,
          _schedule(config),
          evaluate,
          seed=seed,
          folder=folder,
          advance=progress.advance,
        )
        _report.write_run_plot(folder)
      progress.end()
      results.setdefault(name, []).append(_report.run_result(folder))
  if own_progress:
    progress.close()
  summary = _report.summarize(results)
  _write_summary(config, summary)
  return summary


def total_steps(config: Config, num_train: int | None = None) -> int:
  """Steps of the whole command; `num_train` is needed only with epochs."""
  steps = config.num_steps(num_train or config.batch_size)
  finetunes = sum(
    not config.rules and _methods.METHODS[name].finetunes for name in config.run_names()
  )
  per_seed = steps * len(config.run_names()) + config.finetune_steps * finetunes
  return per_seed * len(config.seeds)


def _make_task(config: Config, dataset: data.Dataset, seed: int) -> _task.Task:
  return _task.make_task(
    dataset,
    noise=config.noise,
    noise_rate=config.noise_rate,
    meta_size=config.meta_size,
    validation_size=config.validation_size,
    seed=seed,
  )


def _schedule(config: Config) -> _run.Schedule:
  return _run.Schedule(
    config.batch_size, config.meta_batch_size, config.eval_every, config.checkpoint_every
  )


def _phase_maker(
  config: Config, loss_fn: PerExampleLoss, steps: int
) -> Callable[[str, _task.Task, int], list[_run.Phase]]:
  """Phases of a run. Seeds share the compiled step: their rules differ in their state alone."""

  @functools.cache
  def loop_step(rules: tuple[str, ...], counts: tuple[int, ...], rate: float) -> Any:
    rule = _methods.compose(rules, config.rule_options, counts, 0)
    return _run.make_loop_step(loss_fn, rule, optimizer(rate), config.route)

  def optimizer(rate: float) -> optax.GradientTransformation:
    return optax.chain(
      optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=config.momentum)
    )

  def phase(
    source: str, rules: tuple[str, ...], num_steps: int, rate: float, task: _task.Task, seed: int
  ) -> _run.Phase:
    labels = (task.train if source == "train" else task.meta).labels
    counts = tuple((labels == label).sum().item() for label in range(task.num_classes))
    counts = counts if "class_balanced" in rules else ()
    rule = _methods.compose(rules, config.rule_options, counts, seed)
    uses_meta_batch = bool(_methods.NEEDS_META_BATCH & set(rules))
    step = loop_step(rules, counts, rate)
    return _run.Phase(source, num_steps, rule, optimizer(rate), uses_meta_batch, step)

  def make_phases(name: str, task: _task.Task, seed: int) -> list[_run.Phase]:
    recipe = _methods.Recipe(config.rules) if config.rules else _methods.METHODS[name]
    phases = [phase(recipe.source, recipe.rules, steps, config.learning_rate, task, seed)]
    if recipe.finetunes:
      rate = config.learning_rate / 10
      phases.append(phase("meta", recipe.rules, config.finetune_steps, rate, task, seed))
    return phases

  return make_phases


def _write_summary(config: Config, summary: dict[str, Any]) -> None:
  workdir = _workdir.path_of(config)
  setting = _workdir.setting(config)
  runlog.write_json(workdir / "summary.json", {"setting": setting, "methods": summary})
  seeds = ", ".join(map(str, config.seeds))
  title = f"# {config.dataset}, {config.noise} noise {config.noise_rate:g}, seeds {seeds}\n\n"
  runlog.write_text(workdir / "summary.md", title + _report.markdown_table(summary))


def config_from_flags() -> Config:
  """The configuration that the flags ask for."""
  split = lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
  try:
    seeds = tuple(int(seed) for seed in split(FLAGS.seeds))
  except ValueError as error:
    raise UsageError(
      f"--seeds: expected whole numbers such as 0,1,2; got {FLAGS.seeds!r}"
    ) from error
  same = [
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in ("methods", "rules", "seeds", "noise_rate", "rule_options")
  ]
  rate = FLAGS.noise_rate
  return Config(
    methods=split(FLAGS.method or ("" if FLAGS.rules else "ce,l2rw")),
    rules=split(FLAGS.rules or ""),
    seeds=seeds,
    noise_rate=(0.0 if FLAGS.noise == "none" else Config.noise_rate) if rate is None else rate,
    rule_options=_methods.RuleOptions(
      **{name: FLAGS[name].value for name in _methods.RuleOptions._fields}
    ),
    **{name: FLAGS[name].value for name in same},
  )


def main() -> None:
  """Runs the command and prints its table."""
  config = config_from_flags()
  summary = run(config)
  print(_report.markdown_table(summary))
  print(f"Accuracies in %, mean ± standard deviation over seeds. Files: {_workdir.path_of(config)}")


if __name__ == "__main__":
  define_flags()
  _errors.run_binary(main)
