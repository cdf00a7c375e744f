"""Splits: disjoint, exact in size, balanced by class."""

import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax.data import DataError, Split, assert_disjoint, split_indices
from reweight_jax.data.splits import apportion


def _split(labels, num_classes, meta_size, validation_size, seed=0):
  return split_indices(
    np.array(labels),
    num_classes,
    meta_size=meta_size,
    validation_size=validation_size,
    rng=np.random.default_rng(seed),
  )


class SplitIndicesTest(parameterized.TestCase):
  @parameterized.product(meta_size=(0, 7, 20), validation_size=(0, 13, 50))
  def test_parts_hold_every_example_once(self, meta_size, validation_size):
    labels = np.random.default_rng(1).integers(0, 4, 200)
    split = _split(labels, 4, meta_size, validation_size)
    parts = [set(part.tolist()) for part in split]
    self.assertEqual([len(part) for part in parts], [len(part) for part in split])
    self.assertEqual(set.union(*parts), set(range(200)))
    self.assertEqual(sum(map(len, parts)), 200)
    self.assertEqual((len(split.meta), len(split.validation)), (meta_size, validation_size))

  def test_parts_are_sorted_int32(self):
    for part in _split(np.arange(50) % 5, 5, 10, 10):
      self.assertEqual(part.dtype, np.int32)
      self.assertEqual(part.tolist(), sorted(part.tolist()))

  def test_meta_set_holds_equal_counts_of_unequal_classes(self):
    labels = np.repeat([0, 1, 2], [10, 100, 1000])
    split = _split(labels, 3, 30, 0)
    np.testing.assert_array_equal(np.bincount(labels[split.meta]), [10, 10, 10])

  def test_random_classes_get_the_examples_that_do_not_divide(self):
    labels = np.arange(100) % 4
    extra = set()
    for seed in range(20):
      counts = np.bincount(labels[_split(labels, 4, 10, 0, seed).meta], minlength=4)
      self.assertEqual(sorted(counts.tolist()), [2, 2, 3, 3])
      extra |= set(np.flatnonzero(counts == 3).tolist())
    self.assertEqual(extra, {0, 1, 2, 3})

  def test_meta_set_smaller_than_number_of_classes_takes_at_most_one_each(self):
    labels = np.arange(100) % 10
    counts = np.bincount(labels[_split(labels, 10, 3, 0).meta], minlength=10)
    self.assertEqual(sorted(counts.tolist()), [0] * 7 + [1] * 3)

  def test_validation_set_is_proportional(self):
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    split = _split(labels, 3, 0, 60)
    np.testing.assert_array_equal(np.bincount(labels[split.validation]), [10, 20, 30])

  def test_validation_set_is_proportional_to_what_the_meta_set_left(self):
    labels = np.repeat([0, 1], [10, 30])
    split = _split(labels, 2, 20, 5)  # leaves class 1 alone
    np.testing.assert_array_equal(np.bincount(labels[split.validation], minlength=2), [0, 5])

  def test_equal_generators_give_equal_splits(self):
    labels = np.arange(100) % 4
    first, second, other = (_split(labels, 4, 8, 20, seed) for seed in (3, 3, 4))
    for part, same in zip(first, second, strict=True):
      np.testing.assert_array_equal(part, same)
    self.assertTrue((first.meta != other.meta).any())

  @parameterized.named_parameters(
    ("negative meta", [0, 1, 0, 1], -1, 0, DataError, "meta_size=-1"),
    ("negative validation", [0, 1, 0, 1], 0, -2, DataError, "validation_size=-2"),
    ("nothing left", [0, 1, 0, 1], 2, 2, DataError, "4 examples.*2 [+] 2"),
    ("class too small", [0, 1, 1, 1, 1, 1], 4, 0, DataError, "2 examples of class 0, which has 1"),
    ("class absent", [1, 1, 1, 1, 1, 1], 2, 0, DataError, "1 examples of class 0, which has 0"),
    ("label too large", [0, 1, 2, 1], 0, 1, ValueError, "0 to 2"),
  )
  def test_bad_arguments_are_named_in_one_line(self, labels, meta, validation, error, pattern):
    with self.assertRaisesRegex(error, pattern) as raised:
      _split(labels, 2, meta, validation)
    self.assertNotIn("\n", str(raised.exception))


class AssertDisjointTest(parameterized.TestCase):
  def test_accepts_disjoint_parts(self):
    assert_disjoint(Split(np.array([0, 2]), np.array([1]), np.array([], np.int32)))

  @parameterized.parameters(
    ([0, 1, 2], [1, 2], [5], "train and meta.*2 indices, first 1"),
    ([0, 1, 2], [4], [2], "train and validation.*1 indices, first 2"),
    ([0], [7, 8, 9], [9, 8, 7], "meta and validation.*3 indices, first 7"),
  )
  def test_counts_the_shared_indices(self, train, meta, validation, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as raised:
      assert_disjoint(Split(np.array(train), np.array(meta), np.array(validation)))
    self.assertNotIn("\n", str(raised.exception))


class ApportionTest(parameterized.TestCase):
  @parameterized.parameters(
    ([2.0, 3.0], [2, 3]),
    ([1.2, 2.7, 0.1], [1, 3, 0]),
    ([0.29 * 100, 0.5, 0.4], [29, 1, 0]),  # 0.29 * 100 is 28.999999999999996
    ([0.0, 0.0], [0, 0]),
  )
  def test_largest_remainders_go_up(self, quotas, expected):
    np.testing.assert_array_equal(apportion(np.array(quotas), np.random.default_rng(0)), expected)


if __name__ == "__main__":
  absltest.main()
