"""The demo: what example weighting does for training on wrong labels, in under two minutes.

    python -m experiments.digits_demo

Runs the job of `cifar_noisy` on scikit-learn's digits with 20 clean examples, two a class, and two
kinds of noise: pair (45 % of the labels moved to the next class) and symmetric (40 % to any other).
Five methods, three seeds, all with the same schedule, whose learning rate was chosen for
learning to reweight and does as well for the others. Ends with a table and a picture.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from experiments import (
  _command,
  _errors,
  _pictures,
  _progress,
  _report,
  _workdir,
)
from experiments._config import Config

METHODS = ("ce", "random", "clean_only", "finetune", "l2rw")
NOISES = (("pair", 0.45), ("symmetric", 0.4))


def configs(workdir: str, seeds: tuple[int, ...] = (0, 1, 2), steps: int = 600) -> list[Config]:
  """One command for each kind of noise."""
  base = Config(methods=METHODS, seeds=seeds, steps=steps, eval_every=20, pictures=False)
  return [
    dataclasses.replace(
      base, noise=noise, noise_rate=rate, workdir=str(pathlib.Path(workdir, noise))
    )
    for noise, rate in NOISES
  ]


def run(commands: list[Config]) -> list[dict[str, Any]]:
  """Runs the commands under one progress bar and returns their summaries.

  Raises:
    UsageError: before the first of them runs, if one of their workdirs does not fit.
  """
  plans = [_command.plan(config) for config in commands]
  with _progress.Progress(sum(plan.total_steps for plan in plans)) as progress:
    return [_command.train(plan, progress) for plan in plans]


def is_early_stopping_enough(summary: dict[str, Any]) -> bool:
  """Whether l2rw's last step is within the spread, or 1 point, of plain training stopped early."""
  stopped, weighted = summary["ce"]["selected"], summary["l2rw"]["last"]
  spreads = [numbers["std"] or 0.0 for numbers in (stopped, weighted)]  # one seed has no spread
  return weighted["mean"] - stopped["mean"] <= max(*spreads, 0.01)


def verdict(summary: dict[str, Any]) -> str:
  """How l2rw's last step compares with the two baselines that are easier to run."""
  mean = lambda method, column: 100 * summary[method][column]["mean"]
  weighted = mean("l2rw", "last")
  stopped, finetuned = mean("ce", "selected"), mean("finetune", "last")
  points = lambda difference: f"{round(difference, 1) + 0.0:+.1f}"  # not "-0.0"
  return (
    f"l2rw at its last step: {points(weighted - stopped)} points against plain training stopped "
    f"early, {points(weighted - finetuned)} against fine-tuning on the clean set."
  )


def conclusion(names: list[str], summaries: list[dict[str, Any]]) -> str:
  """For which kinds of noise plain training with early stopping does."""
  enough: list[str] = []
  rest: list[str] = []
  for name, summary in zip(names, summaries, strict=True):
    (enough if is_early_stopping_enough(summary) else rest).append(name)
  return (
    "Plain training with early stopping is enough for: "
    f"{', '.join(enough) or 'none of these'}; not for: {', '.join(rest) or 'none of these'}."
  )


def define_flags(values: flags.FlagValues) -> None:
  """The one flag."""
  flags.DEFINE_string("workdir", "runs/digits_demo", "folder of the results", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Runs the demo, prints the tables and draws the picture."""
  workdir = pathlib.Path(values.workdir)
  commands = configs(str(workdir))
  summaries = run(commands)
  names = [f"{config.noise} noise {100 * config.rate_of_noise():g} %" for config in commands]
  for name, summary in zip(names, summaries, strict=True):
    print(f"\ndigits, {name}, 20 clean examples\n")
    print(_report.markdown_table(summary))
    print(verdict(summary))
  print(f"\n{conclusion(names, summaries)}")
  panels = {
    f"digits, {name}": _workdir.run_folders(config)
    for name, config in zip(names, commands, strict=True)
  }
  _pictures.draw_summary(workdir / "demo.png", panels, weighted="l2rw")
  print("Test accuracy in %, mean ± standard deviation over 3 seeds.")
  print(f"Picture: {workdir / 'demo.png'}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
