"""The training loop: resume after any interruption, phases, books, bad numbers."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from experiments import (
  _errors,
  _evaluation,
  _lane,
  _methods,
  _phases,
  _steps,
)
from experiments._config import Config
from reweight_jax import data, runlog
from tests import runs


class ResumeTest(runs.RunTestCase):
  def test_interrupted_once_ends_bit_for_bit_as_undisturbed(self):
    calls = []
    self.train("whole", advance=lambda steps, text: calls.append((steps, text)))
    # The start; ten steps; rows at 3, 6, 9, 10.
    self.assertLen(calls, 15)
    self.assertEqual(sum(steps for steps, _ in calls), runs.TOTAL)
    # Before any step, before the first checkpoint, between two, in the second phase, at the end.
    for last in (0, 1, 5, 10, 14):
      with self.subTest(f"interrupted at report {last}"):
        remaining = iter(range(last))

        def advance(steps, text, remaining=remaining):
          if next(remaining, None) is None:
            raise runs.KilledError

        folder = f"resumed_{last}"
        with self.assertRaises(runs.KilledError):
          self.train(folder, advance=advance)
        self.assertFalse((self.root / folder / "weights.npz").exists())
        self.train(folder)
        self.assert_same_run(folder, "whole")

  def test_interrupted_again_and_again(self):
    self.train("whole")
    for _ in range(30):
      reports = iter(range(5))  # a life that ends at its sixth report gets some steps further

      def advance(steps, text, reports=reports):
        if next(reports, None) is None:
          raise runs.KilledError

      try:
        self.train("resumed", advance=advance)
        break
      except runs.KilledError:
        continue
    self.assert_same_run("resumed", "whole")

  def test_interrupted_between_the_last_checkpoint_and_the_ledger(self):
    self.train("whole")
    with (
      mock.patch.object(_lane, "write_results", side_effect=runs.KilledError),
      self.assertRaises(runs.KilledError),
    ):
      self.train("resumed")
    reports = []
    self.train("resumed", advance=lambda steps, text: reports.append(steps))
    self.assertEqual(reports, [runs.TOTAL])
    self.assert_same_run("resumed", "whole")

  def test_interval_of_checkpoints_does_not_matter(self):
    self.train("whole")
    self.train("rare", config=dataclasses.replace(runs.CONFIG, checkpoint_every=1000))
    self.assert_same_run("rare", "whole", step=runs.TOTAL)

  def test_clock_goes_on(self):
    self.train("whole")
    (self.root / "whole" / "weights.npz").unlink()
    (self.root / "whole" / "checkpoints" / "10").rename(self.root / "gone")
    log = self.root / "whole" / "metrics.jsonl"
    rows = runlog.read_rows(log)
    log.unlink()
    for row in rows:
      runlog.append_row(log, row | {"seconds": 1000.0})
    self.train("whole")
    self.assertGreater(runlog.read_rows(log)[-1]["seconds"], 1000)

  def test_damaged_log_is_the_users_mistake_in_one_line(self):
    self.train("run")
    (self.root / "run" / "metrics.jsonl").write_text("broken\nbroken\n")
    with self.assertRaisesRegex(_errors.UsageError, "--workdir: .*metrics.jsonl, line 1"):
      self.train("run")


class PhasesTest(runs.RunTestCase):
  def test_finetuning_starts_from_the_first_phase_and_moves_on_clean_examples_alone(self):
    config = dataclasses.replace(runs.CONFIG, methods=("finetune",))
    self.train("finetune", config=config)
    self.train("ce", config=dataclasses.replace(config, methods=("ce",)))
    self.assertEqual(self.rows("finetune")[:2], self.rows("ce"))
    tuned, plain = self.weights("finetune"), self.weights("ce")
    for name in ("last_loss", "last_prediction"):  # of the params at the end
      self.assertTrue((tuned.pop(name) != plain.pop(name)).any())
    chex.assert_trees_all_equal(tuned, plain)
    before = self.carry("ce", config=dataclasses.replace(config, methods=("ce",))).state
    after = self.carry("finetune", config=config).state
    self.assertEqual((before.step, after.step), (6, 10))
    moved = jax.tree.map(lambda old, new: (old != new).any(), before.params, after.params)
    self.assertTrue(all(jax.tree.leaves(moved)))
    # Other clean examples end elsewhere; that alone tells what the second phase reads.
    labels = self.task.labels.copy()
    labels[self.task.meta] = (labels[self.task.meta] + 1) % 10
    self.train("other", config=config, task=self.task._replace(labels=labels))
    self.assertEqual(self.rows("other")[:2], self.rows("finetune")[:2])
    self.assertNotEqual(self.rows("other")[2:], self.rows("finetune")[2:])

  def test_clean_only_never_sees_training_examples(self):
    config = dataclasses.replace(runs.CONFIG, methods=("clean_only",))
    self.train("clean_only", config=config)
    labels = self.task.labels.copy()
    labels[self.task.train] = (labels[self.task.train] + 3) % 10
    task = self.task._replace(labels=labels, train=self.task.train[::-1])
    self.train("other", config=config, task=task)
    self.assertEqual(self.rows("clean_only"), self.rows("other"))
    mean = self.weights("clean_only")["mean_weight"]
    self.assertTrue(np.isnan(mean).all())

  def test_phases_cut_the_steps(self):
    phases = self.make_run("run").phases
    self.assertEqual([_lane.phase_at(phases, step) for step in (0, 5, 6, 9, 10)],
                     [(0, 0), (0, 5), (1, 0), (1, 3), (1, 4)])  # fmt: skip

  def test_only_meta_rules_get_the_meta_batch(self):
    config = dataclasses.replace(runs.CONFIG, methods=(), rules=("focal", "align", "rectify"))
    make = functools.partial(
      _phases.make_phases, model=runs.linear_model(), dataset=runs.dataset(), task=self.task, seed=0
    )
    (aligned,) = make(config, name="focal+align+rectify")
    (plain,) = make(dataclasses.replace(config, rules=("focal",)), name="focal")
    self.assertEqual((aligned.uses_meta_batch, plain.uses_meta_batch), (True, False))

  def test_epochs_become_steps(self):
    config = Config(epochs=2.5, batch_size=100)
    self.assertEqual(config.num_steps(1080), 25)  # 10 whole batches an epoch
    self.assertEqual(config.num_steps(199), 2)  # 2.5 rounds to the even
    self.assertEqual(Config(epochs=0.01).num_steps(1080), 1)
    self.assertEqual((Config(steps=7).num_steps(1080), Config().num_steps(1080)), (7, 600))

  def test_chains_of_rules_have_folders_of_their_own(self):
    name_of = lambda *rules: Config(rules=rules).run_names()[0]
    self.assertEqual(name_of("focal", "clip"), "focal+clip")
    self.assertEqual(name_of("small_loss"), "rule_small_loss")
    self.assertNoCommonElements(map(name_of, _methods.RULES), _methods.METHODS)
    long = [name_of(*["importance_ratio"] * count) for count in (30, 31)]
    self.assertNotEqual(*long)
    self.assertLess(max(map(len, long)), 255)

  def test_total_counts_finetuning_once_a_seed(self):
    config = Config(methods=("ce", "finetune"), seeds=(0, 1, 2), steps=10, finetune_steps=4)
    self.assertEqual(_phases.total_steps(config), 3 * (10 + 10 + 4))


class BooksTest(runs.RunTestCase):
  def test_ledger_holds_what_the_rule_gave(self):
    config = dataclasses.replace(
      runs.CONFIG, methods=("ce",), steps=107, eval_every=50, checkpoint_every=1000
    )
    task = runs.make_task(validation_size=210)  # 1070 left: 107 batches of 10 are one epoch
    self.train("ce", config=config, task=task)
    entries = self.weights("ce")
    np.testing.assert_array_equal(entries["index"], runs.dataset().train_ids[task.train])
    np.testing.assert_array_equal(entries["given_label"], task.labels[task.train])
    np.testing.assert_array_equal(entries["is_noisy"], task.is_noisy[task.train])
    np.testing.assert_array_equal(entries["mean_weight"], np.ones(1070))
    np.testing.assert_array_equal(entries["last_weight"], np.ones(1070))
    self.assertEqual([row["step"] for row in self.rows("ce")], [50, 100, 107])
    self.assertEqual([row["effective_sample_size"] for row in self.rows("ce")], [10, 10, 10])
    # The last of the ledgers written down over the run is the whole one.
    windows = sorted((self.root / "ce" / "windows").iterdir())
    self.assertEqual([path.stem for path in windows], [f"step_{n:08d}" for n in (50, 100, 107)])
    with np.load(windows[0]) as first, np.load(windows[-1]) as last:
      self.assertEqual((first["times_seen"].sum(), last["times_seen"].sum()), (500, 1070))

  def test_first_loss_is_that_of_the_initial_params(self):
    config = dataclasses.replace(
      runs.CONFIG, methods=("ce",), steps=1, eval_every=1, augment="none"
    )
    self.train("ce", config=config)
    rows = self.task.train[data.batch_indices(len(self.task.train), 10, 0, 0)]
    # All kernels are 0 and all biases equal, so every class has probability 1/10.
    self.assertAlmostEqual(self.rows("ce")[0]["train_loss"], np.log(10), places=5)
    gradient = np.zeros((64, 10))
    for row in rows:
      error = np.full(10, 0.1) - np.eye(10)[self.task.labels[row]]
      gradient += np.outer(runs.dataset().train_inputs[row].ravel() / 255, error) / 10
    kernel = self.carry("ce", config=config).state.params["kernel"]
    np.testing.assert_allclose(kernel, -0.1 * gradient, atol=1e-6)

  def test_evaluations_use_the_moving_average(self):
    config = dataclasses.replace(
      runs.CONFIG, methods=("ce",), steps=2, augment="none", momentum=0.0
    )
    self.train("run", config=config)
    start = {"kernel": np.zeros((64, 10)), "bias": np.ones((1, 10))}
    self.train("one", config=dataclasses.replace(config, steps=1))
    first, second = (self.carry(name, config=config) for name in ("one", "run"))
    expected = jax.tree.map(
      lambda a, b, c: 0.81 * a + 0.09 * b + 0.1 * c, start, first.state.params, second.state.params
    )
    chex.assert_trees_all_close(second.evaluated()[0], expected, atol=1e-6)
    self.assertIs(first._replace(averages=()).evaluated()[0], first.state.params)

  def test_without_validation_the_row_says_so(self):
    config = dataclasses.replace(runs.CONFIG, methods=("ce",))
    self.train("run", config=config, task=runs.make_task(validation_size=0))
    self.assertEqual([row["validation_accuracy"] for row in self.rows("run")], [None, None])

  @parameterized.parameters(1, 499, 500, 501)
  def test_padding_does_not_count_in_accuracy(self, size):
    class_of = lambda params, state, batch, key: rw.types.Outputs(
      batch.inputs / 2, jax.nn.one_hot(batch.inputs, 3)
    )
    labels = np.arange(size, dtype=np.int32) % 3
    inputs = np.where(np.arange(size) % 5 == 0, labels, (labels + 1) % 3)
    examples = _evaluation.padded(inputs, labels)
    predictions = _evaluation.make_predictor(class_of)((), (), examples)
    np.testing.assert_array_equal(predictions.classes, inputs)
    np.testing.assert_array_equal(predictions.losses, inputs / 2)
    self.assertAlmostEqual(
      _evaluation.accuracy(predictions.classes, examples), -(-size // 5) / size
    )


class NotFiniteTest(runs.RunTestCase):
  def test_first_bad_loss_is_named_and_finite_checkpoint_stays(self):
    # Weight decay doubles and negates the params each step: finite losses first, then overflow.
    config = dataclasses.replace(
      runs.CONFIG, methods=("ce",), steps=400, learning_rate=1.0, weight_decay=1e6, momentum=0.0
    )
    with self.assertRaisesRegex(
      _errors.RunError, r"not finite (at|after) step (\d+); the checkpoint of step (\d+) is kept"
    ) as raised:
      self.train("run", config=config)
    self.assertNotIn("\n", str(raised.exception))
    carry = self.carry("run", config=config)
    self.assertIn(f"the checkpoint of step {carry.state.step} is kept", str(raised.exception))
    self.assertTrue(_steps.is_finite(carry))
    self.assertGreater(carry.state.step, 0)
    self.assertFalse((self.root / "run" / "weights.npz").exists())
    for row in self.rows("run"):
      self.assertTrue(np.isfinite(row["train_loss"]))

  def test_bad_inputs_at_the_first_step(self):
    config = dataclasses.replace(runs.CONFIG, methods=("ce",), learning_rate=1e38)
    with self.assertRaisesRegex(_errors.RunError, "step 2; no checkpoint was taken before. Lower"):
      self.train("run", config=config)
    self.assertEqual(self.rows("run"), [])

  def test_bad_optimizer_state_is_never_saved(self):
    run = self.make_run("run")
    carry = _lane.begin(run, 0, _phases.make_schedule(runs.CONFIG))
    self.assertTrue(_steps.is_finite(carry))
    bad = jax.tree.map(lambda leaf: leaf + np.inf, carry.state.opt_state)
    self.assertFalse(_steps.is_finite(carry._replace(state=carry.state._replace(opt_state=bad))))


if __name__ == "__main__":
  absltest.main()
