"""Linear models on separable and overlapping data: where weights end, and where they do not."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.importance_studies.finding import (
  Finding,
  at_least,
  at_most,
  states_at,
  style,
  words,
)
from reweight_jax import margins

SEEDS = tuple(range(8))
RATIOS = (1.0, 10.0, 0.1, 100.0)
TIMES = (10, 100, 1000, 10_000, 100_000)
GRID = np.stack(np.meshgrid(np.linspace(-4, 4, 61), np.linspace(-4, 4, 61)), -1).reshape(-1, 2)


def blobs(seed: int, num_examples: int = 40) -> tuple[np.ndarray, np.ndarray]:
  """Two clouds that a line separates by 0.1 to 0.6, the first such: inputs and labels +-1."""
  rng = np.random.default_rng(seed)
  labels = np.where(np.arange(num_examples) % 2, 1.0, -1.0)
  while True:
    inputs = 0.8 * rng.normal(size=(num_examples, 2)) + labels[:, None] * np.array([1.4, 0.7])
    rows = margins.signed_rows(inputs, labels)
    # Less is not reached in the steps of the studies; at more their losses leave float64.
    if margins.separable_part(rows).all() and 0.1 < margins.max_margin(rows).margin < 0.6:
      return inputs, labels


def class_weights(labels: np.ndarray, ratio: float) -> np.ndarray:
  """Weights ratio:1 of the classes 1 and -1, of mean 1."""
  weights = np.where(labels > 0, ratio, 1.0)
  return weights / weights.mean()


def descent(rows: Any, weights: Any, times: Sequence[int], step_size: float) -> np.ndarray:
  """Params `[times, lanes, features]` of descent on the mean weighted logistic loss, from 0.

  Args:
    rows: `[lanes, examples, features]`.
    weights: `[lanes, examples]`.
    times: increasing numbers of steps.
    step_size: of every step.
  """

  def step(params: Any) -> Any:
    pull = weights * jax.nn.sigmoid(-jnp.einsum("lnd,ld->ln", rows, params))
    return params + step_size * jnp.einsum("ln,lnd->ld", pull, rows) / rows.shape[1]

  with jax.enable_x64(True):
    rows, weights = jnp.asarray(rows), jnp.asarray(weights)
    return np.array(states_at(step, jnp.zeros((rows.shape[0], rows.shape[2])), times))


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


def direction_invariance() -> Finding:
  """Whatever the class weights, descent on separable data turns to the largest margin."""
  clouds = [blobs(seed) for seed in SEEDS]
  rows = np.stack([margins.signed_rows(*cloud) for cloud in clouds])
  limits = [margins.max_margin(one).direction for one in rows]
  weights = np.array([[class_weights(labels, r) for r in RATIOS] for _, labels in clouds])
  lanes = np.repeat(rows, len(RATIOS), axis=0), weights.reshape(-1, weights.shape[-1])
  path = descent(*lanes, TIMES, 1.0).reshape(len(TIMES), len(SEEDS), len(RATIOS), 3)
  normalized = loss_normalized(*lanes, 40_000).reshape(len(SEEDS), len(RATIOS), 3)
  turned, ends = np.array([_cosines(at, limits) for at in path]), _cosines(normalized, limits)
  grid = np.concatenate([GRID, np.ones((len(GRID), 1))], axis=1)
  share = np.mean(grid @ path[..., None] > 0, axis=-2)[..., 0]
  spreads = np.ptp(share, axis=-1)  # [times, seeds]
  medians, spread = np.median(turned, axis=1), np.median(spreads, axis=1)
  names = [_ratio(ratio) for ratio in RATIOS]
  checks = [
    at_least(f"cosine gained from t = 1e3 to 1e5, {name}, median", late - early, 0.0)
    for name, early, late in zip(names, medians[2], medians[-1], strict=True)
  ]
  checks += [
    at_most("spread of positive share at t = 1e5 over that at 1e3", spread[-1] / spread[2], 0.75),
    at_least("least cosine after loss-normalized steps", ends.min(), 0.999),
  ]

  def draw(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(names):
      left.plot(TIMES, medians[:, i], **style(i), marker="o", markersize=4, label=f"weights {name}")
      right.plot(TIMES, np.median(share, axis=1)[:, i], **style(i), marker="o", markersize=4)
    left.set_ylabel("cosine to the largest-margin separator")
    right.set_ylabel("share of the plane called positive")
    for axes in (left, right):
      axes.set_xscale("log")
      axes.set_xlabel("steps of descent")
      axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)

  return Finding(
    "Whatever the class weights, descent on separable data turns to the largest margin",
    "the cosine to the separator of largest margin rises for every weighting; what the weights "
    "change shrinks; loss-normalized descent gets there",
    f"median cosines of 8 problems at t = 1e5: {words(medians[-1])} for weights "
    f"{', '.join(names)}; spread of the positive share {words(spread[[0, 2, -1]])} at t = 10, 1e3, "
    f"1e5; least cosine after 40,000 loss-normalized steps {ends.min():.5f}",
    checks,
    {"times": TIMES, "ratios": RATIOS, "cosines": turned, "shares": share, "loss_normalized": ends},
    draw,
  )


def loss_normalized(rows: np.ndarray, weights: np.ndarray, num_steps: int) -> np.ndarray:
  """Params `[lanes, features]` after descent in the log domain, each at its largest safe step."""
  sizes = 1 / np.abs(rows @ rows.transpose(0, 2, 1)).max((1, 2))

  def final(rows: Any, weights: Any, step_size: Any) -> Any:
    return margins.loss_normalized_descent(rows, weights, num_steps=num_steps, step_size=step_size)[
      0
    ][-1]

  with jax.enable_x64(True):
    return np.asarray(jax.jit(jax.vmap(final))(*map(jnp.asarray, (rows, weights, sizes))))


def log_ratio_shifts(ratios: Sequence[float], seed: int, num_examples: int) -> np.ndarray:
  """What class weights R:1 do to slope and intercept where classes overlap, `[ratios, 2]`.

  Inputs are normal around their label, -1 or 1: the logistic model is right, with slope 2.
  """
  rng = np.random.default_rng(seed)
  labels = np.where(np.arange(num_examples) % 2, 1.0, -1.0)
  rows = margins.signed_rows(rng.normal(size=(num_examples, 1)) + labels[:, None], labels)
  found = [minimizer(rows, class_weights(labels, r), 0.0, np.zeros(2)) for r in (1.0, *ratios)]
  return np.array(found[1:]) - found[0]


def non_separable() -> Finding:
  """Where classes overlap, weights shift the boundary for good, by the logarithm of the ratio."""
  ratios = (4.0, 16.0, 256.0)
  moved = np.array([log_ratio_shifts(ratios, seed, 20_000) for seed in SEEDS])
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
        np.full(len(SEEDS), np.log(ratio)), moved[:, i, 1], "o", color=style(0)["color"],
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
    {"ratios": ratios, "moved_slope_and_intercept": moved},
    draw,
  )


LAMBDAS = tuple(10.0**-k for k in range(8))


def solutions(seed: int, lambdas: Sequence[float]) -> np.ndarray:
  """Minimizers under weights 1:1 and 10:1 as L2 gets weaker, `[lambdas, 2, features]`."""
  inputs, labels = blobs(seed)
  rows = margins.signed_rows(inputs, labels)
  found, starts = [], np.zeros((2, 3))
  for lam in lambdas:
    pairs = zip((1.0, 10.0), starts, strict=True)
    starts = np.array([minimizer(rows, class_weights(labels, r), lam, at) for r, at in pairs])
    found.append(starts)
  return np.array(found)


def weak_l2() -> Finding:
  """L2 brings weights back, in proportion to how short it keeps the params."""
  found = np.array([solutions(seed, LAMBDAS) for seed in SEEDS])  # [seeds, lambdas, 2, features]
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
    {"lambdas": LAMBDAS, "angles": angles, "lengths": lengths},
    draw,
  )


def _cosines(params: np.ndarray, limits: Sequence[np.ndarray]) -> np.ndarray:
  """Cosines to the limit of the seed, `[seeds, ratios]`."""
  pairs = zip(params, limits, strict=True)
  return np.array([[margins.cosine(one, limit) for one in lanes] for lanes, limit in pairs])


def _angle(one: np.ndarray, other: np.ndarray) -> float:
  return float(np.arccos(margins.cosine(one, other)))


def _ratio(ratio: float) -> str:
  return f"{ratio:g}:1" if ratio >= 1 else f"1:{1 / ratio:g}"
