"""How well measures of difficulty find what is hard: numbers, tables and a heat map."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

import reweight_jax as rw
from experiments import _pictures, _report
from experiments._factors import Factor, Problem

METRICS: dict[str, Any] = {
  "auroc": rw.metrics.auroc,
  "average_precision": rw.metrics.average_precision,
}
REFERENCE = "held_out_error"
"""The measure that others are held against: the error of networks that did not see an example."""

Scores = Mapping[str, np.ndarray]
Summary = Mapping[str, Any]


def column_of(factor: Factor, question: str) -> str:
  """The name of a column: the factor with its number, then what of it is asked for."""
  return f"{factor.kind} {factor.number:g}{question.removeprefix(factor.kind)}"


def judge(factor: Factor, problem: Problem, scores: Scores) -> dict[str, Any]:
  """What one run's scores are worth, hard being positive and no score's sign being changed."""
  columns = {column_of(factor, name): flags for name, flags in problem.hard.items()}
  row: dict[str, Any] = {
    metric: {
      column: {name: _known(of(values, flags)) for name, values in scores.items()}
      for column, flags in columns.items()
    }
    for metric, of in METRICS.items()
  }
  row["rank_correlation_with_margin"] = None
  if problem.margin is not None:
    row["rank_correlation_with_margin"] = {
      name: rank_correlation(values, -problem.margin) for name, values in scores.items()
    }
  return row | {
    "hard_share": {column: float(flags.mean()) for column, flags in columns.items()},
    "examples": len(problem.labels),
    "class_counts": np.bincount(problem.labels, minlength=problem.num_classes),
  }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
  """Spearman's: the correlation of ranks, ties sharing theirs; None where all of one are equal."""
  counted = ~(np.isnan(one) | np.isnan(other))
  if min(len(np.unique(values[counted])) for values in (one, other)) < 2:
    return None
  return float(scipy.stats.spearmanr(one[counted], other[counted]).statistic)


def between_seeds(runs: Sequence[Scores]) -> dict[str, float | None]:
  """Measure -> mean rank correlation of its scores of the same data, over pairs of seeds."""
  return {
    name: _report.spread(
      [rank_correlation(a[name], b[name]) for a, b in itertools.combinations(runs, 2)]
    )["mean"]
    for name in runs[0]
  }


def summarize(
  rows: Sequence[Mapping[str, Any]],
  agreement: Sequence[Mapping[str, float | None]],
  costs: Mapping[str, float],
) -> dict[str, Any]:
  """All rows of `judge` together.

  Args:
    rows: of all factors, draws and seeds.
    agreement: of `between_seeds`, for all factors and draws.
    costs: measure -> trainings.

  Returns:
    Columns, and of each measure, in the order of the tables, its numbers.
  """
  columns = list(dict.fromkeys(column for row in rows for column in row["auroc"]))
  correlations = [row["rank_correlation_with_margin"] for row in rows]
  measures: dict[str, Any] = {}
  for name, cost in costs.items():
    found: dict[str, Any] = {"cost": cost}
    for metric in METRICS:
      found[metric] = {
        column: _report.spread([row[metric][column][name] for row in rows if column in row[metric]])
        for column in columns
      }
    known = [row[name] for row in correlations if row is not None]
    found["rank_correlation_with_margin"] = _report.spread(known)
    found["between_seeds"] = _report.spread([row[name] for row in agreement])["mean"]
    single = {
      column: found["auroc"][column]["mean"] for column in columns if is_single_factor(column)
    }
    found["worst"] = min((value for value in single.values() if value is not None), default=None)
    measures[name] = found
  mean = lambda name: np.mean([measures[name]["auroc"][column]["mean"] or 0 for column in columns])
  order = sorted(measures, key=lambda name: (measures[name]["cost"], -mean(name)))
  return {
    "columns": columns,
    "hard_share": {
      column: _report.spread([r["hard_share"][column] for r in rows if column in r["hard_share"]])
      for column in columns
    },
    "measures": {name: measures[name] for name in order},
  }


def is_single_factor(column: str) -> bool:
  """Whether a column counts in the worst one: a factor by itself, and the whole of it."""
  return "," not in column and not column.startswith("mixed")


