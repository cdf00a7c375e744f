"""What the training loop calls: the step with its books, the evaluator, the finiteness check."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments._task import Examples
from reweight_jax import ledger, training
from reweight_jax.types import Array, Batch, Params, PerExampleLoss, WeightingRule

EVAL_BATCH_SIZE = 500


class Tally(NamedTuple):
  """Sums over the steps since the last evaluation; kept on the device."""

  loss: Array
  effective_sample_size: Array
  zero_weight_share: Array
  all_zero_batches: Array  # int32
  steps: Array  # int32
  bad_step: Array  # int32, the first step whose loss was not finite; -1 if none


class Carry(NamedTuple):
  """Everything that decides the future of a run, apart from its phases and its data."""

  state: training.TrainState
  ledger: ledger.WeightLedger
  tally: Tally


def empty_tally() -> Tally:
  """A tally of no steps."""
  # Each its own buffer: the loop step donates them all.
  sums, counts = (jnp.zeros(()) for _ in range(3)), (jnp.int32(value) for value in (0, 0, -1))
  return Tally(*sums, *counts)


def averages(tally: Tally) -> dict[str, float]:
  """What a row of the run log says of the steps since the last one."""
  steps = max(int(tally.steps), 1)
  return {
    "train_loss": float(tally.loss) / steps,
    "effective_sample_size": float(tally.effective_sample_size) / steps,
    "zero_weight_share": float(tally.zero_weight_share) / steps,
    "all_zero_batches": int(tally.all_zero_batches),
  }


def make_loop_step(
  loss_fn: PerExampleLoss, rule: WeightingRule, tx: optax.GradientTransformation, route: str
) -> Callable[..., Carry]:
  """The jitted body of the loop: picks the batch on the device, steps, keeps the books."""
  train_step = training.make_train_step(loss_fn, rule, tx, route=route)

  @functools.partial(jax.jit, donate_argnums=0, static_argnames="keep_ledger")
  def step(
    carry: Carry,
    examples: Examples,
    indices: Array,
    meta: Examples | None,
    meta_indices: Array,
    keep_ledger: bool,
  ) -> Carry:
    batch = _pick(examples, indices)
    meta_batch = None if meta is None else _pick(meta, meta_indices)
    state, metrics = train_step(carry.state, batch, meta_batch)
    tally = carry.tally
    is_bad = ~jnp.isfinite(metrics.loss) & (tally.bad_step < 0)
    tally = Tally(
      tally.loss + metrics.loss,
      tally.effective_sample_size + metrics.effective_sample_size,
      tally.zero_weight_share + metrics.zero_weight_share,
      tally.all_zero_batches + metrics.all_zero,
      tally.steps + 1,
      jnp.where(is_bad, state.step, tally.bad_step),
    )
    entries = ledger.record(carry.ledger, batch, metrics.weights) if keep_ledger else carry.ledger
    return Carry(state, entries, tally)

  return step


def is_finite(state: training.TrainState) -> bool:
  """Whether a run can go on from here: params, statistics and optimizer hold finite numbers."""
  # On the host: compiling the check would take longer than a short run.
  leaves = jax.device_get(jax.tree.leaves((state.params, state.model_state, state.opt_state)))
  return all(np.isfinite(leaf).all() for leaf in leaves)


def make_evaluator(eval_loss_fn: PerExampleLoss) -> Callable[[Params, Any, Batch], float]:
  """Accuracy of params on a whole set, as `padded` makes it, in batches of one size."""

  @jax.jit
  def num_correct(params: Params, model_state: Any, batch: Batch) -> Array:
    logits = eval_loss_fn(params, model_state, batch, None).logits
    return jnp.sum((jnp.argmax(logits, -1) == batch.labels) & batch.mask)

  def accuracy(params: Params, model_state: Any, examples: Batch) -> float:
    size = min(EVAL_BATCH_SIZE, examples.mask.shape[0])
    correct = 0.0
    for start in range(0, examples.mask.shape[0], size):
      part = jax.tree.map(operator.itemgetter(slice(start, start + size)), examples)
      correct += float(num_correct(params, model_state, part))
    return correct / float(jnp.sum(examples.mask))

  return accuracy


def padded(examples: Examples) -> Batch | None:
  """A whole set as one batch on the device, padded to full evaluation batches; None if empty."""
  size = len(examples.labels)
  if size == 0:
    return None
  padding = -size % min(EVAL_BATCH_SIZE, size)
  rows = np.concatenate([np.arange(size), np.zeros(padding, np.int64)])
  inputs, labels = examples.inputs[rows], examples.labels[rows]
  return rw.types.make_batch(inputs, labels, mask=jnp.arange(size + padding) < size)


def _pick(examples: Examples, indices: Array) -> Batch:
  return rw.types.make_batch(examples.inputs[indices], examples.labels[indices], indices=indices)
