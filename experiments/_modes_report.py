"""What the study of difficulty modes says: tables, a verdict, a picture."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import _pictures, _report
from reweight_jax import difficulty

DATA = ("clean", "noise", "imbalance", "both")
PLAIN = ("uniform", "class_balanced", "undersample", "drop_noisy")
WEIGHED = (*difficulty.MODES, "shuffled")
# Okabe and Ito's colors, told apart by the color-blind; markers and dashes for print.
_MARKS = dict(zip(WEIGHED, ("o-", "s-", "^-", "D-", "x:"), strict=True))
_COLORS = dict(zip(WEIGHED, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "0.45"), strict=True))
_DASHES = dict(zip(PLAIN, ("-", "--", "-.", ":"), strict=True))

Cell = tuple[float, str]  # L2 penalty, data set
Summary = dict[Cell, dict[str, dict[str, float | None]]]


def tables(found: Summary) -> str:
  """A table for each penalty: what was done, against the data sets; in %."""
  text = []
  for l2 in dict.fromkeys(l2 for l2, _ in found):
    columns = {kind: numbers for (other, kind), numbers in found.items() if other == l2}
    rows = [name for name in columns["clean"] if not name.startswith("worth")]
    lines = [[f"L2 {l2:g}", *columns], ["---"] * (len(columns) + 1)]
    lines += [[_words(row), *(_report.percent(c[row]) for c in columns.values())] for row in rows]
    text.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
  return "\n".join(text)


def _words(name: str) -> str:
  if name == "train_accuracy":
    return "(uniform, on its own examples, as labeled)"
  mode, _, ratio = name.replace("_", " ").partition(":")
  mode = "easy first, shuffled" if mode == "shuffled" else mode
  return f"{mode}, ratio {ratio}" if ratio else mode


def verdict(found: Summary) -> str:
  """For each cell what helps more than plain training does, the modes at their best ratio."""
  lines = []
  for (l2, kind), numbers in found.items():
    mean = lambda name: 100 * (numbers[name]["mean"] or 0.0)  # noqa: B023
    modes = [name for name in numbers if name.partition(":")[0] in difficulty.MODES]
    best = max(modes, key=mean)
    lines.append(
      f"- L2 {l2:g}, {kind}: uniform {mean('uniform'):.1f}; the best mode, {_words(best)}, "
      f"{mean(best):.1f}; class balanced {mean('class_balanced'):.1f}; undersample "
      f"{mean('undersample'):.1f}; drop noisy {mean('drop_noisy'):.1f}"
    )
  return "\n".join(["Balanced test accuracy, %; the best mode is chosen on the test set:", *lines])


def draw(path: pathlib.Path, found: Mapping[Cell, Any]) -> None:
  """Draws accuracy against the ratio of weights, a panel for each cell."""
  penalties = list(dict.fromkeys(l2 for l2, _ in found))
  figure = _pictures._figure(13, 3.2 * len(penalties) + 0.7)
  grid = figure.subplots(len(penalties), len(DATA), squeeze=False, sharex=True, sharey="col")
  for axes, ((l2, kind), numbers) in zip(grid.ravel(), found.items(), strict=True):
    ratios = sorted({float(key.partition(":")[2]) for key in numbers if key.startswith("shuffled")})
    for name, dashes in _DASHES.items():
      axes.axhline(
        100 * numbers[name]["mean"], color="0.2", linestyle=dashes, linewidth=1, label=_words(name)
      )
    for i, name in enumerate(WEIGHED):
      points = [_pictures._percents(numbers[f"{name}:{_report.exact(r)}"]) for r in ratios]
      mean, spread = np.array(points).T
      places = np.array(ratios) * 1.12 ** (i - 2)  # beside each other
      axes.errorbar(
        places, mean, spread, color=_COLORS[name], fmt=_MARKS[name], label=_words(name),
        markersize=5, linewidth=1.2, capsize=2,
      )  # fmt: skip
    axes.set_xscale("log")
    axes.set_title(f"{kind}, L2 {l2:g}", fontsize=10)
  for axes in grid[-1]:
    axes.set_xlabel("largest weight / smallest")
  for axes in grid[:, 0]:
    axes.set_ylabel("balanced test accuracy, %")
  _pictures._legend_below(figure, grid[0][0])
  _pictures._save(figure, path, None)
