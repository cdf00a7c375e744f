"""A command: every method of a configuration with every seed, on one data set, and its summary."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from experiments import (
  _check,
  _evaluation,
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
from experiments._errors import DivergedError, UsageError
from reweight_jax import data

Key = TypeVar("Key")


class Job(NamedTuple):
  """What experiments differ in: where examples come from, who trains on what, and the net."""

  load: Callable[[Any], data.Dataset]  # of the configuration
  make_task: Callable[[Any, data.Dataset, int], _task.Task]  # and of the seed
  make_model: Callable[[Any, data.Dataset], _model.Model]
  check: Callable[[Any], None] = _check.check  # before anything is read


@functools.lru_cache(maxsize=1)  # a study runs many commands on one data set
def _load(name: str, data_dir: str | None) -> data.Dataset:
  return data.load(name, data_dir)


IMAGES = Job(
  load=lambda config: _load(config.dataset, config.data_dir),
  make_task=_task.make_task,
  make_model=_model.image_model,
)
"""Images of a data set by name, with label noise and imbalance as the configuration says."""


class Plan(NamedTuple):
  """A command that can be run: everything that can be wrong with it has been looked at."""

  config: Config
  dataset: data.Dataset
  model: _model.Model
  methods: list[list[_lane.Run]]  # of each method a run for each seed
  total_steps: int


def plan(config: Config, job: Job = IMAGES) -> Plan:
  """Reads the data and builds every run, which writes nothing.

  Args:
    config: what to run.
    job: on what.

  Raises:
    UsageError: for a setting that cannot be run or a workdir that does not fit.
    DataError: if the data cannot be read.
  """
  job.check(config)
  _workdir.check(config)
  dataset = job.load(config)
  if not len(dataset.test_labels):
    raise UsageError(
      f"--dataset: {config.dataset} has no test images; put some into its folder test/, the others "
      "into train/"
    )
  try:
    tasks = {seed: job.make_task(config, dataset, seed) for seed in config.seeds}
    num_train = min(len(task.train) for task in tasks.values())
    if config.batch_size > num_train:
      raise UsageError(
        f"--batch_size: expected at most the {num_train} training examples, got {config.batch_size}"
      )
    model = job.make_model(config, dataset)
    methods = [
      [_make_run(config, dataset, model, name, task, seed) for seed, task in tasks.items()]
      for name in config.run_names()
    ]
  except ValueError as error:
    raise UsageError(str(error)) from error
  return Plan(config, dataset, model, methods, _phases.total_steps(config, num_train))


def train(plan: Plan, progress: _progress.Progress | None = None) -> dict[str, Any]:
  """Runs every method with every seed and returns the summary, method by method.

  Args:
    plan: what to run.
    progress: the bar to count on; None for one of its own.

  Raises:
    UsageError: if the workdir does not fit any more; nothing is written.
    RunError: if a loss is not finite, or the workdir vanishes.
    StoppedError: after SIGTERM or Ctrl-C, once the state is saved.
  """
  config = plan.config
  with _workdir.prepared(config):
    with _progress.shared_or_own(progress, plan.total_steps) as progress:
      setup = _make_setup(config, plan.dataset, plan.model, progress)
      for runs in plan.methods:
        _train(config, plan.dataset, runs, setup, progress)
    # The files tell of all runs of the workdir, the answer of those asked for.
    results = _report.read_results(_workdir.finished_folders(config))
    _report.write_summary(config, _report.summarize(results))
  return _report.summarize(
    {name: {seed: results[name][seed] for seed in config.seeds} for name in config.run_names()}
  )


def run(
  config: Config, job: Job = IMAGES, progress: _progress.Progress | None = None
) -> dict[str, Any]:
  """Plans a command and trains it."""
  return train(plan(config, job), progress)


def check_numbers(
  flag: str, numbers: tuple[float, ...], is_good: Callable[[float], bool], words: str
) -> tuple[float, ...]:
  """The numbers of a study, each once, or UsageError; -0 becomes 0, which names a folder better."""
  if not numbers or len(set(numbers)) < len(numbers) or not all(map(is_good, numbers)):
    raise UsageError(
      f"--{flag}: expected numbers {words}, each once; got {','.join(map(str, numbers)) or 'none'}"
    )
  return tuple(number + 0.0 for number in numbers)


def train_all(plans: Mapping[Key, Plan]) -> dict[Key, dict[str, Any] | None]:
  """Trains commands of one method each; one that diverges has None, and the rest goes on."""
  results: dict[Key, dict[str, Any] | None] = {}
  with _progress.Progress(sum(plan.total_steps for plan in plans.values())) as progress:
    for key, plan in plans.items():
      try:
        (results[key],) = train(plan, progress).values()
      except DivergedError as error:
        print(f"warning: {error}", file=sys.stderr)
        results[key] = None
  return results


@contextlib.contextmanager
def at_work_in(root: pathlib.Path) -> Iterator[None]:
  """Makes the folder of a study and keeps other commands out of it, its summary included.

  Raises:
    UsageError: if it cannot be written, or another command is at work in it.
  """
  with contextlib.ExitStack() as stack:
    try:
      root.mkdir(parents=True, exist_ok=True)
      stack.enter_context(_workdir._locked(root))
    except OSError as error:
      raise UsageError(
        f"--workdir: cannot write to {error.filename} ({error.strerror}); choose another --workdir"
      ) from error
    yield


def _make_run(
  config: Config,
  dataset: data.Dataset,
  model: _model.Model,
  name: str,
  task: _task.Task,
  seed: int,
) -> _lane.Run:
  phases = _phases.make_phases(config, model, name, dataset, task, seed)
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
  name = f"{config.title()}, {runs[0].folder.parent.name}"
  notes = list(dict.fromkeys(phase.note for run in runs for phase in run.phases if phase.note))
  for group in _parallel.groups(config, runs, setup):
    progress.begin(f"{name}, seed {', '.join(str(run.seed) for run in group)}")
    unfinished = [run for run in group if not (run.folder / "weights.npz").exists()]
    finished = len(group) - len(unfinished)
    if finished:
      progress.advance(finished * _lane.total_steps(group[0]), "finished before")
    for note in notes if unfinished else ():
      progress.tell(note)
    if unfinished:
      notes.clear()
      _run.train(unfinished, setup)
    for run in group:
      if config.pictures and not (run.folder / "plots" / "run.png").exists():
        _pictures.write_run_plots(run.folder, dataset)
    progress.end()
