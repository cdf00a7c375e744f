"""The one training loop: phases of steps, evaluation, ledger, checkpoints, resume."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _collapse, _evaluation, _signals, _steps
from experiments._errors import RunError, StoppedError, UsageError
from experiments._task import Task
from reweight_jax import checkpointing, data, ledger, runlog, training
from reweight_jax.types import Array, Batch, Params, WeightingRule

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


class Schedule(NamedTuple):
  """The numbers of a run that are not the method's."""

  batch_size: int
  meta_batch_size: int
  eval_every: int  # steps
  checkpoint_every: int  # steps
  chunk_steps: int = 1  # steps in one program; 1: a Python loop
  keep: int = 2  # checkpoints
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


class _Lane:
  """A run on its way: what it carries, its log and its checkpoints."""

  def __init__(self, run: Run, setup: Setup, checkpoints: checkpointing.Checkpoints):
    self.run, self.checkpoints = run, checkpoints
    self.log = run.folder / "metrics.jsonl"
    self.labels = jnp.asarray(run.task.labels)
    task = run.task
    self.validation = _evaluation.padded(
      np.asarray(setup.inputs[task.validation]), task.labels[task.validation]
    )
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


def train(runs: Sequence[Run], setup: Setup) -> None:
  """Takes runs of one method through all their phases, side by side, and writes their files.

  Runs that stand at the same step go together under `jax.vmap`; each starts, or goes on from its
  newest checkpoint. A folder gets metrics.jsonl, checkpoints/, windows/, predictions.npz and, last
  of all, weights.npz. A run that is killed and started again ends with the same parameters and the
  same ledger, bit for bit on CPU.

  Args:
    runs: one or more, whose phases share their compiled steps.
    setup: what they share.

  Raises:
    RunError: if a loss, the params or the optimizer's state are not finite, naming the step; if a
      run's folder vanishes.
    StoppedError: after SIGTERM or Ctrl-C, once the state is saved.
    UsageError: if a folder's log is damaged.
  """
  with contextlib.ExitStack() as stack:
    lanes = []
    for run in runs:
      folder, keep = run.folder / "checkpoints", setup.schedule.keep
      checkpoints = stack.enter_context(checkpointing.Checkpoints(folder, keep=keep))
      lanes.append(_Lane(run, setup, checkpoints))
    request = stack.enter_context(_signals.stop_requests())
    try:
      for done in sorted({lane.done for lane in lanes}):
        _train_together([lane for lane in lanes if lane.done == done], setup, request)
    except OSError:
      _stop_if_vanished(lanes)
      raise


def _train_together(group: list[_Lane], setup: Setup, request: _signals.StopRequest) -> None:
  """Takes runs that stand at the same step to their end."""
  setup.advance(group[0].done * len(group), "")
  while group[0].done < total_steps(group[0].run):
    _stretch(group, setup, request)
    _stop_if_vanished(group)
    _evaluate_and_save(group, setup, request)
  for lane in group:
    lane.checkpoints.wait()
    _write_results(lane, setup)


def total_steps(run: Run) -> int:
  """Steps of all phases."""
  return sum(phase.num_steps for phase in run.phases)


def begin(run: Run, done: int, schedule: Schedule) -> _steps.Carry:
  """The carry at step 0, or one of the structure of a checkpoint taken after `done` steps."""
  phase = run.phases[_phase_at(run.phases, max(done - 1, 0))[0]]
  params, model_state = run.init()
  state = training.init_train_state(
    params,
    model_state,
    phase.rule,
    phase.tx,
    key=jax.random.key(run.seed),
    batch_size=schedule.batch_size,
  )
  # Copies: the step donates its carry, so no buffer may be in it twice.
  averages = jax.tree.map(jnp.array, (params, model_state)) if schedule.ema_decay else ()
  return _steps.Carry(
    state, averages, ledger.init_ledger(len(run.task.labels)), _steps.empty_tally()
  )


def _stretch(group: list[_Lane], setup: Setup, request: _signals.StopRequest) -> None:
  """Steps up to the next evaluation, checkpoint or end of phase, or until asked to stop."""
  schedule, done = setup.schedule, group[0].done
  index, offset = _phase_at(group[0].run.phases, done)
  phase = group[0].run.phases[index]
  if offset == 0 and done:
    for lane in group:
      lane.carry = _next_phase(lane.run.phases[index], lane.carry, schedule)
  stop = min(_next_multiple(done, schedule), done + phase.num_steps - offset)
  clock = time.perf_counter()
  positions = [_positions(lane.run, phase, done, stop, schedule) for lane in group]
  group[0].input_seconds += time.perf_counter() - clock
  batches = np.stack([batch for batch, _ in positions])
  meta_batches = np.stack([meta for _, meta in positions]) if phase.uses_meta_batch else None
  carry = _join([lane.carry for lane in group])
  labels = _join([lane.labels for lane in group])
  start, keep_ledger = done, phase.source == "train"
  while done < stop and request.received is None:
    count = schedule.chunk_steps if stop - done >= schedule.chunk_steps else 1
    step: Any = phase.step.many
    rows: Any = (slice(None), slice(done - start, done - start + count))
    if len(group) == 1 and schedule.chunk_steps > 1:
      step, rows = phase.step.chunk, (0, rows[1])
    elif len(group) == 1:
      step, rows = phase.step.one, (0, done - start)
    meta_batch = None if meta_batches is None else meta_batches[rows]
    carry = step(carry, setup.inputs, labels, batches[rows], meta_batch, keep_ledger=keep_ledger)
    done += count
    setup.advance(count * len(group), "")
  for lane, part in zip(group, _split(carry, len(group)), strict=True):
    lane.carry, lane.done = part, done
    lane.input_seconds = group[0].input_seconds


