"""Curves over training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colors, which people with the common color blindnesses can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")
_LETTER, _HANDLE, _ROW = 0.06, 0.6, 0.18  # sizes of a legend in small print, inches


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
    low, high = np.clip([mean - spread, mean + spread], 0, 100)
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
  axes.set_xlabel("training step")
  axes.set_ylabel("test accuracy (%)")
  axes.grid(alpha=0.3)
  low, top = axes.get_ylim()
  add_legend(axes, low, top)
  axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(top, 100)])


def add_legend(axes: Axes, low: float, top: float) -> None:
  """Puts the legend above all lines, which lie between two heights; nothing is hidden by it."""
  _, names = axes.get_legend_handles_labels()
  if not names:
    return
  # The layout is not final yet, so the sizes are guesses on the safe side.
  extent = axes.get_window_extent()
  width, height = extent.width / axes.figure.dpi, extent.height / axes.figure.dpi
  num_columns = max(1, int(width / (_LETTER * max(map(len, names)) + _HANDLE)))
  share = min(_ROW * (-(-len(names) // num_columns) + 1) / height, 0.6)
  axes.set_ylim(low, low + (top - low) / (1 - share))
  # A fixed place: matplotlib's own search for the best one is slow, and says so on a busy machine.
  axes.legend(fontsize="small", loc="upper center", ncols=num_columns)
