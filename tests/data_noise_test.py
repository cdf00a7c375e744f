"""Label noise: exact counts, the right targets, honest flags."""

import operator

import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax.data import NOISES, corrupt_labels


def _balanced(num_classes: int, per_class: int) -> np.ndarray:
  return np.repeat(np.arange(num_classes), per_class)


def _transitions(labels: np.ndarray, noisy: np.ndarray, num_classes: int) -> np.ndarray:
  """Counts how often class (row) became class (column), one example at a time."""
  counts = np.zeros((num_classes, num_classes), int)
  for before, after in zip(labels, noisy, strict=True):
    counts[before, after] += 1
  return counts


class CorruptLabelsTest(parameterized.TestCase):
  def test_symmetric_moves_exact_count_of_each_class_to_all_others(self):
    labels = _balanced(5, 1000)
    noisy = corrupt_labels(labels, 5, "symmetric", 0.4, np.random.default_rng(0))
    counts = _transitions(labels, noisy.labels, 5)
    np.testing.assert_array_equal(np.diag(counts), 600)
    # 400 labels over 4 classes: 100 each with standard deviation sqrt(400 * 1/4 * 3/4) < 9.
    others = counts[~np.eye(5, dtype=bool)]
    self.assertLess(np.abs(others - 100).max(), 45)
    self.assertEqual(noisy.realized_rate, 0.4)

  def test_pair_moves_exact_count_of_each_class_to_the_next(self):
    labels = _balanced(4, 20)
    noisy = corrupt_labels(labels, 4, "pair", 0.45, np.random.default_rng(0))
    expected = [[11, 9, 0, 0], [0, 11, 9, 0], [0, 0, 11, 9], [9, 0, 0, 11]]
    np.testing.assert_array_equal(_transitions(labels, noisy.labels, 4), expected)
    self.assertEqual(noisy.realized_rate, 0.45)

  def test_background_moves_exact_count_of_other_classes_to_one_class(self):
    labels = _balanced(10, 100)
    noisy = corrupt_labels(labels, 10, "background", 0.4, np.random.default_rng(1))
    counts = _transitions(labels, noisy.labels, 10)
    background = int(counts.sum(0).argmax())
    expected = 60 * np.eye(10, dtype=int)
    expected[:, background] += 40
    np.testing.assert_array_equal(counts, expected)
    self.assertEqual(noisy.realized_rate, 0.36)  # 9 of 10 classes lose 0.4

  def test_background_class_is_drawn_from_all_classes(self):
    labels = _balanced(4, 10)
    seen = set()
    for seed in range(60):
      noisy = corrupt_labels(labels, 4, "background", 0.5, np.random.default_rng(seed))
      seen.add(int(noisy.labels[noisy.is_noisy][0]))
    self.assertEqual(seen, {0, 1, 2, 3})

  def test_symmetric_inclusive_realizes_less_than_its_rate(self):
    labels = _balanced(4, 2000)
    noisy = corrupt_labels(labels, 4, "symmetric_inclusive", 0.4, np.random.default_rng(0))
    # 3200 redrawn, each wrong with 3/4: 2400 with standard deviation sqrt(3200 * 3/16) < 25.
    self.assertLess(abs(noisy.is_noisy.sum() - 2400), 125)
    counts = _transitions(labels, noisy.labels, 4)
    self.assertLess(np.abs(counts[~np.eye(4, dtype=bool)] - 200).max(), 65)

  def test_unequal_classes_lose_their_rounded_share(self):
    labels = np.repeat([0, 1, 2], [10, 33, 7])
    noisy = corrupt_labels(labels, 3, "symmetric", 0.3, np.random.default_rng(0))
    # 3.0, 9.9 and 2.1 of 15: only the middle class has a remainder that rounds up.
    lost = np.bincount(labels[noisy.is_noisy], minlength=3)
    np.testing.assert_array_equal(lost, [3, 10, 2])

  @parameterized.product(noise=("symmetric", "pair"), rate=(0.0, 0.1, 0.29, 0.55, 0.999))
  def test_realized_rate_is_the_rounded_nominal_rate(self, noise, rate):
    labels = np.random.default_rng(3).integers(0, 7, 500)
    noisy = corrupt_labels(labels, 7, noise, rate, np.random.default_rng(0))
    self.assertEqual(
      noisy.is_noisy.sum(), {0.0: 0, 0.1: 50, 0.29: 145, 0.55: 275, 0.999: 500}[rate]
    )
    shares = np.bincount(labels[noisy.is_noisy], minlength=7) - rate * np.bincount(labels)
    self.assertLess(np.abs(shares).max(), 1)

  @parameterized.parameters(*NOISES)
  def test_flag_means_the_label_differs(self, noise):
    labels = np.random.default_rng(3).integers(0, 3, 100)
    rate = 0.0 if noise == "none" else 0.5
    flips = {0: 2, 2: 1} if noise == "asymmetric" else None
    noisy = corrupt_labels(labels, 3, noise, rate, np.random.default_rng(0), flips=flips)
    np.testing.assert_array_equal(noisy.is_noisy, list(map(operator.ne, labels, noisy.labels)))
    self.assertAlmostEqual(noisy.realized_rate, sum(noisy.is_noisy) / 100)
    self.assertEqual((noisy.labels.dtype, noisy.is_noisy.dtype), (np.int32, bool))
    self.assertIsInstance(noisy.realized_rate, float)

  @parameterized.parameters(*NOISES)
  def test_rate_zero_changes_nothing(self, noise):
    labels = _balanced(3, 5)
    flips = {0: 1} if noise == "asymmetric" else None
    noisy = corrupt_labels(labels, 3, noise, 0.0, np.random.default_rng(0), flips=flips)
    np.testing.assert_array_equal(noisy.labels, labels)
    self.assertEqual(noisy.realized_rate, 0.0)

  @parameterized.parameters("symmetric", "symmetric_inclusive", "pair", "background")
  def test_equal_generators_give_equal_labels_and_input_stays(self, noise):
    labels = _balanced(3, 20)
    first = corrupt_labels(labels, 3, noise, 0.4, np.random.default_rng(7))
    second = corrupt_labels(labels, 3, noise, 0.4, np.random.default_rng(7))
    other = corrupt_labels(labels, 3, noise, 0.4, np.random.default_rng(8))
    np.testing.assert_array_equal(first.labels, second.labels)
    self.assertTrue((first.labels != other.labels).any())
    np.testing.assert_array_equal(labels, _balanced(3, 20))

  @parameterized.named_parameters(
    ("unknown noise", [0, 1], 2, "uniform", 0.1, "symmetric_inclusive, pair.*'uniform'"),
    ("negative rate", [0, 1], 2, "pair", -0.1, "noise_rate.*-0.1"),
    ("rate one", [0, 1], 2, "pair", 1.0, "noise_rate.*1.0"),
    ("rate not a number", [0, 1], 2, "pair", float("nan"), "noise_rate.*nan"),
    ("none with rate", [0, 1], 2, "none", 0.1, "'none'.*0.1"),
    ("one class", [0, 0], 1, "pair", 0.1, "2 classes, got 1"),
    ("label too large", [0, 5], 2, "pair", 0.1, "0 to 5"),
    ("label negative", [-1, 1], 2, "pair", 0.1, "-1 to 1"),
    ("float labels", [0.0, 1.0], 2, "pair", 0.1, "float64"),
    ("matrix of labels", [[0, 1]], 2, "pair", 0.1, r"\(1, 2\)"),
    ("no labels", np.zeros(0, int), 2, "pair", 0.1, r"\(0,\)"),
  )
  def test_bad_arguments_are_named_in_one_line(self, labels, num_classes, noise, rate, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as raised:
      corrupt_labels(np.array(labels), num_classes, noise, rate, np.random.default_rng(0))
    self.assertNotIn("\n", str(raised.exception))


if __name__ == "__main__":
  absltest.main()
