"""Digits: sizes, pixels, original rows, and a split that is always the same."""

import numpy as np
from absl.testing import absltest, parameterized
from sklearn import datasets as sklearn_datasets

from reweight_jax.data import load


class DigitsTest(parameterized.TestCase):
  def test_sizes_and_types(self):
    digits = load("digits")
    self.assertEqual(digits.train_inputs.shape, (1300, 8, 8, 1))
    self.assertEqual(digits.test_inputs.shape, (497, 8, 8, 1))
    self.assertEqual((digits.train_inputs.dtype, digits.train_labels.dtype), (np.uint8, np.int32))
    self.assertEqual((digits.test_inputs.dtype, digits.train_ids.dtype), (np.uint8, np.int32))
    self.assertEqual((digits.num_classes, digits.class_names[9]), (10, "9"))

  def test_pixels_fill_the_range_of_uint8(self):
    raw, digits = sklearn_datasets.load_digits(), load("digits")
    for row in (0, 700, 1299):
      original = raw.data[digits.train_ids[row]]  # 0 .. 16; 255/16 is 15.9375
      by_hand = [int(value * 15.9375 + 0.5) for value in original]
      np.testing.assert_array_equal(digits.train_inputs[row].ravel(), by_hand)
    self.assertEqual((digits.train_inputs.min(), digits.train_inputs.max()), (0, 255))

  def test_ids_are_rows_of_load_digits_and_test_has_the_others(self):
    raw, digits = sklearn_datasets.load_digits(), load("digits")
    np.testing.assert_array_equal(digits.train_labels, raw.target[digits.train_ids])
    others = np.setdiff1d(np.arange(1797), digits.train_ids)
    self.assertLen(others, 497)
    np.testing.assert_array_equal(np.sort(digits.test_labels), np.sort(raw.target[others]))

  def test_split_is_stratified_and_always_the_same(self):
    first, second = load("digits"), load("digits")
    np.testing.assert_array_equal(first.train_ids, second.train_ids)
    shares = np.bincount(first.test_labels) / np.bincount(sklearn_datasets.load_digits().target)
    self.assertLess(np.abs(shares - 497 / 1797).max(), 1 / 174)  # one example of the rarest class


if __name__ == "__main__":
  absltest.main()
