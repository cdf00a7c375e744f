"""The net of the studies: two layers of ReLU without biases, on two half moons, weights by class.

All seeds and weight ratios train side by side. A constant input takes the place of biases, so the
net is homogeneous of degree 2 in its params.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.importance_studies.finding import states_at
from reweight_jax import margins

WIDTH = 50
NUM_TRAIN, NUM_TEST = 80, 2000
LEARNING_RATE = 0.1
LENGTH = 0.1  # of loss-normalized steps, times |params|
SEEDS = (0, 1, 2)
RATIOS = (16.0, 1.0, 1 / 16)
TIMES = (30, 100, 300, 1000, 3000, 10_000, 30_000)
GRID = np.stack(np.meshgrid(np.linspace(-3, 4, 71), np.linspace(-3, 3.5, 66)), -1).reshape(-1, 2)


class Path(NamedTuple):
  """Nets on their way; the axes before the last are [times, seeds, ratios]."""

  times: Sequence[int]
  train_accuracy: np.ndarray  # [times, seeds, ratios]
  margin: np.ndarray  # [times, seeds, ratios] smallest normalized margin
  test_logits: np.ndarray  # [times, seeds, ratios, examples] in the domain
  grid_logits: np.ndarray  # [times, seeds, ratios, points] of the plane around it
  falls: np.ndarray  # [seeds, ratios] share of the steps with a smoothed margin > 0 that lower it
  params: Any  # at the last time

  def in_domain(self) -> np.ndarray:
    """Share of test examples called positive, `[times, seeds, ratios]`."""
    return (self.test_logits > 0).mean(-1)

  def on_grid(self) -> np.ndarray:
    """Share of the plane called positive, `[times, seeds, ratios]`."""
    return (self.grid_logits > 0).mean(-1)


def moons(seed: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
  """Two interleaved half circles with noise 0.1, as many examples of each; labels -1 and 1."""
  rng = np.random.default_rng(seed)
  labels = np.where(np.arange(num_examples) % 2, 1.0, -1.0)
  angle = rng.uniform(0, np.pi, num_examples)
  upper = np.stack([np.cos(angle), np.sin(angle)], 1)
  inputs = np.where(labels[:, None] < 0, upper, np.array([1.0, 0.5]) - upper)
  return inputs + 0.1 * rng.normal(size=inputs.shape), labels


def logits(params: Any, inputs: Any, keep: Any = None) -> Any:
  """The net's logits `[examples]` of inputs `[examples, 2]`; `keep` multiplies hidden units."""
  ones = jnp.ones((inputs.shape[0], 1), inputs.dtype)
  hidden = jax.nn.relu(jnp.concatenate([inputs, ones], 1) @ params["hidden"])
  return (hidden if keep is None else hidden * keep) @ params["out"]


def init(seed: int, num_ratios: int) -> Any:
  """The same params for every ratio, stacked."""
  rng = np.random.default_rng([seed, 1])
  params = {
    "hidden": rng.normal(size=(3, WIDTH)) * np.sqrt(2 / 3),
    "out": rng.normal(size=WIDTH) / np.sqrt(WIDTH),
  }
  return jax.tree.map(lambda a: np.repeat(a[None], num_ratios, 0).astype(np.float32), params)


