"""A run on its way: its phases, what it carries, where it stands, and the files that it writes."""

import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _diagnostics, _evaluation, _steps, _weight_curve
from experiments._errors import DivergedError, UsageError
from experiments._task import Task
from reweight_jax import checkpointing, ledger, runlog, training
from reweight_jax.types import Array, Batch, Params, PerExampleLoss, WeightingRule

NUM_WINDOWS = 6
"""How many times a run writes down its ledger, for pictures of weights over training."""


class Phase(NamedTuple):
  """A stretch of steps on one set with one rule and one optimizer, which starts afresh."""

  source: str  # "train" or "meta"
  num_steps: int
  rule: WeightingRule
  tx: optax.GradientTransformation
  uses_meta_batch: bool
  step: _steps.LoopStep
  loss_fn: PerExampleLoss  # what the rule weighs, in training mode
  balanced_from: int | None = None  # the step of the phase from which batches balance the classes
  meta_every: int = 1  # steps between meta batches; above 1 the state keeps the meta direction
  note: str = ""  # what is to be told of it
  has_offsets: bool = False  # the weights are offsets of margins, fixed ones
  kept: np.ndarray | None = None  # positions to draw from; None: all of the source

  def positions(self, task: Task) -> np.ndarray:
    """What its batches are drawn from."""
    return task.positions(self.source) if self.kept is None else self.kept


class Schedule(NamedTuple):
  """The numbers of a run that are not the method's."""

  batch_size: int
  meta_batch_size: int
  eval_every: int  # steps
  checkpoint_every: int  # steps
  chunk_steps: int = 1  # steps in one program; 1: a Python loop
  keep: int = 2  # checkpoints
  validates_by_class: bool = False  # validation accuracy is the mean over classes
  ema_decay: float | None = None


class Setup(NamedTuple):
  """What all runs of a command share, on the device."""

  inputs: Array  # [examples, ...] uint8
  train_ids: np.ndarray  # [examples], from the data set
  test: Batch
  predict: _evaluation.Predict
  schedule: Schedule
  advance: Callable[[int, str], None]  # called with steps done and a text about the run


class Run(NamedTuple):
  """One method with one seed."""

  seed: int
  task: Task
  phases: list[Phase]
  folder: pathlib.Path  # must exist
  init: Callable[[], tuple[Params, Any]]  # params and model state before the first step


def total_steps(run: Run) -> int:
  """Steps of all phases."""
  return sum(phase.num_steps for phase in run.phases)


def begin(run: Run, done: int, schedule: Schedule) -> _steps.Carry:
  """The carry at step 0, or one of the structure of a checkpoint taken after `done` steps."""
  phase = run.phases[phase_at(run.phases, max(done - 1, 0))[0]]
  params, model_state = run.init()
  state = training.init_train_state(
    params,
    model_state,
    phase.rule,
    phase.tx,
    key=jax.random.key(run.seed),
    batch_size=schedule.batch_size,
    keep_direction=phase.meta_every > 1,
  )
  # Copies: the step donates its carry, so no buffer may be in it twice.
  keeps_averages = schedule.ema_decay is not None
  averages = jax.tree.map(jnp.array, (params, model_state)) if keeps_averages else ()
  entries = ledger.init_ledger(len(run.task.labels))
  return _steps.Carry(state, averages, entries, _steps.empty_tally())


class Lane:
  """A run on its way: what it carries, its log and its checkpoints."""

  def __init__(self, run: Run, setup: Setup, checkpoints: checkpointing.Checkpoints):
    self.run, self.checkpoints = run, checkpoints
    self.log = run.folder / "metrics.jsonl"
    self.labels = jnp.asarray(run.task.labels)
    task = run.task
    self.validation = _evaluation.padded(
      np.asarray(setup.inputs[task.validation]), task.labels[task.validation]
    )
    self.sample = _diagnostics.draw(task.train, setup.inputs, task.labels, run.seed)
    self.done, self.carry = self._restore(setup.schedule)
    try:
      rows = runlog.keep_rows_until(self.log, self.done)
    except ValueError as error:
      raise UsageError(f"--workdir: {error}") from error
    self.rows = rows
    self.input_seconds = rows[-1]["input_seconds"] if rows else 0.0
    self.clock = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

  def _restore(self, schedule: Schedule) -> tuple[int, _steps.Carry]:
    """The newest checkpoint that can be read, else the start; says what was damaged."""
    found = self.checkpoints.restore_latest(lambda step: begin(self.run, step, schedule))
    for place in self.checkpoints.damaged:
      print(
        f"warning: a checkpoint of {self.run.folder} cannot be read and was moved to {place}; the "
        f"run goes on from {f'step {found[0]}' if found else 'its start'}",
        file=sys.stderr,
      )
    return found or (0, begin(self.run, 0, schedule))


