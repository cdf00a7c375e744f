"""The ranking of measures: what is made hard, what is counted, the command on a few points."""

import json
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import _factors, _measures, _ranking_report, difficulty_ranking
from experiments._errors import UsageError
from experiments._factors import Factor, Problem
from reweight_jax import data, runlog
from tests import commands


def _made_up(kind, number, *, size=200, draw=0):
  return _factors.make(Factor(kind, number), None, size, draw)


def _images(num_classes=4, size=400):
  rng = np.random.default_rng(0)
  labels = (np.arange(size) % num_classes).astype(np.int32)
  images = rng.integers(0, 256, (size, 3, 3, 1)).astype(np.uint8)
  names = tuple("abcdefgh"[:num_classes])
  return data.Dataset("own", images, labels, images, labels, names, np.arange(size))


class FactorsTest(parameterized.TestCase):
  def test_a_list_of_factors_with_numbers_of_their_own_or_by_default(self):
    found = _factors.parse(" symmetric:0.4, region ,symmetric", "made_up")
    self.assertEqual(
      found, (Factor("symmetric", 0.4), Factor("region", 0.05), Factor("symmetric", 0.15))
    )
    self.assertEqual(str(Factor("symmetric", 0.1234567890123)), "symmetric_0.1234567890123")

  @parameterized.parameters(
    ("noise", "expected some of symmetric, .*got 'noise'"),
    ("symmetric:1", "symmetric expects a number above 0 and below 1 .*got '1'"),
    ("symmetric:x", "symmetric expects .*such as symmetric:0.15; got 'x'"),
    ("imbalance:1", "imbalance expects a number above 1 .*got '1'"),
    ("region,region", "each once"),
    ("", "at least one"),
  )
  def test_a_list_that_is_none_is_refused(self, text, pattern):
    with self.assertRaisesRegex(UsageError, pattern):
      _factors.parse(text, "made_up")

  def test_the_margin_of_images_is_not_known(self):
    with self.assertRaisesRegex(UsageError, "margin is known of --dataset=made_up alone"):
      _factors.parse("margin", "mnist")

  def test_hard_are_exactly_the_labels_that_changed(self):
    clean, noisy = _made_up("margin", 0.15), _made_up("symmetric", 0.15)
    np.testing.assert_array_equal(clean.inputs, noisy.inputs)
    np.testing.assert_array_equal(noisy.hard["symmetric"], noisy.labels != clean.labels)
    self.assertEqual(noisy.hard["symmetric"].sum(), 30)
    self.assertEqual(np.bincount(clean.labels).tolist(), [100, 100])

  def test_background_noise_calls_nothing_hard_that_kept_its_label(self):
    clean, noisy = _made_up("margin", 0.15), _made_up("background", 0.4)
    np.testing.assert_array_equal(noisy.hard["background"], noisy.labels != clean.labels)
    self.assertEqual(noisy.hard["background"].sum(), 40)  # 0.4 of the one class of two
    self.assertLen(set(noisy.labels[noisy.hard["background"]]), 1)

  def test_hard_are_the_rare(self):
    problem = _made_up("imbalance", 9.0)
    self.assertEqual(np.bincount(problem.labels).tolist(), [180, 20])
    np.testing.assert_array_equal(problem.hard["imbalance"], problem.labels == 1)

  def test_the_margin_is_that_of_the_label_and_the_smallest_are_hard(self):
    problem = _made_up("margin", 0.15)
    self.assertGreaterEqual(problem.margin.min(), 0)  # clean labels are the oracle's
    hard = problem.hard["margin"]
    self.assertEqual(hard.sum(), 30)
    self.assertLessEqual(problem.margin[hard].max(), problem.margin[~hard].min())
    self.assertIsNone(_made_up("symmetric", 0.15).margin)

  def test_hard_are_exactly_the_inputs_that_changed(self):
    clean, noisy = _made_up("margin", 0.15), _made_up("feature_noise", 0.1)
    changed = (clean.embedding != noisy.embedding).any(1)
    np.testing.assert_array_equal(noisy.hard["feature_noise"], changed)
    self.assertEqual(changed.sum(), 20)
    np.testing.assert_array_equal(clean.labels, noisy.labels)

  def test_a_region_follows_a_rule_of_its_own_and_nothing_else_changes(self):
    clean, problem = _made_up("margin", 0.15), _made_up("region", 0.1)
    region, other = problem.hard["region"], problem.hard["region, other label"]
    self.assertEqual(region.sum(), 20)
    np.testing.assert_array_equal(other, clean.labels != problem.labels)
    self.assertTrue(region[other].all())
    self.assertBetween(other.sum(), 1, 19)

  def test_mixed_is_any_of_its_parts(self):
    problem = _made_up("mixed", 0.1)
    first, *parts = problem.hard.items()
    self.assertEqual(first[0], "mixed, any")
    self.assertEqual([name for name, _ in parts], [f"mixed, {name}" for name in _PARTS])
    np.testing.assert_array_equal(first[1], np.any([flags for _, flags in parts], axis=0))
    self.assertEqual(problem.hard["mixed, symmetric"].sum(), 20)
    self.assertEqual(problem.hard["mixed, region"].sum(), 10)

  def test_draws_differ_and_equal_ones_do_not(self):
    one, again, other = (_made_up("symmetric", 0.15, draw=draw) for draw in (0, 0, 1))
    np.testing.assert_array_equal(one.inputs, again.inputs)
    np.testing.assert_array_equal(one.labels, again.labels)
    self.assertFalse(np.array_equal(one.inputs, other.inputs))

  def test_random_features_are_centered_and_of_unit_length_on_average(self):
    inputs = _made_up("margin", 0.15).inputs
    self.assertEqual(inputs.shape, (200, 311))
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-6)
    self.assertAlmostEqual(float((inputs**2).sum(1).mean()), 1, places=5)

  def test_every_class_of_images_has_one_other_label_in_the_region(self):
    images = _images()
    problem = _factors.make(Factor("region", 0.5), images, 400, 0)
    region = problem.hard["region"]
    np.testing.assert_array_equal(problem.labels != images.train_labels, region)
    np.testing.assert_array_equal(problem.hard["region, other label"], region)
    pairs = set(zip(images.train_labels[region], problem.labels[region], strict=True))
    self.assertLen(pairs, 4)
    self.assertLen({label for _, label in pairs}, 4)
    self.assertAlmostEqual(float(problem.inputs.max()), 1, places=2)

  def test_of_images_the_second_half_of_the_classes_is_rare(self):
    problem = _factors.make(Factor("imbalance", 10.0), _images(), 1000, 0)
    self.assertEqual(np.bincount(problem.labels).tolist(), [100, 100, 10, 10])
    np.testing.assert_array_equal(problem.hard["imbalance"], problem.labels >= 2)

  def test_a_number_that_makes_nothing_hard_is_refused(self):
    with self.assertRaisesRegex(UsageError, "region:0.001 makes 0 of 200 examples hard"):
      _made_up("region", 0.001)


