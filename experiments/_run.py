"""The one training loop: phases of steps, evaluation, warnings, checkpoints, stops."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _collapse, _diagnostics, _lane, _signals, _steps
from experiments._errors import RunError, StoppedError
from experiments._lane import Lane, Phase, Run, Schedule, Setup
from reweight_jax import checkpointing, data, runlog


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
  _take_back(runs, setup.schedule)
  with contextlib.ExitStack() as stack:
    lanes = []
    for run in runs:
      folder, keep = run.folder / "checkpoints", setup.schedule.keep
      checkpoints = stack.enter_context(checkpointing.Checkpoints(folder, keep=keep))
      lanes.append(Lane(run, setup, checkpoints))
    request = stack.enter_context(_signals.stop_requests())
    try:
      for done in sorted({lane.done for lane in lanes}):
        _train_together([lane for lane in lanes if lane.done == done], setup, request)
    except OSError:
      _stop_if_vanished(lanes)
      raise


def _take_back(runs: Sequence[Run], schedule: Schedule) -> None:
  """Deletes the checkpoints that a kill in the midst of saving left to some of the runs alone.

  They go on together from the newest step that all have, as the undisturbed ones did, and so to the
  same bits. Runs further apart than an interval never went together, or not to here.
  """
  if not all((run.folder / "metrics.jsonl").exists() for run in runs):
    return  # one has not begun
  folders = [run.folder / "checkpoints" for run in runs]
  found = [{int(path.name) for path in one.glob("*") if path.name.isdecimal()} for one in folders]
  common, newest = max(set.intersection(*found), default=0), max(set.union(*found), default=0)
  if newest - common > schedule.checkpoint_every:
    return
  for folder, steps in zip(folders, found, strict=True):
    for step in steps:
      if step > common:
        shutil.rmtree(folder / str(step))


def _train_together(group: list[Lane], setup: Setup, request: _signals.StopRequest) -> None:
  """Takes runs that stand at the same step to their end."""
  setup.advance(group[0].done * len(group), "")
  while group[0].done < _lane.total_steps(group[0].run):
    done = group[0].done
    _stretch(group, setup, request)
    _stop_if_vanished(group)
    if group[0].done > done:
      _evaluate_and_save(group, setup)
    _stop_if_asked(group, request)
  for lane in group:
    lane.checkpoints.wait()
    _lane.write_results(lane, setup)
    _stop_if_asked(group, request)


def _stretch(group: list[Lane], setup: Setup, request: _signals.StopRequest) -> None:
  """Steps up to the next evaluation, checkpoint or end of phase, or until asked to stop.

  A group that takes no step stays as it is: in the phase that its checkpoints are of.
  """
  schedule, done = setup.schedule, group[0].done
  index, offset = _lane.phase_at(group[0].run.phases, done)
  phase = group[0].run.phases[index]
  carries = [lane.carry for lane in group]
  if offset == 0 and done:
    carries = [_lane.next_phase(lane.run.phases[index], lane.carry, schedule) for lane in group]
  stop = min(_next_multiple(done, schedule), done + phase.num_steps - offset)
  clock = time.perf_counter()
  positions = [_positions(lane.run, phase, done, stop, schedule) for lane in group]
  group[0].input_seconds += time.perf_counter() - clock
  batches = np.stack([batch for batch, _ in positions])
  meta_batches = np.stack([meta for _, meta in positions]) if phase.uses_meta_batch else None
  carry = _join(carries)
  labels = _join([lane.labels for lane in group])
  start, keep_ledger = done, phase.source == "train"
  while done < stop and request.received is None:
    count, has_meta = _next_program(phase, schedule, offset + done - start, stop - done)
    step: Any = phase.step.many
    rows: Any = (slice(None), slice(done - start, done - start + count))
    if len(group) == 1 and schedule.chunk_steps > 1:
      step, rows = phase.step.chunk, (0, rows[1])
    elif len(group) == 1:
      step, rows = phase.step.one, (0, done - start)
    meta_batch = meta_batches[rows] if meta_batches is not None and has_meta else None
    carry = step(carry, setup.inputs, labels, batches[rows], meta_batch, keep_ledger=keep_ledger)
    done += count
    setup.advance(count * len(group), "")
  if done == start:
    return
  for lane, part in zip(group, _split(carry, len(group)), strict=True):
    lane.carry, lane.done = part, done
    lane.input_seconds = group[0].input_seconds


def _next_program(phase: Phase, schedule: Schedule, offset: int, left: int) -> tuple[int, bool]:
  """How many steps the next program takes, and whether they get meta batches.

  Which steps do follows from their number in the phase alone, so that a resumed run is the same.

  Args:
    phase: that the steps are in.
    schedule: with the longest program.
    offset: steps of the phase that are done.
    left: steps to the end of the stretch.
  """
  every, count = phase.meta_every, schedule.chunk_steps
  if every == 1:
    return (count if left >= count else 1), True
  if offset % every == 0:
    return 1, True
  count = min(count, every - 1)
  return (count if min(left, every - offset % every) >= count else 1), False


def _evaluate_and_save(group: list[Lane], setup: Setup) -> None:
  """What is due after a stretch, for every run: check, row, warning, window, checkpoint."""
  schedule, done, total = setup.schedule, group[0].done, _lane.total_steps(group[0].run)
  is_end = done == total
  is_saved = done % schedule.checkpoint_every == 0 or is_end
  if is_saved:
    _wait(group)  # so that no run is two checkpoints ahead of another
  for lane in group:
    folder, score = lane.run.folder, None
    _lane.stop_if_not_finite(lane)
    if done % schedule.eval_every == 0 or is_end:
      row = _lane.make_row(lane, setup)
      rows = [*lane.rows, row]
      told = {"warning": _collapse.warning(rows, lane.run.task.num_classes)}
      if _lane.last_phase(lane).has_offsets:
        told["advice"] = _diagnostics.advice(rows)
      for name, text in told.items():
        if text:
          row[name] = text
          print(f"warning: {folder}, step {done}: {text}", file=sys.stderr)
      runlog.append_row(lane.log, row)
      lane.rows.append(row)
      score = row["validation_accuracy"]
      setup.advance(0, f"step {done}: test accuracy {100 * row['test_accuracy']:.1f} %")
      lane.carry = lane.carry._replace(tally=_steps.empty_tally())
      if (
        done * _lane.NUM_WINDOWS // total
        > (done - schedule.eval_every) * _lane.NUM_WINDOWS // total
      ):
        _lane.write_window(lane)
    if is_saved:
      lane.checkpoints.save(done, lane.carry, score=score)


def _stop_if_asked(group: list[Lane], request: _signals.StopRequest) -> None:
  if request.received is None:
    return
  _wait(group)
  for lane in group:
    if lane.done:
      lane.checkpoints.save(lane.done, lane.carry)  # unless it has one
  _wait(group)
  raise StoppedError(request.received, f"at step {group[0].done} of {group[0].run.folder}")


def _wait(group: list[Lane]) -> None:
  for lane in group:
    lane.checkpoints.wait()


def _positions(
  run: Run, phase: Phase, start: int, stop: int, schedule: Schedule
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of the batches and meta batches of the steps from start to stop, `[steps, batch]`."""
  before = sum(earlier.num_steps for earlier in run.phases[: _lane.phase_at(run.phases, start)[0]])

  def rows(
    positions: np.ndarray, batch_size: int, seed: int, balanced_from: int | None
  ) -> np.ndarray:
    labels = run.task.labels[positions]
    size = min(batch_size, len(positions))

    def picked(step: int) -> np.ndarray:
      if balanced_from is not None and step - before >= balanced_from:
        return data.balanced_batch_indices(labels, size, step, seed)
      return data.batch_indices(len(positions), size, step, seed)

    return positions[np.stack([picked(step) for step in range(start, stop)])]

  return (
    rows(phase.positions(run.task), schedule.batch_size, 2 * run.seed, phase.balanced_from),
    rows(run.task.positions("meta"), schedule.meta_batch_size, 2 * run.seed + 1, None),
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


def _next_multiple(done: int, schedule: Schedule) -> int:
  return min(
    (done // every + 1) * every for every in (schedule.eval_every, schedule.checkpoint_every)
  )


def _stop_if_vanished(lanes: list[Lane]) -> None:
  for lane in lanes:
    if not lane.log.exists():
      raise RunError(
        f"the folder {lane.run.folder} vanished during the run, after step {lane.done}, with "
        "all that was in it; delete what is left of it and run the same command again"
      )
