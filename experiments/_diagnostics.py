"""Whether weights still matter in a run: measured at its evaluations, told once they hardly do."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _evaluation, _steps
from reweight_jax import margins, per_example
from reweight_jax.types import Array, Batch, PerExampleLoss

NUM_EXAMPLES = _evaluation.BATCH_SIZE
"""How many training examples are looked at: one batch of an evaluation, compiled anyway."""

NAMES = ("train_accuracy", *margins.WeightDiagnostics._fields[1:], "gradient_cosine")


class Sample(NamedTuple):
  """Training examples, drawn once for a run."""

  positions: np.ndarray  # in the data set
  examples: Batch  # without padding


def draw(train: np.ndarray, inputs: Array, labels: np.ndarray, seed: int) -> Sample:
  """Draws the sample of a run from its training positions; the same for the same seed.

  As many of each given class as there are, up to the same number: weights are about rare ones.
  """
  rng = np.random.default_rng([seed, 5])  # 1 to 4 draw the task
  positions = rng.permutation(train)
  rounds = np.zeros(len(train), int)  # in which an example is drawn, one of each class a round
  for label in np.unique(labels[train]):
    is_label = labels[positions] == label
    rounds[is_label] = np.arange(is_label.sum())
  positions = rng.permutation(positions[np.argsort(rounds, kind="stable")][:NUM_EXAMPLES])
  examples = _evaluation.padded(np.asarray(inputs[positions]), labels[positions])
  assert examples is not None  # there is always something to train on
  return Sample(positions, examples)


def measure(
  sample: Sample,
  carry: _steps.Carry,
  gaps: np.ndarray,
  predict: _evaluation.Predict,
  loss_fn: PerExampleLoss,
  batch_size: int,
) -> dict[str, float | None]:
  """What weights do to the model that a run evaluates now, by the last weight of each example.

  Args:
    sample: of the run's training set; those examples count that a step has drawn already.
    carry: where the run stands.
    gaps: `[examples]` of the test set, whose labels do not count here.
    predict: of the model.
    loss_fn: what the weights weigh, in training mode.
    batch_size: how many of the sample the two gradients are of.

  Returns:
    Name -> number, of `NAMES`; None where there is no number.
  """
  entries = jax.device_get((carry.ledger.last_weight, carry.ledger.times_seen))
  weights, times_seen = (array[sample.positions] for array in entries)
  mask = times_seen > 0
  weights = np.where(mask, weights, 0)
  said = predict(*carry.evaluated(), sample.examples)
  found = _diagnose(said.margins, weights, mask, gaps)
  size = min(batch_size, len(mask))
  part = jax.tree.map(lambda leaf: leaf[:size], sample.examples)
  stream = jax.random.fold_in(carry.state.key, _steps.DIAGNOSTICS_STREAM)
  key = jax.random.fold_in(stream, carry.state.step)
  cosine = _cosine(loss_fn)(*carry.evaluated(), part, weights[:size], mask[:size], key)
  numbers = [float(number) if mask.any() else np.nan for number in (*found, cosine)]
  return {
    name: number if np.isfinite(number) else None
    for name, number in zip(NAMES, numbers, strict=True)
  }


def advice(rows: Sequence[Mapping[str, Any]]) -> str | None:
  """What to tell when the two newest rows of a run log show that weights hardly matter any more.

  Each run is told once.
  """
  newest = rows[-2:]
  if any("advice" in row for row in rows) or len(newest) < 2:
    return None
  if any(row.get("weight_ratio") is None for row in newest):
    return None
  before, now = (
    margins.advice(margins.WeightDiagnostics(*(row[name] for name in NAMES[:-1]))) for row in newest
  )
  return now if before else None


_diagnose = jax.jit(margins.weight_diagnostics)


@functools.lru_cache(maxsize=32)  # runs that weigh the same loss share the compiled gradients
def _cosine(loss_fn: PerExampleLoss) -> Callable[..., Array]:
  def cosine(
    params: Any, model_state: Any, batch: Batch, weights: Array, mask: Array, key: Array
  ) -> Array:
    batch = batch._replace(mask=mask)
    pull = per_example.linearize(loss_fn, params, model_state, batch, key=key).pull
    return margins.gradient_cosine(pull, weights, mask)

  return jax.jit(cosine)