def _evaluate_and_save(group: list[_Lane], setup: Setup, request: _signals.StopRequest) -> None:
  """What is due after a stretch, for every run: check, row, warning, window, checkpoint."""
  schedule = setup.schedule
  for lane in group:
    folder, done, total = lane.run.folder, lane.done, total_steps(lane.run)
    _stop_if_not_finite(lane)
    is_end, score = done == total, None
    if done % schedule.eval_every == 0 or is_end:
      row = _row(lane, setup)
      warning = _collapse.warning([*lane.rows, row], lane.run.task.num_classes)
      if warning:
        row["warning"] = warning
        print(f"warning: {folder}, step {done}: {warning}", file=sys.stderr)
      runlog.append_row(lane.log, row)
      lane.rows.append(row)
      score = row["validation_accuracy"]
      setup.advance(0, f"step {done}: test accuracy {100 * row['test_accuracy']:.1f} %")
      lane.carry = lane.carry._replace(tally=_steps.empty_tally())
      if done * NUM_WINDOWS // total > (done - schedule.eval_every) * NUM_WINDOWS // total:
        _write_window(lane)
    if done % schedule.checkpoint_every == 0 or is_end or request.received is not None:
      lane.checkpoints.save(done, lane.carry, score=score)
  if request.received is not None:
    for lane in group:
      lane.checkpoints.wait()
    raise StoppedError(request.received, f"at step {group[0].done} of {group[0].run.folder}")


def _row(lane: _Lane, setup: Setup) -> dict[str, Any]:
  params, model_state = lane.carry.evaluated()
  test = setup.predict(params, model_state, setup.test)
  on_validation = None
  if lane.validation is not None:
    predictions = setup.predict(params, model_state, lane.validation)
    on_validation = _evaluation.accuracy(predictions, lane.validation)
  return {
    "step": lane.done,
    **_steps.averages(lane.carry.tally),
    "validation_accuracy": on_validation,
    "test_accuracy": _evaluation.accuracy(test, setup.test),
    "largest_predicted_share": float(np.bincount(test).max() / len(test)),
    "seconds": time.perf_counter() - lane.clock,
    "input_seconds": lane.input_seconds,
  }


def _write_window(lane: _Lane) -> None:
  """Writes the ledger as it stands, of the training examples."""
  folder = lane.run.folder / "windows"
  folder.mkdir(exist_ok=True)
  entries, train = jax.device_get(lane.carry.ledger), lane.run.task.train
  runlog.write_npz(
    folder / f"step_{lane.done:08d}.npz",
    {"total_weight": entries.total_weight[train], "times_seen": entries.times_seen[train]},
  )


def _write_results(lane: _Lane, setup: Setup) -> None:
  """Writes the last predictions, and what every training example was given."""
  task, entries = lane.run.task, lane.carry.ledger
  predictions = setup.predict(*lane.carry.evaluated(), setup.test)
  runlog.write_npz(lane.run.folder / "predictions.npz", {"test_prediction": predictions})
  runlog.write_npz(
    lane.run.folder / "weights.npz",
    {
      "index": setup.train_ids[task.train],
      "given_label": task.labels[task.train],
      "is_noisy": task.is_noisy[task.train],
      "mean_weight": np.asarray(ledger.mean_weights(entries))[task.train],
      "last_weight": np.asarray(entries.last_weight)[task.train],
    },
  )


def _positions(
  run: Run, phase: Phase, start: int, stop: int, schedule: Schedule
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of the batches and meta batches of the steps from start to stop, `[steps, batch]`."""

  def rows(source: str, batch_size: int, seed: int) -> np.ndarray:
    positions = run.task.positions(source)
    size = min(batch_size, len(positions))
    steps = range(start, stop)
    return positions[
      np.stack([data.batch_indices(len(positions), size, step, seed) for step in steps])
    ]

  return (
    rows(phase.source, schedule.batch_size, 2 * run.seed),
    rows("meta", schedule.meta_batch_size, 2 * run.seed + 1),
  )


def _join(trees: list[Any]) -> Any:
  """One tree with a leading axis of runs; the tree itself if there is one run."""
  if len(trees) == 1:
    return trees[0]
  stack = np.stack if isinstance(trees[0], np.ndarray) else jnp.stack
  return jax.tree.map(lambda *leaves: stack(leaves), *trees)


def _split(tree: Any, size: int) -> list[Any]:
  if size == 1:
    return [tree]
  return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(size)]


def _phase_at(phases: list[Phase], step: int) -> tuple[int, int]:
  """The phase that takes the step after `step` steps, and how many of its steps are done."""
  for index, phase in enumerate(phases):
    if step < phase.num_steps:
      return index, step
    step -= phase.num_steps
  return len(phases) - 1, phases[-1].num_steps


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


def _stop_if_vanished(lanes: list[_Lane]) -> None:
  for lane in lanes:
    if not lane.log.exists():
      raise RunError(
        f"the folder {lane.run.folder} vanished during the run, after step {lane.done}; nothing "
        "that was in it can be restored, the same command starts anew"
      )


def _stop_if_not_finite(lane: _Lane) -> None:
  step = int(lane.carry.tally.bad_step)
  if step >= 0:
    what = f"the loss was not finite at step {step}"
  elif not _steps.is_finite(lane.carry):
    what = f"params or optimizer state were not finite after step {lane.done}"
  else:
    return
  kept = lane.checkpoints.latest_step()
  where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was taken before"
  raise RunError(f"{lane.run.folder}: {what}; {where}. Lower --learning_rate, or look at the data.")
