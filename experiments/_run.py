"""The one training loop: phases of steps, evaluation, ledger, checkpoints, resume."""

import dataclasses
import functools
import operator
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments._errors import RunError
from experiments._task import Examples, Task
from reweight_jax import checkpointing, data, ledger, runlog, training
from reweight_jax.types import Array, Batch, Params, PerExampleLoss, WeightingRule

EVAL_BATCH_SIZE = 500


class Phase(NamedTuple):
  """A stretch of steps on one set with one rule and one optimizer, which starts afresh."""

  source: str  # "train" or "meta"
  num_steps: int
  rule: WeightingRule
  tx: optax.GradientTransformation
  uses_meta_batch: bool
  step: Callable[..., Any]  # from make_loop_step


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The numbers of a run that are not the method's."""

  batch_size: int
  meta_batch_size: int
  eval_every: int  # steps
  checkpoint_every: int  # steps


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


def make_evaluator(eval_loss_fn: PerExampleLoss) -> Callable[[Params, Any, Batch], float]:
  """Accuracy of params on a whole set, in padded batches of one size."""

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


def run(
  task: Task,
  params: Params,
  model_state: Any,
  phases: list[Phase],
  schedule: Schedule,
  evaluate: Callable[..., float],
  *,
  seed: int,
  folder: pathlib.Path,
  advance: Callable[[int, str], None],
) -> None:
  """Trains through all phases, or goes on from the newest checkpoint, and writes the run's files.

  `folder` gets metrics.jsonl, checkpoints/ and, last of all, weights.npz. A run that is killed and
  started again ends with the same parameters and the same ledger, bit for bit on CPU.

  Args:
    task: the data.
    params: initial parameters.
    model_state: initial model state.
    phases: what to train on, in order.
    schedule: batch sizes and intervals.
    evaluate: `(params, model_state, examples) -> accuracy`, from `make_evaluator`.
    seed: seed of the order of examples and of what steps draw.
    folder: the run's folder; must exist.
    advance: called with a number of steps done and a text about the run.

  Raises:
    RunError: if a loss is not finite, naming the step.
  """
  log = folder / "metrics.jsonl"
  total = sum(phase.num_steps for phase in phases)
  checkpoints = checkpointing.Checkpoints(folder / "checkpoints")
  start = checkpoints.latest_step() or 0
  carry = _begin_phase(phases, start, params, model_state, task, schedule, seed)
  if start:
    carry = checkpoints.restore(start, carry)
  runlog.keep_rows_until(log, start)
  advance(start, "")

  train, meta = jax.device_put((task.train, task.meta))
  validation, test = _padded(task.validation), _padded(task.test)
  done, clock = start, time.perf_counter()
  while done < total:
    index, offset = _phase_at(phases, done)
    phase = phases[index]
    if offset == 0 and done:
      carry = _next_phase(phase, carry, schedule)
    examples = train if phase.source == "train" else meta
    stop = min(_next_multiple(done, schedule), total, done + phase.num_steps - offset)
    for step in range(done, stop):
      carry = phase.step(
        carry,
        examples,
        _order(examples, schedule.batch_size, step, 2 * seed),
        meta if phase.uses_meta_batch else None,
        _order(meta, schedule.meta_batch_size, step, 2 * seed + 1),
        keep_ledger=phase.source == "train",
      )
    advance(stop - done, "")
    done = stop
    _stop_if_not_finite(carry.tally, checkpoints)
    if done % schedule.eval_every == 0 or done == total:
      accuracy = functools.partial(evaluate, carry.state.params, carry.state.model_state)
      accuracies = {
        "validation_accuracy": accuracy(validation) if validation else None,
        "test_accuracy": accuracy(test),
      }
      row = {"step": done, **_averages(carry.tally), **accuracies}
      runlog.append_row(log, row | {"seconds": time.perf_counter() - clock})
      advance(0, f"step {done}: test accuracy {100 * accuracies['test_accuracy']:.1f} %")
      carry = carry._replace(tally=empty_tally())
    if done % schedule.checkpoint_every == 0 or done == total:
      checkpoints.save(done, carry)
  checkpoints.close()
  write_ledger(folder / "weights.npz", task, carry.ledger)


