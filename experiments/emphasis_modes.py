"""Which examples should training emphasize, the more labels are wrong? A study of two numbers.

    python -m experiments.emphasis_modes --dataset=fashion_mnist

Derivative manipulation (Wang et al. 2019, arXiv 1905.11233) weighs the gradient of an example by
exp(beta p^lam (1 - p)). Trains every lam with every beta at every rate of symmetric noise, beside
plain training, plain training normalized alike, generalized cross-entropy and equal lengths, and
draws, at the last step and at the best one apart, accuracy against beta for each mode; the setting
that wins at each rate is told in words. The paper says that the best mode rises with the noise, and
that the window of good betas is narrow. Expected of the command above: 4 rates x (16 + 4) settings
x 3 seeds, about half an hour on two cores.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import flags

from experiments import _check, _command, _errors, _flags, _pictures, _report
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


@dataclasses.dataclass(frozen=True)
class StudyConfig(Config):
  """One setting, or one baseline, at one noise rate."""

  def title(self) -> str:
    """What is trained on, and with what numbers, in words."""
    lam, beta = self.rule_options.dm_lam, self.rule_options.dm_beta
    numbers = f", lambda {lam:g}, beta {beta:g}" if self.methods == ("dm",) else ""
    return super().title() + numbers


DEFAULT = StudyConfig(
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
WITHOUT_FLAGS = (
  *("protocol", "method", "rules", "noise", "noise_rate", "dm_beta", "dm_lam"),
  *("label_smoothing", "mixup"),  # derivative manipulation knows no soft labels
)
ROOT = "runs/emphasis_modes"


def commands(config: Config, rates: tuple[float, ...]) -> dict[tuple[float, str], Config]:
  """(noise rate, name) -> command; a folder for each setting, and one for a rate's baselines."""
  root = pathlib.Path(config.workdir or ROOT)
  found: dict[tuple[float, str], Config] = {}
  for rate in rates:
    noise = "symmetric" if rate else "none"
    at_rate = dataclasses.replace(config, noise=noise, noise_rate=rate)
    folder = root / f"noise_{_report.exact(rate)}"
    for name in BASELINES:
      found[rate, name] = dataclasses.replace(
        at_rate, methods=(name,), workdir=str(folder / "baselines")
      )
    for lam, betas in BETAS.items():
      for beta in betas:
        name = _name(lam, beta)
        options = dataclasses.replace(config.rule_options, dm_beta=beta, dm_lam=lam)
        found[rate, name] = dataclasses.replace(
          at_rate, methods=("dm",), rule_options=options, workdir=str(folder / name)
        )
  return found


def _name(lam: float, beta: float) -> str:
  return f"lam_{lam:g}_beta_{beta:g}"


Numbers = Mapping[str, Any] | None
"""The numbers of a summary; None where a loss was not finite."""


def plan(config: Config, rates: tuple[float, ...]) -> dict[tuple[float, str], _command.Plan]:
  """Everything that is to be run, looked at before the first of it runs.

  Raises:
    UsageError: if a number, a setting or a workdir does not fit.
    DataError: if the data cannot be read.
  """
  _check.check(config)
  words = "in [0, 1), such as 0.2,0.4"
  rates = _command.check_numbers("noise_rates", rates, lambda rate: 0 <= rate < 1, words)
  if config.validation_size < 1:
    raise UsageError(
      f"--validation_size: expected at least 1, to choose settings on; got {config.validation_size}"
    )
  return {key: _command.plan(one) for key, one in commands(config, rates).items()}


def run(config: Config, rates: tuple[float, ...]) -> dict[float, dict[str, Numbers]]:
  """Runs all of it and writes the summary. What diverges is a result, and the rest goes on.

  Returns:
    Noise rate -> name of a baseline or of a setting -> its numbers.

  Raises:
    UsageError: before anything runs, if a number, a setting or a workdir does not fit.
  """
  plans = plan(config, rates)
  root = pathlib.Path(config.workdir or ROOT)
  with _command.at_work_in(root):
    results: dict[float, dict[str, Numbers]] = {}
    for (rate, name), numbers in _command.train_all(plans).items():
      results.setdefault(rate, {})[name] = numbers
    text = f"# Emphasis modes, {config.dataset}\n\n{table(results)}\n{verdict(results)}\n"
    runlog.write_text(root / "summary.md", text)
    by_name = {_report.exact(rate): row for rate, row in results.items()}
    runlog.write_json(root / "summary.json", by_name)
    draw(root / "modes.png", results)
  return results


