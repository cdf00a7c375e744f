"""How well weights tell correct labels from wrong ones, and which classes are confused."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from sklearn import metrics

from reweight_jax.plotting.curves import COLORS, STYLES


def weight_roc(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
  """Draws the ROC of weights as detectors of correct labels, the area under it in the legend.

  The share of the correct labels that weigh more than a threshold, against the share of the wrong
  ones that do, for every threshold.

  Edge cases: examples without a weight (NaN) are left out; where only one kind of label is left
  there is no curve, and the legend says so.

  Args:
    axes: where to draw.
    curves: name -> weights `[examples]` and, as bool, which labels are wrong.
  """
  for i, (name, (weights, is_noisy)) in enumerate(curves.items()):
    seen = np.isfinite(weights)
    correct, scores = ~np.asarray(is_noisy)[seen], np.asarray(weights)[seen]
    color, style = COLORS[i % len(COLORS)], STYLES[i % len(STYLES)]
    if correct.all() or not correct.any():
      axes.plot([], [], style, color=color, label=f"{name}: one kind of label alone")
      continue
    false, true, _ = metrics.roc_curve(correct, scores)
    area = metrics.auc(false, true)
    axes.plot(100 * false, 100 * true, style, color=color, label=f"{name}: area {area:.3f}")
  axes.plot([0, 100], [0, 100], color="gray", linewidth=0.8, linestyle=":", label="chance: 0.5")
  axes.set_xlabel("wrong labels above the threshold (%)")
  axes.set_ylabel("correct labels above the threshold (%)")
  axes.set_title("do larger weights mark correct labels?")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small", loc="lower right")


def confusion_matrix(
  axes: Axes, labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> None:
  """Draws how often each class is taken for each, in percent of the true class.

  Edge cases: with more than 20 classes the numbers are left out and not every name is written; a
  class without examples has an empty row.

  Args:
    axes: where to draw.
    labels: `[examples]` true classes.
    predictions: `[examples]` predicted classes.
    class_names: a name for each class.
  """
  size = len(class_names)
  counts = metrics.confusion_matrix(labels, predictions, labels=range(size))
  totals = counts.sum(1, keepdims=True)
  percent = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
  image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
  axes.figure.colorbar(image, ax=axes, label="% of the true class")
  ticks = np.arange(0, size, -(-size // 20))
  names = [class_names[int(tick)] for tick in ticks]
  axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
  axes.set_yticks(ticks, names)
  if size <= 20:
    for row, column in np.ndindex(size, size):
      value = percent[row, column]
      if np.isfinite(value) and value >= 0.5:
        color = "black" if value > 50 else "white"
        axes.text(
          column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize="small"
        )
  axes.set_xlabel("predicted class")
  axes.set_ylabel("true class")
