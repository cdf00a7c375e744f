"""Linear models on separable data: the way that weights change, and the end that they do not."""

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
    at_least(f"cosine gained from t = 1e3 to 1e5, {name}, median", late - early, 0.002)
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
    {
      "seeds": SEEDS,
      "times": TIMES,
      "ratios": RATIOS,
      "cosines": turned,
      "shares": share,
      "loss_normalized": ends,
    },
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


def _cosines(params: np.ndarray, limits: Sequence[np.ndarray]) -> np.ndarray:
  """Cosines to the limit of the seed, `[seeds, ratios]`."""
  pairs = zip(params, limits, strict=True)
  return np.array([[margins.cosine(one, limit) for one in lanes] for lanes, limit in pairs])


def _ratio(ratio: float) -> str:
  return f"{ratio:g}:1" if ratio >= 1 else f"1:{1 / ratio:g}"
