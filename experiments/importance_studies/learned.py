"""Weights that are learned from trusted examples of another kind, on data that a line separates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments.importance_studies import linear
from experiments.importance_studies.finding import (
  Finding,
  at_least,
  at_most,
  states_at,
  style,
)
from reweight_jax import margins

TIMES = (10, 100, 1000, 5000, 20_000)
LOW, HIGH = 0.1, 10.0
RULES = (
  "no weights",
  "learning to reweight, bounded",
  "Meta-Weight-Net, bounded",
  "learning to reweight, free",
)


class Way(NamedTuple):
  """Linear models on their way, one for each seed."""

  params: np.ndarray  # [times, seeds, features]
  ratio: (
    np.ndarray
  )  # [times, seeds] largest weight over smallest so far; infinite from a weight 0 on


def rule_of(name: str) -> Any:
  """The rule of a name in `RULES`."""
  bounds = rw.rules.clip_weights(HIGH, LOW)
  tx = optax.adam(3e-3)  # at 1e-2 the factors of some problems fall to 1e-154, and then to NaN
  net = rw.meta.meta_weight_net(tx, key=jax.random.key(0))
  return {
    "no weights": optax.identity(),
    "learning to reweight, bounded": optax.chain(rw.meta.learning_to_reweight(), bounds),
    "Meta-Weight-Net, bounded": optax.chain(net, bounds),
    "learning to reweight, free": rw.meta.learning_to_reweight(),
  }[name]


def over_objective(weights: Any, *, losses: Any, **unused: Any) -> Any:
  """Weights over the weighted mean loss, which makes a step a loss-normalized one."""
  mean = jnp.mean(weights * losses)
  return weights / jnp.where(mean > 0, mean, 1)  # it is 0 if all weights are


def trusted(seed: int, num_examples: int = 20) -> tuple[np.ndarray, np.ndarray]:
  """Examples of clouds that are turned by 60 degrees: inputs and labels +-1."""
  inputs, labels = linear.blobs(seed + 500, num_examples)
  turn = np.pi / 3
  return inputs @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]), labels


def ways(name: str, seeds: Sequence[int], times: Sequence[int]) -> Way:
  """Loss-normalized descent of a linear model with bias, in float64, weighed by a rule."""
  with jax.enable_x64(True):
    batch, meta = (_batches(draw, seeds) for draw in (linear.blobs, trusted))
    apply_fn = lambda params, state, inputs, key, train: (inputs @ params, state)
    loss_fn = rw.losses.from_apply(apply_fn, lambda logit, label: jax.nn.softplus(-label * logit))
    rule = optax.chain(rule_of(name), rw.rules.weighting_rule(over_objective))
    tx = optax.sgd(0.05)
    step_fn = rw.training.make_train_step(loss_fn, rule, tx, virtual_optimizer=optax.sgd(1.0))
    size = batch.labels.shape[1]
    start = rw.training.init_train_state(
      jnp.zeros(3), (), rule, tx, key=jax.random.key(0), batch_size=size
    )

    def one(state: Any, ratio: Any, batch: Any, meta: Any) -> Any:
      state, metrics = step_fn(state, batch, meta)
      return state, jnp.maximum(ratio, jnp.max(metrics.weights) / jnp.min(metrics.weights))

    stepped: Any = jax.vmap(one)
    states = states_at(
      lambda carry: stepped(*carry, batch, meta),
      jax.vmap(lambda _: (start, jnp.ones(())))(jnp.arange(len(seeds))),
      times,
      view=lambda carry: (carry[0].params, carry[1]),
    )
  return Way(*map(np.stack, zip(*states, strict=True)))


def _batches(draw: Any, seeds: Sequence[int]) -> Any:
  inputs, labels = map(np.stack, zip(*map(draw, seeds), strict=True))
  rows = np.concatenate([inputs, np.ones((*inputs.shape[:-1], 1))], -1)
  return jax.vmap(rw.types.make_batch)(jnp.asarray(rows), jnp.asarray(labels))


def learned_weights() -> Finding:
  """Learned weights that are bounded act on the way alone; those that reach 0 may not."""
  rows = [margins.signed_rows(*linear.blobs(seed)) for seed in linear.SEEDS]
  limits = [margins.max_margin(one).direction for one in rows]
  found = {name: ways(name, linear.SEEDS, TIMES) for name in RULES}
  cosines = {
    name: np.array(
      [[margins.cosine(p, q) for p, q in zip(at, limits, strict=True)] for at in way[0]]
    )
    for name, way in found.items()
  }
  median = {name: np.median(values, 1) for name, values in cosines.items()}
  checks = []
  for name in RULES[1:3]:
    checks.append(at_least(f"least cosine at the end, {name}", cosines[name][-1].min(), 0.999))
    gained = median[name][-1] - median[name][1]
    checks.append(at_least(f"cosine gained from t = 100 to 20,000, {name}, median", gained, 0.002))
    ratio = np.median(found[name].ratio[-1])
    title = f"largest over smallest weight, median: the weights are no idle ones, {name}"
    checks.append(at_least(title, ratio, 2))
  checks.append(at_most(f"median cosine at the end, {RULES[3]}", median[RULES[3]][-1], 0.99))

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    for i, (name, line) in enumerate(median.items()):
      axes.plot(TIMES, line, **style(i), marker="os^D"[i], markersize=4, label=name)
      values = cosines[name]
      axes.fill_between(TIMES, values.min(1), values.max(1), color=style(i)["color"], alpha=0.1)
    axes.set_xscale("log")
    axes.set_xlabel("loss-normalized steps")
    axes.set_ylabel("cosine to the largest-margin separator")
    axes.grid(alpha=0.3)
    axes.legend(title="median of 8 problems; shaded: all")

  return Finding(
    "Learned weights with bounds act on the way alone; free to reach 0, they change the end",
    "with weights kept in [0.1, 10] learning to reweight and Meta-Weight-Net end at the separator "
    "of largest margin, whatever the trusted examples; with weights of 0 another set of examples "
    "may carry the margin",
    "median cosine after 20,000 loss-normalized steps: "
    + ", ".join(f"{name} {line[-1]:.5f}" for name, line in median.items()),
    checks,
    {
      "seeds": linear.SEEDS,
      "times": TIMES,
      "cosines": cosines,
      "largest_over_smallest_weight": {name: way.ratio for name, way in found.items()},
    },
    draw,
  )
