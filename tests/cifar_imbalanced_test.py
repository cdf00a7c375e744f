"""Imbalanced images: groups of classes, accuracy by class, deferred methods, the command."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from experiments import (
  _check,
  _config,
  _flags,
  _methods,
  _parallel,
  _phases,
  _run,
  cifar_imbalanced,
)
from experiments._config import Config
from experiments._errors import UsageError
from experiments._rule_options import RuleOptions
from reweight_jax import data, runlog
from tests import commands, runs


class GroupsTest(parameterized.TestCase):
  @parameterized.parameters(
    ([50, 500, 5], (), [[1], [0], [2]]),
    ([4, 9, 8, 1, 2, 3, 7, 6, 5, 0], (), [[1, 2, 6, 7], [8, 0, 5], [4, 3, 9]]),
    ([101, 100, 20, 19], (20, 100), [[0], [1, 2], [3]]),
    ([500, 300, 200], (20, 100), [[0, 1, 2], [], []]),
  )
  def test_classes_with_many_medium_and_few_examples(self, counts, shots, expected):
    groups = cifar_imbalanced.class_groups(np.array(counts), shots)
    self.assertEqual(list(groups), ["many", "medium", "few"])
    self.assertEqual([group.tolist() for group in groups.values()], expected)

  def test_accuracy_by_class_and_group_of_a_finished_run(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    runlog.write_npz(folder / "weights.npz", {"given_label": np.repeat([0, 1, 2], [9, 5, 1])})
    predictions = {
      "test_label": np.array([0, 0, 1, 1, 2, 2]),
      "test_prediction": np.array([0, 0, 1, 0, 0, 0]),
    }
    runlog.write_npz(folder / "predictions.npz", predictions)
    found = cifar_imbalanced.class_results(folder)
    self.assertEqual(found["accuracy_by_class"], [1.0, 0.5, 0.0])
    self.assertEqual((found["many"], found["medium"], found["few"]), (1.0, 0.5, 0.0))
    self.assertEqual(found["counts"], [9, 5, 1])


class DeferredTest(runs.RunTestCase):
  CONFIG = Config(imbalance="step", imbalance_ratio=20.0, noise="none", steps=10, defer_until=0.6)

  def phase(self, method):
    task = runs.make_task(imbalance="step", imbalance_ratio=20.0, noise="none", noise_rate=None)
    config = self.CONFIG.__class__(**vars(self.CONFIG) | {"methods": (method,)})
    model = runs.linear_model()
    return _phases.make_phases(config, model, method, runs.dataset(), task, 0)[0], task

  def weights(self, method, steps):
    """The weights that a class of many and one of few get after some steps."""
    phase, _ = self.phase(method)
    evidence = {"labels": np.array([0, 9]), "mask": np.ones(2, bool)}
    weights, state = np.ones(2, np.float32), phase.rule.init(np.ones(2, np.float32))
    for _ in range(steps):
      out, state = phase.rule.update(weights, state, **evidence)
    return np.asarray(out)

  def test_deferred_weights_are_1_until_the_share_of_the_run(self):
    np.testing.assert_array_equal(self.weights("proportion_deferred", 6), [1, 1])
    later, at_once = self.weights("proportion_deferred", 7), self.weights("proportion", 1)
    np.testing.assert_allclose(later, at_once, rtol=1e-6)
    # Inverse frequency: every class has the same total, so the ratio is that of the counts.
    counts = self.phase("proportion")[1].class_counts("train")
    self.assertAlmostEqual(at_once[1] / at_once[0], counts[0] / counts[9], places=3)

  def test_resampling_is_deferred_alike(self):
    self.assertEqual(self.phase("resample")[0].balanced_from, 0)
    self.assertEqual(self.phase("resample_deferred")[0].balanced_from, 6)
    self.assertIsNone(self.phase("ce")[0].balanced_from)

  def test_balanced_batches_begin_at_their_step(self):
    phase, task = self.phase("resample_deferred")
    run = self.make_run("run")._replace(task=task, phases=[phase])
    schedule = _phases.make_schedule(self.CONFIG)
    positions, _ = _run._positions(run, phase, 0, 10, schedule)
    rare = np.isin(task.labels[positions], np.arange(5, 10)).mean(axis=1)
    self.assertLess(rare[:6].max(), 0.2)  # 1 in 21
    self.assertGreater(rare[6:].min(), 0.3)  # half


class LogitsAndTailsTest(runs.RunTestCase):
  """Methods that persist where class weights fade."""

  CONFIG = dataclasses.replace(
    runs.CONFIG, steps=2, noise="none", imbalance="step", imbalance_ratio=5.0, ema_decay=None
  )

  def setUp(self):
    super().setUp()
    self.task = runs.make_task(
      imbalance="step", imbalance_ratio=5.0, noise="none", noise_rate=None, validation_size=0
    )

  def phase(self, method, **settings):
    config = dataclasses.replace(self.CONFIG, methods=(method,), **settings)
    return _phases.make_phases(config, runs.linear_model(), method, runs.dataset(), self.task, 0)[0]

  def losses(self, method, **options):
    """What the step of a method takes as losses, at logits that are the same for all classes."""
    config = dataclasses.replace(
      self.CONFIG, methods=(method,), rule_options=RuleOptions(**options)
    )
    model, recipe = runs.linear_model(), _methods.METHODS[method]
    loss_fn = _phases._loss_fn(config, model, recipe, self.task)
    self.assertIs(loss_fn, _phases._loss_fn(config, model, recipe, self.task))  # compiled once
    params, _ = model.init(None, None)
    batch = rw.types.make_batch(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 9], np.int32))
    return np.asarray(loss_fn(params, {}, batch, None).losses)

  def test_methods_train_on_their_own_loss(self):
    # Five classes of five times as many; the loss at equal logits is that of the priors alone.
    counts = self.task.class_counts("train")
    self.assertEqual(counts, (counts[0],) * 5 + (counts[0] // 5,) * 5)
    counts = np.array(counts)
    priors = counts / counts.sum()
    np.testing.assert_allclose(self.losses("logit_adjustment"), -np.log(priors[[0, 9]]), rtol=1e-5)
    np.testing.assert_allclose(
      self.losses("logit_adjustment", logit_adjustment_tau=0.0), np.log(10), rtol=1e-5
    )
    margins = 2 * np.array([(counts[9] / counts[0]) ** 0.25, 1])
    np.testing.assert_allclose(
      self.losses("ldam", ldam_max_margin=2.0), np.log1p(9 * np.exp(margins)), rtol=1e-5
    )
    # The logits are 1, the biases; tau 0 leaves the scales, 1 and 1/5 or near it.
    scales = counts / counts.max()
    self.assertLess(scales[9], 0.21)
    np.testing.assert_allclose(
      self.losses("vector_scaling", vector_scaling_gamma=1.0, vector_scaling_tau=0.0),
      np.log(np.exp(scales).sum()) - scales[[0, 9]],
      rtol=1e-5,
    )
    margin = -np.log(9)  # of equal logits
    np.testing.assert_allclose(self.losses("polynomial_tail"), -margin / 2, rtol=1e-5)

  def test_the_polynomial_tail_weighs_margins(self):
    evidence = {"logits": np.array([[2, 0]], np.float32), "labels": np.array([0])}
    rule = _methods.compose(
      ("polynomial_tail",), RuleOptions(polynomial_tail_power=2.0), _methods.Facts(), 0
    )
    weights, _ = rule.update(np.ones(1, np.float32), rule.init(np.ones(1)), **evidence)
    np.testing.assert_allclose(weights, 0.5, rtol=1e-6)  # 2 k m^(-k-1) = 4 / 8

  @parameterized.parameters("logit_adjustment", "undersample")
  def test_two_steps(self, method):
    config = dataclasses.replace(self.CONFIG, methods=(method,), eval_every=2)
    self.train("run", config=config, task=self.task)
    (row,) = self.rows("run")
    self.assertEqual(row["step"], 2)
    self.assertTrue(np.isfinite(row["train_loss"]))
    self.assertEqual(np.isfinite(self.weights("run")["mean_weight"]).sum(), 20)  # two batches of 10

  def test_undersampled_batches_hold_every_class_as_often_as_the_rarest(self):
    phase, labels = self.phase("undersample"), self.task.labels
    rarest = min(self.task.class_counts("train"))
    self.assertEqual(np.bincount(labels[phase.kept]).tolist(), [rarest] * 10)
    self.assertContainsSubset(phase.kept.tolist(), self.task.train.tolist())
    run = self.make_run("run")._replace(task=self.task, phases=[phase])
    schedule = _phases.make_schedule(self.CONFIG)
    positions, _ = _run._positions(run, phase, 0, 10 * rarest // 10, schedule)  # one pass
    self.assertEqual(sorted(positions.ravel().tolist()), phase.kept.tolist())
    np.testing.assert_array_equal(self.phase("undersample").kept, phase.kept)
    self.assertIsNone(self.phase("resample").kept)

  def test_seeds_whose_batches_differ_in_size_do_not_go_side_by_side(self):
    config = dataclasses.replace(self.CONFIG, batch_size=400, parallel_seeds=2)
    phase = self.phase("undersample", batch_size=400)
    made = [
      self.make_run("run", seed=i)._replace(task=self.task, phases=[phase._replace(kept=kept)])
      for i, kept in enumerate((phase.kept, phase.kept[:-10], phase.kept))
    ]
    setup = mock.Mock(schedule=_phases.make_schedule(config))
    groups = list(_parallel.groups(config, made, setup))
    self.assertEqual([[run.seed for run in group] for group in groups], [[0, 2], [1]])

  @parameterized.parameters("ldam", "vector_scaling", "logit_adjustment", "polynomial_tail")
  def test_soft_labels_are_refused(self, method):
    config = dataclasses.replace(self.CONFIG, methods=(method,), label_smoothing=0.1)
    with self.assertRaisesRegex(UsageError, "--label_smoothing and --mixup .*leave them out$"):
      _check.check(config)


class BalancedBatchTest(parameterized.TestCase):
  def test_each_class_has_its_share_and_each_example_its_own(self):
    labels = np.repeat([0, 2, 5], [700, 20, 5])
    drawn = np.concatenate(
      [data.balanced_batch_indices(labels, 60, step, seed=1) for step in range(100)]
    )
    shares = np.array([np.mean(labels[drawn] == label) for label in (0, 2, 5)])
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)  # 6000 draws, sd 0.006
    times = np.bincount(drawn[labels[drawn] == 5], minlength=725)[720:]
    np.testing.assert_allclose(times / 2000, 0.2, atol=0.05)

  def test_it_depends_on_step_and_seed_alone(self):
    labels = np.arange(50) % 5
    draw = lambda step, seed: data.balanced_batch_indices(labels, 8, step, seed).tolist()
    self.assertEqual(draw(3, 1), draw(3, 1))
    self.assertLen({tuple(draw(step, seed)) for step in (0, 1) for seed in (0, 1)}, 4)

  @parameterized.parameters(([], 2, 0, 0), ([1], 0, 0, 0), ([1], 1, -1, 0), ([[1]], 1, 0, 0))
  def test_bad_arguments_are_refused(self, labels, size, step, seed):
    with self.assertRaises(ValueError):
      data.balanced_batch_indices(np.array(labels), size, step, seed)


class CommandTest(commands.CommandTestCase):
  MODULE = cifar_imbalanced

  @parameterized.parameters(
    ("--shots: expected two numbers .*got 20", "--shots=20"),
    ("--shots: expected two numbers .*got 100,20", "--shots=100,20"),
    ("--shots: expected numbers .*got 'few'", "--shots=few,many"),
    ("--defer_until: .*got 1.0", "--defer_until=1"),
    ("--train_size: expected at most the 1280 .*got 5000", "--dataset=digits", "--train_size=5000"),
    ("--imbalance_ratio: .*got 1 with", "--imbalance_ratio=1"),
    ("a ratio of 1000 leaves class 7", "--dataset=digits", "--imbalance_ratio=1000"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def test_the_defaults_are_long_tailed_cifar_and_the_methods_exist(self):
    config = cifar_imbalanced.DEFAULT
    self.assertEqual((config.dataset, config.imbalance), ("cifar10", "long_tail"))
    self.assertLessEqual(set(config.methods), set(_methods.METHODS))
    values = cifar_imbalanced.flags.FlagValues()
    cifar_imbalanced.define_flags(values)
    values(("binary", "--protocol=long_tail", "--dataset=cifar100"))
    asked = _flags.config_of(values, config)
    self.assertEqual((asked.model, asked.epochs, asked.steps), ("resnet32", 200.0, None))
    self.assertEqual(asked.meta_size, 1000)
    self.assertEqual(_config.PROTOCOLS["long_tail"]["meta_size"], 100)

  def test_table_and_files_of_a_small_run(self):
    argv = ("--dataset=digits", "--imbalance_ratio=20", "--method=ce,resample", "--steps=4")
    stdout = self.command(*argv, "--eval_every=2", "--nopictures", "--validation_size=100")
    rows = [line.split(" | ") for line in stdout.splitlines() if line.startswith("| ")]
    self.assertEqual([row[0] for row in rows], ["| method", "| ---", "| ce", "| resample"])
    classes = json.loads((self.workdir / "classes.json").read_text())
    found = classes["ce"][0]
    self.assertEqual(found["counts"][9], found["counts"][0] // 20)
    rarest = 100 * found["accuracy_by_class"][9]
    self.assertEqual(rows[2][5], f"{rarest:.1f}")
    self.assertTrue((self.workdir / "classes.png").exists())

    # Another command tells of its own runs; the files keep those of the first.
    stdout = self.command(*argv, "--method=ce", "--eval_every=2", "--validation_size=100")
    self.assertNotIn("| resample", stdout)
    self.assertEqual(json.loads((self.workdir / "classes.json").read_text()), classes)
    self.assertIn("| resample | ", (self.workdir / "classes.md").read_text())

  def test_a_test_set_without_a_class_is_told_before_anything_runs(self):
    digits = runs.dataset()
    rest = digits.test_labels != 3
    lacking = digits._replace(
      test_inputs=digits.test_inputs[rest], test_labels=digits.test_labels[rest]
    )
    with mock.patch.object(cifar_imbalanced._command, "_load", return_value=lacking):
      self.assert_refused(
        "--dataset: .*none of class 3", "--dataset=digits", "--imbalance_ratio=20"
      )


if __name__ == "__main__":
  absltest.main()
