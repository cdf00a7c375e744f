"""Do our scores of confident learning rank examples as cleanlab's do?

    python -m benchmarks.confident --output=results/confident_cpu.md

Trains an ensemble of 5-fold cross-validation on scikit-learn's digits with 30 % wrong labels, an
MLP 64-128-10 each, and gives its held-out probabilities to both: the rank correlation of
`low_self_confidence` and `low_normalized_margin` with minus cleanlab's label quality of the same
name, and which examples `label_issues` and cleanlab's `find_label_issues` flag, by the same rule
(filter_by="confident_learning") and by cleanlab's default, which prunes by estimated noise rates.
Beside them the share of wrong labels among those flagged, and found.

Exits with status 1 if a rank correlation is not above 0.999. Expected: all above it, one minute on
two cores. Seeds 0, 1, 2.

cleanlab is no dependency of this package. An environment with it:

    python -m venv ~/peers && . ~/peers/bin/activate
    pip install cleanlab -e ".[experiments]"
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from absl import flags

import reweight_jax as rw
from benchmarks import _report
from experiments import _errors, _flags, _workdir
from experiments._errors import RunError, UsageError
from reweight_jax import data, difficulty, runlog

BOUND = 0.999
SCORES = {
  "self_confidence": difficulty.low_self_confidence,
  "normalized_margin": difficulty.low_normalized_margin,
}
FILTERS = ("confident_learning", "prune_by_noise_rate")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
  """What to compare."""

  seeds: tuple[int, ...] = (0, 1, 2)
  folds: int = 5
  noise_rate: float = 0.3
  steps: int = 400
  output: str | None = None


def check(config: Config) -> None:
  """Raises UsageError if cleanlab is missing or a number cannot be."""
  if importlib.util.find_spec("cleanlab") is None:
    raise UsageError(
      "this compares with cleanlab, which is not installed: pip install cleanlab, best in an "
      "environment of its own"
    )
  if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
    raise UsageError("--seeds: expected whole numbers, at least 0, each once")
  if config.folds < 2 or config.steps < 1 or not 0 < config.noise_rate < 1:
    raise UsageError(
      "expected --folds of at least 2, --steps of at least 1, --noise_rate in (0, 1)"
    )
  _report.check_output(config.output, ".md")


def held_out(config: Config, seed: int) -> tuple[np.ndarray, data.NoisyLabels]:
  """Held-out probabilities `[examples, classes]` of the digits, and their corrupted labels."""
  digits = data.load("digits")
  rng = np.random.default_rng(seed)
  noisy = data.corrupt_labels(digits.train_labels, 10, "symmetric", config.noise_rate, rng)
  inputs = np.asarray(digits.train_inputs, np.float32).reshape(len(noisy.labels), -1)
  inputs /= inputs.max()
  module = rw.models.MLP(10, hidden=(128,))
  apply_fn = rw.models.linen_apply(module)
  try:
    masks = difficulty.fold_masks(noisy.labels.tolist(), config.folds, seed=seed)
  except ValueError as error:
    raise UsageError(f"--folds: {error}") from error
  members = difficulty.train_members(
    rw.losses.from_apply(apply_fn),
    functools.partial(_init, module, jnp.asarray(inputs[:1])),
    optax.sgd(0.1, 0.9),
    rw.types.make_batch(jnp.asarray(inputs), jnp.asarray(noisy.labels)),
    masks,
    key=jax.random.key(seed),
    num_steps=config.steps,
    batch_size=100,
  )
  said = difficulty.predict_members(apply_fn, members, inputs)
  return np.asarray(difficulty.held_out_probabilities(jnp.asarray(said), jnp.asarray(masks))), noisy


def _init(module: Any, example: jax.Array, key: jax.Array) -> Any:
  return rw.models.init_linen(module, example, key)


def compare(probabilities: np.ndarray, noisy: data.NoisyLabels) -> Row:
  """Our scores and flags beside cleanlab's, of the same probabilities."""
  rank, filter_ = (importlib.import_module(f"cleanlab.{name}") for name in ("rank", "filter"))
  given = jnp.asarray(probabilities), jnp.asarray(noisy.labels)
  row: Row = {"wrong": int(noisy.is_noisy.sum())}
  for name, score in SCORES.items():
    ours = np.asarray(score(*given))
    theirs = -rank.get_label_quality_scores(noisy.labels, probabilities, method=name)
    row[name] = rank_correlation(ours, theirs)
  ours = np.asarray(difficulty.label_issues(*given))
  flagged = {"ours": ours}
  for kind in FILTERS:
    flagged[kind] = filter_.find_label_issues(
      noisy.labels, probabilities, filter_by=kind, n_jobs=1, verbose=False
    )
    row[f"overlap with {kind}"] = float((ours & flagged[kind]).sum() / (ours | flagged[kind]).sum())
  for kind, mask in flagged.items():
    right = (mask & noisy.is_noisy).sum()
    row[f"flagged, {kind}"] = int(mask.sum())
    row[f"precision, {kind}"] = float(right / max(mask.sum(), 1))
    row[f"recall, {kind}"] = float(right / max(noisy.is_noisy.sum(), 1))
  return row


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
  """Spearman's: that of the mid-ranks, where equal numbers share theirs."""
  return float(scipy.stats.spearmanr(one, other).statistic)


