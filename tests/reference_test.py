"""Methods that build on a finished run or on a file of ratios: what they read, and refuse."""

import dataclasses
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import _reference, cifar_noisy
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import rules, runlog
from tests import runs


class ReferenceTest(runs.RunTestCase):
  def setUp(self):
    super().setUp()
    self.config = Config(reference=str(self.root / "first"), importance_file="x.npz")
    (self.root / "first").mkdir()
    self.folder = self.root / "first" / "seed_0"
    self.train("first/seed_0")
    self.data = runs.dataset()

  def read(self, task=None, **settings):
    config = dataclasses.replace(self.config, **settings)
    return _reference.read(config, self.data, task or self.task, 0, ratios=False, reference=True)

  def test_losses_and_errors_stand_at_the_examples_of_the_run(self):
    found, entries = self.read(), self.weights("first/seed_0")
    places = {index: place for place, index in enumerate(self.data.train_ids)}
    for row in (0, 7, 1229):
      place = places[entries["index"][row]]
      self.assertEqual(found.losses[place], entries["last_loss"][row])
      is_error = entries["last_prediction"][row] != self.task.labels[place]
      self.assertEqual(found.is_error[place], is_error)
    self.assertEqual(found.losses[self.task.meta].tolist(), [0.0] * 20)
    # The linear model after six steps is wrong somewhere, and right somewhere.
    self.assertBetween(found.is_error[self.task.train].mean(), 0.05, 0.95)
    # Cross-entropy in evaluation mode, by hand.
    carry = self.carry("first/seed_0")
    kernel, bias = (np.asarray(carry.averages[0][name]) for name in ("kernel", "bias"))
    place = places[entries["index"][3]]
    logits = self.data.train_inputs[place].reshape(64) / 255 @ kernel + bias[0]
    label = self.task.labels[place]
    expected = np.log(np.exp(logits).sum()) - logits[label]
    self.assertAlmostEqual(found.losses[place], expected, places=4)

  def test_confusion_of_validation_by_training_counts_and_predictions_of_test(self):
    found = self.read()
    labels = self.task.labels[self.task.validation]
    trained = np.bincount(self.task.labels[self.task.train], minlength=10)
    np.testing.assert_allclose(found.confusion.sum(axis=0), trained)
    with np.load(self.folder / "predictions.npz") as predictions:
      taken = predictions["validation_prediction"]
    for predicted, label in ((1, 1), (1, 2), (3, 2)):
      share = np.mean(taken[labels == label] == predicted)
      self.assertAlmostEqual(found.confusion[predicted, label], share * trained[label], places=9)
    self.assertEqual(found.target_predictions.sum(), 497)

  def test_a_shift_of_imbalanced_training_is_found_where_validation_has_other_shares(self):
    # A model that is always right: the target's share of each class over that in training.
    settings = {"imbalance": "step", "imbalance_ratio": 20.0, "noise": "none", "noise_rate": None}
    task = runs.make_task(validation_size=60, **settings)
    validation = task.labels[task.validation]
    trained = np.array(task.class_counts("train"))
    self.assertGreater(
      trained[0] / trained[9], 2 * (validation == 0).sum() / (validation == 9).sum()
    )
    entries = {"index": self.data.train_ids[task.train], "given_label": task.labels[task.train]}
    zeros = np.zeros(len(task.train))
    entries |= {"last_loss": zeros, "last_prediction": entries["given_label"]}
    runlog.write_npz(self.folder / "weights.npz", entries)
    said = {"validation_prediction": validation, "validation_label": validation}
    runlog.write_npz(
      self.folder / "predictions.npz", said | {"test_prediction": np.arange(1000) % 10}
    )
    found = self.read(task)
    ratios = rules.label_shift_ratios(found.confusion, found.target_predictions)
    np.testing.assert_allclose(ratios, 0.1 * trained.sum() / trained)

  def test_a_run_on_other_labels_sizes_or_seeds_is_refused(self):
    for other in (
      runs.make_task(1),
      runs.make_task(noise_rate=0.2),
      runs.make_task(validation_size=40),
    ):
      with self.assertRaisesRegex(UsageError, "--reference: .* other examples or labels"):
        self.read(other)

  def test_a_seed_that_is_not_there_is_told_with_those_that_are_and_the_command(self):
    with self.assertRaisesRegex(
      UsageError,
      r"of seed 3 in .*/first, got seeds 0; .* of \S+ again with the same --rules and --seeds=3$",
    ):
      _reference.read(self.config, self.data, self.task, 3, ratios=False, reference=True)
    (self.root / "first").rename(self.root / "ce")
    config = dataclasses.replace(self.config, reference=str(self.root / "ce"))
    with self.assertRaisesRegex(UsageError, "again with --method=ce and --seeds=3$"):
      _reference.read(config, self.data, self.task, 3, ratios=False, reference=True)

  def test_a_missing_run_is_refused(self):
    with self.assertRaisesRegex(UsageError, "--reference: expected the folder WORKDIR/METHOD"):
      self.read(reference=None)
    with self.assertRaisesRegex(UsageError, "--reference: .*second/seed_0/weights.npz.*no such"):
      self.read(reference=str(self.root / "second"))
    entries = self.weights("first/seed_0")
    del entries["last_loss"]
    runlog.write_npz(self.folder / "weights.npz", entries)
    with self.assertRaisesRegex(UsageError, "--reference: expected an array last_loss in .*got gi"):
      self.read()


