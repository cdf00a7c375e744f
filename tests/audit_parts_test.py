"""The parts of an audit: examples, labels, kept parts, pictures."""

import pathlib
import re
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.figure import Figure

from experiments import (
  _audit_config,
  _audit_data,
  _audit_ledger,
  _parts,
)
from experiments._errors import UsageError
from reweight_jax import data, plotting


class PartsOfAnAuditTest(parameterized.TestCase):
  def test_no_data_set_is_not_the_folder_that_one_is_in(self):
    with self.assertRaisesRegex(UsageError, "--dataset: expected .*got nothing"):
      _audit_data.load(_audit_config.AuditConfig(dataset=""))

  def test_parts_of_an_unknown_setting_are_not_taken(self):
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      _parts.Parts(root, {"epochs": 2}).kept("one", lambda: {"x": np.ones(1)})
      self.assertTrue(_parts.Parts(root, {"epochs": 2}).has("one"))
      (root / "setting.json").unlink()
      with self.assertRaisesRegex(UsageError, "without the setting.json .* delete that folder"):
        _parts.Parts(root, {"epochs": 4})

  def test_a_subset_has_as_many_of_each_class_in_proportion(self):
    whole = data.load("digits")
    config = _audit_config.AuditConfig(max_examples=130)
    found = _audit_data.load(config)
    counts, all_counts = (np.bincount(y) for y in (found.labels, whole.train_labels))
    self.assertLess(np.abs(counts - all_counts / 10).max(), 1)
    self.assertLen(np.unique(found.rows), 130)
    np.testing.assert_array_equal(found.labels, whole.train_labels[found.rows])

  def test_people_s_labels_are_joined_by_the_examples_numbers(self):
    digits = data.load("digits")
    vector = np.zeros(1797, np.int64)
    vector[digits.train_ids] = (digits.train_labels + 1) % 10
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, "human.npz")
      np.savez(path, worse_label=vector)
      config = _audit_config.AuditConfig(
        max_examples=50, noise="human:worse_label", human_labels=str(path)
      )
      found = _audit_data.load(config)
    np.testing.assert_array_equal(found.labels, (found.true_labels + 1) % 10)
    np.testing.assert_array_equal(found.true_labels, digits.train_labels[found.rows])

  def test_large_images_are_averaged_before_neighbors_are_looked_for(self):
    images = np.zeros((1, 64, 80, 1))
    images[0, 0, 0] = 9  # blocks of 3 by 3
    small = _audit_data.small(images)
    self.assertEqual(small.shape, (1, 21, 26, 1))
    self.assertEqual(small[0, 0, 0, 0], 1)
    self.assertEqual(_audit_data.small(np.zeros((2, 2, 200, 3))).shape, (2, 1, 28, 3))

  def test_noise_is_called_above_the_middle_of_the_hard_and_rare_below(self):
    # Half of the eight are candidates: all eight are ranked. By hand, votes of the ranks.
    score = np.arange(8) / 7
    scores = {
      "feature_neighbor_disagreement": np.array([0, 0, 0, 0, 0, 1, 1, 1.0]),
      "neighbor_distance": np.array([1, 1, 1, 1, 9, 1, 1, 1.0]),
    }
    disagrees = np.array([0, 0, 0, 1, 1, 1, 0, 1], bool)
    kind, vote = _audit_ledger.kinds(scores, score, 0.5, disagrees)
    self.assertEqual(kind.tolist(), ["", "", "", "rare", "rare", "noise", "", "noise"])
    # Ranks of 0..7 in [0, 1]: error 4/7, disagreement the middle of 0..4, distance the largest.
    self.assertAlmostEqual(vote[4], (2 * 4 / 7 - 1 + 2 * 2 / 7 - 1 - 1) / 3, places=6)
    # Of few candidates the hardest quarter alone is ranked: the last two.
    kind, vote = _audit_ledger.kinds(scores, score, 0.01, disagrees)
    self.assertEqual(np.flatnonzero(np.isfinite(vote)).tolist(), [6, 7])
    self.assertEqual(kind.tolist(), [""] * 7 + ["noise"])

  def test_pairs_of_classes_are_counted_among_those_called_wrong(self):
    given, suggested = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 1, 2, 1, 0, 1])
    kind = np.array(["noise", "noise", "noise", "rare", "noise", ""])
    blank = np.zeros(6)
    ledger = _audit_ledger.Ledger(
      blank, blank, given, suggested, blank, blank, kind, blank, blank, {}, None
    )  # fmt: skip
    expected = [(0, 1, 2, 0.5), (0, 2, 1, 0.25), (1, 0, 1, 0.5)]
    self.assertEqual(_audit_ledger.confused_pairs(ledger), expected)


