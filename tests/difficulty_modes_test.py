"""The study of difficulty modes, its made-up task, and methods by what a run itself records."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from benchmarks import confident
from experiments import _made_up, _modes_report, difficulty_modes
from experiments._errors import RunError, UsageError
from reweight_jax import data, difficulty
from tests import commands, runs

SMALL = difficulty_modes.StudyConfig(seeds=(0,), ratios=(10.0,), l2=(1e-3,), train_size=60)


class MadeUpTest(absltest.TestCase):
  def test_classes_come_in_the_ratio_asked_for_and_alike_in_the_test_set(self):
    drawn = _made_up.draw(np.random.default_rng(0), 105, ratio=20.0, num_test=400)
    np.testing.assert_array_equal(np.bincount(drawn.labels), [100, 5])
    self.assertEqual(drawn.features.shape, (105, 311))
    self.assertAlmostEqual(drawn.test_labels.mean(), 0.5, delta=0.1)

  def test_a_fit_is_where_the_gradient_of_the_objective_is_zero(self):
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((40, 3)), rng.integers(0, 2, 40)
    weights = rng.uniform(0.1, 2, 40)
    params = _made_up.fit_logistic(features, labels, weights, 0.1)
    wrong = 1 / (1 + np.exp(np.where(labels == 1, 1, -1) * (features @ params)))
    pull = (weights * wrong * np.where(labels == 1, 1, -1)) @ features / weights.sum()
    np.testing.assert_allclose(pull, 0.1 * params, atol=1e-6)

  def test_an_example_of_weight_0_is_not_there(self):
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((20, 3)), np.arange(20) % 2
    kept = np.arange(20) < 15
    np.testing.assert_allclose(
      _made_up.fit_logistic(features, labels, kept * 2.0, 0.1),
      _made_up.fit_logistic(features[kept], labels[kept], np.ones(15), 0.1),
      rtol=1e-9,
    )

  def test_log_probabilities_and_balanced_accuracy_by_hand(self):
    features, params = np.array([[1.0], [-1.0], [2.0], [3.0]]), np.array([np.log(3)])
    np.testing.assert_allclose(np.exp(_made_up.log_probs(features, params)[0]), [0.25, 0.75])
    # Of class 0 one of three is right, of class 1 the one there is.
    accuracy = _made_up.balanced_accuracy(features, np.array([0, 0, 0, 1]), params)
    self.assertAlmostEqual(accuracy, (1 / 3 + 1) / 2)


class StudyTest(absltest.TestCase):
  def test_noise_and_imbalance_are_those_asked_for(self):
    examples, given = difficulty_modes.make_problem(SMALL, "both", 0)
    np.testing.assert_array_equal(np.bincount(examples.labels), [57, 3])
    self.assertEqual(given.is_noisy.sum(), 18)
    clean = difficulty_modes.make_problem(SMALL, "clean", 0)[1]
    self.assertFalse(clean.is_noisy.any())

  def test_held_out_errors_are_those_of_models_that_have_not_seen_the_example(self):
    examples, given = difficulty_modes.make_problem(SMALL, "noise", 0)
    errors = difficulty_modes.held_out_error(examples.features, given.labels, 1e-3, 3, seed=0)
    masks = difficulty.fold_masks(given.labels, 3, seed=0)
    for mask in masks:
      params = _made_up.fit_logistic(
        examples.features[mask], given.labels[mask], np.ones(mask.sum()), 1e-3
      )
      said = _made_up.log_probs(examples.features[~mask], params)
      own = -said[np.arange((~mask).sum()), given.labels[~mask]]
      np.testing.assert_allclose(errors[~mask], own, rtol=1e-4)

  def test_too_few_examples_of_a_class_for_the_folds_are_told(self):
    with self.assertRaisesRegex(UsageError, "--train_size: .*one for each fold"):
      difficulty_modes.measure(SMALL, 1e-3, "imbalance", 0)


class CommandTest(commands.CommandTestCase):
  MODULE = difficulty_modes

  @parameterized.parameters(
    ("--ratios: expected numbers from 1 to 1e30, each once; got 0.5", "--ratios=0.5"),
    ("--ratios: expected numbers such as .*got 'ten'", "--ratios=ten"),
    ("--l2: expected numbers from 1e-9 to 1000.*got 0.0", "--l2=0"),
    ("--seeds: expected whole numbers, at least 0, each once; got 1,1", "--seeds=1,1"),
    ("--noise_rate: expected a number in .0, 0.5., got 0.7", "--noise_rate=0.7"),
    ("--folds: expected a number from 2 to 100, got 1", "--folds=1"),
    ("--steps: no such flag", "--steps=3"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def command(self, *argv):
    """There is nothing to compile, so no such flag."""
    status, stdout, stderr = commands.run(self.MODULE, f"--workdir={self.workdir}", *argv)
    self.assertEqual(status, 0, stderr)
    return stdout

  def test_a_small_study_writes_its_files_and_goes_on_from_its_parts(self):
    argv = ("--seeds=0", "--ratios=10", "--l2=0.001", "--train_size=60", "--imbalance_ratio=4")
    stdout = self.command(*argv)
    self.assertRegex(stdout, r"\| hard first, ratio 10 \| \d+\.\d \| ")
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual([cell["data"] for cell in summary["cells"]], list(_modes_report.DATA))
    numbers = summary["cells"][0]["summary"]
    # Without noise and imbalance there is nothing to drop or to balance.
    for name in ("class_balanced", "undersample", "drop_noisy"):
      self.assertEqual(numbers[name]["mean"], numbers["uniform"]["mean"])
    self.assertTrue((self.workdir / "modes.png").exists())
    with absltest.mock.patch.object(difficulty_modes, "measure", side_effect=AssertionError):
      self.assertEqual(self.command(*argv), stdout)
    self.assertEqual(commands.run(self.MODULE, f"--workdir={self.workdir}", "--folds=3")[0], 2)


class MethodsTest(runs.RunTestCase):
  @parameterized.parameters(("easy_first", 1), ("hard_first", -1))
  @pytest.mark.long  # below: parameters copy the mark
  def test_a_method_by_its_own_record_weighs_wrong_labels_apart(self, name, sign):
    config = dataclasses.replace(
      runs.CONFIG, methods=(name,), steps=110, batch_size=100, eval_every=110, augment="none"
    )
    task = runs.make_task(noise="symmetric", noise_rate=0.4)
    self.train(name, config=config, task=task)
    weights = self.weights(name)
    mean = [weights["mean_weight"][weights["is_noisy"] == wrong].mean() for wrong in (False, True)]
    self.assertGreater(sign * (mean[0] - mean[1]), 0.3)


class ConfidentTest(absltest.TestCase):
  def test_rank_correlation_is_that_of_mid_ranks(self):
    self.assertAlmostEqual(confident.rank_correlation(np.arange(4.0), np.exp(np.arange(4.0))), 1)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: covariance 4.5 of variances 4.5 and 5.
    found = confident.rank_correlation(np.array([0.0, 1, 1, 2]), np.arange(4.0))
    self.assertAlmostEqual(found, np.sqrt(4.5 / 5))

  def test_without_cleanlab_it_says_what_to_install(self):
    with absltest.mock.patch.object(importlib.util, "find_spec", return_value=None):
      status, stdout, stderr = commands.run(confident)
    self.assertEqual((status, stdout), (2, ""))
    self.assertRegex(stderr, "^error: .*pip install cleanlab.*\n$")

  def test_scores_that_rank_otherwise_are_an_error(self):
    row = {"self_confidence": 1.0, "normalized_margin": 0.9}
    noisy = data.NoisyLabels(np.zeros(2, int), np.zeros(2, bool), 0.0)
    with (
      absltest.mock.patch.object(confident, "check"),
      absltest.mock.patch.object(confident, "held_out", return_value=(np.ones((2, 2)), noisy)),
      absltest.mock.patch.object(confident, "compare", return_value=row),
      self.assertRaisesRegex(RunError, "rank correlation 0.90000 of normalized_margin"),
    ):
      confident.run(confident.Config())


if __name__ == "__main__":
  absltest.main()
