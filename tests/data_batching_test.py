"""Batches: every example once an epoch, the same order after a restart, one shape."""

import collections

import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax.data import batch_indices, batches

Pair = collections.namedtuple("Pair", ["first", "second"])


class BatchIndicesTest(parameterized.TestCase):
  def test_epoch_holds_every_example_once_when_batches_divide_it(self):
    for epoch in range(3):
      seen = [batch_indices(12, 4, 3 * epoch + position, seed=5) for position in range(3)]
      self.assertEqual(sorted(np.concatenate(seen).tolist()), list(range(12)))

  def test_ragged_rest_sits_the_epoch_out(self):
    for epoch in range(3):
      seen = [batch_indices(10, 4, 2 * epoch + position, seed=5) for position in range(2)]
      self.assertLen(set(np.concatenate(seen).tolist()), 8)

  def test_every_example_comes_over_the_epochs(self):
    seen = np.concatenate([batch_indices(10, 4, step, seed=0) for step in range(40)])
    self.assertEqual(set(seen.tolist()), set(range(10)))

  def test_order_is_the_permutation_of_seed_and_epoch(self):
    expected = np.random.default_rng([9, 2]).permutation(20)[5:10]  # epoch 2, second of 4
    np.testing.assert_array_equal(batch_indices(20, 5, 9, seed=9), expected)

  def test_resumed_run_sees_what_an_unbroken_run_sees(self):
    unbroken = [batch_indices(30, 7, step, seed=1) for step in range(12)]
    for step in (11, 0, 5, 8):  # any order, any epoch
      np.testing.assert_array_equal(batch_indices(30, 7, step, seed=1), unbroken[step])

  def test_writing_to_a_batch_does_not_change_the_next_call(self):
    first = batch_indices(8, 4, 0, seed=0)
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_indices(8, 4, 0, seed=0), kept)

  def test_epochs_and_seeds_differ(self):
    epochs = [tuple(batch_indices(50, 50, step, seed=0)) for step in range(5)]
    seeds = [tuple(batch_indices(50, 50, 0, seed=seed)) for seed in range(5)]
    self.assertLen(set(epochs + seeds), 9)  # epoch 0 of seed 0 stands in both

  def test_numpy_integers_are_numbers_too(self):
    batch = batch_indices(np.int64(8), np.int32(4), np.int32(3), np.int64(2))
    np.testing.assert_array_equal(batch, batch_indices(8, 4, 3, 2))
    self.assertEqual(batch.dtype, np.int32)

  @parameterized.parameters(
    (5, 6, 0, 0, "1 to the 5 examples.*6"),
    (5, 0, 0, 0, "1 to the 5 examples.*0"),
    (5, 2, -1, 0, "step=-1"),
    (5, 2, 0, -3, "seed=-3"),
  )
  def test_bad_arguments_are_named_in_one_line(self, num_examples, size, step, seed, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as raised:
      batch_indices(num_examples, size, step, seed)
    self.assertNotIn("\n", str(raised.exception))


class BatchesTest(parameterized.TestCase):
  def test_rows_are_those_of_the_indices(self):
    inputs, labels = np.arange(20).reshape(10, 2), np.arange(10) * 7
    for got_inputs, got_labels, indices, mask in batches(inputs, labels, 4, seed=3):
      np.testing.assert_array_equal(got_inputs, np.stack([2 * indices, 2 * indices + 1], 1))
      np.testing.assert_array_equal(got_labels, 7 * indices)
      self.assertEqual((indices.dtype, mask.dtype), (np.int32, bool))

  def test_last_batch_is_padded_with_example_zero(self):
    got = list(batches(np.arange(5) + 10, np.arange(5), 3, seed=None))
    self.assertLen(got, 2)
    inputs, labels, indices, mask = got[1]
    np.testing.assert_array_equal(inputs, [13, 14, 10])
    np.testing.assert_array_equal(labels, [3, 4, 0])
    np.testing.assert_array_equal(indices, [3, 4, 0])
    np.testing.assert_array_equal(mask, [True, True, False])

  @parameterized.parameters(1, 3, 5, 8)
  def test_every_real_example_comes_once_an_epoch(self, batch_size):
    seen = []
    for inputs, _, indices, mask in batches(np.arange(5), np.arange(5), batch_size, num_epochs=2):
      self.assertEqual(inputs.shape, (batch_size,))
      seen += indices[mask].tolist()
    self.assertEqual(sorted(seen[:5]), list(range(5)))
    self.assertEqual(sorted(seen[5:]), list(range(5)))

  def test_dropping_the_remainder_leaves_full_batches_in_the_resumable_order(self):
    got = list(batches(np.arange(10), np.arange(10), 4, seed=2, num_epochs=2, drop_remainder=True))
    self.assertLen(got, 4)
    for step, (_, _, indices, mask) in enumerate(got):
      self.assertTrue(mask.all())
      np.testing.assert_array_equal(indices, batch_indices(10, 4, step, seed=2))

  def test_nested_inputs_keep_their_structure(self):
    inputs = {"image": np.arange(6).reshape(3, 2), "more": [np.arange(3), (np.arange(3) * 2,)]}
    labels = Pair(np.arange(3), np.arange(3) + 5)
    got_inputs, got_labels, _, _ = next(batches(inputs, labels, 2, seed=None))
    np.testing.assert_array_equal(got_inputs["image"], [[0, 1], [2, 3]])
    self.assertIsInstance(got_inputs["more"], list)
    self.assertIsInstance(got_inputs["more"][1], tuple)
    np.testing.assert_array_equal(got_inputs["more"][1][0], [0, 2])
    self.assertIsInstance(got_labels, Pair)
    np.testing.assert_array_equal(got_labels.second, [5, 6])

  def test_no_epochs_is_no_batches(self):
    self.assertEmpty(list(batches(np.arange(3), np.arange(3), 2, num_epochs=0)))

  @parameterized.named_parameters(
    ("lengths differ", np.zeros(3), np.zeros(4), {}, "inputs has 3 examples, labels has 4"),
    ("leaf differs", {"a": [np.zeros(3), np.zeros(2)]}, np.zeros(3), {}, "inputs.a.1 has 2"),
    ("named leaf differs", np.zeros(3), Pair(np.zeros(3), np.zeros(1)), {}, "labels.second has 1"),
    ("scalar", {"a": np.zeros(3)}, 1.0, {}, "labels is a single value"),
    ("no examples", np.zeros(0), np.zeros(0), {}, "inputs has none"),
    ("no arrays", {}, (), {}, "at least one array"),
    ("batch size zero", np.zeros(3), np.zeros(3), {"batch_size": 0}, "batch_size=0"),
    ("negative epochs", np.zeros(3), np.zeros(3), {"num_epochs": -1}, "num_epochs=-1"),
    ("negative seed", np.zeros(3), np.zeros(3), {"seed": -1}, "seed=-1"),
    (
      "remainder is all",
      np.zeros(3),
      np.zeros(3),
      {"batch_size": 4, "drop_remainder": True},
      "3 examples.*got 4",
    ),
  )
  def test_bad_arguments_are_named_in_one_line_at_the_call(self, inputs, labels, options, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as raised:
      batches(inputs, labels, **{"batch_size": 2, **options})
    self.assertNotIn("\n", str(raised.exception))


if __name__ == "__main__":
  absltest.main()
