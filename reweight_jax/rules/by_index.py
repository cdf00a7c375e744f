"""Rules that know something about each example of the data set, by its index.

Nothing compiled can raise an error for an index outside a table: check on the host, before
training, that a table has a row for each example.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from reweight_jax._arrays import bias_corrected, moving_average
from reweight_jax._validate import check_decay, check_number, check_table
from reweight_jax.rules._rule import weighting_rule
from reweight_jax.rules.selection import large_loss
from reweight_jax.types import Array, Params, ScalarLike, WeightingRule


def reducible_loss(reference_losses: Sequence[float], keep: ScalarLike) -> WeightingRule:
  r"""Keeps what is worth learning: the largest :math:`\ell_i - \ell^{ref}_i`, weight 1, others 0.

  The reference is the loss of a model trained on held-out data: what it finds hard too is noise,
  what the model has learned has nothing left to reduce.

  Guarantees, edge cases: as for `large_loss`, of the difference. Indices outside the table are
  clamped to it.

  Args:
    reference_losses: one finite number for each example of the data set, nats.
    keep: the share of a batch that stays, in (0, 1]. Published: a tenth.

  Returns:
    A rule needing evidence ``losses`` [batch] float, ``indices`` [batch] int32 and ``mask`` [batch]
    bool.

  Raises:
    ValueError: if a reference is not finite, naming the example, or `keep` is out of range.

  Source: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and
    Not Yet Learnt", 2022, arXiv 2206.07137, eq. (3) and algorithm 1.

  Example:
    >>> rule = reducible_loss([0.1, 2.9, 0.0, 0.5], keep=0.25)
    >>> evidence = dict(losses=jnp.array([2.0, 3.0, 0.1, 0.6]), indices=jnp.arange(4))
    >>> print(rule.update(jnp.ones(4), (), mask=jnp.ones(4, bool), **evidence)[0])
    [1. 0. 0. 0.]
  """
  table = check_table(
    "reducible_loss: reference_losses", reference_losses, "example", at_least=-np.inf
  )
  check_number("reducible_loss: keep", keep, above=0, at_most=1)
  select = large_loss(keep)

  def weigh(weights: Array, *, losses: Array, indices: Array, mask: Array, **unused: Any) -> Array:
    reference = jnp.asarray(table, losses.dtype)[jnp.clip(indices, 0, table.size - 1)]
    return select.update(weights, optax.EmptyState(), losses=losses - reference, mask=mask)[0]

  return weighting_rule(weigh)


def just_train_twice(is_error: Sequence[bool], factor: ScalarLike = 20.0) -> WeightingRule:
  r"""Weighs up the examples that a first, short training got wrong.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: with wrong labels the errors are mostly those, and this weighs them up: it is for
  groups that the first training neglects. Indices outside the table are clamped to it.

  Args:
    is_error: one bool for each example of the data set, True where the first model was wrong.
    factor: weight of the errors, >= 0; the others weigh 1.

  Returns:
    A rule needing evidence ``indices`` [batch] int32.

  Raises:
    ValueError: if `is_error` is no vector of bools, or `factor` a negative Python number.

  Source: Liu et al., "Just Train Twice: Improving Group Robustness without Training Group
    Information", 2021, arXiv 2107.09044, eq. (2) and algorithm 1.

  Example:
    >>> rule = just_train_twice([False, True], factor=5.0)
    >>> print(rule.update(jnp.ones(3), (), indices=jnp.array([0, 1, 1]))[0])
    [1. 5. 5.]
  """
  errors = np.asarray(is_error)
  if errors.ndim != 1 or not errors.size or errors.dtype != bool:
    raise ValueError(
      "just_train_twice expects a vector of one bool for each example, got "
      f"{errors.dtype} of shape {errors.shape}."
    )
  check_number("just_train_twice: factor", factor, at_least=0)

  def weigh(weights: Array, *, indices: Array, **unused: Any) -> Array:
    drawn = jnp.asarray(errors)[jnp.clip(indices, 0, errors.size - 1)]
    return jnp.where(drawn, factor * weights, weights)

  return weighting_rule(weigh)


class SmoothByIndexState(NamedTuple):
  """State of `smooth_by_index`, a row for each example of the data set."""

  average: Array  # [examples] moving average of its weights, not yet bias-corrected
  times_seen: Array  # [examples] int32


def smooth_by_index(num_examples: int, decay: ScalarLike = 0.9) -> WeightingRule:
  r"""Averages each example's weight over the times that it was seen.

  A moving average by index, bias-corrected, so that an example seen once has the weight that came
  in. It takes the noise out of weights that jump, at the price of lagging behind.

  Guarantees: padding stays at weight 0 and is not remembered; permuting the batch permutes the
  weights.
  Edge cases: decay 0 changes nothing. An index that comes twice in a batch counts once, with the
  mean of its weights, and both get the same. Indices outside [0, num_examples) are not remembered
  and keep their weight.

  Args:
    num_examples: size of the data set, at least 1.
    decay: share of the old average kept each time, in [0, 1).

  Returns:
    A rule needing evidence ``indices`` [batch] int32 and ``mask`` [batch] bool.

  Raises:
    ValueError: if a Python number is out of range, a size not whole, or `decay` rounds to 1.

  Source: temporal ensembling of weights instead of predictions, Laine and Aila, "Temporal
    Ensembling for Semi-Supervised Learning", 2017, arXiv 1610.02242, section 2.2.

  Example:
    >>> rule, evidence = smooth_by_index(10, decay=0.5), {"indices": jnp.array([7])}
    >>> state = rule.init(jnp.ones(1))
    >>> for weight in (1.0, 4.0):
    ...   out, state = rule.update(jnp.full(1, weight), state, mask=jnp.ones(1, bool), **evidence)
    ...   print(out)
    [1.]
    [3.]
  """
  check_number("smooth_by_index: num_examples", num_examples, at_least=1, whole=True)
  check_decay("smooth_by_index: decay", decay)

  def init(weights: Array) -> SmoothByIndexState:
    return SmoothByIndexState(
      jnp.zeros(num_examples, weights.dtype), jnp.zeros(num_examples, jnp.int32)
    )

  def update(
    updates: Array,
    state: SmoothByIndexState,
    params: Params = None,
    *,
    indices: Array,
    mask: Array,
    **unused: Any,
  ) -> tuple[Array, SmoothByIndexState]:
    del params, unused
    is_known = mask & (indices >= 0) & (indices < num_examples)
    rows = jnp.where(is_known, indices, num_examples)  # beyond the table: dropped
    count = jnp.zeros(num_examples, updates.dtype).at[rows].add(1, mode="drop")
    total = jnp.zeros(num_examples, updates.dtype).at[rows].add(updates, mode="drop")
    mean = total / jnp.maximum(count, 1)
    average, times = moving_average(state.average, state.times_seen, mean, decay, moves=count > 0)
    places = jnp.clip(indices, 0, num_examples - 1)
    smoothed = bias_corrected(average[places], times[places], decay)
    weights = jnp.where(is_known, smoothed, updates)
    return weights, SmoothByIndexState(average.astype(state.average.dtype), times)

  return optax.GradientTransformationExtraArgs(init, update)
