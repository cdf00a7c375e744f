"""The curve that a weight net has learned, from a run's last state to its picture."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

import reweight_jax as rw
from reweight_jax import runlog
from reweight_jax.plotting.curves import COLORS, STYLES

FILE = "weight_curve.npz"
NUM_POINTS = 201
QUANTILES = (0.05, 0.95)


def write(folder: pathlib.Path, rule_state: Any, losses: np.ndarray, counts: Sequence[int]) -> None:
  """Writes the curve over the range of the losses; nothing for a rule without one weight net.

  The file has `loss` [points], `weight` [groups, points] before normalization, and `group`
  [classes], which curve is a class's.

  Args:
    folder: of the run.
    rule_state: at its end.
    losses: of the training examples, nats.
    counts: how often each class trains.
  """
  try:
    heads = rw.meta.learned_params(rule_state)[-1].bias.size
  except (ValueError, AttributeError):  # none learned, several, or no net
    return
  grid = np.linspace(0, max(float(losses.max()), 1e-3), NUM_POINTS, dtype=np.float32)
  curves = [
    rw.meta.weight_curve(rule_state, jnp.asarray(grid), group=group) for group in range(heads)
  ]
  groups = rw.meta.class_size_groups(counts, heads)
  runlog.write_npz(folder / FILE, {"loss": grid, "weight": np.stack(curves), "group": groups})


def at_quantiles(
  curve: dict[str, np.ndarray], losses: np.ndarray, group: int = 0
) -> dict[str, float]:
  """What the curve does between the 5 % and the 95 % quantile of losses.

  Returns:
    `low` and `high`, the two losses; `weight_low` and `weight_high`; `rising`, what the curve
    climbs of all that it climbs and falls between them: 1 where it only rises, 0 where it falls.
  """
  low, high = np.quantile(losses, QUANTILES)
  grid = np.linspace(low, high, NUM_POINTS)
  weights = np.interp(grid, curve["loss"], curve["weight"][group])
  steps = np.diff(weights)
  way = np.abs(steps).sum()
  return {
    "low": float(low),
    "high": float(high),
    "weight_low": float(weights[0]),
    "weight_high": float(weights[-1]),
    "rising": float(steps[steps > 0].sum() / way) if way else float("nan"),
  }


def draw(
  axes: Axes,
  curve: dict[str, np.ndarray],
  losses: np.ndarray,
  labels: np.ndarray,
  is_noisy: np.ndarray | None,
) -> None:
  """Draws weight against loss, a line for each group of classes, over a histogram of the losses.

  Args:
    axes: where to draw.
    curve: as in the file.
    losses: `[examples]` of training, nats.
    labels: `[examples]`, as given.
    is_noisy: `[examples]` bool, True where the label is wrong; None if unknown.
  """
  top = max(float(np.quantile(losses, 0.995)), 1e-3)
  bins = np.linspace(0, top, 41)
  parts = {"all labels": np.ones(len(losses), bool)}
  if is_noisy is not None:
    parts = {"correct labels": ~is_noisy, "wrong labels": is_noisy}
  behind = axes.twinx()
  axes.set_zorder(behind.get_zorder() + 1)
  axes.patch.set_visible(False)
  for (name, part), color, hatch in zip(parts.items(), COLORS, ("", "///"), strict=False):
    behind.hist(
      np.clip(losses[part], 0, top), bins.tolist(), alpha=0.35, color=color, hatch=hatch,
      edgecolor="white", linewidth=0.3, label=f"{name} ({part.sum()})",
    )  # fmt: skip
  behind.set_yscale("symlog", linthresh=10)
  behind.set_ylabel("training examples (symmetric log scale)")
  shown = curve["loss"] <= top
  shown[np.searchsorted(curve["loss"], top).clip(max=len(shown) - 1)] = True
  counts = np.bincount(labels, minlength=len(curve["group"]))
  for group, weights in enumerate(curve["weight"]):
    color = ("black", *COLORS[2:])[group % (len(COLORS) - 1)]
    name = _group_name(counts[curve["group"] == group]) if len(curve["weight"]) > 1 else "weight"
    style = STYLES[group % len(STYLES)]
    axes.plot(curve["loss"][shown], weights[shown], style, color=color, linewidth=2, label=name)
  axes.set_xlim(0, top)
  axes.set_xlabel("loss at the last step, nats (the last bin has all above)")
  axes.set_ylabel("learned weight, before normalization")
  handles, names = axes.get_legend_handles_labels()
  others, other_names = behind.get_legend_handles_labels()
  # Above the axes, where it hides nothing.
  axes.legend(
    handles + others, names + other_names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3,
    fontsize="small", frameon=False,
  )  # fmt: skip


def _group_name(counts: np.ndarray) -> str:
  low, high = counts.min(), counts.max()
  return f"classes of {low}" if low == high else f"classes of {low} to {high}"
