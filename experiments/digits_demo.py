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

from experiments import _errors, _progress, _report, _workdir, cifar_noisy
from experiments._config import Config

METHODS = ("ce", "random", "clean_only", "finetune", "l2rw")
NOISES = (("pair", 0.45), ("symmetric", 0.4))

FLAGS = flags.FLAGS


def configs(workdir: str, seeds: tuple[int, ...] = (0, 1, 2), steps: int = 600) -> list[Config]:
  """One command for each kind of noise."""
  base = Config(methods=METHODS, seeds=seeds, steps=steps, eval_every=20)
  return [
    dataclasses.replace(
      base, noise=noise, noise_rate=rate, workdir=str(pathlib.Path(workdir, noise))
    )
    for noise, rate in NOISES
  ]


def run(commands: list[Config]) -> list[dict[str, Any]]:
  """Runs the commands under one progress bar and returns their summaries."""
  progress = _progress.Progress(sum(cifar_noisy.total_steps(config) for config in commands))
  summaries = [cifar_noisy.run(config, progress) for config in commands]
  progress.close()
  return summaries


def is_early_stopping_enough(summary: dict[str, Any]) -> bool:
  """Whether l2rw's last step is within the spread, or 1 point, of plain training stopped early."""
  stopped, weighted = summary["ce"]["selected"], summary["l2rw"]["last"]
  return weighted["mean"] - stopped["mean"] <= max(stopped["std"], weighted["std"], 0.01)


def verdict(summary: dict[str, Any]) -> str:
  """How l2rw's last step compares with the two baselines that are easier to run."""
  mean = lambda method, column: 100 * summary[method][column]["mean"]
  weighted = mean("l2rw", "last")
  return (
    f"l2rw at its last step: {weighted - mean('ce', 'selected'):+.1f} points against plain training "
    f"stopped early, {weighted - mean('finetune', 'last'):+.1f} against fine-tuning on the clean set."
  )


def main() -> None:
  """Runs the demo, prints the tables and draws the picture."""
  commands = configs(FLAGS.workdir)
  summaries = run(commands)
  names = [f"{config.noise} noise {100 * config.noise_rate:g} %" for config in commands]
  for name, summary in zip(names, summaries, strict=True):
    print(f"\ndigits, {name}, 20 clean examples\n")
    print(_report.markdown_table(summary))
    print(verdict(summary))
  enough = [
    name
    for name, summary in zip(names, summaries, strict=True)
    if is_early_stopping_enough(summary)
  ]
  rest = [name for name in names if name not in enough]
  print(
    "\nPlain training with early stopping is enough for: "
    f"{', '.join(enough) or 'none of these'}; not for: {', '.join(rest) or 'none of these'}."
  )
  picture = pathlib.Path(FLAGS.workdir, "demo.png")
  panels = {
    f"digits, {name}": _workdir.run_folders(config)
    for name, config in zip(names, commands, strict=True)
  }
  _report.draw_summary(picture, panels, weighted="l2rw")
  print("Test accuracy in %, mean ± standard deviation over 3 seeds.")
  print(f"Picture: {picture}")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", "runs/digits_demo", "folder of the results")
  _errors.run_binary(main)
