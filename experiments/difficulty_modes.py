"""Which examples should weigh more: the easy, the hard, the medium, or both ends?

    python -m experiments.difficulty_modes

Fits logistic regressions on 311 random features to 500 made-up examples: clean, with 30 % wrong
labels, with classes of 20 to 1, with both; with an L2 penalty that keeps the model from fitting
everything, and with nearly none, so that it does. Each example is weighed by its 5-fold held-out
error in four modes, at several ratios of the largest weight to the smallest, beside plain training,
class weights, undersampling, the same weights shuffled, and, what nobody can do, leaving out what
is wrongly labeled. Prints the balanced test accuracy of each, and draws it against the ratio.
Expected of the command above: 8 seeds, 2 penalties, 4 data sets, 25 fits each; about six minutes on
one core.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

import reweight_jax as rw
from experiments import (
  _command,
  _errors,
  _flags,
  _made_up,
  _modes_report,
  _parts,
  _progress,
  _report,
)
from experiments._errors import UsageError
from reweight_jax import data, difficulty, runlog

ROOT = "runs/difficulty_modes"


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """What to fit."""

  seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
  ratios: tuple[float, ...] = (10.0, 100.0, 10_000.0)
  l2: tuple[float, ...] = (1e-3, 1e-7)
  train_size: int = 500
  noise_rate: float = 0.3
  imbalance_ratio: float = 20.0
  folds: int = 5
  workdir: str | None = None

  def setting(self) -> dict[str, Any]:
    """What decides the numbers of a part, apart from what its name says."""
    numbers = dataclasses.asdict(self) | {"ratios": list(self.ratios)}
    return {name: numbers[name] for name in numbers if name not in ("seeds", "l2", "workdir")}


def check(config: StudyConfig) -> None:
  """Raises UsageError for the first number that cannot be."""
  _command.check_numbers("ratios", config.ratios, lambda r: 1 <= r <= 1e30, "from 1 to 1e30")
  _command.check_numbers("l2", config.l2, lambda l2: 1e-9 <= l2 <= 1e3, "from 1e-9 to 1000")
  if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
    raise UsageError(
      "--seeds: expected whole numbers, at least 0, each once; got "
      f"{','.join(map(str, config.seeds)) or 'none'}"
    )
  for flag, holds, words in (
    ("train_size", 10 <= config.train_size <= 100_000, "from 10 to 100000"),
    ("noise_rate", 0 < config.noise_rate < 0.5, "in (0, 0.5)"),
    ("imbalance_ratio", 1 <= config.imbalance_ratio < math.inf, "at least 1"),
    ("folds", 2 <= config.folds <= 100, "from 2 to 100"),
  ):
    if not holds:
      raise UsageError(f"--{flag}: expected a number {words}, got {getattr(config, flag):g}")


def make_problem(
  config: StudyConfig, kind: str, seed: int
) -> tuple[_made_up.MadeUp, data.NoisyLabels]:
  """The examples of a seed, and the labels that training sees."""
  rng = np.random.default_rng(seed)
  ratio = config.imbalance_ratio if kind in ("imbalance", "both") else 1.0
  examples = _made_up.draw(rng, config.train_size, ratio)
  noise, rate = ("symmetric", config.noise_rate) if kind in ("noise", "both") else ("none", 0.0)
  return examples, data.corrupt_labels(examples.labels, 2, noise, rate, rng)


def held_out_error(
  features: np.ndarray, labels: np.ndarray, l2: float, folds: int, seed: int
) -> np.ndarray:
  """The error of each example by the model of the folds that it is not in; `[examples]`, nats."""
  masks = difficulty.fold_masks(labels.tolist(), folds, seed=seed)
  fit = lambda mask: _made_up.fit_logistic(features, labels, mask.astype(float), l2)
  said = np.stack([_made_up.log_probs(features, fit(mask)) for mask in masks])
  return np.asarray(difficulty.held_out_error(*map(jnp.asarray, (said, masks, labels))))


def measure(config: StudyConfig, l2: float, kind: str, seed: int) -> dict[str, float]:
  """Balanced test accuracies by what was done, what the plain fit makes of its own examples, and
  the share of the examples that the weights of a mode are worth.

  Raises:
    UsageError: if a class has fewer examples than there are folds.
  """
  examples, given = make_problem(config, kind, seed)
  labels, ones = given.labels, np.ones(len(given.labels))

  def accuracy(weights: np.ndarray) -> float:
    params = _made_up.fit_logistic(examples.features, labels, weights, l2)
    return _made_up.balanced_accuracy(examples.test_features, examples.test_labels, params)

  try:
    errors = held_out_error(examples.features, labels, l2, config.folds, seed)
  except ValueError as error:
    raise UsageError(f"--train_size: {error}") from error
  kept = np.zeros(len(ones))
  kept[data.undersampled_indices(labels, 2, np.random.default_rng(seed))] = 1
  plain = _made_up.fit_logistic(examples.features, labels, ones, l2)
  found = {
    "train_accuracy": float(((examples.features @ plain > 0) == (labels == 1)).mean()),
    "uniform": accuracy(ones),
    "class_balanced": accuracy(1 / np.bincount(labels)[labels]),
    "undersample": accuracy(kept),
    "drop_noisy": accuracy((~given.is_noisy).astype(float)),
  }
  for ratio in config.ratios:
    for name, mode in difficulty.MODES.items():
      weights = difficulty.weights_of_difficulty(jnp.asarray(errors), mode(ratio))
      key = f"{name}:{_report.exact(ratio)}"
      found[key] = accuracy(np.asarray(weights, float))
      found[f"worth of {key}"] = float(rw.metrics.effective_sample_size(weights)) / len(ones)
    shuffled = np.random.default_rng(seed).permutation(
      difficulty.weights_of_difficulty(jnp.asarray(errors), difficulty.MODES["easy_first"](ratio))
    )
    found[f"shuffled:{_report.exact(ratio)}"] = accuracy(shuffled.astype(float))
  return found


def run(config: StudyConfig) -> _modes_report.Summary:
  """Fits all of it and writes table, numbers and figure. A second call goes on where one stopped.

  Returns:
    (L2 penalty, data set) -> what was done -> mean and standard deviation over seeds.

  Raises:
    UsageError: if a number or the workdir does not fit.
  """
  check(config)
  root = pathlib.Path(config.workdir or ROOT)
  cells = list(itertools.product(config.l2, _modes_report.DATA))
  with _command.at_work_in(root):
    parts = _parts.Parts(root / "parts", config.setting())
    rows: dict[_modes_report.Cell, list[dict[str, float]]] = {cell: [] for cell in cells}
    with _progress.Progress(len(cells) * len(config.seeds)) as progress:
      for (l2, kind), seed in itertools.product(cells, config.seeds):
        name = f"l2_{_report.exact(l2)}_{kind}_seed_{seed}"
        progress.begin(name)
        part = parts.kept(name, lambda: measure(config, l2, kind, seed))  # noqa: B023
        rows[l2, kind].append({key: float(value) for key, value in part.items()})
        progress.advance(1, f"uniform {100 * float(part['uniform']):.1f} %")
    found = {
      cell: {key: _report.spread([row[key] for row in group]) for key in group[0]}
      for cell, group in rows.items()
    }
    runlog.write_json(
      root / "summary.json",
      {
        "setting": dataclasses.asdict(config),
        "cells": [
          {"l2": l2, "data": kind, "summary": found[l2, kind], "seeds": rows[l2, kind]}
          for l2, kind in cells
        ],
      },
    )
    runlog.write_text(
      root / "table.md", f"{_modes_report.tables(found)}\n{_modes_report.verdict(found)}\n"
    )
    _modes_report.draw(root / "modes.png", found)
  return found


def define_flags(values: flags.FlagValues) -> None:
  """A flag for each number of the study."""
  default = StudyConfig()
  listed = lambda numbers: ",".join(f"{number:g}" for number in numbers)
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text("seeds", listed(default.seeds), "list of whole numbers")
  text("ratios", listed(default.ratios), "list, of the largest weight to the smallest")
  text("l2", listed(default.l2), "list of penalties")
  flags.DEFINE_integer("train_size", default.train_size, "examples", flag_values=values)
  flags.DEFINE_float("noise_rate", default.noise_rate, "share wrong", flag_values=values)
  flags.DEFINE_float("imbalance_ratio", default.imbalance_ratio, "of classes", flag_values=values)
  flags.DEFINE_integer("folds", default.folds, "of the held-out error", flag_values=values)
  text("workdir", None, f"folder of the results; default {ROOT}")


def main(values: flags.FlagValues) -> None:
  """Runs the study and prints its tables and its verdict."""
  given = values.flag_values_dict()
  names = {field.name for field in dataclasses.fields(StudyConfig)}
  numbers = {name: given[name] for name in names if name in given}
  for name in ("ratios", "l2"):
    numbers[name] = _flags.numbers(name, given[name])
  seeds = _flags._split(given["seeds"])
  numbers["seeds"] = tuple(_flags._parsed("seeds", seed, int, "0,1") for seed in seeds)
  config = StudyConfig(**numbers)
  found = run(config)
  print(f"{_modes_report.tables(found)}\n{_modes_report.verdict(found)}\n")
  print(f"Mean ± standard deviation over seeds. Files: {config.workdir or ROOT}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
