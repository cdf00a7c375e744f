"""How many seeds train side by side."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments import _lane
from experiments._config import Config

MEMORY_SHARE = 0.8
"""The share of the free device memory that runs side by side may take."""


def groups(config: Config, runs: list[_lane.Run], setup: _lane.Setup) -> Iterator[list[_lane.Run]]:
  """The runs of one method in groups that go under one `jax.vmap`, in their order.

  Only runs of one compiled step and one size of batch can: a rule or a loss made of a seed's class
  counts stands alone.
  """
  batch_size = lambda run: min(setup.schedule.batch_size, len(run.phases[0].positions(run.task)))
  size = config.parallel_seeds or _default_size(runs, setup)
  rest = list(runs)
  while rest:
    first = rest[0]
    alike = [run for run in rest if run.phases[0].step is first.phases[0].step]
    alike = [run for run in alike if batch_size(run) == batch_size(first)]
    group = alike[:size]
    yield group
    rest = [run for run in rest if run not in group]


def _default_size(runs: list[_lane.Run], setup: _lane.Setup) -> int:
  """1 on CPU, where one seed keeps all cores busy; elsewhere as many as memory takes."""
  stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
  if len(runs) == 1 or not stats:
    return 1
  free = stats["bytes_limit"] - stats["bytes_in_use"]
  return max(1, int(MEMORY_SHARE * free / _bytes_of_a_run(runs[0], setup)))


def _bytes_of_a_run(run: _lane.Run, setup: _lane.Setup) -> int:
  """What one run holds on the device: its state and the temporary memory of a step."""
  schedule, phase = setup.schedule, run.phases[0]
  carry = jax.eval_shape(lambda: _lane.begin(run, 0, schedule))
  positions = jax.ShapeDtypeStruct((schedule.batch_size,), np.int32)
  meta = jax.ShapeDtypeStruct((schedule.meta_batch_size,), np.int32)
  step: Any = phase.step.one  # jitted
  lowered = step.lower(
    carry,
    setup.inputs,
    run.task.labels,
    positions,
    meta if phase.uses_meta_batch else None,
    keep_ledger=True,
  )
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
  return temporary + 2 * state
