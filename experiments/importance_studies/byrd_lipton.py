"""Cats against dogs with class weights: the share called dog, over epochs and outside of them.

Byrd and Lipton's question, with a net that a CPU trains.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from experiments import _parts
from experiments.importance_studies.cats_dogs import Images, Options, train
from experiments.importance_studies.finding import Finding, at_least, at_most, style, words
from reweight_jax import data

Runs = dict[float, dict[str, np.ndarray]]  # ratio -> name -> [seeds, evaluations]


def study(options: Options, data_dir: str | None, folder: pathlib.Path) -> Finding:
  """Every configuration, ratio and seed; runs that are in the folder already are not run again.

  Raises:
    DataError: if CIFAR-10 cannot be read.
    UsageError: if the folder holds runs of other options.
    DivergedError: if a run's logits are not finite; those before it are kept.
  """
  dataset = data.load("cifar10", data_dir)
  images = [Images(dataset, options, seed) for seed in options.seeds]
  # These lists may grow: each run is of one of each.
  setting = dataclasses.asdict(options) | {"configurations": None, "ratios": None, "seeds": None}
  parts = _parts.Parts(folder, setting)

  def run(name: str, ratio: float, images: Images) -> dict[str, np.ndarray]:
    make = functools.partial(train, images, options, name, ratio)
    return parts.kept(f"{name}_{ratio:g}_seed_{images.seed}", make)

  runs: dict[str, Runs] = {}
  for name in options.configurations:
    for ratio in options.ratios:
      of_seeds = [run(name, ratio, drawn) for drawn in images]
      found = {key: np.stack([one[key] for one in of_seeds]) for key in of_seeds[0]}
      runs.setdefault(name, {})[ratio] = found
      last = words(found["in_domain"][:, -1])
      print(f"  {name}, dog:cat {ratio:g}: {last} of the test pets called dog", flush=True)
  return finding(options, runs)


def finding(options: Options, runs: dict[str, Runs]) -> Finding:
  """What the runs say, on average over seeds."""
  high, low = max(options.ratios), min(options.ratios)
  spread = {
    name: {place: of[high][place] - of[low][place] for place in ("in_domain", "out_of_domain")}
    for name, of in runs.items()
  }
  mean = {name: found["in_domain"].mean(0) for name, found in spread.items()}
  last = {name: float(found[-1]) for name, found in mean.items()}
  first = {name: float(found.max()) for name, found in mean.items()}
  checks = []
  if "none" in runs:
    checks.append(at_most("spread in the domain at the last epoch, none", last["none"], 0.1))
    checks.append(at_least("largest spread on the way, none", first["none"], 0.3))
  if "dropout" in runs:
    checks.append(at_most("spread in the domain at the last epoch, dropout", last["dropout"], 0.2))
  for name in ("l2", "batch_norm", "undersampling", "polynomial_tail"):
    is_small, title = name == "batch_norm", f"spread in the domain at the last epoch, {name}"
    if name in runs and "none" in runs:  # what is left without anything is no merit of it
      more = last[name] - last["none"]
      checks.append(at_least(f"{title} minus none", more, 0.05 if is_small else 0.1))
    elif name in runs:
      checks.append(at_least(title, last[name], 0.05 if is_small else 0.2))
  return Finding(
    "Cats and dogs: the effect of class weights fades, unless something keeps the net from fitting",
    "without regularization and with dropout the share called dog ends alike under all weights; "
    "L2, undersampling and a polynomial tail keep more of it apart, BatchNorm a little more",
    f"share called dog under {high:g} minus that under {low:g}, last epoch ({options.epochs}), "
    f"{_over(options.seeds)}, in the domain: {_at_the_end(spread, 'in_domain')}; out of it: "
    f"{_at_the_end(spread, 'out_of_domain')}",
    checks,
    {"options": dataclasses.asdict(options), "epochs": options.eval_epochs(), "runs": runs},
    functools.partial(_draw, options, runs),
  )


def _draw(options: Options, runs: dict[str, Any], figure: Any) -> None:
  grid = figure.subplots(2, len(runs), squeeze=False, sharex=True, sharey=True)
  places = ("in_domain", "out_of_domain")
  for row, place in zip(grid, places, strict=True):
    for axes, (name, of) in zip(row, runs.items(), strict=True):
      for i, (ratio, found) in enumerate(of.items()):
        label = f"dog:cat {ratio:g}:1" if ratio >= 1 else f"dog:cat 1:{1 / ratio:g}"
        epochs, shares = options.eval_epochs(), found[place]
        axes.plot(
          epochs, shares.mean(0), **style(i), marker="os^Dv<>"[i % 7], markersize=3, label=label
        )
        axes.fill_between(
          epochs, shares.min(0), shares.max(0), color=style(i)["color"], alpha=0.15, linewidth=0
        )
      axes.set_xscale("log")
      axes.set_ylim(-0.03, 1.03)
      axes.grid(alpha=0.3)
      if place == "in_domain":
        axes.set_title(name.replace("_", " "), fontsize=10)
  for axes in grid[-1]:
    axes.set_xlabel("epochs")
  grid[0][0].set_ylabel("share called dog, cats and dogs")
  grid[1][0].set_ylabel("share called dog, other classes")
  lines = grid[0][0].get_legend_handles_labels()
  note = "mean over seeds, in a band from the least to the greatest"
  title = note if len(options.seeds) > 1 else None
  figure.legend(*lines, loc="outside lower center", ncols=7, title=title)


def _over(seeds: tuple[int, ...]) -> str:
  if len(seeds) == 1:
    return f"seed {seeds[0]}"
  return f"mean and standard deviation over {len(seeds)} seeds"


def _at_the_end(spread: dict[str, dict[str, np.ndarray]], place: str) -> str:
  parts = []
  for name, found in spread.items():
    last = found[place][:, -1]
    deviation = f" ± {np.std(last, ddof=1):.3f}" if len(last) > 1 else ""
    parts.append(f"{name} {last.mean():.3f}{deviation}")
  return ", ".join(parts)
