"""Checkpoints: trees come back bit for bit, old ones go, damage is one line."""

import pathlib
import shutil
import signal
import tempfile
from typing import NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from reweight_jax.checkpointing import Checkpoints


class Pair(NamedTuple):
  first: jax.Array
  second: jax.Array


def _tree(seed):
  params = {"kernel": np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32)}
  return {
    "params": params,
    "opt_state": optax.sgd(0.1, momentum=0.9).init(params),
    "pair": Pair(jnp.int32(seed), jnp.array([jnp.nan, 1.0])),
    "key": jax.random.key(seed),
  }


def _data(tree):
  return tree | {"key": jax.random.key_data(tree["key"])}


class CheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "checkpoints"

  def test_trees_with_keys_and_optax_states_come_back_bit_for_bit(self):
    with Checkpoints(self.folder) as checkpoints:
      self.assertIsNone(checkpoints.latest_step())
      checkpoints.save(3, _tree(1))
    with Checkpoints(self.folder) as checkpoints:
      self.assertEqual(checkpoints.latest_step(), 3)
      found = checkpoints.restore(3, _tree(2))
    chex.assert_trees_all_equal(_data(found), _data(_tree(1)))
    self.assertIsInstance(found["pair"], Pair)
    self.assertTrue(jnp.issubdtype(found["key"].dtype, jax.dtypes.prng_key))

  def test_newest_are_kept_and_a_step_is_saved_once(self):
    with Checkpoints(self.folder, keep=2) as checkpoints:
      for step in (1, 2, 10):
        checkpoints.save(step, {"step": jnp.int32(step)})
      checkpoints.save(10, {"step": jnp.int32(-1)})
      self.assertCountEqual([path.name for path in self.folder.iterdir()], ["2", "10"])
      self.assertEqual(checkpoints.restore(10, {"step": jnp.int32(0)})["step"], 10)

  def test_interrupt_waits_for_the_save(self):
    def save_slowly(*args, **kwargs):
      signal.raise_signal(signal.SIGINT)
      done.append("saved")

    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, before)
    with Checkpoints(self.folder) as checkpoints:
      with (
        mock.patch.object(checkpoints._manager, "save", save_slowly),
        self.assertRaises(KeyboardInterrupt),
      ):
        checkpoints.save(1, {"step": jnp.int32(1)})
      self.assertEqual(done, ["saved"])
      self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

  def test_half_written_save_does_not_count(self):
    with Checkpoints(self.folder) as checkpoints:
      checkpoints.save(1, {"step": jnp.int32(1)})
      checkpoints.save(2, {"step": jnp.int32(2)})
    (self.folder / "2").rename(self.folder / "2.orbax-checkpoint-tmp-0")
    with Checkpoints(self.folder) as checkpoints:
      self.assertEqual(checkpoints.latest_step(), 1)

  @parameterized.parameters("damaged", "missing", "other structure")
  def test_what_cannot_be_read_is_one_line_with_the_folder(self, how):
    with Checkpoints(self.folder) as checkpoints:
      checkpoints.save(4, {"step": jnp.int32(1)})
      like = {"step": jnp.int32(0)}
      if how == "damaged":
        shutil.rmtree(self.folder / "4" / "default")
      elif how == "other structure":
        like = {"step": jnp.int32(0), "params": jnp.zeros(3)}
      step = 5 if how == "missing" else 4
      with self.assertRaisesRegex(ValueError, f"checkpoints/{step}, which cannot be") as raised:
        checkpoints.restore(step, like)
    self.assertNotIn("\n", str(raised.exception))


if __name__ == "__main__":
  absltest.main()