_PARTS = ("region", "imbalance", "symmetric")
_SCORES = {
  "held_out_error": np.array([0.1, 0.2, 0.9, 0.8]),
  "final_loss": np.array([0.1, 0.85, 0.9, 0.8]),
  "random": np.array([0.9, 0.8, 0.1, 0.2]),
  "class_rarity": np.ones(4),
}
_COSTS = {"held_out_error": 30.0, "final_loss": 1.0, "random": 0.0, "class_rarity": 0.0}


def _row(question, hard):
  labels = np.array([0, 1, 0, 1], np.int32)
  problem = Problem(np.zeros((4, 1)), labels, 2, np.zeros((4, 1)), {question: np.array(hard)}, None)
  kind, _, _ = question.partition(",")
  return _ranking_report.judge(Factor(kind, 0.5), problem, _SCORES)


class ReportTest(parameterized.TestCase):
  def test_hard_is_positive_and_no_sign_is_flipped(self):
    row = _row("symmetric", [False, False, True, True])
    area = row["auroc"]["symmetric 0.5"]
    # One of the four pairs is in the wrong order for the final loss: 0.85 above 0.8.
    self.assertEqual(area, {
      "held_out_error": 1.0, "final_loss": 0.75, "random": 0.0, "class_rarity": 0.5,
    })  # fmt: skip
    precision = row["average_precision"]["symmetric 0.5"]
    self.assertEqual(precision["held_out_error"], 1)
    self.assertAlmostEqual(precision["final_loss"], (1 / 1 + 2 / 3) / 2, places=6)
    self.assertAlmostEqual(precision["random"], (1 / 3 + 2 / 4) / 2, places=6)
    self.assertEqual(precision["class_rarity"], 0.5)  # the share of the hard
    self.assertEqual(row["hard_share"], {"symmetric 0.5": 0.5})

  def test_rank_correlation_by_hand(self):
    ranks = _ranking_report.rank_correlation
    one = np.array([1.0, 2.0, 3.0, 4.0])
    self.assertAlmostEqual(ranks(one, np.array([10.0, 30.0, 20.0, 99.0])), 1 - 6 * 2 / 60)
    self.assertAlmostEqual(ranks(one, -one), -1)
    # Ranks 1.5, 1.5, 3.5, 3.5 against 1, 2, 3, 4: covariance 4, variances 4 and 5.
    self.assertAlmostEqual(ranks(np.array([0.0, 0.0, 1.0, 1.0]), one), 4 / np.sqrt(20))
    self.assertAlmostEqual(ranks(np.array([np.nan, 1.0, 2.0, np.inf]), -one), -1)
    self.assertIsNone(ranks(np.ones(4), one))

  def test_agreement_is_the_mean_over_pairs_of_seeds(self):
    one = np.array([1.0, 2.0, 3.0])
    found = _ranking_report.between_seeds([{"m": one}, {"m": one}, {"m": -one}])
    self.assertAlmostEqual(found["m"], (1 - 1 - 1) / 3)

  def test_the_worst_factor_is_one_by_itself(self):
    rows = [
      _row("symmetric", [False, False, True, True]),
      _row("pair", [False, True, True, False]),
      _row("mixed, any", [True, True, False, False]),  # which random scores find
    ]
    summary = _ranking_report.summarize(rows, [], _COSTS)
    measures = summary["measures"]
    self.assertEqual(list(measures), ["class_rarity", "random", "final_loss", "held_out_error"])
    # Of "pair" held_out_error has 3 of 4 pairs in order: 0.2 is below 0.8.
    self.assertEqual(measures["held_out_error"]["worst"], 0.75)
    self.assertEqual(measures["final_loss"]["worst"], 0.75)
    self.assertEqual(measures["random"]["worst"], 0)
    self.assertTrue(_ranking_report.is_single_factor("symmetric 0.5"))
    for column in ("mixed 0.1, any", "mixed 0.1, region", "region 0.05, other label"):
      self.assertFalse(_ranking_report.is_single_factor(column))

  def test_the_best_is_told_beside_the_ensemble_for_what_it_costs(self):
    summary = _ranking_report.summarize([_row("pair", [False, True, True, False])], [], _COSTS)
    self.assertIn(
      "| pair 0.5 | 0.750 | final_loss 1.000 | final_loss 1.000 | class_rarity 0.500 |",
      _ranking_report.verdict(summary),
    )

  def test_every_measure_and_column_has_a_cell_in_the_figure(self):
    rows = [_row("symmetric", [False, False, True, True]), _row("pair", [True, False, True, True])]
    summary = _ranking_report.summarize(rows, [], _COSTS)
    figures = []
    save = lambda figure, path, title: figures.append(figure)
    with mock.patch.object(_ranking_report._pictures, "_save", save):
      _ranking_report.draw(None, {"one": summary, "other": summary})
    left, right, _ = figures[0].axes
    self.assertLen(left.texts, 4 * 2)
    self.assertEqual([text.get_text() for text in left.texts[:2]], [".50", ".50"])
    self.assertLen(right.texts, 4 * 2)
    self.assertEqual(left.get_yticklabels()[3].get_text(), "held_out_error  (30)")


