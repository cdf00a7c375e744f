"""Checkpoints: trees come back bit for bit, old ones go, damage is one line."""

import pathlib
import shutil
import tempfile
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from reweight_jax.checkpointing import CheckpointError, Checkpoints


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
      checkpoints.wait()
      self.assertCountEqual([path.name for path in self.folder.iterdir()], ["2", "10"])
      self.assertEqual(checkpoints.restore(10, {"step": jnp.int32(0)})["step"], 10)

  def test_the_best_stays_beside_the_newest(self):
    with Checkpoints(self.folder, keep=1) as checkpoints:
      for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.1), (6, None)):
        checkpoints.save(step, {"step": jnp.int32(step)}, score=score)
      self.assertEqual(checkpoints.best_step(), 4)  # the newer of two equals
      self.assertEqual(checkpoints.steps(), [4, 6])
    with Checkpoints(self.folder) as checkpoints:
      self.assertEqual(checkpoints.best_step(), 4)

  def test_without_scores_there_is_no_best(self):
    with Checkpoints(self.folder) as checkpoints:
      checkpoints.save(1, {"step": jnp.int32(1)})
      self.assertIsNone(checkpoints.best_step())

  def test_what_happens_to_the_tree_after_the_save_does_not_matter(self):
    tree = {"array": np.ones(100_000), "donated": jnp.ones(100_000)}
    with Checkpoints(self.folder) as checkpoints:
      checkpoints.save(1, tree)
      tree["array"][:] = 7
      jax.jit(lambda x: x * 0, donate_argnums=0)(tree["donated"])
      like = {name: jnp.zeros(100_000) for name in tree}
      found = checkpoints.restore(1, like)
    for leaf in found.values():
      np.testing.assert_array_equal(leaf, np.ones(100_000))

  def test_a_folder_that_takes_no_files_is_an_error_of_the_save(self):
    for name in ("1", "2"):
      (self.folder / name).mkdir(parents=True)
    checkpoints = Checkpoints(self.folder)
    shutil.rmtree(self.folder)
    self.folder.touch()
    with self.assertRaisesRegex(CheckpointError, f"cannot write a checkpoint to {self.folder}: "):
      checkpoints.save(3, {"step": jnp.int32(1)})
      checkpoints.close()

  @parameterized.parameters("default", "metrics")
  def test_damaged_ones_are_moved_aside_and_the_newest_readable_one_is_read(self, part):
    with Checkpoints(self.folder, keep=3) as checkpoints:
      for step in (1, 2, 3):
        checkpoints.save(step, {"step": jnp.int32(step)}, score=step)
    for step in (2, 3):
      for path in (self.folder / str(step) / part).rglob("*"):
        if path.is_file():
          path.write_bytes(path.read_bytes()[:3])
    with Checkpoints(self.folder) as checkpoints:
      step, found = checkpoints.restore_latest(lambda step: {"step": jnp.int32(0)})
      self.assertEqual((step, found["step"]), (1, 1))
      places = [self.folder.parent / f"damaged_{step}" for step in (3, 2)]
      self.assertEqual(checkpoints.damaged, places)
      checkpoints.save(2, {"step": jnp.int32(5)})
      self.assertEqual(checkpoints.restore(2, {"step": jnp.int32(0)})["step"], 5)
      self.assertEqual(checkpoints.steps(), [1, 2])

  def test_an_empty_folder_has_nothing_to_restore(self):
    with Checkpoints(self.folder) as checkpoints:
      self.assertIsNone(checkpoints.restore_latest(self.fail))

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
      checkpoints.wait()
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
