"""The one training loop: phases of steps, evaluation, ledger, checkpoints, resume."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments import _steps
from experiments._errors import RunError, UsageError
from experiments._task import Examples, Task
from reweight_jax import checkpointing, data, ledger, runlog, training
from reweight_jax.types import Params, WeightingRule


class Phase(NamedTuple):
  """A stretch of steps on one set with one rule and one optimizer, which starts afresh."""

  source: str  # "train" or "meta"
  num_steps: int
  rule: WeightingRule
  tx: optax.GradientTransformation
  uses_meta_batch: bool
  step: Callable[..., _steps.Carry]  # from make_loop_step


class Schedule(NamedTuple):
  """The numbers of a run that are not the method's."""

  batch_size: int
  meta_batch_size: int
  eval_every: int  # steps
  checkpoint_every: int  # steps


def run(
  task: Task,
  params: Params,
  model_state: Any,
  phases: list[Phase],
  schedule: Schedule,
  *,
  evaluate: Callable[..., float],
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
    RunError: if a loss, the params or the optimizer's state are not finite, naming the step.
    UsageError: if the folder's checkpoint or log is damaged.
  """
  with checkpointing.Checkpoints(folder / "checkpoints") as checkpoints:
    done = checkpoints.latest_step() or 0
    carry = _begin(phases, done, params, model_state, task, schedule, seed)
    log = folder / "metrics.jsonl"
    try:
      carry = checkpoints.restore(done, carry) if done else carry
      rows = runlog.keep_rows_until(log, done)
    except ValueError as error:
      raise UsageError(f"--workdir: {error}") from error
    advance(done, "")
    clock = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)

    train, meta = jax.device_put((task.train, task.meta))
    validation, test = _steps.padded(task.validation), _steps.padded(task.test)
    total = sum(phase.num_steps for phase in phases)
    while done < total:
      index, offset = _phase_at(phases, done)
      phase = phases[index]
      if offset == 0 and done:
        carry = _next_phase(phase, carry, schedule)
      examples = train if phase.source == "train" else meta
      stop = min(_next_multiple(done, schedule), done + phase.num_steps - offset)
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
      _stop_if_not_finite(carry, done, checkpoints.latest_step())
      if done % schedule.eval_every == 0 or done == total:
        accuracy = functools.partial(evaluate, carry.state.params, carry.state.model_state)
        row: dict[str, Any] = {
          "step": done,
          **_steps.averages(carry.tally),
          "validation_accuracy": None if validation is None else accuracy(validation),
          "test_accuracy": accuracy(test),
          "seconds": time.perf_counter() - clock,
        }
        runlog.append_row(log, row)
        advance(0, f"step {done}: test accuracy {100 * row['test_accuracy']:.1f} %")
        carry = carry._replace(tally=_steps.empty_tally())
      if done % schedule.checkpoint_every == 0 or done == total:
        checkpoints.save(done, carry)
  _write_ledger(folder / "weights.npz", task, carry.ledger)


def _write_ledger(path: pathlib.Path, task: Task, entries: ledger.WeightLedger) -> None:
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


def _begin(
  phases: list[Phase],
  done: int,
  params: Params,
  model_state: Any,
  task: Task,
  schedule: Schedule,
  seed: int,
) -> _steps.Carry:
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
  return _steps.Carry(state, ledger.init_ledger(len(task.train.labels)), _steps.empty_tally())


def _next_phase(phase: Phase, carry: _steps.Carry, schedule: Schedule) -> _steps.Carry:
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


def _stop_if_not_finite(carry: _steps.Carry, done: int, kept: int | None) -> None:
  step = int(carry.tally.bad_step)
  if step >= 0:
    what = f"the loss was not finite at step {step}"
  elif not _steps.is_finite(carry.state):
    what = f"params or optimizer state were not finite after step {done}"
  else:
    return
  where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was taken before"
  raise RunError(f"{what}; {where}. Lower --learning_rate, or look at the data.")
