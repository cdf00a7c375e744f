"""Histograms of example weights."""

from collections.abc import Sequence

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


def weight_histograms(
  axes: Axes, windows: Sequence[tuple[str, np.ndarray]], is_noisy: np.ndarray | None
) -> None:
  """Draws how the histograms of weights change over training, window by window.

  In each window the left half is the histogram of the correct labels, the right half that of the
  wrong ones, with their medians; below stand the shares of weights that are exactly 0. Each half is
  scaled to its own highest bin above 0.

  Edge cases: examples not seen in a window (NaN) are left out of it; without wrong labels the
  halves are the same. No window, no picture.

  Args:
    axes: where to draw.
    windows: a name, such as the steps, and `[examples]` weights for each.
    is_noisy: `[examples]` bool, True where the label is known to be wrong; None if unknown.
  """
  names = ("all labels",) if is_noisy is None else ("correct labels", "wrong labels")
  finite = [weights[np.isfinite(weights)] for _, weights in windows]
  top = max((float(np.quantile(part, 0.99)) for part in finite if part.size), default=0.0)
  bins = np.linspace(0, top or 1.0, 41)
  zeros: list[list[str]] = []
  for place, (_, weights) in enumerate(windows):
    zeros.append([])
    for side, name in zip((-1, 1), names, strict=False):
      group = np.isfinite(weights)
      if is_noisy is not None:
        group &= is_noisy if name == "wrong labels" else ~is_noisy
      values = weights[group]
      zeros[-1].append(f"{100 * np.mean(values == 0):.0f} %" if values.size else "-")
      counts, _ = np.histogram(np.clip(values[values > 0], 0, bins[-1]), bins)
      widths = 0.45 * counts / max(counts.max(), 1)
      color = COLORS[0 if side < 0 else 1]
      label = name if place == 0 else None
      axes.barh(
        bins[:-1], side * widths, np.diff(bins), place, align="edge", color=color, alpha=0.7,
        label=label,
      )  # fmt: skip
      if values.size:
        middle = np.median(values)
        axes.plot([place, place + 0.45 * side], [middle, middle], color="black", linewidth=1.5)
  axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="an ordinary example")
  axes.set_ylim(-0.02 * bins[-1], 1.3 * bins[-1])  # room for the legend
  ticks = [
    f"{name}\n{' / '.join(shares)}" for (name, _), shares in zip(windows, zeros, strict=True)
  ]
  axes.set_xticks(range(len(windows)), ticks, fontsize="small")
  axes.set_xlabel(f"training steps; weights that are 0, of {' / '.join(names)}")
  axes.set_ylabel("mean weight in these steps")
  axes.set_title("weights over training (black: medians)")
  axes.legend(fontsize="small")