class CommandTest(commands.CommandTestCase):
  MODULE = difficulty_ranking
  ARGV = (
    *("--train_size=60", "--members=10", "--keep=0.5", "--members_at_once=5", "--steps=4"),
    *("--batch_size=20", "--draws=1", "--seeds=0,1", "--factors=symmetric,margin"),
  )

  @parameterized.parameters(
    ("--dataset: expected one of made_up, digits, .*got 'mist'", "--dataset=mist"),
    ("--factors: .*got 'hardness'", "--factors=hardness"),
    ("--factors: margin is known", "--dataset=digits", "--factors=margin"),
    ("digits: asymmetric noise is defined for", "--dataset=digits", "--factors=asymmetric"),
    ("made_up: asymmetric noise is defined for", "--factors=asymmetric"),
    # 600 / 10001 rounds to no rare example.
    ("imbalance:10000 makes 0 of 600 examples hard", "--factors=imbalance:10000"),
    ("--members: .*17 members would do", "--members=10"),
    ("--keep: expected a number in", "--keep=1"),
    ("--seeds: .*each once", "--seeds=0,0"),
    ("--hidden: expected whole numbers", "--hidden=8,x"),
    ("--hidden: expected a number in", "--hidden=0"),
    ("--batch_size: .*leaves 600 examples", "--batch_size=601"),
    ("--train_size: expected at most the 1300", "--dataset=digits", "--train_size=2000"),
    ("--noise: no such flag", "--noise=pair"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  @pytest.mark.long
  def test_a_small_ranking_is_written_and_goes_on_from_its_parts(self):
    stdout = self.command(*self.ARGV)
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual(summary["columns"], ["symmetric 0.15", "margin 0.15"])
    self.assertEqual(summary["setting"]["factors"], ["symmetric_0.15", "margin_0.15"])
    measures = summary["measures"]
    self.assertEqual(set(measures), set(_measures.COSTS))
    self.assertEqual(measures["held_out_error"]["cost"], 10)
    # Neighbors know no seed; the margin is known in the column of the margin alone.
    self.assertAlmostEqual(measures["neighbor_disagreement"]["between_seeds"], 1)
    self.assertEqual(measures["neighbor_disagreement"]["auroc"]["margin 0.15"]["std"], 0)
    self.assertIsNotNone(measures["final_loss"]["rank_correlation_with_margin"]["mean"])
    rows = runlog.read_rows(self.workdir / "rows.jsonl")
    self.assertLen(rows, 4)
    self.assertEqual(rows[0]["hard_share"], {"symmetric 0.15": 0.15})
    self.assertIsNone(rows[0]["rank_correlation_with_margin"])
    self.assertSetEqual(
      set(rows[0]["seconds"]),
      {"neighbors", "recorded", "early", "members_000_004", "members_005_009"},
    )
    self.assertTrue((self.workdir / "auroc.png").exists())

    lost = self.workdir / "margin_0.15" / "draw_0" / "seed_1" / "members_005_009.npz"
    before = np.load(lost)["log_probs"]
    lost.unlink()
    train = _measures.difficulty.train_members
    with mock.patch.object(_measures.difficulty, "train_members", side_effect=train) as trained:
      again = self.command(*self.ARGV)
    self.assertEqual([call.kwargs["members"] for call in trained.mock_calls], [range(5, 10)])
    np.testing.assert_array_equal(np.load(lost)["log_probs"], before)
    self.assertEqual(again, stdout)
    status, _, stderr = commands.run(
      difficulty_ranking, f"--workdir={self.workdir}", *self.ARGV, "--steps=5"
    )
    self.assertEqual(status, 2)
    self.assertRegex(stderr, r"^error: --workdir: .* holds results of steps 4, not 5; .*\n$")


if __name__ == "__main__":
  absltest.main()
