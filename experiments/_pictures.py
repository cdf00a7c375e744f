"""The pictures of finished runs, drawn from their files."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import reweight_jax as rw
from experiments import _weight_curve
from experiments._errors import UsageError
from reweight_jax import data, runlog


def write_run_plots(folder: pathlib.Path, dataset: data.Dataset) -> None:
  """Draws a run's plots/: its course and weights, its confusions, its best and worst images."""
  place, name = folder / "plots", f"{folder.parent.name}, {folder.name}"
  place.mkdir(exist_ok=True)
  weights = read_arrays(folder / "weights.npz")
  is_noisy = weights["is_noisy"] if weights["is_noisy"].any() else None

  figure = _figure(6.5, 5.5)
  predictions = read_arrays(folder / "predictions.npz")["test_prediction"]
  axes = figure.subplots()
  rw.plotting.confusion_matrix(axes, dataset.test_labels, predictions, dataset.class_names)
  _save(figure, place / "confusion.png", f"{name}: test set at the last step")

  if np.isfinite(weights["mean_weight"]).any():
    # The index is the example's original number; its place in memory is another.
    places = np.argsort(dataset.train_ids)
    rows = places[np.searchsorted(dataset.train_ids, weights["index"], sorter=places)]
    figure = _figure(9, 1.05 * min(len(dataset.class_names), 10) + 0.8)
    rw.plotting.weight_gallery(
      figure.subplots(),
      dataset.train_inputs[rows],
      weights["given_label"],
      weights["mean_weight"],
      dataset.class_names,
      is_noisy=is_noisy,
      true_labels=dataset.train_labels[rows],
    )
    _save(figure, place / "images.png", None)

  if (folder / _weight_curve.FILE).exists():
    curve = read_arrays(folder / _weight_curve.FILE)
    figure = _figure(7, 4.5)
    losses, labels = weights["last_loss"], weights["given_label"]
    _weight_curve.draw(figure.subplots(), curve, losses, labels, is_noisy)
    _save(figure, place / "weight_curve.png", name)

  # Last: it says that the others are there.
  figure = _figure(12, 9)
  axes = figure.subplots(2, 2).ravel()
  rw.plotting.accuracy_curves(axes[0], {name: [_curve(folder)]})
  rw.plotting.weight_histogram(axes[1], weights["mean_weight"], is_noisy)
  rw.plotting.weight_histograms(axes[2], _windows(folder), is_noisy)
  if is_noisy is None:
    axes[3].set_axis_off()
  else:
    curves = {"mean weight": (weights["mean_weight"], is_noisy)}
    rw.plotting.weight_roc(axes[3], curves)
  _save(figure, place / "run.png", name)


def draw_summary(
  path: pathlib.Path, panels: Mapping[str, Mapping[str, Sequence[pathlib.Path]]], weighted: str
) -> None:
  """Draws for every panel the accuracy curves of its methods and the weights of one of them.

  Args:
    path: the PNG to write.
    panels: title -> method -> folders of its runs.
    weighted: the method whose weights are shown, all seeds together.
  """
  figure = _figure(11, 4 * len(panels))
  axes = figure.subplots(len(panels), 2, squeeze=False).ravel()
  for i, (title, methods) in enumerate(panels.items()):
    curves = {method: [_curve(folder) for folder in folders] for method, folders in methods.items()}
    rw.plotting.accuracy_curves(axes[2 * i], curves)
    axes[2 * i].set_title(title)
    ledgers = [read_arrays(folder / "weights.npz") for folder in methods[weighted]]
    is_noisy = np.concatenate([entries["is_noisy"] for entries in ledgers])
    rw.plotting.weight_histogram(
      axes[2 * i + 1],
      np.concatenate([entries["mean_weight"] for entries in ledgers]),
      is_noisy if is_noisy.any() else None,
    )
    axes[2 * i + 1].set_title(f"weights given by {weighted}, {len(ledgers)} seed(s)")
  _save(figure, path, None)


def draw_error_curves(
  path: pathlib.Path, summaries: Mapping[float, Mapping[str, Mapping[str, Any]]]
) -> None:
  """Draws test error against the share of the frequent class, a line for each method.

  Args:
    path: the PNG to write.
    summaries: share -> method -> the numbers of a summary.
  """
  figure = _figure(6.5, 4.5)
  axes = figure.subplots()
  shares = sorted(summaries)
  places = -np.log([1 - share for share in shares])
  lines = {
    method: (
      places,
      [_percents(summaries[share][method]["last"], is_error=True) for share in shares],
    )
    for method in summaries[shares[0]]
  }
  _draw_bars(axes, lines)
  axes.set_xticks(places, [f"{100 * (1 - share):g}" for share in shares])
  axes.set_xlabel("share of the rare class, %")
  axes.set_ylabel("test error at the last step, %")
  _legend_below(figure, axes)
  _save(figure, path, None)


