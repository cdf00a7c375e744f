"""Which examples should training emphasize, the more labels are wrong? A study of two numbers.

    python -m experiments.emphasis_modes --dataset=fashion_mnist

Derivative manipulation (Wang et al. 2019, arXiv 1905.11233) weighs the gradient of an example by
exp(beta p^lam (1 - p)). Trains every lam with every beta at every rate of symmetric noise, beside
plain training, plain training normalized alike, generalized cross-entropy and equal lengths, and
draws, at the last step and at the best one apart: accuracy against beta for each mode, and the mode
that wins against the noise rate. The paper says that the best mode rises with the noise, and that
the window of good betas is narrow. Expected of the command above: 4 rates x (16 + 4) settings x 3
seeds, about half an hour on two cores.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import (
  _check,
  _command,
  _errors,
  _flags,
  _phases,
  _pictures,
  _progress,
  _report,
  _workdir,
)
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import runlog

# The betas that the paper tried with each lambda (figures 6 to 9).
BETAS = {
  0.0: (0.5, 1.0, 2.0, 4.0),
  0.5: (4.0, 8.0, 12.0, 16.0),
  1.0: (8.0, 12.0, 16.0, 20.0),
  2.0: (12.0, 16.0, 20.0, 24.0),
}
NOISE_RATES = (0.2, 0.4, 0.6, 0.8)
BASELINES = ("ce", "ce_dn", "gce", "uniform_dn")
COLUMNS = ("last", "selected", "best")

DEFAULT = Config(
  dataset="fashion_mnist",
  methods=("dm",),
  seeds=(0, 1, 2),
  noise="symmetric",
  model="mlp",
  validation_size=1000,
  batch_size=100,
  train_size=5000,
  steps=3000,
  # At 0.03, or without decay, most betas end at chance: their steps do not shrink as labels fit.
  learning_rate=0.01,
  weight_decay=5e-4,
  schedule="step",
  eval_every=250,
  checkpoint_every=3000,
  chunk_steps=100,  # an MLP is as fast under lax.scan, and its steps are too short to dispatch
  parallel_seeds=3,
  pictures=False,
)
WITHOUT_FLAGS = ("protocol", "method", "rules", "noise", "noise_rate", "dm_beta", "dm_lam")
ROOT = "runs/emphasis_modes"


def commands(config: Config, rates: tuple[float, ...]) -> dict[tuple[float, str], Config]:
  """(noise rate, name) -> command, each in a folder of its own; the baselines are one."""
  root = pathlib.Path(config.workdir or ROOT)
  found: dict[tuple[float, str], Config] = {}
  for rate in rates:
    noise = "symmetric" if rate else "none"
    at_rate = dataclasses.replace(config, noise=noise, noise_rate=rate)
    folder = root / f"noise_{rate:g}"
    found[rate, ""] = dataclasses.replace(
      at_rate, methods=BASELINES, workdir=str(folder / "baselines")
    )
    for lam, betas in BETAS.items():
      for beta in betas:
        name = f"lam_{lam:g}_beta_{beta:g}"
        options = dataclasses.replace(config.rule_options, dm_beta=beta, dm_lam=lam)
        found[rate, name] = dataclasses.replace(
          at_rate, methods=("dm",), rule_options=options, workdir=str(folder / name)
        )
  return found


def run(config: Config, rates: tuple[float, ...]) -> dict[float, dict[str, Any]]:
  """Runs all of it; noise rate -> name of a baseline or of a setting -> numbers of a summary.

  Raises:
    UsageError: before the first of them runs, if a rate or a workdir does not fit.
  """
  if not rates or len(set(rates)) < len(rates) or not all(0 <= rate < 1 for rate in rates):
    raise UsageError(
      "--noise_rates: expected numbers in [0, 1), each once, such as 0.2,0.4; "
      f"got {','.join(map(str, rates)) or 'none'}"
    )
  if config.validation_size < 1:
    raise UsageError(
      f"--validation_size: expected at least 1, to choose settings on; got {config.validation_size}"
    )
  found = commands(config, rates)
  for one in found.values():
    _check.check(one)
    _workdir.check(one)
  results: dict[float, dict[str, Any]] = {rate: {} for rate in rates}
  with _progress.Progress(sum(map(_phases.total_steps, found.values()))) as progress:
    for (rate, name), one in found.items():
      summary = _command.run(one, progress=progress)
      results[rate] |= {name: summary["dm"]} if name else summary
  return results


def winners(results: Mapping[str, Any], column: str) -> dict[float, tuple[float, float]]:
  """Of each lambda the beta of highest mean accuracy in a column: lam -> (beta, accuracy)."""
  found = {}
  for lam, betas in BETAS.items():
    accuracy = {beta: results[f"lam_{lam:g}_beta_{beta:g}"][column]["mean"] for beta in betas}
    best = max(accuracy, key=lambda beta: accuracy[beta])
    found[lam] = (best, accuracy[best])
  return found


def table(results: Mapping[float, Mapping[str, Any]]) -> str:
  """Every setting at every rate: last step, selected on noisy validation, best seen, in %."""
  lines = [
    ["setting", *(f"noise {rate:g}: last / selected / best" for rate in results)],
    ["---"] * (len(results) + 1),
  ]
  for name in next(iter(results.values())):
    cells = [
      " / ".join(_report.percent(numbers[name][column]) for column in COLUMNS)
      for numbers in results.values()
    ]
    lines.append([name.replace("_", " ") if name.startswith("lam") else name, *cells])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chosen(results: Mapping[str, Any], names: Sequence[str]) -> str:
  """The setting of highest mean accuracy on noisy validation at the last step."""
  return max(names, key=lambda name: results[name]["last_validation"]["mean"] or 0.0)


def verdict(results: Mapping[float, Mapping[str, Any]]) -> str:
  """What wins at each rate: chosen on noisy validation; and on the test set, for each column."""
  cells = []
  for rate, numbers in results.items():
    settings = [name for name in numbers if name not in BASELINES]
    pair = [
      f"{name.replace('_', ' ')} {100 * numbers[name]['last']['mean']:.1f} %"
      for name in (chosen(numbers, settings), chosen(numbers, BASELINES))
    ]
    cells.append(f"noise {rate:g}: {', '.join(pair)}")
  lines = [f"Chosen on noisy validation, last step: {'; '.join(cells)}.", "Chosen on the test set:"]
  for column in COLUMNS:
    cells = []
    for rate, numbers in results.items():
      best = winners(numbers, column)
      lam = max(best, key=lambda lam: best[lam][1])
      rival = max(BASELINES, key=lambda name: numbers[name][column]["mean"])
      cells.append(
        f"noise {rate:g}: lambda {lam:g}, beta {best[lam][0]:g} ({100 * best[lam][1]:.1f} %; "
        f"{rival} {100 * numbers[rival][column]['mean']:.1f} %)"
      )
    lines.append(f"{_report.COLUMNS[column]}: {'; '.join(cells)}.")
  return "\n".join(lines)


def define_flags(values: flags.FlagValues) -> None:
  """The flags of `cifar_noisy` that apply, with the study's defaults, and the rates."""
  _flags.define_flags(values, DEFAULT, WITHOUT_FLAGS)
  rates = ",".join(map(str, NOISE_RATES))
  flags.DEFINE_string("noise_rates", rates, "list of rates of wrong labels", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Runs the study, prints its table and verdict and draws its figure."""
  config = _flags.config_of(values, DEFAULT)
  rates = _flags.numbers("noise_rates", values.noise_rates)
  _flags.apply_process_flags(values)
  results = run(config, rates)
  root = pathlib.Path(config.workdir or ROOT)
  text = f"{table(results)}\n{verdict(results)}\n"
  runlog.write_text(root / "summary.md", f"# Emphasis modes, {config.dataset}\n\n{text}")
  runlog.write_json(root / "summary.json", {f"{rate:g}": row for rate, row in results.items()})
  _pictures.draw_modes(root / "modes.png", results, BETAS, BASELINES)
  print(text)
  print(f"Test accuracy in %, mean ± standard deviation over seeds. Files: {root}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
