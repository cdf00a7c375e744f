r"""LiLAW: three numbers that say how much easy, hard and undecided examples weigh.

Let :math:`s` be the softmax of an example's logits, :math:`s_y` that of its label and :math:`s_m`
the largest. The factor is the sum of three:

* easy: :math:`\sigma(\alpha s_y - s_m)`, large where the model is sure and agrees;
* hard: :math:`\sigma(-(\beta s_y - s_m))`, large where it is sure and disagrees;
* undecided: :math:`\exp(-(\delta s_y - s_m)^2 / 2)`, in between.

`lilaw` learns the three numbers as published: by the gradient of the *weighted* loss of the meta
batch with the model held fixed. No step of the model is in that gradient, and where losses are not
negative its signs are fixed: >= 0 for :math:`\alpha` and <= 0 for :math:`\beta`. Plain descent
only ever lowers the one and raises the other, whatever the data. `lilaw_meta_gradient` gives the
same factors the true meta-gradient: that of the plain loss of the meta batch after a virtual step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_number
from reweight_jax.meta.learned import LearnedWeightsState, descend, learned_weights
from reweight_jax.rules._rule import times
from reweight_jax.types import Array, Outputs, Params, ScalarLike, WeightingRule


class LilawScalars(NamedTuple):
  """The three numbers of LiLAW."""

  alpha: Array  # [], of the easy
  beta: Array  # [], of the hard
  delta: Array  # [], of the undecided


def lilaw(
  tx: optax.GradientTransformation,
  *,
  alpha: ScalarLike = 10.0,
  beta: ScalarLike = 2.0,
  delta: ScalarLike = 6.0,
) -> WeightingRule:
  r"""Weighs easy, hard and undecided examples by three numbers, learned as published.

  A step weighs the batch with the present numbers and then moves them once, against the gradient of
  :math:`\frac{1}{m} \sum_j W_j \ell_j` over the meta batch, losses and softmax held constant.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; factors are
  in (0, 3).
  Edge cases: with losses >= 0 plain descent never raises alpha and never lowers beta; decay, if
  `tx` has any, pulls both towards 0. The meta batch must be without padding, its mask is unknown
  here; its labels may be noisy.

  Args:
    tx: optax optimizer of the three numbers.
    alpha: of the easy, to start from.
    beta: of the hard, to start from.
    delta: of the undecided, to start from.

  Returns:
    A rule needing evidence ``meta_outputs``, ``logits`` [batch, classes] float and ``labels``
    [batch] int.

  Raises:
    ValueError: if a Python number is not finite.

  Source: Moturu et al., "LiLAW: Lightweight Learnable Adaptive Weighting to Meta-Learn Sample
    Difficulty and Improve Noisy Training", 2025, arXiv 2509.20786, algorithm 1. # Departs from
    algorithm 1: there the meta batch is passed after the model's step, here before it, so that one
    train step sees one set of parameters.

  Example:
    >>> rule, logits, labels = lilaw(optax.sgd(1.0)), jnp.zeros((1, 2)), jnp.array([0])
    >>> evidence = dict(logits=logits, labels=labels)
    >>> evidence["meta_outputs"] = lambda: (rw.types.Outputs(jnp.ones(1), logits), labels)
    >>> weights, state = rule.update(jnp.ones(1), rule.init(jnp.ones(1)), **evidence)
    >>> print(weights.round(2), state.params.alpha < 10, state.params.beta > 2)
    [1.41] True True
  """
  start = _scalars("lilaw", alpha, beta, delta)

  def init(weights: Array) -> LearnedWeightsState:
    params = jax.tree.map(lambda leaf: jnp.array(leaf, weights.dtype), start)
    return LearnedWeightsState(params, tx.init(params))

  def update(
    updates: Array,
    state: LearnedWeightsState,
    params: Params = None,
    *,
    meta_outputs: Callable[[], tuple[Outputs, Array]],
    logits: Array,
    labels: Array,
    **unused: Any,
  ) -> tuple[Array, LearnedWeightsState]:
    del params, unused
    weights = times(updates, _factors(state.params, logits=logits, labels=labels))
    outputs, meta_labels = meta_outputs()

    def weighted_loss(scalars: LilawScalars) -> Array:
      factors = _factors(scalars, logits=outputs.logits, labels=meta_labels)
      return jnp.mean(factors * outputs.losses.astype(factors.dtype))

    return weights, descend(tx, jax.grad(weighted_loss)(state.params), state)

  return optax.GradientTransformationExtraArgs(init, update)


def lilaw_meta_gradient(
  tx: optax.GradientTransformation,
  *,
  alpha: ScalarLike = 10.0,
  beta: ScalarLike = 2.0,
  delta: ScalarLike = 6.0,
  normalized: bool = False,
) -> WeightingRule:
  """Weighs easy, hard and undecided examples by three numbers, learned by the true meta-gradient.

  The factors of `lilaw` in `learned_weights`: what the numbers do to the plain loss of the meta
  batch after a virtual step decides, so that each may rise or fall.

  Guarantees, edge cases: as for `learned_weights`; factors in (0, 3).

  Args:
    tx: optax optimizer of the three numbers.
    alpha: of the easy, to start from.
    beta: of the hard, to start from.
    delta: of the undecided, to start from.
    normalized: as in `learned_weights`.

  Returns:
    A rule needing evidence ``meta_alignment``, ``mask``, ``logits`` [batch, classes] float and
    ``labels`` [batch] int.

  Raises:
    ValueError: if a Python number is not finite.

  Source: the factors of Moturu et al. 2025, arXiv 2509.20786, in algorithm 1 of Shu et al. 2019,
    arXiv 1902.07379. # Departs from the former in its gradient, which leaves out the model's step.

  Example:
    >>> rule = lilaw_meta_gradient(optax.sgd(5e-3), normalized=True)
    >>> print(rw.meta.learned_params(rule.init(jnp.ones(1))).delta)
    6.0
  """
  start = _scalars("lilaw_meta_gradient", alpha, beta, delta)
  return learned_weights(_factors, start, tx, normalized=normalized)


def _scalars(name: str, alpha: ScalarLike, beta: ScalarLike, delta: ScalarLike) -> LilawScalars:
  for what, value in (("alpha", alpha), ("beta", beta), ("delta", delta)):
    check_number(f"{name}: {what}", value)
  dtype = jnp.result_type(float)
  return LilawScalars(*(jnp.asarray(value, dtype) for value in (alpha, beta, delta)))


def _factors(scalars: LilawScalars, *, logits: Array, labels: Array, **unused: Any) -> Array:
  """`[batch]` sums of the three factors."""

  def of_one(logits: Array, label: Array) -> Array:
    shares = jax.nn.softmax(at_least_float32(logits)).astype(scalars.alpha.dtype)
    of_label, largest = shares[label], jnp.max(shares)
    easy = jax.nn.sigmoid(scalars.alpha * of_label - largest)
    hard = jax.nn.sigmoid(largest - scalars.beta * of_label)
    undecided = jnp.exp(-jnp.square(scalars.delta * of_label - largest) / 2)
    return easy + hard + undecided

  return jax.vmap(of_one)(logits, labels)