class RatiosTest(runs.RunTestCase):
  def read(self, **arrays):
    path = self.root / "ratios.npz"
    if arrays:
      runlog.write_npz(path, arrays)
    config = Config(importance_file=str(path) if arrays else None)
    return _reference.read(
      config, runs.dataset(), self.task, 0, ratios=True, reference=False
    ).ratios

  def test_ratios_are_joined_by_index_in_any_order(self):
    ids = runs.dataset().train_ids
    order = np.random.default_rng(0).permutation(len(ids))
    found = self.read(index=ids[order], ratio=order / 100)
    np.testing.assert_allclose(found, np.arange(len(ids)) / 100)

  def test_missing_or_wrong_examples_arrays_and_files_are_refused(self):
    ids = runs.dataset().train_ids
    some = np.setdiff1d(np.arange(len(ids)), self.task.train[:3])
    for pattern, arrays in (
      ("--importance_file or --example_weights: expected an NPZ file", {}),
      ("got none for 3 of them", {"index": ids[some], "ratio": np.ones(len(some))}),
      ("expected an array ratio", {"index": ids}),
      ("as many numbers in ratio", {"index": ids, "ratio": np.ones(3)}),
      ("no training example of index 9999", {"index": np.array([9999]), "ratio": np.ones(1)}),
      ("of at least 0 .*, got -1 for index", {"index": ids, "ratio": -np.ones(len(ids))}),
      ("ratio .* to be a vector of numbers, got <U", {"index": ids, "ratio": ids.astype(str)}),
      (
        "to be a vector of numbers, got .* shape \\(\\)",
        {"index": np.int32(1), "ratio": np.ones(1)},
      ),
      ("can hold, got nan for index", {"index": ids, "ratio": np.full(len(ids), np.nan)}),
      ("can hold, got 1e[+]39 for index", {"index": ids, "ratio": np.full(len(ids), 1e39)}),
      ("got 2 for index 7; leave", {"index": np.append(ids, 7), "ratio": np.ones(len(ids) + 1)}),
    ):
      with self.assertRaisesRegex(UsageError, pattern):
        self.read(**arrays)


class MethodsTest(parameterized.TestCase):
  def test_a_second_command_builds_on_the_first(self):
    self._check_methods("rho")

  @pytest.mark.long
  def test_every_method_that_builds_on_a_first_command_does(self):
    self._check_methods("rho", "jtt", "label_shift")

  def _check_methods(self, *methods):
    with tempfile.TemporaryDirectory() as root:
      config = Config(
        methods=("ce",), steps=4, eval_every=2, pictures=False, workdir=f"{root}/first"
      )
      cifar_noisy.run(config)
      second = dataclasses.replace(
        config,
        methods=methods,
        reference=f"{root}/first/ce",
        workdir=f"{root}/second",
      )
      summary = cifar_noisy.run(second)
    self.assertEqual(list(summary), list(methods))
    # A tenth of the batch stays.
    self.assertAlmostEqual(summary["rho"]["zero_weight_share"]["mean"], 0.9, places=5)


if __name__ == "__main__":
  absltest.main()
