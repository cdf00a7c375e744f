"""Does example weighting help to train on wrong labels, and by how much?

    python -m experiments.cifar_noisy --dataset=digits --method=ce,l2rw --seeds=0,1,2

Corrupts the labels of an image data set, keeps a small clean meta set aside, trains each method
with each seed and prints a table. Every run leaves its files under WORKDIR/METHOD/seed_N/; the same
command again finishes what was not finished, and other methods or seeds add to the workdir.
Expected of the command above, on digits with pair noise 45 %: about 55 % at the last step for ce,
90 % for l2rw, in half a minute on two cores.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

import reweight_jax as rw
from experiments import (
  _errors,
  _methods,
  _model,
  _phases,
  _progress,
  _report,
  _run,
  _task,
  _workdir,
)
from experiments._config import Config, check
from experiments._errors import UsageError
from reweight_jax import data


def define_flags(values: flags.FlagValues) -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  words = lambda known: f"one of {', '.join(known)}"
  text, whole, number = (
    functools.partial(define, flag_values=values)
    for define in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float)
  )
  text("dataset", default.dataset, words(data.DATASETS))
  text("data_dir", None, "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  text("method", None, f"list of {', '.join(_methods.METHODS)}; default ce,l2rw")
  text("rules", None, f"instead of --method, a chain of {', '.join(_methods.RULES)}")
  text("seeds", "0", "list of whole numbers, one run each")
  text("noise", default.noise, words(data.NOISES))
  number("noise_rate", None, "share of the labels to corrupt, in [0, 1); default 0.45")
  whole("meta_size", default.meta_size, "clean examples, stratified by class")
  whole("validation_size", default.validation_size, "noisy examples for selection")
  text("model", None, f"{words(rw.models.MODELS)}; default by data set")
  text("norm", None, f"{words(rw.models.NORMS)}; default the model's own")
  whole("batch_size", default.batch_size, "training examples a step")
  whole("meta_batch_size", None, "clean examples a step; default 20, or all of fewer")
  whole("steps", None, "steps of a run; default 600")
  number("epochs", None, "instead of --steps, passes over the training set")
  whole("finetune_steps", default.finetune_steps, "steps on the clean set after ce")
  number("learning_rate", None, "of SGD, a tenth of it fine-tunes; default 0.1, LeNet 0.02")
  number("momentum", default.momentum, "of SGD")
  number("weight_decay", default.weight_decay, "L2 penalty's factor, on all params")
  text("route", default.route, f"to the meta-gradient, {words(rw.meta.ROUTES)}")
  whole("eval_every", default.eval_every, "steps between evaluations")
  whole("checkpoint_every", default.checkpoint_every, "steps between checkpoints")
  text("workdir", None, "folder of the results; default runs/SETTING")
  options = default.rule_options
  number("focal_gamma", options.focal_gamma, "exponent of the rule focal")
  number("class_balanced_beta", options.class_balanced_beta, "of class_balanced")
  number("clip_max_weight", options.clip_max_weight, "largest weight of the rule clip")
  number("mix_share", options.mix_share, "uniform share of mix_with_uniform")
  number("normalize_decay", None, "moving average of normalize; default each batch")


def run(config: Config, progress: _progress.Progress | None = None) -> dict[str, Any]:
  """Runs every method with every seed and returns the summary, method by method.

  Args:
    config: what to run.
    progress: the bar to count on; None for one of its own.

  Raises:
    UsageError: for a setting that cannot be run or a workdir that does not fit; nothing is written.
    DataError: if the data cannot be read; nothing is written.
    RunError: if a loss is not finite.
  """
  check(config)
  _workdir.check(config)
  dataset = data.load(config.dataset, config.data_dir)
  try:
    tasks = {seed: _make_task(config, dataset, seed) for seed in config.seeds}
    num_train = len(tasks[config.seeds[0]].train.labels)
    if config.batch_size > num_train:
      raise UsageError(
        f"--batch_size: expected at most the {num_train} training examples, got {config.batch_size}"
      )
    model = _model.make_model(config.model_name(), dataset.num_classes, config.norm)
    jobs = [
      (name, seed, _phases.make_phases(config, model.loss_fn, name, task, seed))
      for name in config.run_names()
      for seed, task in tasks.items()
    ]
  except ValueError as error:
    raise UsageError(str(error)) from error
  _workdir.prepare(config)

  schedule = _run.Schedule(
    config.batch_size, config.num_meta(), config.eval_every, config.checkpoint_every
  )
  with _progress.shared_or_own(progress, _phases.total_steps(config, num_train)) as progress:
    for name, seed, phases in jobs:
      folder = _workdir.run_folder(config, name, seed)
      progress.begin(f"{config.noise} {config.noise_rate:g}, {name}, seed {seed}")
      if (folder / "weights.npz").exists():
        progress.advance(sum(phase.num_steps for phase in phases), "finished before")
      else:
        inputs = tasks[seed].train.inputs[:2]
        params, model_state = model.init(jax.random.key(seed), inputs)
        _run.run(
          tasks[seed],
          params,
          model_state,
          phases,
          schedule,
          evaluate=model.evaluate,
          seed=seed,
          folder=folder,
          advance=progress.advance,
        )
      if not (folder / "plots" / "run.png").exists():
        _report.write_run_plot(folder)
      progress.end()
  # The files tell of all runs of the workdir, the answer of those asked for.
  results = _report.read_results(_workdir.finished_folders(config))
  _report.write_summary(config, _report.summarize(results))
  return _report.summarize(
    {name: {seed: results[name][seed] for seed in config.seeds} for name in config.run_names()}
  )


def _make_task(config: Config, dataset: data.Dataset, seed: int) -> _task.Task:
  return _task.make_task(
    dataset,
    noise=config.noise,
    noise_rate=config.noise_rate,
    meta_size=config.meta_size,
    validation_size=config.validation_size,
    seed=seed,
  )


def config_of(values: flags.FlagValues) -> Config:
  """The configuration that the flags ask for."""
  given = values.flag_values_dict()
  method = given["method"]
  if method is None and given["rules"] is None:
    method = "ce,l2rw"
  if given["noise_rate"] is None:
    given["noise_rate"] = 0.0 if given["noise"] == "none" else Config.noise_rate
  given |= {"methods": _split(method), "rules": _split(given["rules"])}
  given |= {"seeds": tuple(_whole(seed) for seed in _split(given["seeds"]))}
  given |= {"rule_options": _methods.RuleOptions(**_fields_of(_methods.RuleOptions, given))}
  return Config(**_fields_of(Config, given))


def _fields_of(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
  return {field.name: given[field.name] for field in dataclasses.fields(kind)}


def _split(text: str | None) -> tuple[str, ...]:
  return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _whole(text: str) -> int:
  try:
    return int(text)
  except ValueError as error:
    raise UsageError(f"--seeds: expected whole numbers such as 0,1,2; got {text!r}") from error


def main(values: flags.FlagValues) -> None:
  """Runs the command and prints its table."""
  config = config_of(values)
  summary = run(config)
  print(_report.markdown_table(summary))
  print(f"Accuracies in %, mean ± standard deviation over seeds. Files: {_workdir.path_of(config)}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
