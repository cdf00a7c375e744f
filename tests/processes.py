"""Commands as processes of their own: started, stopped by signals, and compared by their files."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from unittest import mock

import chex
import jax
import numpy as np
from absl import flags, logging
from absl.testing import parameterized

from experiments import _command, _errors, _flags, _lane, _phases
from reweight_jax import checkpointing, runlog

_ROOT = pathlib.Path(__file__).parent.parent


def parse(*argv):
  """The flags of `cifar_noisy`, parsed."""
  values = flags.FlagValues()
  _flags.define_flags(values)
  _errors.parse_flags(values, ("cifar_noisy", *argv))
  return values


def start(*argv, **environment):
  """Starts `cifar_noisy`."""
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.cifar_noisy", *argv],
    cwd=_ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


class ProcessTestCase(parameterized.TestCase):
  """Runs of one method and seed 0 on small images, in folders below a root."""

  METHOD = "finetune"
  ARGV = (
    *("--method=finetune", "--steps=60", "--finetune_steps=40", "--batch_size=50"),
    *("--eval_every=15", "--checkpoint_every=10", "--momentum=0.9", "--nopictures"),
  )
  SMALL = ("--model=mlp", "--validation_size=40", "--compilation_cache=none")
  TOTAL = 100

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    rng, labels = np.random.default_rng(0), np.arange(400) % 4
    images = rng.integers(0, 200, (400, 4, 4, 1), np.uint8)
    images[np.arange(400), labels] += 55  # the row that tells the class
    # A file is read without scikit-learn, whose import takes a process two seconds.
    runlog.write_npz(self.root / "small.npz", {
      "train_inputs": images[:300], "train_labels": labels[:300],
      "test_inputs": images[300:], "test_labels": labels[300:],
    })  # fmt: skip

  def argv(self, name):
    """The command line of a run, whatever kind of process it runs in."""
    places = (f"--workdir={self.root / name}", f"--dataset={self.root / 'small.npz'}")
    return (*places, *self.SMALL, *self.ARGV)

  def start(self, name):
    # Compiled as in this process, to the same bits.
    fast = jax.config.values["jax_disable_most_optimizations"]
    return start(*self.argv(name), JAX_DISABLE_MOST_OPTIMIZATIONS=str(fast))

  def finish(self, name):
    """Runs the command in this process, which saves its start; its status and stderr."""
    status, verbosity = 0, logging.get_verbosity()
    with (
      mock.patch.object(sys, "unraisablehook"),
      contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
      _errors.silence_orbax()
      try:
        config = _flags.config_of(parse(*self.argv(name)))
        _errors.exit_on_mistake(lambda: _command.run(config))
      except SystemExit as stop:
        status = stop.code
      finally:
        logging.set_verbosity(verbosity)
    return status, stderr.getvalue()

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
    config = _flags.config_of(parse(*self.argv(name)))
    ((run,),) = _command.plan(config).methods
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
