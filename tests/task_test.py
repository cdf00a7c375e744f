"""A seed's task: disjoint parts, clean meta set, noise and imbalance where they belong."""

import chex
import numpy as np
from absl.testing import absltest, parameterized

from experiments import _task
from reweight_jax import data
from tests import runs


class TaskTest(parameterized.TestCase):
  def test_parts_share_no_example_and_hold_all(self):
    task = runs.make_task()
    self.assertEqual([len(part) for part in task[1:4]], [1230, 20, 50])
    np.testing.assert_array_equal(np.sort(np.concatenate(task[1:4])), np.arange(1300))

  def test_meta_is_clean_and_balanced(self):
    task, clean = runs.make_task(), runs.dataset().train_labels
    np.testing.assert_array_equal(task.labels[task.meta], clean[task.meta])
    np.testing.assert_array_equal(np.bincount(task.labels[task.meta]), [2] * 10)
    self.assertEqual(task.class_counts("meta"), (2,) * 10)

  def test_noise_moves_labels_and_flags_tell_which(self):
    task, clean = runs.make_task(), runs.dataset().train_labels
    np.testing.assert_array_equal(task.is_noisy, clean != task.labels)
    moved = task.is_noisy
    np.testing.assert_array_equal(task.labels[moved], (clean[moved] + 1) % 10)
    self.assertIn(task.is_noisy[task.train].sum(), (553, 554))  # 0.45 * 1230 = 553.5
    self.assertIn(task.is_noisy[task.validation].sum(), (22, 23))

  def test_training_and_validation_share_the_background_class(self):
    for seed in range(5):
      task = runs.make_task(seed, noise="background", noise_rate=0.9, validation_size=200)
      most = [np.bincount(task.labels[part]).argmax() for part in (task.train, task.validation)]
      self.assertEqual(most[0], most[1])

  def test_imbalance_thins_out_training_and_validation_before_the_noise(self):
    task = runs.make_task(
      imbalance="step", imbalance_ratio=10.0, validation_size=200, noise="pair", noise_rate=0.2
    )
    clean = runs.dataset().train_labels
    for part in (task.train, task.validation):
      counts = np.bincount(clean[part], minlength=10)
      self.assertEqual(counts[5:].tolist(), [counts[:5].min() // 10] * 5)
      self.assertAlmostEqual(task.is_noisy[part].mean(), 0.2, delta=1 / len(part))
    self.assertEqual(task.class_counts("meta"), (2,) * 10)

  @parameterized.parameters(
    (
      {"validation_size": 5},
      "--validation_size: expected .*every class .*none of class .* among 5",
    ),
    (
      {"train_size": 9},
      "--train_size: expected .*every class .*none of class . among 9; give more$",
    ),
    ({"imbalance_ratio": 200.0}, "ratio of 200 leaves class 9 without .* has 119.*Lower the ratio"),
  )
  def test_imbalance_needs_every_class_and_names_what_leaves_one_out(self, settings, message):
    settings = {"imbalance": "long_tail", "imbalance_ratio": 10.0, **settings}
    with self.assertRaisesRegex(ValueError, message):
      runs.make_task(**settings)

  def test_a_class_that_was_never_there_is_not_blamed_on_the_ratio(self):
    with self.assertRaisesRegex(
      data.DataError, "'step' expects .* every class, got none of class 1"
    ):
      data.imbalanced_indices(np.array([0, 0, 2]), 3, "step", 2.0, np.random.default_rng(0))

  def test_a_single_class_is_refused(self):
    single = runs.dataset()._replace(class_names=("0",))
    with self.assertRaisesRegex(ValueError, "digits: expected at least 2 classes, got 1"):
      _task.make_task(runs.CONFIG, single, 0)

  def test_seed_decides(self):
    first, again, other = runs.make_task(1), runs.make_task(1), runs.make_task(2)
    chex.assert_trees_all_equal(first, again)
    self.assertFalse(np.array_equal(first.train, other.train))


if __name__ == "__main__":
  absltest.main()
