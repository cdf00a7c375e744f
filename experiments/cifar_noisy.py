"""Does example weighting help to train on wrong labels, and by how much?

    python -m experiments.cifar_noisy --dataset=digits --method=ce,l2rw --seeds=0,1,2
    python -m experiments.cifar_noisy --protocol=background --method=ce,random,l2rw --seeds=0,1

Corrupts the labels of an image data set, keeps a small clean meta set aside, trains each method
with each seed and prints a table. Every run leaves its files under WORKDIR/METHOD/seed_N/; the same
command again finishes what was not finished, and other methods or seeds add to the workdir.
Expected of the first command, on digits with pair noise 45 %: about 55 % at the last step for ce,
90 % for l2rw, in half a minute on two cores. The second is the experiment of Ren et al. 2018 on
CIFAR-10, meant for a GPU or TPU; published at the last step: 59.5 % for ce, 69.5 for random, 86.7
for l2rw.
"""

import functools
from typing import Any

import jax
from absl import flags

from experiments import (
  _check,
  _errors,
  _evaluation,
  _flags,
  _lane,
  _model,
  _parallel,
  _phases,
  _pictures,
  _progress,
  _report,
  _run,
  _task,
  _workdir,
)
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import data


def run(config: Config, progress: _progress.Progress | None = None) -> dict[str, Any]:
  """Runs every method with every seed and returns the summary, method by method.

  Args:
    config: what to run.
    progress: the bar to count on; None for one of its own.

  Raises:
    UsageError: for a setting that cannot be run or a workdir that does not fit; nothing is written.
    DataError: if the data cannot be read; nothing is written.
    RunError: if a loss is not finite, or the workdir vanishes.
    StoppedError: after SIGTERM or Ctrl-C, once the state is saved.
  """
  _check.check(config)
  _workdir.check(config)
  dataset = data.load(config.dataset, config.data_dir)
  try:
    tasks = {seed: _task.make_task(config, dataset, seed) for seed in config.seeds}
    num_train = len(tasks[config.seeds[0]].train)
    if config.batch_size > num_train:
      raise UsageError(
        f"--batch_size: expected at most the {num_train} training examples, got {config.batch_size}"
      )
    model = _model.make_model(
      config.model_name(),
      dataset.num_classes,
      config.norm,
      dtype=config.dtype,
      label_smoothing=config.label_smoothing,
      mixup=config.mixup,
    )
    jobs = [
      [_make_run(config, dataset, model, name, task, seed) for seed, task in tasks.items()]
      for name in config.run_names()
    ]
  except ValueError as error:
    raise UsageError(str(error)) from error

  with _workdir.prepared(config):
    total = _phases.total_steps(config, num_train)
    with _progress.shared_or_own(progress, total) as progress:
      setup = _make_setup(config, dataset, model, progress)
      for runs in jobs:
        _train(config, dataset, runs, setup, progress)
    # The files tell of all runs of the workdir, the answer of those asked for.
    results = _report.read_results(_workdir.finished_folders(config))
    _report.write_summary(config, _report.summarize(results))
  return _report.summarize(
    {name: {seed: results[name][seed] for seed in config.seeds} for name in config.run_names()}
  )


def _make_run(
  config: Config,
  dataset: data.Dataset,
  model: _model.Model,
  name: str,
  task: _task.Task,
  seed: int,
) -> _lane.Run:
  phases = _phases.make_phases(config, model, name, task, seed)
  folder = _workdir.run_folder(config, name, seed)
  init = functools.partial(model.init, jax.random.key(seed), dataset.train_inputs[:2])
  return _lane.Run(seed, task, phases, folder, init)


def _make_setup(
  config: Config, dataset: data.Dataset, model: _model.Model, progress: _progress.Progress
) -> _lane.Setup:
  test = _evaluation.padded(dataset.test_inputs, dataset.test_labels)
  assert test is not None  # every data set has test examples
  return _lane.Setup(
    inputs=jax.device_put(dataset.train_inputs),
    train_ids=dataset.train_ids,
    test=test,
    predict=model.predict,
    schedule=_phases.make_schedule(config),
    advance=progress.advance,
  )


def _train(
  config: Config,
  dataset: data.Dataset,
  runs: list[_lane.Run],
  setup: _lane.Setup,
  progress: _progress.Progress,
) -> None:
  """Trains the runs of one method, as many at once as the configuration says, and draws them."""
  name = f"{config.noise} {config.rate_of_noise():g}, {runs[0].folder.parent.name}"
  for group in _parallel.groups(config, runs, setup):
    progress.begin(f"{name}, seed {', '.join(str(run.seed) for run in group)}")
    unfinished = [run for run in group if not (run.folder / "weights.npz").exists()]
    finished = len(group) - len(unfinished)
    if finished:
      progress.advance(finished * _lane.total_steps(group[0]), "finished before")
    if unfinished:
      _run.train(unfinished, setup)
    for run in group:
      if config.pictures and not (run.folder / "plots" / "run.png").exists():
        _pictures.write_run_plots(run.folder, dataset)
    progress.end()


def main(values: flags.FlagValues) -> None:
  """Runs the command and prints its table."""
  config = _flags.config_of(values)
  _flags.apply_process_flags(values)
  summary = run(config)
  print(_report.markdown_table(summary))
  print(f"Accuracies in %, mean ± standard deviation over seeds. Files: {_workdir.path_of(config)}")
  print(_report.time_line(summary))


if __name__ == "__main__":
  _errors.run_binary(_flags.define_flags, main)
