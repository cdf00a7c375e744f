"""The record of training dynamics: what a run shows of each example.

A table of running numbers, one row for each example, filled in by index while training goes on;
nothing of the size [epochs, examples] is kept. `difficulty.dynamics` makes scores of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._validate import check_number
from reweight_jax.difficulty import scores
from reweight_jax.types import Array, Batch, Outputs, Params, WeightingRule


class Dynamics(NamedTuple):
  """What a run showed of each example so far. All `[examples]`; 0 or False until it was seen.

  A *sighting* is one batch that held the example. With *p* the probability of the given label and
  the *margin* its logit minus the largest other one.
  """

  times_seen: Array  # int32, sightings
  times_correct: Array  # int32, of them with the largest logit at the label
  times_forgotten: Array  # int32, wrong when the sighting before was correct
  was_correct: Array  # bool, at the last sighting
  first_correct: Array  # int32, number of the first correct sighting, counted from 1; 0 if none
  last_wrong: Array  # int32, number of the last wrong sighting, counted from 1; 0 if none
  last_loss: Array  # nats
  mean_loss: Array  # nats
  mean_error_probability: Array  # of 1 - p
  sum_squares: Array  # of p's differences from its mean over the sightings
  mean_variance: Array  # of p (1 - p)
  last_margin: Array
  mean_margin: Array
  last_el2n: Array  # distance of the probabilities from the one-hot label


def init_dynamics(num_examples: int, dtype: Any = jnp.float32) -> Dynamics:
  """The record before the first step, of examples 0 to `num_examples - 1`.

  Args:
    num_examples: size of the data set, at least 1.
    dtype: of the numbers that are not counts, float32 or wider.

  Returns:
    A `Dynamics` of zeros.

  Raises:
    ValueError: if `num_examples` is below 1 or not whole.
  """
  check_number("init_dynamics: num_examples", num_examples, at_least=1, whole=True)
  zeros = lambda kind: jnp.zeros(int(num_examples), kind)
  fields = dict.fromkeys(Dynamics._fields, dtype)
  counts = ("times_seen", "times_correct", "times_forgotten", "first_correct", "last_wrong")
  fields |= dict.fromkeys(counts, jnp.int32) | {"was_correct": bool}
  return Dynamics(**{name: zeros(kind) for name, kind in fields.items()})


def observe(dynamics: Dynamics, batch: Batch, outputs: Outputs) -> Dynamics:
  """Enters one batch of a classifier into the record; jittable.

  Guarantees: padding, and indices outside the record, change nothing; permuting the batch changes
  nothing; the work is that of the batch, not of the data set; at least float32 for logits in
  bfloat16.
  Edge cases: an index that comes twice in a batch is one sighting, with the mean of its numbers,
  and correct only if all of its copies are. Of equal logits the first class counts as the answer,
  as in `metrics.accuracy`. A loss or logit that is not finite stays in its example's means.

  Args:
    dynamics: the record so far.
    batch: the batch, labels `[batch]` int in [0, classes).
    outputs: what the model said of it: `losses` [batch], whatever training's loss is, and `logits`
      [batch, classes], before the step's update.

  Returns:
    The new record, of the same shapes and dtypes.

  Raises:
    ValueError: if there are no logits, or not one row of at least two classes for each label.

  Example:
    >>> batch = rw.types.make_batch(jnp.zeros(2), jnp.array([0, 1]), indices=jnp.array([2, 0]))
    >>> outputs = rw.types.Outputs(jnp.array([0.5, 1.5]), jnp.array([[4.0, 1.0], [2.0, 0.0]]))
    >>> dynamics = jax.jit(observe)(init_dynamics(3), batch, outputs)
    >>> print(dynamics.times_seen, dynamics.last_margin, dynamics.was_correct)
    [1 0 1] [-2.  0.  3.] [False False  True]
  """
  now = _of_the_batch(batch.labels, outputs)
  size, dtype = dynamics.times_seen.shape[0], dynamics.mean_loss.dtype
  is_known = batch.mask & (batch.indices >= 0) & (batch.indices < size)
  rows = jnp.where(is_known, batch.indices, size)  # beyond the table: dropped
  # Copies of an example share a group, and all write the same row.
  groups = jnp.searchsorted(jnp.sort(rows), rows)
  columns = [value.astype(dtype) for value in now.values()] + [jnp.ones(rows.shape, dtype)]
  stacked = jnp.stack(columns)
  sums = jnp.zeros_like(stacked).at[:, groups].add(stacked)[:, groups]
  means = dict(zip(now, sums[:-1] / sums[-1:], strict=True))
  is_correct = means.pop("correct") == 1
  old = jax.tree.map(lambda table: table.at[rows].get(mode="clip"), dynamics)
  new = _next_sighting(old, is_correct, **means)
  return jax.tree.map(lambda table, row: table.at[rows].set(row, mode="drop"), dynamics, new)


def record_dynamics(num_examples: int) -> WeightingRule:
  """Watches training: leaves the weights alone and keeps a `Dynamics` of every example.

  The state of the rule is the record, so it is trained with, checkpointed and restored like any
  other; `dynamics_of` finds it. In a chain it may stand anywhere.

  Guarantees: the weights are those that came in; padding, and indices outside the record, change
  nothing.
  Edge cases: as for `observe`. Each example is seen as the model was before the step, with the
  augmentation and the dropout of training.

  Args:
    num_examples: size of the data set, at least 1.

  Returns:
    A rule needing evidence ``losses`` [batch] float, ``logits`` [batch, classes] float, ``labels``
    [batch] int, ``indices`` [batch] int32 and ``mask`` [batch] bool.

  Raises:
    ValueError: if `num_examples` is below 1 or not whole; when used, as `observe`.

  Example:
    >>> rule = optax.chain(record_dynamics(9), rw.rules.rectify())
    >>> evidence = dict(losses=jnp.ones(2), indices=jnp.array([4, 8]), mask=jnp.ones(2, bool))
    >>> evidence |= dict(logits=jnp.zeros((2, 3)), labels=jnp.array([0, 1]))
    >>> weights = jnp.ones(2)
    >>> _, state = jax.jit(rule.update)(weights, rule.init(weights), **evidence)
    >>> print(dynamics_of(state).times_seen)
    [0 0 0 0 1 0 0 0 1]
  """
  check_number("record_dynamics: num_examples", num_examples, at_least=1, whole=True)

  def update(
    updates: Array,
    state: Dynamics,
    params: Params = None,
    *,
    losses: Array,
    logits: Array,
    labels: Array,
    indices: Array,
    mask: Array,
    **unused: Any,
  ) -> tuple[Array, Dynamics]:
    del params, unused
    return updates, observe(state, Batch((), labels, indices, mask), Outputs(losses, logits))

  return optax.GradientTransformationExtraArgs(
    lambda weights: init_dynamics(num_examples, weights.dtype), update
  )


def dynamics_of(rule_state: Any) -> Dynamics:
  """The record in the state of a rule, however deep in a chain it stands.

  Args:
    rule_state: the state of a rule, `TrainState.rule_state`, or any pytree that holds one record.

  Returns:
    The record.

  Raises:
    ValueError: if there is none, or more than one.
  """
  is_record = lambda node: isinstance(node, Dynamics)
  found = [node for node in jax.tree.leaves(rule_state, is_leaf=is_record) if is_record(node)]
  if len(found) != 1:
    raise ValueError(
      f"dynamics_of expects a state that holds one record of training dynamics, found {len(found)}."
      " Put one record_dynamics(num_examples) into the chain of rules."
    )
  return found[0]


def _of_the_batch(labels: Array, outputs: Outputs) -> dict[str, Array]:
  """The numbers of each example of a batch that the record keeps account of."""
  logits = outputs.logits
  if logits is None:
    raise ValueError(
      "training dynamics expect the outputs of a classifier with logits [batch, classes], got None:"
      " have the loss function return Outputs(losses, logits)."
    )
  log_p, log_error = scores.log_probabilities_of_label(logits, labels)
  return {
    "correct": jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels,
    "loss": outputs.losses,
    "error": jnp.exp(log_error),
    "variance": jnp.exp(log_p + log_error),
    "margin": -scores.negative_margin(logits, labels),
    "el2n": scores.el2n(logits, labels),
  }


def _next_sighting(
  old: Dynamics,
  is_correct: Array,
  *,
  loss: Array,
  error: Array,
  variance: Array,
  margin: Array,
  el2n: Array,
) -> Dynamics:
  """The rows of the examples of one batch after it."""
  seen = old.times_seen + 1
  moved = lambda mean, value: mean + (value - mean) / seen.astype(mean.dtype)
  mean_error = moved(old.mean_error_probability, error)
  return Dynamics(
    times_seen=seen,
    times_correct=old.times_correct + is_correct.astype(jnp.int32),
    times_forgotten=old.times_forgotten + (old.was_correct & ~is_correct).astype(jnp.int32),
    was_correct=is_correct,
    first_correct=jnp.where((old.first_correct == 0) & is_correct, seen, old.first_correct),
    last_wrong=jnp.where(is_correct, old.last_wrong, seen),
    last_loss=loss,
    mean_loss=moved(old.mean_loss, loss),
    mean_error_probability=mean_error,
    # Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
    sum_squares=old.sum_squares + (error - old.mean_error_probability) * (error - mean_error),
    mean_variance=moved(old.mean_variance, variance),
    last_margin=margin,
    mean_margin=moved(old.mean_margin, margin),
    last_el2n=el2n,
  )