def draw_class_accuracy(
  path: pathlib.Path,
  classes: Mapping[str, Sequence[Mapping[str, Any]]],
  title: str,
  class_names: Sequence[str] | None = None,
) -> None:
  """Draws accuracy by class, the most frequent class first, a line for each method.

  Args:
    path: the PNG to write.
    classes: method -> of each run its "counts" and "accuracy_by_class".
    title: of the figure.
    class_names: a name for each class; None for their numbers.
  """
  figure = _figure(7.5, 5)
  axes = figure.subplots()
  counts = np.array(next(iter(classes.values()))[0]["counts"])
  order = np.argsort(-counts, kind="stable")
  lines = {}
  for method, runs in classes.items():
    found = 100 * np.array([run["accuracy_by_class"] for run in runs])[:, order]
    spread = found.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(order))
    lines[method] = (np.arange(len(order)), list(zip(found.mean(axis=0), spread, strict=True)))
  _draw_bars(axes, lines)
  if len(order) <= 20:
    names = [str(label) if class_names is None else class_names[label] for label in order]
    is_crowded = sum(map(len, names)) > 70  # letters that fit beside each other
    ticks = [f"{name}\n{counts[label]}" for name, label in zip(names, order, strict=True)]
    axes.set_xticks(range(len(order)), ticks, fontsize=8, rotation=45 if is_crowded else 0)
  axes.set_xlabel("class, and its training examples in the first run")
  axes.set_ylabel("test accuracy at the last step, %")
  _legend_below(figure, axes)
  _save(figure, path, title)


def _percents(number: Mapping[str, Any], *, is_error: bool = False) -> tuple[float, float]:
  """Mean and standard deviation of an accuracy, or of its error, in percent."""
  mean = 1 - number["mean"] if is_error else number["mean"]
  return 100 * mean, 100 * (number["std"] or 0)


def _draw_bars(
  axes: Any, lines: Mapping[str, tuple[np.ndarray, Sequence[tuple[float, float]]]]
) -> None:
  """Draws lines of percents with error bars, which end at 0 and 100, each line a little aside.

  Args:
    axes: where to draw.
    lines: name -> places, and mean and standard deviation at each.
  """
  gaps = np.diff(np.unique(np.concatenate([places for places, _ in lines.values()])))
  width = 0.5 * gaps.min(initial=1) / len(lines)
  for i, (name, (places, numbers)) in enumerate(lines.items()):
    mean, spread = np.array(numbers).T
    axes.errorbar(
      places + width * (i - (len(lines) - 1) / 2),
      mean,
      np.minimum(spread, [mean, 100 - mean]),
      marker="o",
      markersize=4,
      linewidth=1,
      capsize=2,
      label=name,
    )


def _legend_below(figure: Any, axes: Any) -> None:
  """The legend of axes below all of them: it hides nothing, and none is searched for its place."""
  handles, names = axes.get_legend_handles_labels()
  figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)


def _windows(folder: pathlib.Path) -> list[tuple[str, np.ndarray]]:
  """Mean weights between the times at which the ledger was written down."""
  windows, before, last = [], None, 0
  for path in sorted((folder / "windows").glob("step_*.npz")):
    entries, step = read_arrays(path), int(path.stem.removeprefix("step_"))
    total, times = entries["total_weight"], entries["times_seen"]
    if before is not None:
      total, times = total - before["total_weight"], times - before["times_seen"]
    seen = np.where(times > 0, times, 1)
    windows.append((f"{last + 1} to {step}", np.where(times > 0, total / seen, np.nan)))
    before, last = entries, step
  return windows


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file of a finished run.

  Raises:
    UsageError: if it is missing or damaged.
  """
  try:
    with np.load(path) as arrays:
      return dict(arrays)
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise UsageError(
      f"--workdir: expected the file {path} of a finished run, which cannot be read "
      f"({type(error).__name__}); delete the folder {path.parent} to run it again"
    ) from error


def _curve(folder: pathlib.Path) -> tuple[list[int], list[float]]:
  rows = runlog.read_rows(folder / "metrics.jsonl")
  return [row["step"] for row in rows], [row["test_accuracy"] for row in rows]


def _figure(width: float, height: float) -> Any:
  # The object interface, not pyplot: no global state, no display needed.
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: pathlib.Path, title: str | None) -> None:
  if title:
    figure.suptitle(title)
  figure.savefig(path, dpi=100)