def table(summary: Summary, metric: str) -> str:
  """Measures by cost and columns by factor; the worst column and agreement beside AUROC."""
  columns, is_area = summary["columns"], metric == "auroc"
  has_margin = is_area and any(column.startswith("margin") for column in columns)
  head = ["measure", "trainings", *columns]
  head += ["worst"] if is_area else []
  head += ["rank correlation with minus the margin"] if has_margin else []
  head += ["between seeds"] if is_area else []
  lines = [head, ["---"] * len(head)]
  if not is_area:
    shares = [f"{summary['hard_share'][column]['mean']:.3f}" for column in columns]
    lines.append(["share of hard examples", "", *shares])
  for name, found in summary["measures"].items():
    cells = [name, f"{found['cost']:.2g}", *(_cell(found[metric][column]) for column in columns)]
    cells += [_plain(found["worst"])] if is_area else []
    cells += [_cell(found["rank_correlation_with_margin"])] if has_margin else []
    cells += [_plain(found["between_seeds"])] if is_area else []
    lines.append(cells)
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def verdict(summary: Summary) -> str:
  """For every column the ensemble's error, and the best measure that so many trainings buy."""
  measures = summary["measures"]
  groups = {
    "best of all": lambda cost: True,
    "best of one training or less": lambda cost: cost <= 1,
    "best of no training": lambda cost: cost == 0,
  }
  lines = [["hard examples of", REFERENCE, *groups], ["---"] * (2 + len(groups))]
  for column in summary["columns"]:
    area = {name: found["auroc"][column]["mean"] or 0.0 for name, found in measures.items()}
    cells = [column, _plain(area[REFERENCE])]
    for is_in in groups.values():
      best = max((name for name in area if is_in(measures[name]["cost"])), key=area.__getitem__)
      cells.append(f"{best} {_plain(area[best])}")
    lines.append(cells)
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(path: pathlib.Path, summaries: Mapping[str, Summary]) -> None:
  """Draws a heat map of mean AUROC, measures by cost; data sets side by side.

  Args:
    path: the PNG to write.
    summaries: title -> summary; all with the same measures, in the order of the first.
  """
  first = next(iter(summaries.values()))["measures"]
  names = list(first)
  widths = [len(summary["columns"]) for summary in summaries.values()]
  figure = _pictures._figure(4.2 + 0.62 * sum(widths), 1.9 + 0.235 * len(names))
  grid = figure.subplots(1, len(summaries), squeeze=False, width_ratios=widths)[0]
  for axes, (title, summary) in zip(grid, summaries.items(), strict=True):
    values = np.array(
      [
        [summary["measures"][name]["auroc"][column]["mean"] for column in summary["columns"]]
        for name in names
      ],
      float,
    )
    # Purple against orange is told apart by the color-blind; white is no better than chance.
    image = axes.imshow(values, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
      shade = "white" if abs(value - 0.5) > 0.3 else "black"
      axes.text(column, row, _short(value), ha="center", va="center", fontsize=7.5, color=shade)
    axes.set_xticks(range(len(summary["columns"])), summary["columns"], rotation=60, fontsize=8)
    for label in axes.get_xticklabels():
      label.set_ha("right")
      label.set_rotation_mode("anchor")
    costs = [first[name]["cost"] for name in names]
    words = [f"{name}  ({cost:.2g})" for name, cost in zip(names, costs, strict=True)]
    axes.set_yticks(range(len(names)), words if axes is grid[0] else [], fontsize=8)
    for row in range(1, len(names)):
      if costs[row] != costs[row - 1]:
        axes.axhline(row - 0.5, color="black", linewidth=1.2)
    axes.set_title(title, fontsize=9)
  grid[0].set_ylabel("measure (its cost in trainings)")
  bar = figure.colorbar(image, ax=list(grid), shrink=0.5, pad=0.01)
  bar.set_label("AUROC of finding what is hard")
  _pictures._save(figure, path, None)


def _known(value: Any) -> float | None:
  return None if np.isnan(value) else float(value)


def _short(value: float) -> str:
  return "-" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def _plain(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _cell(value: Mapping[str, float | None]) -> str:
  if value["mean"] is None or value["std"] is None:
    return _plain(value["mean"])
  return f"{value['mean']:.3f} ± {value['std']:.3f}"
