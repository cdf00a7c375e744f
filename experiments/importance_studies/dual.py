"""How weights act on the way: the dual of the largest margin and mirror descent's inequality."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.importance_studies.finding import (
  Check,
  Finding,
  at_least,
  at_most,
  states_at,
  style,
  words,
)
from reweight_jax import margins

WIDTHS = (2, 5, 20)
MOST = 24  # examples of the problems of the inequality
SEEDS = tuple(range(8))
TIMES = (100, 1000, 10_000, 100_000)
SCHEMES = ("dual", "hard first", "uniform", "easy first")


def problem(seed: int, num_examples: int, width: int) -> np.ndarray:
  """Rows that a random direction separates, of sizes that differ."""
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(num_examples, width)) * rng.uniform(0.5, 3, size=(num_examples, 1))
  return np.where(inputs @ rng.normal(size=width) > 0, 1, -1)[:, None] * inputs


def divergence(dual: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """KL(dual || weights) in nats over the last axis; terms of dual 0 are 0, whatever the weight."""
  ratios = np.where(dual > 0, dual, 1) / np.where(dual > 0, weights, 1)
  return (dual * np.log(ratios)).sum(-1)


def gaps_over_bounds(
  num_problems: int, num_steps: int, widths: Sequence[int] = WIDTHS
) -> np.ndarray:
  """The gap to the largest margin over its bound, `[widths, problems, steps]`.

  Each problem has examples of its own, 3 to 24, and weights of its own. The gap is |Z^T q_t|^2 / 2
  - margin^2 / 2 on the way of loss-normalized descent, the bound KL(dual || weights) / (step size x
  t).
  """
  rng = np.random.default_rng(0)

  def lengths(rows: Any, weights: Any, size: Any) -> Any:
    q = margins.loss_normalized_descent(rows, weights, num_steps=num_steps, step_size=size)[1]
    return jnp.square(q[1:] @ rows).sum(1)

  descend = jax.jit(jax.vmap(lengths))
  found = []
  for width in widths:
    rows = np.zeros((num_problems, MOST, width))  # filled up with rows of 0 that have no weight
    weights, duals = np.zeros((2, num_problems, MOST))
    least = np.zeros((num_problems, 1))
    for i, size in enumerate(rng.integers(3, MOST + 1, size=num_problems)):
      rows[i, :size] = problem(10_000 * width + i, size, width)
      limit = margins.max_margin(rows[i, :size])
      least[i], duals[i, :size] = limit.margin, limit.dual
      weights[i, :size] = rng.dirichlet(np.full(size, 0.5)) + 1e-6
    weights /= weights.sum(-1, keepdims=True)
    sizes = 1 / np.abs(rows @ rows.transpose(0, 2, 1)).max((1, 2))
    with jax.enable_x64(True):
      path = np.asarray(descend(*map(jnp.asarray, (rows, weights, sizes))))
    bounds = divergence(duals, weights) / sizes
    # 1e-12: rounding of two numbers of size 1 that are subtracted.
    gaps = (path - least**2) / 2 - 1e-12
    found.append(gaps / (bounds[:, None] / np.arange(1, num_steps + 1)))
  return np.stack(found)


def margin_ratios(problems: Sequence[np.ndarray], times: Sequence[int]) -> dict[str, np.ndarray]:
  """Margin of the direction over the largest, `[times, problems]`, under each scheme of weights.

  Plain descent at rate 1 on the mean weighted logistic loss. Hard first weighs an example by its
  loss over the mean loss, easy first by the inverse, both clipped to [1/10, 10]; all average 1.
  """
  limits = [margins.max_margin(rows) for rows in problems]
  duals = len(problems[0]) * np.stack([limit.dual for limit in limits])
  with jax.enable_x64(True):
    stacked = jnp.asarray(np.stack(problems))
    return {
      name: _ratios(stacked, limits, _weigher(name, jnp.asarray(duals)), times) for name in SCHEMES
    }


def _weigher(name: str, duals: Any) -> Callable[[Any], Any]:
  def weigh(losses: Any) -> Any:
    if name == "dual":
      return duals
    if name == "uniform":
      return jnp.ones_like(losses)
    hardness = losses / jnp.mean(losses, 1, keepdims=True)
    weights = jnp.clip(hardness if name == "hard first" else 1 / hardness, 0.1, 10)
    return weights / jnp.mean(weights, 1, keepdims=True)

  return weigh


def _ratios(
  rows: Any, limits: Sequence[margins.Separator], weigh: Callable, times: Sequence[int]
) -> np.ndarray:
  def step(params: Any) -> Any:
    values = jnp.einsum("lnd,ld->ln", rows, params)
    pull = weigh(jax.nn.softplus(-values)) * jax.nn.sigmoid(-values)
    return params + jnp.einsum("ln,lnd->ld", pull, rows) / rows.shape[1]

  path = np.array(states_at(step, jnp.zeros((rows.shape[0], rows.shape[2])), times))
  least = np.einsum("lnd,tld->tln", np.asarray(rows), path).min(-1)
  return least / np.linalg.norm(path, axis=-1) / np.array([limit.margin for limit in limits])


def dual_and_kl() -> Finding:
  """Weights like the dual get to the largest margin soonest, within an exact bound."""
  over = gaps_over_bounds(1000, 300)
  problems = [problem(100 + seed, 60, 2) for seed in SEEDS]
  ratios = margin_ratios(problems, TIMES)
  median = {name: np.median(ratio, axis=1) for name, ratio in ratios.items()}
  violations, num_problems = int((over > 1 + 1e-9).any(-1).sum()), over[..., 0].size
  # Rank correlation of the KL with the gap after 10 steps, problem by problem: does it tell speed?
  speed = rank_correlations(8, 60, 10)
  checks: list[Check] = [
    at_most(f"problems of {num_problems:,} with a violation of the inequality", violations, 0),
    at_least("the gap over its bound, greatest: the bound is no idle one", over.max(), 0.05),
    at_least("dual weights at 1 % of the steps, margin over the largest", median["dual"][1], 0.98),
  ]
  for better, worse in itertools.pairwise(SCHEMES):
    gain = median[better][-1] - median[worse][-1]
    checks.append(at_least(f"margin ratio at t = 1e5, {better} ahead of {worse}", gain, 0.01))

  def draw(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, over.shape[-1] + 1)
    for i, (name, q) in enumerate((("largest", 1.0), ("median", 0.5))):
      line = np.quantile(over, q, axis=(0, 1))
      left.plot(steps, line, **style(i), label=f"{name} of {num_problems} problems")
    left.axhline(1, color="0.4", linewidth=1, label="the bound")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(5e-3, 2)
    left.set_xlabel("loss-normalized steps")
    left.set_ylabel("gap to the largest margin over its bound")
    left.legend(fontsize=9, loc="lower left")
    for i, (name, line) in enumerate(median.items()):
      right.plot(TIMES, line, **style(i), marker="o", markersize=4, label=f"{name} weights")
    right.set_xscale("log")
    right.set_xlabel("steps of descent")
    right.set_ylabel("margin over the largest, median of 8 problems")
    right.legend(fontsize=9)
    for axes in (left, right):
      axes.grid(alpha=0.3)

  return Finding(
    "Weights act on the way: the more like the dual, the sooner the margin is large",
    "|Z^T q_T|^2 / 2 - margin^2 / 2 <= KL(dual || weights) / (eta T), always; at large T dual "
    "weights are ahead of hard first, hard first of uniform, uniform of easy first",
    f"{violations} violations in {num_problems:,} problems, greatest gap over bound "
    f"{over.max():.2f}; margin "
    f"over the largest at t = 1e5, {', '.join(SCHEMES)}: "
    f"{words([line[-1] for line in median.values()])}. KL does not tell speed: rank correlation "
    f"with the gap after 10 steps {words(speed, '.2f')}",
    checks,
    {
      "seeds": SEEDS,
      "times": TIMES,
      "margin_ratios": ratios,
      "violations": violations,
      "problems": num_problems,
      "gap_over_bound_largest": over.max((0, 1))[[0, 9, 99, -1]],
      "gap_over_bound_median": np.median(over, (0, 1))[[0, 9, 99, -1]],
      "kl_and_gap_rank_correlations": speed,
    },
    draw,
  )


def rank_correlations(num_problems: int, num_weightings: int, num_steps: int) -> list[float]:
  """Rank correlation of KL(dual || weights) with the gap after some steps, for each problem."""
  rng = np.random.default_rng(1)
  weights = rng.dirichlet(np.full(60, 0.5), size=num_weightings) + 1e-6
  weights /= weights.sum(-1, keepdims=True)
  descend = jax.jit(
    jax.vmap(
      lambda rows, weights, size: margins.loss_normalized_descent(
        rows, weights, num_steps=num_steps, step_size=size
      )[1][-1],
      (None, 0, None),
    )
  )
  found = []
  with jax.enable_x64(True):
    for seed in range(num_problems):
      rows = problem(200 + seed, 60, 5)
      q = np.asarray(descend(rows, weights, 1 / np.abs(rows @ rows.T).max()))
      lengths = np.square(q @ rows).sum(-1)
      dual = margins.max_margin(rows).dual
      found.append(float(scipy.stats.spearmanr(divergence(dual, weights), lengths)[0]))
  return found
