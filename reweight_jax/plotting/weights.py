"""Histograms of example weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from reweight_jax.plotting._checks import check_lengths
from reweight_jax.plotting.curves import COLORS, add_legend

Windows = Mapping[str, np.ndarray] | Sequence[tuple[str, np.ndarray]]
HATCHES = ("", "////")  # tells wrong labels apart in print without colors
MAX_NUMBERED = 12  # windows that have room for their numbers
WIDTH = 0.44  # of a full half, in windows
STRIP = (-0.16, -0.05)  # where the shares of zeros stand, in heights of the histograms


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
  add_legend(axes, *axes.get_ylim())


def weight_histograms(
  axes: Axes,
  windows: Windows,
  is_noisy: np.ndarray | None,
  *,
  num_bins: int = 40,
) -> None:
  """Draws how the weights of correct and of wrong labels move over training, window by window.

  In each window the left half is the histogram of the correct labels, the right half that of the
  wrong ones, without the weights that are exactly 0: those have a strip of their own below, as a
  bar whose full width is 100 % and as a number. Lines join the medians, zeros included.

  Guarantees: each half is scaled to its own fullest bin; a strip's bar is as wide as the share of
  zeros of its group in its window; all windows share their bins.
  Edge cases: examples not seen in a window (NaN) are left out of it; a group without examples in a
  window has no bars and the number "-"; weights above the largest 99th percentile of a window are
  put in the last bin, and the axis then says "at least"; with more than 12 windows the numbers and
  some names are left out.

  Args:
    axes: where to draw; about an inch of width for each window.
    windows: name, such as "1 to 500", -> weights `[examples]`, as a mapping or as pairs.
    is_noisy: `[examples]` bool, True where the label is known to be wrong; None if unknown: all
      labels are one group then, drawn on both sides.
    num_bins: bins between 0 and that percentile.

  Raises:
    ValueError: if weights and `is_noisy` are of different lengths.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> windows = {"1 to 5": np.array([0.0, 0, 2, 1]), "6 to 10": np.array([0.0, 0, 0, 4])}
    >>> weight_histograms(axes, windows, np.array([True, True, False, False]))
    >>> [text.get_text() for text in axes.texts]  # % of zeros: correct labels twice, wrong twice
    ['0', '50', '100', '100']
  """
  named = list(windows.items()) if isinstance(windows, Mapping) else list(windows)
  table = [np.asarray(weights, float) for _, weights in named]
  for (name, _), weights in zip(named, table, strict=True):
    check_lengths(is_noisy=is_noisy, **{f"weights of {name!r}": weights})
  seen = [weights[np.isfinite(weights)] for weights in table]
  top = max((float(np.quantile(part, 0.99)) for part in seen if part.size), default=0.0) or 1.0
  bins = np.linspace(0, top, num_bins + 1)
  sides = (0,) if is_noisy is None else (-1, 1)
  for i, (side, (name, group)) in enumerate(zip(sides, _groups(is_noisy).items(), strict=True)):
    medians = []
    for place, weights in enumerate(table):
      values = weights[group & np.isfinite(weights)]
      _half(axes, values, bins, place, side, numbered=len(table) <= MAX_NUMBERED)
      medians.append(np.median(values) if values.size else np.nan)
    size = f" ({np.sum(group)})" if is_noisy is not None else ""
    # A patch: bars of no length have no color in the legend.
    axes.add_patch(Rectangle((0, 0), 0, 0, **_look(i), label=name + size))
    axes.plot(
      np.arange(len(table)) + 0.22 * side, medians, "o-" if i == 0 else "s--", color="black",
      linewidth=1, markersize=5, markeredgecolor="white", label=f"median of {name}",
    )  # fmt: skip
  axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="an ordinary example")
  _name_axes(axes, [name for name, _ in named], top, any((part > top).any() for part in seen))


def _groups(is_noisy: np.ndarray | None) -> dict[str, Any]:
  """Name -> members, as a mask or True for all."""
  if is_noisy is None:
    return {"all labels": True}
  is_noisy = np.asarray(is_noisy, bool)
  return {"correct labels": ~is_noisy, "wrong labels": is_noisy}


def _half(
  axes: Axes, values: np.ndarray, bins: np.ndarray, place: int, side: int, *, numbered: bool
) -> None:
  """One group in one window, left (-1), right (1) or on both sides (0): histogram and strip."""
  # Where the bars start and how they grow, in halves of `WIDTH`.
  start, grow = (-1, 2) if side == 0 else (0, side)
  look = _look(max(side, 0))
  counts, _ = np.histogram(np.clip(values[values > 0], None, bins[-1]), bins)
  widths = WIDTH * counts / max(counts.max(), 1)
  axes.stairs(
    place + (start + grow) * widths,
    bins,
    baseline=place + start * widths,
    orientation="horizontal",
    fill=True,
    **look,
  )
  low, height = STRIP[0] * bins[-1], (STRIP[1] - STRIP[0]) * bins[-1]
  share = np.mean(values == 0) if values.size else np.nan
  corner = place + start * WIDTH
  if values.size:
    axes.barh(low, grow * WIDTH * share, height, corner, align="edge", **look)
  axes.barh(
    low, grow * WIDTH, height, corner, align="edge", fill=False, edgecolor="gray", linewidth=0.6
  )
  if numbered:
    x, y = place + side * WIDTH / 2, low + height / 2
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8}
    axes.text(x, y, _percent(share), ha="center", va="center", fontsize="x-small", bbox=box)


def _look(group: int) -> dict[str, Any]:
  """Color and hatch of the first or second group."""
  look = {"facecolor": COLORS[group], "edgecolor": "white", "hatch": HATCHES[group]}
  return {**look, "alpha": 0.7, "linewidth": 0}


def _percent(share: float) -> str:
  """A share in percent, where 0 and 100 are exact."""
  if np.isnan(share):
    return "-"
  if 0 < share < 0.005:
    return "<1"
  if 0.995 < share < 1:
    return ">99"
  return f"{100 * share:.0f}"


def _name_axes(axes: Axes, names: Sequence[str], top: float, is_cut: bool) -> None:
  """Ticks and names of `weight_histograms`."""
  ticks = [tick for tick in MaxNLocator(5).tick_values(0, top) if 0 <= tick <= 0.9 * top]
  labels = [*(f"{tick:g}" for tick in ticks), f"≥ {top:.2g}"]
  if not is_cut:
    labels[-1] = f"{top:.2g}"
  axes.set_yticks([sum(STRIP) / 2 * top, *ticks, top], ["= 0 (%)", *labels])
  axes.set_ylim((STRIP[0] - 0.04) * top, 1.35 * top)  # room for the legend
  axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
  every = -(-len(names) // MAX_NUMBERED) or 1
  places = range(0, len(names), every)
  shown = [names[place] for place in places]
  axes.set_xticks(places, shown, fontsize="small")
  # The layout is not final yet, so the room is a guess on the safe side; 0.08 inches a letter.
  room = axes.get_window_extent().width / axes.figure.dpi
  if 0.08 * len(shown) * (max(map(len, shown), default=0) + 2) > room:
    axes.tick_params(axis="x", labelrotation=30)
    for tick in axes.get_xticklabels():
      tick.set_horizontalalignment("right")
  axes.set_xlabel("training steps")
  axes.set_ylabel("mean weight in these steps")
  axes.set_title("weights over training")
  axes.legend(fontsize="small", loc="upper center", ncols=2)
