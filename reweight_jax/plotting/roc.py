"""How well weights tell correct labels from wrong ones, and which classes are confused."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from sklearn import metrics

from reweight_jax.plotting._checks import check_classes, check_lengths
from reweight_jax.plotting.curves import COLORS, STYLES

MAX_NUMBERED = 20
"""Classes up to which a confusion matrix has numbers and names every class."""
MIDDLE = 0.47
"""Where in cividis black letters become easier to read than white ones (luminance 0.18)."""


def weight_roc(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
  """Draws the ROC of weights as detectors of correct labels, the area under it in the legend.

  For every threshold the share of the correct labels that weigh at least that much, against the
  share of the wrong ones that do. Examples of equal weight fall together: many zeros make the last
  stretch a straight line.

  Guarantees: the area is that of `reweight_jax.metrics.auroc` on the examples drawn.
  Edge cases: examples never seen (NaN) are left out and the legend counts them; where only correct
  or only wrong labels are left there is no curve, and the legend says so.

  Args:
    axes: where to draw.
    curves: name -> weights `[examples]` and `is_noisy` `[examples]` bool, True where the label is
      wrong.

  Raises:
    ValueError: if weights and `is_noisy` are of different lengths.

  Source: Fawcett, "An introduction to ROC analysis", 2006, sections 4 and 7.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> weights = np.array([0.0, 0.5, 1.0, np.nan])
    >>> weight_roc(axes, {"l2rw": (weights, np.array([True, True, False, False]))})
    >>> print(axes.get_legend().get_texts()[0].get_text())
    l2rw: AUROC 1.000 (1 never seen)
  """
  for i, (name, (weights, is_noisy)) in enumerate(curves.items()):
    check_lengths(**{f"weights of {name!r}": weights, "is_noisy": is_noisy})
    seen = np.isfinite(weights)
    is_correct, scores = ~np.asarray(is_noisy, bool)[seen], np.asarray(weights)[seen]
    unseen = f" ({np.sum(~seen)} never seen)" if not seen.all() else ""
    color, style = COLORS[i % len(COLORS)], STYLES[i % len(STYLES)]
    if is_correct.all() or not is_correct.any():
      kinds = "no" if not seen.any() else "only correct" if is_correct.all() else "only wrong"
      axes.plot([], [], style, color=color, label=f"{name}: {kinds} labels{unseen}")
      continue
    false, true, _ = metrics.roc_curve(is_correct, scores)
    label = f"{name}: AUROC {metrics.auc(false, true):.3f}{unseen}"
    axes.plot(100 * false, 100 * true, style, color=color, label=label)
  axes.plot([0, 100], [0, 100], color="gray", linewidth=0.8, linestyle=":", label="chance: 0.500")
  axes.set_xlabel("wrong labels at or above the threshold (%)")
  axes.set_ylabel("correct labels at or above the threshold (%)")
  axes.set_title("do larger weights mark correct labels?")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small", loc="lower right")


def confusion_matrix(
  axes: Axes, labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> None:
  """Draws how often each class is taken for each, in percent of the true class.

  Colors follow the square root of the percentage, so that confusions of a few percent are seen
  beside a diagonal of 90.

  Guarantees: a row of a class with examples adds to 100 % (before the numbers are rounded; those
  below 0.5 are not written).
  Edge cases: above 20 classes numbers are left out and not every class is named; the row of a class
  without examples is light gray.

  Args:
    axes: where to draw; a colorbar takes some of its room.
    labels: `[examples]` true classes.
    predictions: `[examples]` predicted classes.
    class_names: a name for each class.

  Raises:
    ValueError: if labels and predictions are of different lengths, or a class has no name.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> confusion_matrix(axes, np.array([0, 0, 1]), np.array([0, 1, 1]), ("cat", "dog"))
    >>> [text.get_text() for text in axes.texts]
    ['50', '50', '100']
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  check_lengths(labels=labels, predictions=predictions)
  check_classes("labels", labels, class_names)
  check_classes("predictions", predictions, class_names)
  size = len(class_names)
  counts = np.zeros((size, size), int)
  np.add.at(counts, (labels, predictions), 1)
  totals = counts.sum(1, keepdims=True)
  percent = np.where(totals > 0, 100 * counts / np.maximum(totals, 1), np.nan)
  norm = colors.PowerNorm(0.5, 0, 100)
  cmap = colormaps["cividis"].with_extremes(bad="lightgray")
  image = axes.imshow(percent, cmap=cmap, norm=norm)
  axes.figure.colorbar(image, ax=axes, label="% of the true class", ticks=[0, 1, 5, 20, 50, 100])
  ticks = np.arange(0, size, -(-size // MAX_NUMBERED))
  names = [class_names[int(tick)] for tick in ticks]
  axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
  axes.set_yticks(ticks, names)
  if size <= MAX_NUMBERED:
    for row, column in np.argwhere(percent >= 0.5).tolist():
      value = percent[row, column]
      color = "black" if norm(value) > MIDDLE else "white"
      text = f"{value:.0f}"
      axes.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
  axes.set_xlabel("predicted class")
  axes.set_ylabel("true class")