def score(numbers: Numbers, column: str) -> float:
  """The mean accuracy in a column; what diverged is below all others."""
  return -1.0 if numbers is None else numbers[column]["mean"] or 0.0


def best(results: Mapping[str, Numbers], names: Iterable[str], column: str) -> str:
  """The name of highest mean accuracy in a column; the first of a tie."""
  return max(names, key=lambda name: score(results[name], column))


def table(results: Mapping[float, Mapping[str, Numbers]]) -> str:
  """Every setting at every rate: last step, selected on noisy validation, best seen, in %."""
  rates = [_report.exact(rate) for rate in results]
  lines = [
    ["setting", *(f"noise {rate}: last / selected / best" for rate in rates)],
    ["---"] * (len(results) + 1),
  ]
  for name in next(iter(results.values())):
    lines.append([_words(name), *(_cell(numbers[name]) for numbers in results.values())])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(numbers: Numbers) -> str:
  if numbers is None:
    return "diverged"
  return " / ".join(_report.percent(numbers[column]) for column in COLUMNS)


def _words(name: str) -> str:
  return name if name in BASELINES else name.replace("_", " ")


def verdict(results: Mapping[float, Mapping[str, Numbers]]) -> str:
  """What wins at each rate: chosen on noisy validation; and on the test set, for each column."""
  lines = [f"Chosen on noisy validation, last step: {_winners(results, 'last_validation', 'last')}"]
  lines.append("Chosen on the test set:")
  lines += [f"{_report.COLUMNS[name]}: {_winners(results, name, name)}" for name in COLUMNS]
  return "\n".join(lines)


def _winners(results: Mapping[float, Mapping[str, Numbers]], chosen_by: str, shown: str) -> str:
  """The setting and the baseline that are highest in one column, with their numbers in another."""
  cells = []
  for rate, numbers in results.items():
    settings = [name for name in numbers if name not in BASELINES]
    pair = [best(numbers, names, chosen_by) for names in (settings, BASELINES)]
    told = [
      "all diverged"
      if numbers[name] is None
      else f"{_words(name)} {100 * score(numbers[name], shown):.1f} %"
      for name in pair
    ]
    cells.append(f"noise {_report.exact(rate)}: {', '.join(told)}")
  return f"{'; '.join(cells)}."


def draw(path: pathlib.Path, results: Mapping[float, Mapping[str, Numbers]]) -> None:
  """Draws accuracy against beta for every mode, at every noise rate; last and best apart."""
  figure = _pictures._figure(3.4 * len(results) + 3, 6.5)  # 3 for the legend, beside them
  grid = figure.subplots(2, len(results), squeeze=False, sharex=True, sharey="col")
  columns = (("last", "last step"), ("best", "best seen on test (not a result)"))
  for row, (column, words) in zip(grid, columns, strict=True):
    row[0].set_ylabel("test accuracy, %")
    for axes, (rate, numbers) in zip(row, results.items(), strict=True):
      point = lambda name: _pictures._percents((numbers[name] or _report.UNKNOWN)[column])  # noqa: B023
      for style, name in zip(("-", "--", ":", "-."), BASELINES, strict=True):
        axes.axhline(point(name)[0], color="0.5", linestyle=style, linewidth=1, label=name)
      lines = {
        f"lambda {lam:g} (mode {lam / (lam + 1):.2g})": (
          np.array(betas),
          [point(_name(lam, beta)) for beta in betas],
        )
        for lam, betas in BETAS.items()
      }
      _pictures._draw_bars(axes, lines)
      axes.set_title(f"noise {100 * rate:.10g} %, {words}", fontsize=9)
      axes.set_xlabel("beta")
  handles, names = grid[0][0].get_legend_handles_labels()
  figure.legend(handles, names, loc="outside right upper", fontsize=9)
  _pictures._save(figure, path, None)


def define_flags(values: flags.FlagValues) -> None:
  """The flags of `cifar_noisy` that apply, with the study's defaults, and the rates."""
  _flags.define_flags(values, DEFAULT, WITHOUT_FLAGS)
  rates = ",".join(map(str, NOISE_RATES))
  flags.DEFINE_string("noise_rates", rates, "list of rates of wrong labels", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Runs the study and prints its table and verdict."""
  config = _flags.config_of(values, DEFAULT)
  rates = _flags.numbers("noise_rates", values.noise_rates)
  _flags.apply_process_flags(values)
  results = run(config, rates)
  print(f"{table(results)}\n{verdict(results)}\n")
  print(
    "Test accuracy in %, mean ± standard deviation over seeds; diverged: a seed's loss was not "
    f"finite. Files: {config.workdir or ROOT}"
  )


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