def train(
  times: Sequence[int], *, seeds: Sequence[int] = SEEDS, ratios: Sequence[float] = RATIOS,
  l2: float = 0.0, dropout: bool = False, start: Any = None, normalized: bool = False,
) -> Path:  # fmt: skip
  """Full-batch descent of every seed with every ratio.

  Args:
    times: increasing numbers of steps, at which nets are looked at.
    seeds: of data, initial params and dropout.
    ratios: class weights ratio:1, of mean 1.
    l2: lambda in lambda/2 |params|^2.
    dropout: whether half of the hidden units are dropped at each step, and for each example.
    start: params to go on from; None for fresh ones.
    normalized: loss-normalized steps, downhill on the logarithm of the objective and of length
      LENGTH / |params|, which moves the margins of a net of degree 2 by about as much at any size.
  """
  lanes = [(seed, ratio) for seed in seeds for ratio in ratios]
  inputs, labels = map(np.stack, zip(*(moons(seed, NUM_TRAIN) for seed, _ in lanes), strict=True))
  weights = np.stack([_weights(y, r) for y, (_, r) in zip(labels, lanes, strict=True)])
  fixed = tuple(jnp.asarray(a, jnp.float32) for a in (inputs, labels, weights))
  keys = jax.random.split(jax.random.key(0), len(lanes))
  if start is None:
    trees = [init(seed, len(ratios)) for seed in seeds]
    start = jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)

  def objective(params: Any, inputs: Any, labels: Any, weights: Any, key: Any) -> tuple[Any, Any]:
    keep = 2 * _coins(key, (NUM_TRAIN, WIDTH)) if dropout else None
    values = labels * logits(params, inputs, keep)
    if normalized:
      return margins.log_objective(values, weights), values
    penalty = l2 / 2 * sum(jnp.vdot(leaf, leaf) for leaf in params.values())
    return jnp.mean(weights * jax.nn.softplus(-values)) + penalty, values

  def step_one(state: Any, inputs: Any, labels: Any, weights: Any, key: Any) -> Any:
    params, time, last, falls, separated = state
    key = jax.random.fold_in(key, time)
    grads, values = jax.grad(objective, has_aux=True)(params, inputs, labels, weights, key)
    size = _norm(params)
    # Of weights of at least 1, so that it is a lower bound of the margin.
    margin = margins.smoothed_margin(values, weights / jnp.min(weights)) / size**2
    counts = (margin > 0) & (last > 0)
    falls = falls + (counts & (margin < last * (1 - 1e-5)))  # beyond rounding
    rate = LENGTH / (size * _norm(grads)) if normalized else LEARNING_RATE
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    return params, time + 1, margin, falls, separated + counts

  stepped: Any = jax.vmap(step_one)
  zeros = np.zeros(len(lanes), np.int32)
  state = (start, zeros, np.full(len(lanes), -1, np.float32), zeros, zeros)
  states = states_at(lambda state: stepped(state, *fixed, keys), state, times)
  shape = (len(seeds), len(ratios))
  tests = np.stack([moons(seed + 1000, NUM_TEST)[0] for seed, _ in lanes]).astype(np.float32)
  grid = np.repeat(GRID[None], len(lanes), 0).astype(np.float32)
  look = jax.jit(lambda params: _look(params, fixed, jnp.asarray(tests), jnp.asarray(grid)))
  views = [[np.reshape(a, (*shape, *a.shape[1:])) for a in look(state[0])] for state in states]
  accuracy, margin, test, plane = map(np.stack, zip(*views, strict=True))
  falls, counted = (np.reshape(array, shape) for array in states[-1][3:])
  falls = np.where(counted, falls / np.maximum(counted, 1), np.nan)
  return Path(times, accuracy, margin, test, plane, falls, states[-1][0])


@functools.cache
def trained(dropout: bool) -> Path:
  """The way of the nets without regularization, or with dropout alone; shared by studies."""
  return train(TIMES, dropout=dropout)


def gap(shares: np.ndarray) -> np.ndarray:
  """The share called positive under 16:1 minus that under 1:16, by median over seeds, `[times]`."""
  return np.median(shares[..., 0] - shares[..., -1], axis=-1)


def _look(params: Any, fixed: Any, tests: Any, grid: Any) -> Any:
  values = fixed[1] * jax.vmap(logits)(params, fixed[0])
  least = jnp.min(values, 1) / jax.vmap(_norm)(params) ** 2
  return (
    jnp.mean(values > 0, 1), least, jax.vmap(logits)(params, tests), jax.vmap(logits)(params, grid)
  )  # fmt: skip


def _coins(key: Any, shape: tuple[int, ...]) -> Any:
  """Fair coins, 0.0 or 1.0, one random bit each: `jax.random.bernoulli` spends 32 on one."""
  words = jax.random.bits(key, (-(-int(np.prod(shape)) // 32), 1), jnp.uint32)
  bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
  return jnp.ravel(bits)[: int(np.prod(shape))].reshape(shape).astype(jnp.float32)


def _norm(params: Any) -> Any:
  return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)))


def _weights(labels: np.ndarray, ratio: float) -> np.ndarray:
  weights = np.where(labels > 0, ratio, 1.0)
  return weights / weights.mean()
