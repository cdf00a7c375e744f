"""Curves over training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colors, which people with the common color blindnesses can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")


def accuracy_curves(
  axes: Axes, curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]]
) -> None:
  """Draws accuracy over steps, one line a method: the mean over seeds, the spread shaded.

  Args:
    axes: where to draw.
    curves: for each method one `(steps, accuracies)` pair a seed, accuracies in [0, 1]; all seeds
      of a method share their steps.
  """
  for i, (method, seeds) in enumerate(curves.items()):
    steps = np.asarray(seeds[0][0])
    percent = 100 * np.asarray([accuracies for _, accuracies in seeds])
    mean, spread = percent.mean(0), percent.std(0)
    color = COLORS[i % len(COLORS)]
    axes.plot(steps, mean, STYLES[i % len(STYLES)], color=color, label=method)
    axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
  axes.set_xlabel("training step")
  axes.set_ylabel("test accuracy (%)")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