class PicturesTest(parameterized.TestCase):
  def test_a_gallery_puts_the_most_suspicious_of_each_class_first(self):
    axes = Figure().subplots()
    labels, suggested = np.array([0, 0, 0, 1, 1]), np.array([1, 0, 1, 0, 1])
    scores = np.array([0.2, 0.1, 0.9, 0.8, np.nan])
    kinds = np.array(["", "", "noise", "rare", ""])
    images = np.zeros((5, 4, 4, 3), np.uint8)
    plotting.issue_gallery(
      axes, images, labels, suggested, scores, ["a", "b"], kinds=kinds, per_class=2
    )
    self.assertEqual([text.get_text() for text in axes.texts], ["1", "→ b", "3", "→ b", "2", "→ a"])
    widths = [patch.get_linewidth() for patch in axes.patches]
    self.assertEqual(widths, [2.5, 0.8, 2.5])
    self.assertIn("1 labels are called wrong (thick orange frame), 1 rare", axes.get_title())

  def test_of_many_classes_those_with_the_most_calls_are_shown(self):
    axes = Figure().subplots()
    labels = np.arange(12)
    kinds = np.where(labels >= 4, "noise", "")
    names = [f"class {label}" for label in labels]
    plotting.issue_gallery(
      axes, np.zeros((12, 2, 2, 1), np.uint8), labels, labels, np.ones(12), names, kinds=kinds
    )
    shown = [tick.get_text() for tick in axes.get_yticklabels()]
    self.assertEqual(shown, [names[label] for label in (0, 1, *range(4, 12))])
    self.assertIn("the 10 of 12 classes with the most labels called wrong", axes.get_title())

  def test_legends_count_what_is_drawn(self):
    error = np.array([0.1, 0.3, 5.0, np.nan, 4.0])
    kinds = np.array(["", "", "noise", "", "rare"])
    figure = Figure()
    first, second = figure.subplots(1, 2)
    plotting.difficulty_histogram(first, error, kinds)
    plotting.difficulty_map(second, error, np.arange(5.0), kinds, names=("error", "distance"))
    for axes in (first, second):
      words = [text.get_text() for text in axes.get_legend().get_texts()]
      self.assertEqual(words, ["other (2)", "called rare (1)", "called wrong (1)"])
    # Of what is not called wrong the error is 0.1, 0.3 and 4, the other score 0, 1, 3 and 4.
    self.assertEqual(
      first.get_title(), "median held-out error: 5 where called wrong, 0.3 elsewhere"
    )
    self.assertEqual(second.get_title(), "median distance: 2 where called wrong, 2 elsewhere")
    counts = sum(int(re.search(r"\d+", word)[0]) for word in words)
    self.assertEqual(sum(len(group.get_offsets()) for group in second.collections), counts)

  def test_another_word_for_a_kind_is_refused(self):
    with self.assertRaisesRegex(ValueError, "kinds expects the words .* got 'wrong'"):
      plotting.difficulty_histogram(Figure().subplots(), np.ones(1), np.array(["wrong"]))


if __name__ == "__main__":
  absltest.main()
