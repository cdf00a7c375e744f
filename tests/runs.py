"""Small runs of the training loop on digits, for the tests of the loop."""

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import parameterized

import reweight_jax as rw
from experiments import (
  _evaluation,
  _lane,
  _methods,
  _model,
  _phases,
  _run,
  _task,
)
from experiments._config import Config
from experiments._rule_options import RuleOptions
from reweight_jax import checkpointing, data, runlog

# A method with state everywhere: a rule that draws, a moving average, momentum, two phases.
_PROBE = _methods.Recipe(("random_weights", "normalize"), finetunes=True)
CONFIG = Config(
  methods=("probe",),
  steps=6,
  finetune_steps=4,
  momentum=0.9,
  batch_size=10,
  validation_size=50,
  eval_every=3,
  checkpoint_every=2,
  ema_decay=0.9,
  augment="paper",
  rule_options=RuleOptions(normalize_decay=0.9),
)
TOTAL = 10


class KilledError(Exception):
  """Stands for a kill."""


@functools.cache
def dataset():
  return data.load("digits")


@functools.cache
def linear_model():
  """A linear model: compiled in no time."""

  def apply_fn(params, model_state, inputs, key, train):
    return inputs.reshape(len(inputs), -1) / 255 @ params["kernel"] + params["bias"], model_state

  def init(key, inputs):
    params = {"kernel": np.zeros((64, 10), np.float32), "bias": np.ones((1, 10), np.float32)}
    return jax.tree.map(jax.numpy.array, params), {}

  loss_fn = rw.losses.from_apply(apply_fn)
  predict = _evaluation.make_predictor(rw.losses.from_apply(apply_fn, train=False))
  margin_loss_fn = rw.losses.from_apply(apply_fn, rw.losses.unit_margin)
  on = functools.cache(lambda loss: rw.losses.from_apply(apply_fn, loss))
  return _model.Model(init, loss_fn, loss_fn, margin_loss_fn, predict, on)


def make_task(seed=0, **settings):
  return _task.make_task(dataclasses.replace(CONFIG, **settings), dataset(), seed)


def _ignore(steps, text):
  del steps, text


class RunTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.dict(_methods.METHODS, {"probe": _PROBE}))
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.task = make_task()

  def train(self, *folders, config=CONFIG, task=None, advance=_ignore):
    """Trains in folders below the root, a seed each, or goes on there; returns stderr."""
    digits = dataset()
    setup = _lane.Setup(
      jax.device_put(digits.train_inputs),
      digits.train_ids,
      _evaluation.padded(digits.test_inputs, digits.test_labels),
      linear_model().predict,
      _phases.make_schedule(config),
      advance,
    )
    runs = [self.make_run(folder, config, task, seed) for seed, folder in enumerate(folders)]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
      _run.train(runs, setup)
    return stderr.getvalue()

  def make_run(self, folder, config=CONFIG, task=None, seed=0):
    model, task = linear_model(), task or make_task(seed)
    phases = _phases.make_phases(config, model, config.run_names()[0], dataset(), task, seed)
    (self.root / folder).mkdir(exist_ok=True)
    init = functools.partial(model.init, jax.random.key(seed), dataset().train_inputs[:2])
    return _lane.Run(seed, task, phases, self.root / folder, init)

  def carry(self, folder, step=None, config=CONFIG):
    """The checkpoint of a step, by default the newest, keys as numbers."""
    run = self.make_run(folder, config)
    with checkpointing.Checkpoints(self.root / folder / "checkpoints") as checkpoints:
      step = checkpoints.latest_step() if step is None else step
      carry = checkpoints.restore(step, _lane.begin(run, step, _phases.make_schedule(config)))
    state = carry.state
    return carry._replace(state=state._replace(key=jax.random.key_data(state.key)))

  def rows(self, folder):
    """The run log, without what the clock said."""
    rows = runlog.read_rows(self.root / folder / "metrics.jsonl")
    return [
      {name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows
    ]

  def weights(self, folder):
    with np.load(self.root / folder / "weights.npz") as entries:
      return dict(entries)

  def assert_same_run(self, folder, other, **kwargs):
    chex.assert_trees_all_equal(self.carry(folder, **kwargs), self.carry(other, **kwargs))
    chex.assert_trees_all_equal(self.weights(folder), self.weights(other))
    self.assertEqual(self.rows(folder), self.rows(other))