def phase_at(phases: list[Phase], step: int) -> tuple[int, int]:
  """The phase that takes the step after `step` steps, and how many of its steps are done."""
  for index, phase in enumerate(phases):
    if step < phase.num_steps:
      return index, step
    step -= phase.num_steps
  return len(phases) - 1, phases[-1].num_steps


def last_phase(lane: Lane) -> Phase:
  """The phase of the last step taken."""
  return lane.run.phases[phase_at(lane.run.phases, max(lane.done - 1, 0))[0]]


def next_phase(phase: Phase, carry: _steps.Carry, schedule: Schedule) -> _steps.Carry:
  """Hands params, statistics, key and step on; rule and optimizer start afresh."""
  old = carry.state
  state = training.init_train_state(
    old.params,
    old.model_state,
    phase.rule,
    phase.tx,
    key=old.key,
    batch_size=schedule.batch_size,
    keep_direction=phase.meta_every > 1,
  )
  return carry._replace(state=state._replace(step=old.step))


def make_row(lane: Lane, setup: Setup) -> dict[str, Any]:
  params, model_state = lane.carry.evaluated()
  on_test = setup.predict(params, model_state, setup.test)
  test = on_test.classes
  on_validation = None
  if lane.validation is not None:
    predicted = setup.predict(params, model_state, lane.validation).classes
    by_class = setup.schedule.validates_by_class
    on_validation = _evaluation.accuracy(predicted, lane.validation, by_class=by_class)
  diagnostics, phase = {}, last_phase(lane)
  if phase.source == "train":  # the others keep no ledger
    diagnostics = _diagnostics.measure(
      lane.sample, lane.carry, on_test.gaps, setup.predict, phase.loss_fn, setup.schedule.batch_size
    )
  return {
    "step": lane.done,
    **_steps.averages(lane.carry.tally),
    **diagnostics,
    "validation_accuracy": on_validation,
    "test_accuracy": _evaluation.accuracy(test, setup.test),
    "largest_predicted_share": float(np.bincount(test).max() / len(test)),
    "seconds": time.perf_counter() - lane.clock,
    "input_seconds": lane.input_seconds,
  }


def write_window(lane: Lane) -> None:
  """Writes the ledger as it stands, of the training examples."""
  folder = lane.run.folder / "windows"
  folder.mkdir(exist_ok=True)
  entries, train = jax.device_get(lane.carry.ledger), lane.run.task.train
  runlog.write_npz(
    folder / f"step_{lane.done:08d}.npz",
    {"total_weight": entries.total_weight[train], "times_seen": entries.times_seen[train]},
  )


def write_results(lane: Lane, setup: Setup) -> None:
  """Writes the last predictions, and what every training example was given."""
  task, entries = lane.run.task, lane.carry.ledger
  predict = functools.partial(setup.predict, *lane.carry.evaluated())
  real = np.asarray(setup.test.mask)
  said = {
    "test_prediction": predict(setup.test).classes,
    "test_label": np.asarray(setup.test.labels)[real],
    "validation_prediction": np.zeros(0, np.int32),
    "validation_label": task.labels[task.validation],
  }
  if lane.validation is not None:
    said["validation_prediction"] = predict(lane.validation).classes
  runlog.write_npz(lane.run.folder / "predictions.npz", said)
  train = _evaluation.padded(np.asarray(setup.inputs[task.train]), task.labels[task.train])
  assert train is not None  # there is always something to train on
  on_train = predict(train)
  _weight_curve.write(
    lane.run.folder, lane.carry.state.rule_state, on_train.losses, task.class_counts("train")
  )
  runlog.write_npz(
    lane.run.folder / "weights.npz",
    {
      "index": setup.train_ids[task.train],
      "given_label": task.labels[task.train],
      "is_noisy": task.is_noisy[task.train],
      "mean_weight": np.asarray(ledger.mean_weights(entries))[task.train],
      "last_weight": np.asarray(entries.last_weight)[task.train],
      "last_loss": on_train.losses,
      "last_prediction": on_train.classes,
    },
  )


def stop_if_not_finite(lane: Lane) -> None:
  step = int(lane.carry.tally.bad_step)
  if step >= 0:
    what = f"the loss was not finite at step {step}"
  elif not _steps.is_finite(lane.carry):
    what = f"params or optimizer state were not finite after step {lane.done}"
  else:
    return
  kept = lane.checkpoints.latest_step()
  where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was taken before"
  raise DivergedError(
    f"{lane.run.folder}: {what}; {where}. Lower --learning_rate, or look at the data."
  )
