"""Minima of linear models that weights move: where classes overlap, and under L2."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.importance_studies import linear
from experiments.importance_studies.finding import Finding, at_least, at_most, style, words
from reweight_jax import margins

LAMBDAS = tuple(10.0**-k for k in range(8))


def minimizer(rows: np.ndarray, weights: np.ndarray, lam: float, start: np.ndarray) -> np.ndarray:
  """Minimizes the mean weighted logistic loss plus lam/2 the squared length, by Newton's steps."""

  def objective(params: np.ndarray) -> float:
    return float(np.mean(weights * np.logaddexp(0, -rows @ params)) + lam / 2 * params @ params)

  params = start
  for _ in range(200):
    wrong = 1 / (1 + np.exp(np.clip(rows @ params, -700, 700)))
    slope = lam * params - rows.T @ (weights * wrong) / len(rows)
    curve = (rows.T * (weights * wrong * (1 - wrong))) @ rows / len(rows) + lam * np.eye(len(slope))
    move, size, before = np.linalg.solve(curve, slope), 1.0, objective(params)
    if slope @ move < 1e-20:
      break
    while objective(params - size * move) > before and size > 1e-8:
      size /= 2
    params = params - size * move
  return params


def log_ratio_shifts(ratios: Sequence[float], seed: int, num_examples: int) -> np.ndarray:
  """What class weights R:1 do to slope and intercept where classes overlap, `[ratios, 2]`.

  Inputs are normal around their label, -1 or 1: the logistic model is right, with slope 2.
  """
  rng = np.random.default_rng(seed)
  labels = np.where(np.arange(num_examples) % 2, 1.0, -1.0)
  rows = margins.signed_rows(rng.normal(size=(num_examples, 1)) + labels[:, None], labels)
  weights = [linear.class_weights(labels, ratio) for ratio in (1.0, *ratios)]
  found = [minimizer(rows, one, 0.0, np.zeros(2)) for one in weights]
  return np.array(found[1:]) - found[0]


def non_separable() -> Finding:
  """Where classes overlap, weights shift the boundary for good, by the logarithm of the ratio."""
  ratios = (4.0, 16.0, 256.0)
  moved = np.array([log_ratio_shifts(ratios, seed, 20_000) for seed in linear.SEEDS])
  shift, slope = np.median(moved[..., 1], axis=0), np.median(np.abs(moved[..., 0]), axis=0)
  checks = []
  for i, ratio in enumerate(ratios):
    off = abs(shift[i] / np.log(ratio) - 1)
    checks.append(at_most(f"intercept's shift off log {ratio:g}, relative, median", off, 0.01))
    checks.append(at_most(f"change of the slope of 2 at {ratio:g}:1, median", slope[i], 0.1))

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    line = np.linspace(0, 6, 2)
    axes.plot(line, line, color="0.5", linewidth=1, label="predicted: shift = log R")
    axes.plot([], [], "o", color=style(0)["color"], fillstyle="none", label="one of 8 data sets")
    for i, ratio in enumerate(ratios):
      axes.plot(
        np.full(len(linear.SEEDS), np.log(ratio)), moved[:, i, 1], "o", color=style(0)["color"],
        fillstyle="none",
      )  # fmt: skip
    axes.set_xlabel("log of the weight ratio R, nats")
    axes.set_ylabel("shift of the fitted intercept, nats")
    axes.grid(alpha=0.3)
    axes.legend()

  return Finding(
    "Where classes overlap weights stay: they shift the logit by log R",
    "weights R:1 leave the slope and shift the intercept of the minimum by log R, to 1 %",
    f"shift at R = 4, 16, 256, median of 8 sets of 20,000: {words(shift)}; log R "
    f"{words(np.log(ratios))}; the slope moves by {words(slope)}",
    checks,
    {"seeds": linear.SEEDS, "ratios": ratios, "moved_slope_and_intercept": moved},
    draw,
  )


def solutions(seed: int, lambdas: Sequence[float]) -> np.ndarray:
  """Minimizers under weights 1:1 and 10:1 as L2 gets weaker, `[lambdas, 2, features]`."""
  inputs, labels = linear.blobs(seed)
  rows = margins.signed_rows(inputs, labels)
  found, starts = [], np.zeros((2, 3))
  for lam in lambdas:
    pairs = zip((1.0, 10.0), starts, strict=True)
    starts = np.array(
      [minimizer(rows, linear.class_weights(labels, r), lam, at) for r, at in pairs]
    )
    found.append(starts)
  return np.array(found)


def weak_l2() -> Finding:
  """L2 brings weights back, in proportion to how short it keeps the params."""
  found = np.array(
    [solutions(seed, LAMBDAS) for seed in linear.SEEDS]
  )  # [seeds, lambdas, 2, features]
  plain, weighted = found[:, :, 0], found[:, :, 1]
  angles = np.degrees([[_angle(*pair) for pair in one] for one in found])
  lengths = np.sqrt(np.linalg.norm(plain, axis=-1) * np.linalg.norm(weighted, axis=-1))
  angle, products = np.median(angles, axis=0), np.median(angles * lengths, axis=0)
  weak = slice(3, None)
  falls = bool(np.all(np.diff(angle[weak]) < 0))
  checks = [
    at_least("the angle falls at every step from lambda = 1e-3 to 1e-7", float(falls), 1),
    at_most("angle at lambda = 1e-7 over that at 1e-3", angle[-1] / angle[3], 0.5),
    at_most(
      "angle x length, most over least, 1e-4 to 1e-7", products[4:].max() / products[4:].min(), 1.25
    ),
  ]

  def draw(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(LAMBDAS, angle, **style(0), marker="o", markersize=4, label="median of 8 problems")
    left.fill_between(LAMBDAS, angles.min(0), angles.max(0), color=style(0)["color"], alpha=0.15)
    left.set_ylabel("angle between solutions at 10:1 and 1:1, degrees")
    right.plot(LAMBDAS, products, **style(1), marker="o", markersize=4)
    right.set_ylabel("angle x length of the params, degrees")
    for axes in (left, right):
      axes.set_xscale("log")
      axes.invert_xaxis()
      axes.set_xlabel("strength of L2, weaker to the right")
      axes.set_ylim(bottom=0)
      axes.grid(alpha=0.3)
    left.legend(fontsize=9)

  return Finding(
    "L2 brings weights back; as it weakens they fade like log R / length of the params",
    "the angle between the weighted and the plain solution falls once lambda is 1e-3 or less, and "
    "angle x length stays within a factor of 1.25",
    f"median angles for lambda = 1 to 1e-7: {words(angle, '.1f')} degrees; angle x length "
    f"{words(products, '.0f')}",
    checks,
    {"seeds": linear.SEEDS, "lambdas": LAMBDAS, "angles": angles, "lengths": lengths},
    draw,
  )


def _angle(one: np.ndarray, other: np.ndarray) -> float:
  return float(np.arccos(margins.cosine(one, other)))
