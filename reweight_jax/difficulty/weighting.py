"""Rules that weigh examples by their difficulty, known before training or recorded during it.

`difficulty.modes` says which difficulty weighs most. Chain `rules.after_burn_in`,
`rules.clip_weights` and others as with any rule.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reweight_jax._validate import check_choice, check_number
from reweight_jax.difficulty import modes, scales
from reweight_jax.difficulty.dynamics import Dynamics, init_dynamics, observe
from reweight_jax.rules._rule import times, weighting_rule
from reweight_jax.types import Array, Batch, Outputs, Params, ScalarLike, WeightingRule

_table = jax.jit(modes.weights_of_difficulty, static_argnames="scale")


def difficulty_weights(
  scores: Sequence[float] | np.ndarray | Array,
  mode: modes.DifficultyMode,
  *,
  scale: str = "ranks",
  max_weight: ScalarLike | None = None,
) -> WeightingRule:
  """Weighs each example by a difficulty known before training.

  Multiplies by `weights_of_difficulty`, which averages 1 over the data set; it says what share of
  the examples is left, with `metrics.effective_sample_size`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: as for `weights_of_difficulty`; infinite scores, as of examples never learned, are the
  hardest. Indices outside the table are clamped to it. A net that fits its training set without
  regularization forgets bounded weights in time, whatever they are: stop early, or regularize.

  Args:
    scores: one number for each example of the data set, larger is harder.
    mode: from `easy_first`, `hard_first`, `medium_first`, `two_ends_first` or `flexible`.
    scale: how scores come into [0, 1]: "ranks", or "range" for shares of the range.
    max_weight: keeps the weights in [1/max_weight, max_weight]; >= 1. None does not.

  Returns:
    A rule needing evidence ``indices`` [batch] int32.

  Raises:
    ValueError: if `scores` is no vector of numbers, or one is NaN, naming the example; if `scale`
      is another word, or `max_weight` below 1.

  Source: as `weights_of_difficulty`.

  Example:
    >>> rule = difficulty_weights([0.1, 2.0, 0.3], modes.easy_first(4.0))
    >>> weights, _ = rule.update(jnp.ones(2), (), indices=jnp.array([1, 0]))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.43', '1.71']
  """
  given = np.asarray(scores)
  if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.number):
    raise ValueError(
      "difficulty_weights: scores expects a vector of one number for each example, got "
      f"{given.dtype} of shape {given.shape}."
    )
  if np.isnan(given).any():
    raise ValueError(
      "difficulty_weights: scores expects numbers, got nan for example "
      f"{int(np.argmax(np.isnan(given)))}: it was never seen. Score every example, or fill in its "
      "difficulty."
    )
  _check(scale, max_weight)
  table = _table(given, mode, scale=scale, max_weight=max_weight)
  # Where numbers of the mode are injected the table is one of the compiled step.
  table = table if isinstance(table, jax.core.Tracer) else np.asarray(table)

  def weigh(weights: Array, *, indices: Array, **unused: Any) -> Array:
    return times(weights, jnp.asarray(table)[jnp.clip(indices, 0, given.size - 1)])

  return weighting_rule(weigh)


class RefreshedDifficultyState(NamedTuple):
  """State of `refreshed_difficulty_weights`."""

  dynamics: Dynamics  # what training has shown so far
  weights: Array  # [examples], in use; `metrics.effective_sample_size` of it is their worth
  num_steps: Array  # [] int32, steps made


def refreshed_difficulty_weights(
  num_examples: int,
  measure: Callable[[Dynamics], Array],
  mode: modes.DifficultyMode,
  *,
  every_steps: int,
  burn_in_steps: int = 0,
  scale: str = "ranks",
  max_weight: ScalarLike | None = None,
) -> WeightingRule:
  """Weighs each example by a difficulty that training itself records and refreshes.

  Records the dynamics of every example, as `record_dynamics` does and where `dynamics_of` finds
  them, and every so many steps makes their weights anew. In between the weights stay, so that all
  examples are weighed by one table.

  Guarantees: padding stays at weight 0 and is not recorded; permuting the batch permutes the
  weights; until the burn-in is over the weights pass through bit for bit.
  Edge cases: an example that was never seen, and one whose index is outside [0, num_examples),
  keeps its weight. The step that refreshes counts its own batch in and is weighed by the result.
  Hard first feeds on itself where labels are wrong. Inside `rules.after_burn_in` nothing is
  recorded while it waits: give `burn_in_steps` here.

  Args:
    num_examples: size of the data set, at least 1.
    measure: makes `[examples]` scores, larger is harder, NaN for never seen, of the record: one of
      `difficulty.OF_DYNAMICS`.
    mode: from `easy_first`, `hard_first`, `medium_first`, `two_ends_first` or `flexible`.
    every_steps: steps from one refreshment to the next, at least 1; an epoch's is a good start.
    burn_in_steps: steps before the first one, which only record, >= 0. With less than an epoch the
      examples not yet seen weigh 1.
    scale: how scores come into [0, 1]: "ranks", or "range" for shares of the range.
    max_weight: keeps the weights in [1/max_weight, max_weight]; >= 1. None does not.

  Returns:
    A rule needing evidence ``losses`` [batch] float, ``logits`` [batch, classes] float, ``labels``
    [batch] int, ``indices`` [batch] int32 and ``mask`` [batch] bool.

  Raises:
    ValueError: if a Python number is out of range, `scale` another word, or the measure makes
      another shape than `[examples]`.

  Source: as `weights_of_difficulty`, of a record that moves with the model, the idea of Kumar,
    Packer, Koller, "Self-Paced Learning for Latent Variable Models", 2010.

  Example:
    >>> loss = lambda dynamics: dynamics.last_loss
    >>> easy = modes.easy_first(4.0)
    >>> rule = refreshed_difficulty_weights(3, loss, easy, every_steps=10)
    >>> evidence = dict(losses=jnp.array([0.1, 2.0, 0.3]), logits=jnp.eye(3), labels=jnp.arange(3))
    >>> evidence |= dict(indices=jnp.arange(3), mask=jnp.ones(3, bool))
    >>> weights, state = jax.jit(rule.update)(jnp.ones(3), rule.init(jnp.ones(3)), **evidence)
    >>> print([f"{weight:.2f}" for weight in weights])
    ['1.71', '0.43', '0.86']
  """
  name = "refreshed_difficulty_weights"
  check_number(f"{name}: num_examples", num_examples, at_least=1, whole=True)
  check_number(f"{name}: every_steps", every_steps, at_least=1, whole=True)
  check_number(f"{name}: burn_in_steps", burn_in_steps, at_least=0, whole=True)
  _check(scale, max_weight)

  def refreshed(dynamics: Dynamics, old: Array) -> Array:
    scores = measure(dynamics)
    if scores.shape != old.shape:
      raise ValueError(
        f"{name} expects a measure that makes one score for each example, shape {old.shape}, got "
        f"shape {scores.shape}."
      )
    new = modes.weights_of_difficulty(scores, mode, scale=scale, max_weight=max_weight)
    return new.astype(old.dtype)

  def init(weights: Array) -> RefreshedDifficultyState:
    dynamics = init_dynamics(num_examples, weights.dtype)
    ones = jnp.ones(int(num_examples), weights.dtype)
    return RefreshedDifficultyState(dynamics, ones, jnp.zeros((), jnp.int32))

  def update(
    updates: Array,
    state: RefreshedDifficultyState,
    params: Params = None,
    *,
    losses: Array,
    logits: Array,
    labels: Array,
    indices: Array,
    mask: Array,
    **unused: Any,
  ) -> tuple[Array, RefreshedDifficultyState]:
    del params, unused
    batch, outputs = Batch((), labels, indices, mask), Outputs(losses, logits)
    dynamics = observe(state.dynamics, batch, outputs)
    since = state.num_steps - burn_in_steps
    is_due = (since >= 0) & (since % every_steps == 0)
    table = jax.lax.cond(is_due, refreshed, lambda _, old: old, dynamics, state.weights)
    is_known = (indices >= 0) & (indices < num_examples)
    factors = jnp.where(is_known, table[jnp.clip(indices, 0, num_examples - 1)], 1)
    count = optax.safe_increment(state.num_steps)
    return times(updates, factors), RefreshedDifficultyState(dynamics, table, count)

  return optax.GradientTransformationExtraArgs(init, update)


def _check(scale: str, max_weight: ScalarLike | None) -> None:
  check_choice("difficulty weights: scale", scale, tuple(scales.SCALES))
  if max_weight is not None:
    check_number("difficulty weights: max_weight", max_weight, at_least=1)
