"""Histograms of example weights."""

import numpy as np
from matplotlib.axes import Axes

from reweight_jax.plotting.curves import COLORS


def weight_histogram(
  axes: Axes, weights: np.ndarray, is_noisy: np.ndarray | None, *, num_bins: int = 40
) -> None:
  """Draws the histogram of mean weights, of correct labels against wrong ones where known.

  Args:
    axes: where to draw.
    weights: `[examples]`, 1 is an ordinary example; NaN for examples never seen, left out.
    is_noisy: `[examples]` bool, True where the label is known to be wrong; None if unknown.
    num_bins: bins between 0 and the 99.5th percentile, beyond which weights are put in the last.
  """
  seen = np.isfinite(weights)
  top = max(float(np.quantile(weights[seen], 0.995)), 1e-6) if seen.any() else 1.0
  bins = np.linspace(0, top, num_bins + 1).tolist()
  groups = (
    {"all labels": seen}
    if is_noisy is None
    else {
      "correct labels": seen & ~is_noisy,
      "wrong labels": seen & is_noisy,
    }
  )
  for (name, group), color, hatch in zip(groups.items(), COLORS, ("", "///"), strict=False):
    values = np.clip(weights[group], 0, top)
    axes.hist(
      values,
      bins,
      alpha=0.6,
      color=color,
      hatch=hatch,
      edgecolor="white",
      linewidth=0.3,
      label=f"{name} ({group.sum()})",
    )
  axes.axvline(1, color="black", linewidth=0.8, linestyle=":", label="an ordinary example")
  axes.set_xlabel("mean weight over training")
  axes.set_ylabel("examples")
  axes.legend(fontsize="small")
