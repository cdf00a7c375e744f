"""How many decisions weights could still turn, told by one net that was trained without them."""

from typing import Any

import numpy as np

from experiments.importance_studies import nets
from experiments.importance_studies.finding import Check, Finding, at_least, at_most, style

TIMES = (300, 3000, 30_000)
FACTOR, ROOM = 2, 0.01  # between band and half gap, once the room is added to both


def bands(logits: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
  """The band of the unweighted net and half the gap of the weighted ones, `[times, seeds]`.

  Args:
    logits: `[times, seeds, ratios, examples]`, of weights ratio:1, 1:1 and 1:ratio.
    ratio: of the outer ones.
  """
  shares = (logits > 0).mean(-1)
  band = (np.abs(logits[:, :, 1]) < np.log(ratio) / 2).mean(-1)
  return band, (shares[..., 0] - shares[..., 2]) / 2


def logit_band() -> Finding:
  """An unweighted net tells how much weights could still change."""
  paths = {"no regularization": nets.trained(False), "dropout 0.5": nets.trained(True)}
  checks: list[Check] = []
  rows: list[dict[str, Any]] = []
  for name, path in paths.items():
    chosen = [path.times.index(time) for time in TIMES]
    for place, logits in (("domain", path.test_logits), ("plane", path.grid_logits)):
      band, half = (np.median(a, 1) for a in bands(logits[chosen], nets.RATIOS[0]))
      for time, predicted, found in zip(TIMES, band, half, strict=True):
        rows.append(
          {"net": name, "where": place, "time": time, "band": predicted, "half_gap": found}
        )
        # Up to 0.01 of the examples is within what three seeds can tell.
        off = (found + ROOM) / (predicted + ROOM)
        asked = at_most if off > 1 else at_least
        title = f"half gap over band (each + {ROOM}), {name}, {place}, t = {time:g}"
        checks.append(asked(title, off, FACTOR if off > 1 else 1 / FACTOR))

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    line = np.geomspace(5e-3, 0.5, 100)
    axes.plot(line, line, color="0.4", linewidth=1, label="half gap = band")
    low, high = (np.maximum((line + ROOM) * f - ROOM, 8e-4) for f in (1 / FACTOR, FACTOR))
    label = f"within a factor of {FACTOR}, each + {ROOM}"
    axes.fill_between(line, low, high, color="0.85", label=label)
    places = [(name, place) for name in paths for place in ("domain", "plane")]
    for i, (name, place) in enumerate(places):
      chosen = [row for row in rows if (row["net"], row["where"]) == (name, place)]
      look, where = style(i), {"domain": "test examples", "plane": "the plane around"}[place]
      axes.plot(
        [row["band"] for row in chosen], [max(row["half_gap"], 1e-3) for row in chosen],
        color=look["color"], linestyle=look["linestyle"], marker="os^D"[i],
        label=f"{name}, {where}",
      )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("band of the unweighted net: share of examples with |logit| < log(16) / 2")
    axes.set_ylabel("half the gap, 16:1 minus 1:16 (0.001: below 0)")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)

  told = "; ".join(
    f"{row['net']}, {row['where']}, t = {row['time']:g}: {row['band']:.3f} -> {row['half_gap']:.3f}"
    for row in rows
  )
  return Finding(
    "One unweighted net tells how many decisions weights can still flip",
    "half the gap between weights R:1 and 1:R is the share of examples whose unweighted logit is "
    f"below log(R) / 2 in size, to a factor of {FACTOR} once {ROOM} is added to both",
    f"band -> half gap (compared with {ROOM} added to both), medians of 3 seeds: {told}",
    checks,
    {"seeds": nets.SEEDS, "rows": rows},
    draw,
  )