def write_ledger(path: pathlib.Path, task: Task, entries: ledger.WeightLedger) -> None:
  """Writes what every training example was given, by its place in the original data set."""
  runlog.write_npz(
    path,
    {
      "index": task.train_ids,
      "given_label": task.train.labels,
      "is_noisy": task.is_noisy,
      "mean_weight": np.asarray(ledger.mean_weights(entries)),
      "last_weight": np.asarray(entries.last_weight),
    },
  )


def _pick(examples: Examples, indices: Array) -> Batch:
  return rw.types.make_batch(examples.inputs[indices], examples.labels[indices], indices=indices)


def _padded(examples: Examples) -> Batch | None:
  """A whole set as one batch on the device, padded to full evaluation batches; None if empty."""
  size = len(examples.labels)
  if size == 0:
    return None
  padding = -size % min(EVAL_BATCH_SIZE, size)
  rows = np.concatenate([np.arange(size), np.zeros(padding, np.int64)])
  inputs, labels = examples.inputs[rows], examples.labels[rows]
  return rw.types.make_batch(inputs, labels, mask=np.arange(size + padding) < size)


def _order(examples: Examples, batch_size: int, step: int, seed: int) -> np.ndarray:
  num_examples = examples.labels.shape[0]
  return data.batch_indices(num_examples, min(batch_size, num_examples), step, seed)


def _phase_at(phases: list[Phase], step: int) -> tuple[int, int]:
  """The phase that takes the step after `step` steps, and how many of its steps are done."""
  for index, phase in enumerate(phases):
    if step < phase.num_steps:
      return index, step
    step -= phase.num_steps
  return len(phases) - 1, phases[-1].num_steps


def _begin_phase(
  phases: list[Phase],
  done: int,
  params: Params,
  model_state: Any,
  task: Task,
  schedule: Schedule,
  seed: int,
) -> Carry:
  """The carry at step 0, or one of the structure of a checkpoint taken after `done` steps."""
  index, _ = _phase_at(phases, max(done - 1, 0))
  phase = phases[index]
  state = training.init_train_state(
    params,
    model_state,
    phase.rule,
    phase.tx,
    key=jax.random.key(seed),
    batch_size=schedule.batch_size,
  )
  return Carry(state, ledger.init_ledger(len(task.train.labels)), empty_tally())


def _next_phase(phase: Phase, carry: Carry, schedule: Schedule) -> Carry:
  """Hands params, statistics, key and step on; rule and optimizer start afresh."""
  old = carry.state
  state = training.init_train_state(
    old.params, old.model_state, phase.rule, phase.tx, key=old.key, batch_size=schedule.batch_size
  )
  return carry._replace(state=state._replace(step=old.step))


def _next_multiple(done: int, schedule: Schedule) -> int:
  return min(
    (done // every + 1) * every for every in (schedule.eval_every, schedule.checkpoint_every)
  )


def _averages(tally: Tally) -> dict[str, float]:
  steps = max(int(tally.steps), 1)
  return {
    "train_loss": float(tally.loss) / steps,
    "effective_sample_size": float(tally.effective_sample_size) / steps,
    "zero_weight_share": float(tally.zero_weight_share) / steps,
    "all_zero_batches": int(tally.all_zero_batches),
  }


def _stop_if_not_finite(tally: Tally, checkpoints: checkpointing.Checkpoints) -> None:
  step = int(tally.bad_step)
  if step < 0:
    return
  kept = checkpoints.latest_step()
  checkpoints.close()
  where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was taken before"
  raise RunError(
    f"the loss was not finite at step {step}; {where}. Lower --learning_rate, or look at the data."
  )
