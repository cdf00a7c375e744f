"""Asymmetric and human noise, imbalance, packed files: joined by number, exact, or refused."""

import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax import data

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer")
_CIFAR10 += ("dog", "frog", "horse", "ship", "truck")


def _rng(seed=0):
  return np.random.default_rng(seed)


class AsymmetricTest(parameterized.TestCase):
  def test_flips_of_cifar10_by_name(self):
    flips = data.asymmetric_flips("cifar10", _CIFAR10)
    named = {_CIFAR10[source]: _CIFAR10[target] for source, target in flips.items()}
    self.assertEqual(named, {"truck": "automobile", "bird": "airplane", "deer": "horse",
                             "cat": "dog", "dog": "cat"})  # fmt: skip

  def test_flips_of_cifar100_run_once_around_each_super_class(self):
    from reweight_jax.data import flips as tables

    names = sorted(tables._SUPER_CLASSES.split())
    self.assertLen(set(names), 100)
    flips = data.asymmetric_flips("cifar100", names)
    self.assertEqual(names[flips[names.index("whale")]], "beaver")
    self.assertEqual(names[flips[names.index("maple_tree")]], "oak_tree")
    for start in range(100):
      label, circle = flips[start], 1
      while label != start:
        label, circle = flips[label], circle + 1
      self.assertEqual(circle, 5)

  def test_rate_is_that_of_the_classes_that_flip(self):
    labels = np.repeat(np.arange(10), 100)
    flips = data.asymmetric_flips("cifar10", _CIFAR10)
    noisy = data.corrupt_labels(labels, 10, "asymmetric", 0.4, _rng(), flips=flips)
    for label in range(10):
      found = np.bincount(noisy.labels[labels == label], minlength=10)
      expected = np.zeros(10, int)
      expected[label] = 100
      if label in flips:
        expected[label], expected[flips[label]] = 60, 40
      np.testing.assert_array_equal(found, expected)
    self.assertAlmostEqual(noisy.realized_rate, 0.2)
    np.testing.assert_array_equal(noisy.is_noisy, noisy.labels != labels)

  @parameterized.parameters(
    ("digits", _CIFAR10, "digits: asymmetric noise is defined for cifar10, cifar100, mnist"),
    ("cifar10", tuple("0123456789"), "'airplane' is not among the 10"),
  )
  def test_other_data_sets_are_refused(self, name, class_names, pattern):
    with self.assertRaisesRegex(data.DataError, pattern):
      data.asymmetric_flips(name, class_names)

  @parameterized.parameters(
    ("asymmetric", None, "needs them"),
    ("pair", {0: 1}, "go with noise 'asymmetric'"),
    ("asymmetric", {0: 0}, "from one class below 2 to another, got 0 -> 0"),
    ("asymmetric", {0: 2}, "got 0 -> 2"),
  )
  def test_flips_that_are_none(self, noise, flips, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      data.corrupt_labels(np.array([0, 1]), 2, noise, 0.5, _rng(), flips=flips)


class ImbalanceTest(parameterized.TestCase):
  # Totals published with Meta-Weight-Net's program: 4990 and 490 images a class.
  @parameterized.parameters(
    (200, 11_177, 9_304), (100, 12_380, 10_626), (50, 13_967, 12_354),
    (20, 16_989, 15_594), (10, 20_391, 19_183),
  )  # fmt: skip
  def test_long_tails_have_the_published_sizes(self, ratio, ten, hundred):
    for num_classes, size, total in ((10, 4990, ten), (100, 490, hundred)):
      labels = np.repeat(np.arange(num_classes), size)
      kept = data.imbalanced_indices(labels, num_classes, "long_tail", ratio, _rng())
      self.assertLen(kept, total)

  def test_step_keeps_the_first_half_whole(self):
    labels = np.repeat(np.arange(5), [40, 30, 20, 50, 60])
    kept = data.imbalanced_indices(labels, 5, "step", 4, _rng())
    np.testing.assert_array_equal(np.bincount(labels[kept]), [20, 20, 5, 5, 5])
    self.assertEqual(sorted(set(kept.tolist())), kept.tolist())

  def test_none_keeps_all_and_equal_generators_keep_the_same(self):
    labels = np.arange(100) % 4
    np.testing.assert_array_equal(
      data.imbalanced_indices(labels, 4, "none", 1, _rng()), np.arange(100)
    )
    first, again, other = (
      data.imbalanced_indices(labels, 4, "step", 5, _rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  @parameterized.parameters(
    ("log", 2, ValueError, "got 'log'"),
    ("step", 0.5, ValueError, "at least 1.*got 0.5"),
    ("step", float("nan"), ValueError, "at least 1"),
    ("none", 2, ValueError, "1 for kind 'none'"),
    ("long_tail", 11, data.DataError, "leaves class 1 without examples.*has 10"),
  )
  def test_mistakes(self, kind, ratio, error, pattern):
    with self.assertRaisesRegex(error, pattern):
      data.imbalanced_indices(np.repeat([0, 1], 10), 2, kind, ratio, _rng())


class UndersamplingTest(parameterized.TestCase):
  LABELS = np.repeat([2, 0, 1], [30, 4, 11])

  def test_every_class_is_as_often_as_the_rarest_and_no_example_twice(self):
    kept = data.undersampled_indices(self.LABELS, 3, _rng())
    self.assertEqual(np.bincount(self.LABELS[kept]).tolist(), [4, 4, 4])
    self.assertEqual(sorted(set(kept.tolist())), kept.tolist())
    self.assertContainsSubset(range(30, 34), kept.tolist())  # the rarest class is kept whole

  def test_every_example_of_a_class_is_drawn_alike(self):
    draws = [data.undersampled_indices(self.LABELS, 3, _rng(seed)) for seed in range(500)]
    times = np.bincount(np.concatenate(draws), minlength=45)
    # 4 of 30, 4 of 4 and 4 of 11 in 500 draws; standard deviations 8 and 11.
    np.testing.assert_allclose(times[:30], 500 * 4 / 30, atol=35)
    np.testing.assert_array_equal(times[30:34], 500)
    np.testing.assert_allclose(times[34:], 500 * 4 / 11, atol=45)

  def test_equal_generators_keep_the_same_and_equal_classes_stay_whole(self):
    keep = lambda labels, seed: data.undersampled_indices(labels, 3, _rng(seed)).tolist()
    self.assertEqual(keep(self.LABELS, 1), keep(self.LABELS, 1))
    self.assertNotEqual(keep(self.LABELS, 1), keep(self.LABELS, 2))
    self.assertEqual(keep(np.arange(9) % 3, 0), list(range(9)))

  @parameterized.parameters(
    ([0, 0, 2], 3, data.DataError, r"got none of class 1\. Give more"),
    ([0, 1], 3, data.DataError, "got none of class 2"),
    ([0, 3], 3, ValueError, "from 0 to 2, got 0 to 3"),
    ([0.5, 1], 2, ValueError, "got shape .* float64"),
    ([], 2, ValueError, "at least one integer"),
  )
  def test_mistakes_are_one_line(self, labels, num_classes, error, pattern):
    with self.assertRaisesRegex(error, pattern) as raised:
      data.undersampled_indices(np.array(labels), num_classes, _rng())
    self.assertNotIn("\n", str(raised.exception))


class FileTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.root / "file.npz"

  def write(self, **arrays):
    np.savez(self.path, **arrays)

  def assert_refused(self, pattern, call):
    with self.assertRaisesRegex(data.DataError, pattern) as raised:
      call()
    self.assertNotIn("\n", str(raised.exception))


class HumanTest(FileTestCase):
  def setUp(self):
    super().setUp()
    images = np.zeros((4, 2, 2, 1), np.uint8)
    # The rows of memory are numbers 2, 0, 3, 1 of the original order.
    labels, ids = np.array([20, 0, 30, 10]) // 10, np.array([2, 0, 3, 1])
    self.dataset = data.Dataset("set", images, labels, images, labels, tuple("abcd"), ids)

  def test_labels_are_joined_by_number_not_by_row(self):
    self.write(clean_label=np.arange(4), worse=np.array([3, 1, 2, 0]))
    found = data.human_labels(self.path, "worse", self.dataset)
    np.testing.assert_array_equal(found, [2, 3, 0, 1])
    self.assertEqual(found.dtype, np.int32)

  def test_a_file_in_the_order_of_the_rows_is_found_out(self):
    self.write(clean_label=self.dataset.train_labels, worse=np.zeros(4, int))
    self.assert_refused(
      "clean_label to be the labels of set, but 0 of 4 agree",
      lambda: data.human_labels(self.path, "worse", self.dataset),
    )

  @parameterized.parameters(
    ({"a": np.zeros(4, int)}, "expected a vector 'worse', got a"),
    ({"worse": np.zeros(3, int)}, "a vector of 4 whole numbers for set, got int64 of shape"),
    ({"worse": np.zeros(4)}, "a vector of 4 whole numbers for set, got float64"),
    ({"worse": np.full(4, 4)}, "from 0 to 3, got 4 to 4"),
  )
  def test_mistakes(self, arrays, pattern):
    self.write(**arrays)
    self.assert_refused(pattern, lambda: data.human_labels(self.path, "worse", self.dataset))

  def test_published_rates_of_cifar10n(self):
    path, folder = os.environ.get("HUMAN_LABELS"), os.environ.get("TFDS_DATA_DIR")
    if not path or not folder or not pathlib.Path(folder, "cifar10").is_dir():
      self.skipTest("needs CIFAR-10 in TFDS_DATA_DIR and CIFAR-10N's labels in HUMAN_LABELS")
    dataset = data.load("cifar10")
    rates = {"worse_label": 0.40208, "aggre_label": 0.0901, "random_label2": 0.18122}
    for kind, rate in rates.items():
      found = data.human_labels(path, kind, dataset)
      self.assertAlmostEqual(np.mean(found != dataset.train_labels), rate, places=6)


class PackedTest(FileTestCase):
  def good(self, **changes):
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    arrays = {"train_inputs": images, "train_labels": np.array([1, 0])}
    arrays |= {"test_inputs": images[:1], "test_labels": np.array([2])}
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}

  def test_digits_come_back_as_they_were(self):
    digits = data.load("digits")
    data.save_npz(self.root / "digits.npz", digits)
    found = data.load(self.root / "digits.npz")
    self.assertEqual((found.name, found.class_names), (digits.name, digits.class_names))
    for mine, theirs in zip(found, digits, strict=True):
      np.testing.assert_array_equal(mine, theirs)
      self.assertEqual(np.asarray(mine).dtype, np.asarray(theirs).dtype)

  def test_names_and_numbers_may_be_left_out(self):
    self.write(**self.good())
    found = data.load(str(self.path))
    self.assertEqual((found.name, found.class_names), ("file", ("0", "1", "2")))
    np.testing.assert_array_equal(found.train_ids, [0, 1])

  @parameterized.parameters(
    ({"train_labels": None}, "expected an array train_labels, got test_inputs, "),
    ({"train_inputs": np.zeros((2, 3, 3, 1))}, "train_inputs to be uint8 .* got float64"),
    ({"test_inputs": np.zeros((2, 9), np.uint8)}, "test_inputs to be uint8 of shape .* got uint8"),
    ({"test_inputs": np.zeros((1, 2, 3, 1), np.uint8)}, "images of one shape"),
    ({"train_labels": np.zeros(3, int)}, "train_labels to be 2 whole numbers"),
    ({"train_labels": np.zeros(2)}, "train_labels to be 2 whole numbers, got float64"),
    ({"train_labels": np.array([-1, 0])}, "train_labels of at least 0, got -1"),
    ({"class_names": np.array(["a", "b"])}, "expected 3 class_names, got 2"),
    ({"train_labels": np.array([0, 10**12])}, "expected labels below 100000, got 1000000000000"),
    ({"train_ids": np.array([4, 4])}, "a train_id of its own"),
    ({"train_inputs": np.array([{}, {}])}, "pickled"),
  )
  def test_mistakes(self, changes, pattern):
    self.write(**self.good(**changes))
    self.assert_refused(pattern, lambda: data.load(self.path))

  def test_files_that_cannot_be_read(self):
    self.assert_refused("there is no such file", lambda: data.load(self.path))
    for content in (b"", b"PK\x03\x04", b"text"):
      self.path.write_bytes(content)
      self.assert_refused("expected an NPZ file of plain arrays", lambda: data.load(self.path))
    self.write(**self.good())
    os.truncate(self.path, self.path.stat().st_size // 2)
    self.assert_refused("expected an NPZ file of plain arrays", lambda: data.load(self.path))
    self.assert_refused("ends in .npz", lambda: data.save_npz("x.zip", data.load("digits")))


if __name__ == "__main__":
  absltest.main()
