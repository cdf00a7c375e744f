"""A ranking of measures: its settings, its jobs, and all that can be wrong with them."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import _check, _command, _factors, _measures
from experiments._errors import UsageError
from experiments._factors import MADE_UP, Factor, Problem
from experiments._parts import Parts
from reweight_jax import data, difficulty

ROOT = "runs/difficulty_ranking"


@dataclasses.dataclass(frozen=True)
class RankingConfig:
  """What is made hard, and how the networks are trained."""

  dataset: str
  factors: tuple[Factor, ...]
  seeds: tuple[int, ...]
  draws: int
  train_size: int | None
  hidden: tuple[int, ...]
  setting: _measures.Setting
  data_dir: str | None = None
  workdir: str | None = None


# A linear model of random features, decayed enough not to fit all wrong labels; and a small net.
SETTINGS = {
  True: _measures.Setting(learning_rate=2.0, weight_decay=1e-3, members_at_once=10),
  False: _measures.Setting(learning_rate=0.1, members_at_once=10),
}
"""Whether the data set is made up -> how networks are trained on it by default."""

_RANGES = {
  "draws": _check._COUNT,
  "train_size": _check._COUNT,
  "members": _check._COUNT,
  "steps": _check._COUNT,
  "batch_size": _check._COUNT,
  "members_at_once": _check._COUNT,
  "learning_rate": _check.ABOVE_0,
  "momentum": _check.DECAY,
  "weight_decay": _check.AT_LEAST_0,
  "keep": (lambda value: 0 < value < 1, "in (0, 1)"),
}


class Job(NamedTuple):
  """One factor of one draw of the data, measured with one seed."""

  factor: Factor
  draw: int
  seed: int

  def folder(self, root: pathlib.Path) -> pathlib.Path:
    """Where its parts are kept."""
    return root / str(self.factor) / f"draw_{self.draw}" / f"seed_{self.seed}"


class TimedParts(Parts):
  """Parts that know how long each took to make, whichever process made it."""

  def __init__(self, folder: pathlib.Path, setting: dict[str, Any]):
    """Opens or makes the folder."""
    super().__init__(folder, setting)
    self.seconds: dict[str, float] = {}

  def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """The part of that name, and its time beside it."""

    def timed() -> dict[str, Any]:
      start = time.perf_counter()
      found = {key: np.asarray(value) for key, value in make().items()}
      return found | {"seconds": time.perf_counter() - start}

    found = super().kept(name, timed)
    self.seconds[name] = float(found.pop("seconds"))
    return found


def check(config: RankingConfig) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  if config.dataset != MADE_UP and not config.dataset.endswith(".npz"):
    _check._check_word("dataset", config.dataset, (MADE_UP, *data.DATASETS, "a file FILE.npz"))
  values = dataclasses.asdict(config.setting) | dataclasses.asdict(config)
  for name, (is_good, words) in _RANGES.items():
    _check._check_number(name, values[name], is_good, words)
  for width in config.hidden:
    _check._check_number("hidden", width, *_check._COUNT)
  _command.check_numbers("seeds", config.seeds, lambda seed: 0 <= seed < 2**31, "in [0, 2^31)")


class Plan(NamedTuple):
  """A command that can be run: everything that can be wrong with it has been looked at."""

  config: RankingConfig  # whose train_size is a number
  dataset: data.Dataset | None
  jobs: list[Job]


def plan(config: RankingConfig) -> Plan:
  """Reads the data and makes every problem once, so that all mistakes show before anything runs.

  Raises:
    UsageError: for a setting that cannot be run.
    DataError: if the data cannot be read, or does not know a factor.
  """
  check(config)
  dataset, size = None, config.train_size or 600
  if config.dataset != MADE_UP:
    dataset = _command._load(config.dataset, config.data_dir)
    there = len(dataset.train_labels)
    size = config.train_size or min(10_000, there)
    if size > there:
      raise UsageError(
        f"--train_size: expected at most the {there} examples of {config.dataset}, got {size}"
      )
  config = dataclasses.replace(config, train_size=size)
  jobs = []
  for factor in config.factors:
    for draw in range(config.draws):
      size = len(problem_of(config, dataset, factor, draw).labels)
      if config.setting.batch_size > size or config.setting.neighbors >= size:
        raise UsageError(
          f"--batch_size: {factor.kind}:{factor.number:g} leaves {size} examples, fewer than a "
          f"batch of {config.setting.batch_size} and its neighbors; lower it or give more examples"
        )
      try:
        members, keep = config.setting.members, config.setting.keep
        difficulty.subset_masks(size, members, keep=keep, seed=0)
      except ValueError as error:
        raise UsageError(f"--members: {error}") from error
      jobs += [Job(factor, draw, seed) for seed in config.seeds]
  return Plan(config, dataset, jobs)


def problem_of(
  config: RankingConfig, dataset: data.Dataset | None, factor: Factor, draw: int
) -> Problem:
  """The problem of a factor and a draw of the data, or UsageError if they do not fit."""
  try:
    return _factors.make(factor, dataset, config.train_size or 0, draw)
  except data.DataError:
    raise
  except ValueError as error:
    raise UsageError(f"--factors: {factor.kind}:{factor.number:g}: {error}") from error


def path_of(config: RankingConfig) -> pathlib.Path:
  """The folder of a command's results."""
  name = pathlib.Path(config.dataset).stem
  return pathlib.Path(config.workdir or f"{ROOT}/{name}")


def open_parts(config: RankingConfig, dataset: data.Dataset | None, job: Job) -> TimedParts:
  """The folder of a job, or UsageError if it holds another one's parts."""
  problem = problem_of(config, dataset, job.factor, job.draw)
  digest = hashlib.sha256(np.ascontiguousarray(problem.inputs).tobytes())
  digest.update(problem.labels.tobytes())
  setting = dataclasses.asdict(config.setting) | {
    "dataset": pathlib.Path(config.dataset).name,
    "factor": str(job.factor),
    "draw": job.draw,
    "seed": job.seed,
    "train_size": config.train_size,
    "hidden": list(config.hidden),
    "examples": digest.hexdigest()[:16],
  }
  return TimedParts(job.folder(path_of(config)), setting)
