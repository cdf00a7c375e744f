"""The training loop and its tasks: phases, books, resume after any interruption, bad numbers."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import shutil
import signal
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from experiments import (
  _errors,
  _evaluation,
  _methods,
  _model,
  _phases,
  _run,
  _signals,
  _steps,
  _task,
)
from experiments._config import Config
from reweight_jax import checkpointing, data, runlog

# A method with state everywhere: a rule that draws, a moving average, momentum, two phases.
_PROBE = _methods.Recipe(("random_weights", "normalize"), finetunes=True)
_CONFIG = Config(
  methods=("probe",),
  steps=6,
  finetune_steps=4,
  momentum=0.9,
  batch_size=10,
  validation_size=50,
  eval_every=3,
  checkpoint_every=2,
  ema_decay=0.9,
  augment="paper",
  rule_options=_methods.RuleOptions(normalize_decay=0.9),
)
_TOTAL = 10


class KilledError(Exception):
  """Stands for a kill."""


@functools.cache
def _dataset():
  return data.load("digits")


@functools.cache
def _model_of_tests():
  """A linear model: compiled in no time."""

  def apply_fn(params, model_state, inputs, key, train):
    return inputs.reshape(len(inputs), -1) / 255 @ params["kernel"] + params["bias"], model_state

  def init(key, inputs):
    params = {"kernel": np.zeros((64, 10), np.float32), "bias": np.ones((1, 10), np.float32)}
    return jax.tree.map(jax.numpy.array, params), {}

  loss_fn = rw.losses.from_apply(apply_fn)
  predict = _evaluation.make_predictor(rw.losses.from_apply(apply_fn, train=False))
  return _model.Model(init, loss_fn, loss_fn, predict)


def _make_task(seed=0, **settings):
  return _task.make_task(dataclasses.replace(_CONFIG, **settings), _dataset(), seed)


def _ignore(steps, text):
  del steps, text


class RunTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.dict(_methods.METHODS, {"probe": _PROBE}))
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.task = _make_task()

  def train(self, *folders, config=_CONFIG, task=None, advance=_ignore):
    """Trains in folders below the root, a seed each, or goes on there; returns stderr."""
    digits = _dataset()
    setup = _run.Setup(
      jax.device_put(digits.train_inputs),
      digits.train_ids,
      _evaluation.padded(digits.test_inputs, digits.test_labels),
      _model_of_tests().predict,
      _phases.make_schedule(config),
      advance,
    )
    runs = [self.make_run(folder, config, task, seed) for seed, folder in enumerate(folders)]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
      _run.train(runs, setup)
    return stderr.getvalue()

  def make_run(self, folder, config=_CONFIG, task=None, seed=0):
    model, task = _model_of_tests(), task or _make_task(seed)
    phases = _phases.make_phases(config, model, config.run_names()[0], task, seed)
    (self.root / folder).mkdir(exist_ok=True)
    init = functools.partial(model.init, jax.random.key(seed), _dataset().train_inputs[:2])
    return _run.Run(seed, task, phases, self.root / folder, init)

  def carry(self, folder, step=None, config=_CONFIG):
    """The checkpoint of a step, by default the newest, keys as numbers."""
    run = self.make_run(folder, config)
    with checkpointing.Checkpoints(self.root / folder / "checkpoints") as checkpoints:
      step = checkpoints.latest_step() if step is None else step
      carry = checkpoints.restore(step, _run.begin(run, step, _phases.make_schedule(config)))
    state = carry.state
    return carry._replace(state=state._replace(key=jax.random.key_data(state.key)))

  def rows(self, folder):
    """The run log, without what the clock said."""
    rows = runlog.read_rows(self.root / folder / "metrics.jsonl")
    return [
      {name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows
    ]

  def weights(self, folder):
    with np.load(self.root / folder / "weights.npz") as entries:
      return dict(entries)

  def assert_same_run(self, folder, other, **kwargs):
    chex.assert_trees_all_equal(self.carry(folder, **kwargs), self.carry(other, **kwargs))
    chex.assert_trees_all_equal(self.weights(folder), self.weights(other))
    self.assertEqual(self.rows(folder), self.rows(other))


class ResumeTest(RunTestCase):
  def test_interrupted_once_ends_bit_for_bit_as_undisturbed(self):
    calls = []
    self.train("whole", advance=lambda steps, text: calls.append((steps, text)))
    # The start; ten steps; rows at 3, 6, 9, 10.
    self.assertLen(calls, 15)
    self.assertEqual(sum(steps for steps, _ in calls), _TOTAL)
    # Before any step, before the first checkpoint, between two, in the second phase, at the end.
    for last in (0, 1, 5, 10, 14):
      with self.subTest(f"interrupted at report {last}"):
        remaining = iter(range(last))

        def advance(steps, text, remaining=remaining):
          if next(remaining, None) is None:
            raise KilledError

        folder = f"resumed_{last}"
        with self.assertRaises(KilledError):
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
          raise KilledError

      try:
        self.train("resumed", advance=advance)
        break
      except KilledError:
        continue
    self.assert_same_run("resumed", "whole")

  def test_interrupted_between_the_last_checkpoint_and_the_ledger(self):
    self.train("whole")
    with (
      mock.patch.object(_run, "_write_results", side_effect=KilledError),
      self.assertRaises(KilledError),
    ):
      self.train("resumed")
    reports = []
    self.train("resumed", advance=lambda steps, text: reports.append(steps))
    self.assertEqual(reports, [_TOTAL])
    self.assert_same_run("resumed", "whole")

  def test_interval_of_checkpoints_does_not_matter(self):
    self.train("whole")
    self.train("rare", config=dataclasses.replace(_CONFIG, checkpoint_every=1000))
    self.assert_same_run("rare", "whole", step=_TOTAL)

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


class SurvivalTest(RunTestCase):
  def test_any_file_of_the_newest_checkpoint_cut_short_or_lost_leads_to_the_same_end(self):
    self.train("whole")
    newest = self.root / "whole" / "checkpoints" / "10"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    fallen_back = 0
    for number, (file, harm) in enumerate((f, h) for f in files for h in ("cut", "lost")):
      with self.subTest(f"{file} {harm}"):
        folder = self.root / f"run_{number}"
        shutil.copytree(self.root / "whole", folder)
        (folder / "weights.npz").unlink()
        path = folder / "checkpoints" / "10" / file
        if harm == "lost":
          path.unlink()
        else:
          os.truncate(path, path.stat().st_size // 2)
        stderr = self.train(folder.name)
        self.assert_same_run(folder.name, "whole")
        if stderr:
          fallen_back += 1
          self.assertRegex(stderr, r"\Awarning: a checkpoint of .*damaged_10; .* from step 8\n\Z")
          self.assertTrue((folder / "damaged_10").is_dir())
    self.assertGreater(fallen_back, len(files) // 2)

  def test_without_any_readable_checkpoint_the_run_starts_over_and_says_so(self):
    self.train("whole")
    shutil.copytree(self.root / "whole", self.root / "run")
    for step in (6, 8, 10):  # the best, and the two newest
      shutil.rmtree(self.root / "run" / "checkpoints" / str(step) / "default")
    stderr = self.train("run")
    for line, step in zip(stderr.splitlines(), (10, 8, 6), strict=True):
      self.assertRegex(line, f"damaged_{step}; the run goes on from its start")
    self.assert_same_run("run", "whole")

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_from_there(self, number):
    self.train("whole")
    steps = []

    def advance(count, text):
      steps.append(count)
      if sum(steps) == 5:
        signal.raise_signal(number)

    before = signal.getsignal(number)
    with self.assertRaisesRegex(_errors.StoppedError, f"by {number.name} at step 5 of ") as raised:
      self.train("stopped", advance=advance)
    self.assertEqual(raised.exception.status, 128 + number)
    self.assertIs(signal.getsignal(number), before)
    self.assertEqual(self.carry("stopped").state.step, 5)
    reports = []
    self.train("stopped", advance=lambda steps, text: reports.append(steps))
    self.assertEqual((reports[0], sum(reports)), (5, _TOTAL))
    self.assert_same_run("stopped", "whole")

  def test_a_second_interrupt_does_not_wait(self):
    with _signals.stop_requests() as request, self.assertRaises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
      self.assertEqual(request.received, signal.SIGINT)
      signal.raise_signal(signal.SIGINT)

  def test_a_folder_that_vanishes_is_named(self):
    def advance(count, text):
      if text.startswith("step 3"):
        shutil.rmtree(self.root / "run")

    with self.assertRaisesRegex(_errors.RunError, "folder .*/run vanished during the run"):
      self.train("run", advance=advance)

  def test_best_checkpoint_on_noisy_validation_is_kept(self):
    config = dataclasses.replace(
      _CONFIG, methods=("ce",), steps=30, eval_every=1, checkpoint_every=1, keep=1
    )
    self.train("run", config=config)
    scores = [row["validation_accuracy"] for row in self.rows("run")]
    best = max(range(30), key=lambda i: (scores[i], i)) + 1
    with checkpointing.Checkpoints(self.root / "run" / "checkpoints") as checkpoints:
      self.assertEqual(checkpoints.best_step(), best)
      self.assertEqual(checkpoints.steps(), sorted({best, 30}))


class TogetherTest(RunTestCase):
  def test_steps_in_chunks_are_the_steps_one_by_one(self):
    self.train("single")
    self.train("chunks", config=dataclasses.replace(_CONFIG, chunk_steps=2))
    for name in ("single", "chunks"):
      self.assertEqual([row["step"] for row in self.rows(name)], [3, 6, 9, 10])
    self.assert_close("chunks", "single")

  def test_seeds_side_by_side_are_the_seeds_alone(self):
    self.train("a", "b")
    for seed, folder in enumerate(("a", "b")):
      self.train("unused" if seed else "alone_a", *(["alone_b"] if seed else []))
      self.assert_close(folder, f"alone_{folder}", seed)

  def test_seeds_side_by_side_resume_from_where_each_is(self):
    self.train("a", "b")
    shutil.copytree(self.root / "a", self.root / "c")
    shutil.copytree(self.root / "b", self.root / "d")
    (self.root / "d" / "checkpoints" / "10").rename(self.root / "gone")
    self.train("c", "d")
    self.assert_close("c", "a")
    self.assert_close("d", "b", 1)

  def assert_close(self, folder, other, seed=0):
    for mine, theirs in zip(self.rows(folder), self.rows(other), strict=True):
      self.assertEqual(mine.keys(), theirs.keys())
      np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-4)
    found, expected = self.weights(folder), self.weights(other)
    np.testing.assert_array_equal(found["index"], expected["index"])
    np.testing.assert_allclose(found["mean_weight"], expected["mean_weight"], rtol=1e-4)
    carries = [self.carry(name) for name in (folder, other)]
    chex.assert_trees_all_close(*[carry.state.params for carry in carries], atol=1e-5)


class PhasesTest(RunTestCase):
  def test_finetuning_starts_from_the_first_phase_and_moves_on_clean_examples_alone(self):
    config = dataclasses.replace(_CONFIG, methods=("finetune",))
    self.train("finetune", config=config)
    self.train("ce", config=dataclasses.replace(config, methods=("ce",)))
    self.assertEqual(self.rows("finetune")[:2], self.rows("ce"))
    chex.assert_trees_all_equal(self.weights("finetune"), self.weights("ce"))
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
    config = dataclasses.replace(_CONFIG, methods=("clean_only",))
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
    self.assertEqual([_run._phase_at(phases, step) for step in (0, 5, 6, 9, 10)],
                     [(0, 0), (0, 5), (1, 0), (1, 3), (1, 4)])  # fmt: skip

  def test_only_meta_rules_get_the_meta_batch(self):
    config = dataclasses.replace(_CONFIG, methods=(), rules=("focal", "align", "rectify"))
    make = functools.partial(_phases.make_phases, model=_model_of_tests(), task=self.task, seed=0)
    (aligned,) = make(config, name="focal+align+rectify")
    (plain,) = make(dataclasses.replace(config, rules=("focal",)), name="focal")
    self.assertEqual((aligned.uses_meta_batch, plain.uses_meta_batch), (True, False))

  def test_epochs_become_steps(self):
    config = Config(epochs=2.5, batch_size=100)
    self.assertEqual(config.num_steps(1080), 25)  # 10 whole batches an epoch
    self.assertEqual(config.num_steps(199), 2)  # 2.5 rounds to the even
    self.assertEqual(Config(epochs=0.01).num_steps(1080), 1)
    self.assertEqual((Config(steps=7).num_steps(1080), Config().num_steps(1080)), (7, 600))

  def test_total_counts_finetuning_once_a_seed(self):
    config = Config(methods=("ce", "finetune"), seeds=(0, 1, 2), steps=10, finetune_steps=4)
    self.assertEqual(_phases.total_steps(config), 3 * (10 + 10 + 4))


class BooksTest(RunTestCase):
  def test_ledger_holds_what_the_rule_gave(self):
    config = dataclasses.replace(
      _CONFIG, methods=("ce",), steps=107, eval_every=50, checkpoint_every=1000
    )
    task = _make_task(validation_size=210)  # 1070 left: 107 batches of 10 are one epoch
    self.train("ce", config=config, task=task)
    entries = self.weights("ce")
    np.testing.assert_array_equal(entries["index"], _dataset().train_ids[task.train])
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
    config = dataclasses.replace(_CONFIG, methods=("ce",), steps=1, eval_every=1, augment="none")
    self.train("ce", config=config)
    rows = self.task.train[data.batch_indices(len(self.task.train), 10, 0, 0)]
    # All kernels are 0 and all biases equal, so every class has probability 1/10.
    self.assertAlmostEqual(self.rows("ce")[0]["train_loss"], np.log(10), places=5)
    gradient = np.zeros((64, 10))
    for row in rows:
      error = np.full(10, 0.1) - np.eye(10)[self.task.labels[row]]
      gradient += np.outer(_dataset().train_inputs[row].ravel() / 255, error) / 10
    kernel = self.carry("ce", config=config).state.params["kernel"]
    np.testing.assert_allclose(kernel, -0.1 * gradient, atol=1e-6)

  def test_evaluations_use_the_moving_average(self):
    config = dataclasses.replace(_CONFIG, methods=("ce",), steps=2, augment="none", momentum=0.0)
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
    config = dataclasses.replace(_CONFIG, methods=("ce",))
    self.train("run", config=config, task=_make_task(validation_size=0))
    self.assertEqual([row["validation_accuracy"] for row in self.rows("run")], [None, None])

  @parameterized.parameters(1, 499, 500, 501)
  def test_padding_does_not_count_in_accuracy(self, size):
    class_of = lambda params, state, batch, key: mock.Mock(logits=jax.nn.one_hot(batch.inputs, 3))
    labels = np.arange(size, dtype=np.int32) % 3
    inputs = np.where(np.arange(size) % 5 == 0, labels, (labels + 1) % 3)
    examples = _evaluation.padded(inputs, labels)
    predictions = _evaluation.make_predictor(class_of)((), (), examples)
    np.testing.assert_array_equal(predictions, inputs)
    self.assertAlmostEqual(_evaluation.accuracy(predictions, examples), -(-size // 5) / size)


class NotFiniteTest(RunTestCase):
  def test_first_bad_loss_is_named_and_finite_checkpoint_stays(self):
    # Weight decay doubles and negates the params each step: finite losses first, then overflow.
    config = dataclasses.replace(
      _CONFIG, methods=("ce",), steps=400, learning_rate=1.0, weight_decay=1e6, momentum=0.0
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
    config = dataclasses.replace(_CONFIG, methods=("ce",), learning_rate=1e38)
    with self.assertRaisesRegex(_errors.RunError, "step 2; no checkpoint was taken before. Lower"):
      self.train("run", config=config)
    self.assertEqual(self.rows("run"), [])

  def test_bad_optimizer_state_is_never_saved(self):
    run = self.make_run("run")
    carry = _run.begin(run, 0, _phases.make_schedule(_CONFIG))
    self.assertTrue(_steps.is_finite(carry))
    bad = jax.tree.map(lambda leaf: leaf + np.inf, carry.state.opt_state)
    self.assertFalse(_steps.is_finite(carry._replace(state=carry.state._replace(opt_state=bad))))


class CollapseTest(parameterized.TestCase):
  pass


class TaskTest(parameterized.TestCase):
  def test_parts_share_no_example_and_hold_all(self):
    task = _make_task()
    self.assertEqual([len(part) for part in task[1:4]], [1230, 20, 50])
    np.testing.assert_array_equal(np.sort(np.concatenate(task[1:4])), np.arange(1300))

  def test_meta_is_clean_and_balanced(self):
    task, clean = _make_task(), _dataset().train_labels
    np.testing.assert_array_equal(task.labels[task.meta], clean[task.meta])
    np.testing.assert_array_equal(np.bincount(task.labels[task.meta]), [2] * 10)
    self.assertEqual(task.class_counts("meta"), (2,) * 10)

  def test_noise_moves_labels_and_flags_tell_which(self):
    task, clean = _make_task(), _dataset().train_labels
    np.testing.assert_array_equal(task.is_noisy, clean != task.labels)
    moved = task.is_noisy
    np.testing.assert_array_equal(task.labels[moved], (clean[moved] + 1) % 10)
    self.assertIn(task.is_noisy[task.train].sum(), (553, 554))  # 0.45 * 1230 = 553.5
    self.assertIn(task.is_noisy[task.validation].sum(), (22, 23))

  def test_training_and_validation_share_the_background_class(self):
    for seed in range(5):
      task = _make_task(seed, noise="background", noise_rate=0.9, validation_size=200)
      most = [np.bincount(task.labels[part]).argmax() for part in (task.train, task.validation)]
      self.assertEqual(most[0], most[1])

  def test_imbalance_thins_out_training_and_validation_before_the_noise(self):
    task = _make_task(
      imbalance="step", imbalance_ratio=10.0, validation_size=200, noise="pair", noise_rate=0.2
    )
    clean = _dataset().train_labels
    for part in (task.train, task.validation):
      counts = np.bincount(clean[part], minlength=10)
      self.assertEqual(counts[5:].tolist(), [counts[:5].min() // 10] * 5)
      self.assertAlmostEqual(task.is_noisy[part].mean(), 0.2, delta=1 / len(part))
    self.assertEqual(task.class_counts("meta"), (2,) * 10)

  def test_seed_decides(self):
    first, again, other = _make_task(1), _make_task(1), _make_task(2)
    chex.assert_trees_all_equal(first, again)
    self.assertFalse(np.array_equal(first.train, other.train))


if __name__ == "__main__":
  absltest.main()
