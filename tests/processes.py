"""Commands as processes of their own: started, stopped by signals, and compared by their files."""

import functools
import pathlib
import subprocess
import sys
import tempfile
import time

import chex
import jax
import numpy as np
from absl import flags
from absl.testing import parameterized

from experiments import _errors, _flags, _lane, _model, _phases, _task
from reweight_jax import checkpointing, data, runlog

_ROOT = pathlib.Path(__file__).parent.parent


def parse(*argv):
  """The flags of `cifar_noisy`, parsed."""
  values = flags.FlagValues()
  _flags.define_flags(values)
  _errors.parse_flags(values, ("cifar_noisy", *argv))
  return values


def start(*argv, before="true"):
  """Starts `cifar_noisy`, after a command of the shell such as `ulimit`."""
  command = [sys.executable, "-m", "experiments.cifar_noisy", *argv]
  return subprocess.Popen(
    ["bash", "-c", f'{before}; exec "$@"', "bash", *command],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


class ProcessTestCase(parameterized.TestCase):
  """Runs of one method and seed 0 on digits, in folders below a root."""

  METHOD = "finetune"
  ARGV = (
    *("--method=finetune", "--steps=60", "--finetune_steps=40", "--batch_size=50"),
    *("--eval_every=15", "--checkpoint_every=10", "--momentum=0.9", "--nopictures"),
  )
  TOTAL = 100

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def start(self, name, *argv, **options):
    return start(f"--workdir={self.root / name}", *self.ARGV, *argv, **options)

  def folder(self, name):
    return self.root / name / self.METHOD / "seed_0"

  def newest(self, name):
    """The step of the newest checkpoint; 0 if there is none."""
    found = (self.folder(name) / "checkpoints").glob("*")
    return max((int(path.name) for path in found if path.name.isdecimal()), default=0)

  def stop(self, process, how, name, seconds=0.0):
    """Sends a signal some time after the next checkpoint is there; returns stderr."""
    before = self.newest(name)
    while process.poll() is None and self.newest(name) <= before:
      time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(how)
    return process.communicate()[1]

  def assert_same_files(self, name, other):
    """The last checkpoints, ledgers and logs are equal, bit for bit but for the clock."""
    digits, config = data.load("digits"), _flags.config_of(parse(*self.ARGV))
    model, task = _model.make_model("mlp", 10, None), _task.make_task(config, digits, 0)
    phases = _phases.make_phases(config, model, self.METHOD, digits, task, 0)
    init = functools.partial(model.init, jax.random.key(0), digits.train_inputs[:2])
    run = _lane.Run(0, task, phases, self.root, init)
    like = _lane.begin(run, self.TOTAL, _phases.make_schedule(config))
    found = [_files(self.folder(folder), self.TOTAL, like) for folder in (name, other)]
    chex.assert_trees_all_equal(*[files[:2] for files in found])
    self.assertEqual(found[0][2], found[1][2])


def _files(folder, step, like):
  with checkpointing.Checkpoints(folder / "checkpoints") as checkpoints:
    carry = checkpoints.restore(step, like)
  state = carry.state
  carry = carry._replace(state=state._replace(key=jax.random.key_data(state.key)))
  with np.load(folder / "weights.npz") as entries:
    weights = dict(entries)
  rows = runlog.read_rows(folder / "metrics.jsonl")
  return carry, weights, [row | {"seconds": None, "input_seconds": None} for row in rows]