def run(config: Config) -> dict[int, Row]:
  """Compares on every seed and writes the table.

  Raises:
    UsageError: before any training, if cleanlab is missing or a number cannot be.
    RunError: if a rank correlation is not above the bound.
  """
  check(config)
  rows = {seed: compare(*held_out(config, seed)) for seed in config.seeds}
  if config.output:
    runlog.write_text(config.output, f"{_text(config, rows)}\n")
  for seed, row in rows.items():
    for name in SCORES:
      if not row[name] > BOUND:
        raise RunError(f"seed {seed}: rank correlation {row[name]:.5f} of {name}, not {BOUND}")
  return rows


def table(rows: dict[int, Row]) -> str:
  """A column for each seed."""
  lines = [["", *(f"seed {seed}" for seed in rows)], ["---"] * (len(rows) + 1)]
  for name in next(iter(rows.values())):
    form = "d" if name == "wrong" or name.startswith("flagged") else ".5f"
    label = f"rank correlation of {name}" if name in SCORES else name
    lines.append([label, *(f"{row[name]:{form}}" for row in rows.values())])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(config: Config, rows: dict[int, Row]) -> str:
  versions = _workdir.versions() | {"cleanlab": importlib.metadata.version("cleanlab")}
  told = ", ".join(f"{name} {version}" for name, version in versions.items())
  return (
    "# Confident learning beside cleanlab\n\n"
    f"Digits, {100 * config.noise_rate:g} % symmetric noise, the same held-out probabilities of "
    f"{config.folds} folds for both. Overlap: flagged by both over flagged by either.\n\n"
    f"`{shlex.join(['python', '-m', 'benchmarks.confident', *sys.argv[1:]])}`\n\n"
    f"{table(rows)}\nMachine: {os.cpu_count()} CPU cores, {platform.system()} "
    f"{platform.machine()}. Versions: {told}."
  )


def define_flags(values: flags.FlagValues) -> None:
  """The flags."""
  default = Config()
  flags.DEFINE_string("seeds", "0,1,2", "list of whole numbers", flag_values=values)
  flags.DEFINE_integer("folds", default.folds, "of the cross-validation", flag_values=values)
  flags.DEFINE_float("noise_rate", default.noise_rate, "share of wrong labels", flag_values=values)
  flags.DEFINE_integer("steps", default.steps, "of each training", flag_values=values)
  flags.DEFINE_string("output", None, "Markdown file to write the table to", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Runs the comparison and prints its table."""
  seeds = tuple(_flags._parsed("seeds", part, int, "0,1") for part in _flags._split(values.seeds))
  config = Config(seeds, values.folds, values.noise_rate, values.steps, values.output)
  print(table(run(config)))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
