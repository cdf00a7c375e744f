"""The training loop and its tasks: phases, books, resume after any interruption, bad numbers."""

import dataclasses
import functools
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from experiments import _errors, _methods, _model, _phases, _run, _steps, _task
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
  eval_every=3,
  checkpoint_every=2,
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

  params = {"kernel": np.zeros((64, 10), np.float32), "bias": np.ones((1, 10), np.float32)}
  return _model.Model(
    lambda key, inputs: (jax.tree.map(jnp.array, params), {}),
    rw.losses.from_apply(apply_fn),
    _steps.make_evaluator(rw.losses.from_apply(apply_fn, train=False)),
  )


def _make_task(seed=0, noise="pair", noise_rate=0.45, validation_size=50):
  return _task.make_task(
    _dataset(),
    noise=noise,
    noise_rate=noise_rate,
    meta_size=20,
    validation_size=validation_size,
    seed=seed,
  )


class RunTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.dict(_methods.METHODS, {"probe": _PROBE}))
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.task = _make_task()

  def train(self, folder, config=_CONFIG, task=None, advance=lambda steps, text: None):
    """Trains in a folder below the root, or goes on there."""
    (self.root / folder).mkdir(exist_ok=True)
    _run.run(
      *self._start(config, task or self.task),
      evaluate=_model_of_tests().evaluate,
      seed=0,
      folder=self.root / folder,
      advance=advance,
    )

  def _start(self, config, task):
    model = _model_of_tests()
    params, model_state = model.init(jax.random.key(0), task.train.inputs[:2])
    phases = _phases.make_phases(config, model.loss_fn, config.methods[0], task, 0)
    schedule = _run.Schedule(
      config.batch_size, config.num_meta(), config.eval_every, config.checkpoint_every
    )
    return task, params, model_state, phases, schedule

  def carry(self, folder, step=None, config=_CONFIG, task=None):
    """The checkpoint of a step, by default the newest, keys as numbers."""
    task, params, model_state, phases, schedule = self._start(config, task or self.task)
    with checkpointing.Checkpoints(self.root / folder / "checkpoints") as checkpoints:
      step = checkpoints.latest_step() if step is None else step
      like = _run._begin(phases, step, params, model_state, task, schedule, 0)
      carry = checkpoints.restore(step, like)
    state = carry.state
    return carry._replace(state=state._replace(key=jax.random.key_data(state.key)))

  def rows(self, folder):
    """The run log, without what the clock said."""
    rows = runlog.read_rows(self.root / folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

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
    # The start; stretches to 2, 3, 4, 6 | 8, 9, 10; rows at 3, 6, 9, 10.
    self.assertLen(calls, 12)
    self.assertEqual(sum(steps for steps, _ in calls), _TOTAL)
    # Before any step, before the first checkpoint, between two, in the second phase, at the end.
    for last in (0, 1, 4, 8, 11):
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
      mock.patch.object(runlog, "write_npz", side_effect=KilledError),
      self.assertRaises(KilledError),
    ):
      self.train("resumed")
    reports = []
    self.train("resumed", advance=lambda steps, text: reports.append(steps))
    self.assertEqual(reports, [_TOTAL])
    self.assert_same_run("resumed", "whole")

  def test_interval_of_checkpoints_does_not_matter(self):
    self.train("whole")
    self.train("rare", dataclasses.replace(_CONFIG, checkpoint_every=1000))
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

  def test_damaged_log_or_checkpoint_is_the_users_mistake_in_one_line(self):
    self.train("run")
    (self.root / "run" / "metrics.jsonl").write_text("broken\nbroken\n")
    with self.assertRaisesRegex(_errors.UsageError, "--workdir: .*metrics.jsonl, line 1"):
      self.train("run")
    (self.root / "run" / "checkpoints" / "10" / "default" / "_METADATA").write_text("")
    with self.assertRaisesRegex(_errors.UsageError, "--workdir: .*checkpoints/10, which cannot"):
      self.train("run")


class PhasesTest(RunTestCase):
  def test_finetuning_starts_from_the_first_phase_and_moves_on_clean_examples_alone(self):
    config = dataclasses.replace(_CONFIG, methods=("finetune",))
    self.train("finetune", config)
    self.train("ce", dataclasses.replace(config, methods=("ce",)))
    self.assertEqual(self.rows("finetune")[:2], self.rows("ce"))
    chex.assert_trees_all_equal(self.weights("finetune"), self.weights("ce"))
    before = self.carry("ce", config=dataclasses.replace(config, methods=("ce",))).state
    after = self.carry("finetune", config=config).state
    self.assertEqual((before.step, after.step), (6, 10))
    moved = jax.tree.map(lambda old, new: (old != new).any(), before.params, after.params)
    self.assertTrue(all(jax.tree.leaves(moved)))
    # Other clean examples end elsewhere; that alone tells what the second phase reads.
    meta = self.task.meta._replace(labels=(self.task.meta.labels + 1) % 10)
    self.train("other", config, self.task._replace(meta=meta))
    self.assertEqual(self.rows("other")[:2], self.rows("finetune")[:2])
    self.assertNotEqual(self.rows("other")[2:], self.rows("finetune")[2:])

  def test_clean_only_never_sees_training_examples(self):
    config = dataclasses.replace(_CONFIG, methods=("clean_only",))
    self.train("clean_only", config)
    train = _task.Examples(self.task.train.inputs[::-1], (self.task.train.labels + 3) % 10)
    self.train("other", config, self.task._replace(train=train))
    self.assertEqual(self.rows("clean_only"), self.rows("other"))
    mean = self.weights("clean_only")["mean_weight"]
    self.assertTrue(np.isnan(mean).all())

  def test_phases_cut_the_steps(self):
    phases = self._start(_CONFIG, self.task)[3]
    self.assertEqual([_run._phase_at(phases, step) for step in (0, 5, 6, 9, 10)],
                     [(0, 0), (0, 5), (1, 0), (1, 3), (1, 4)])  # fmt: skip

  def test_only_meta_rules_get_the_meta_batch(self):
    config = dataclasses.replace(_CONFIG, methods=(), rules=("focal", "align", "rectify"))
    make = functools.partial(_phases.make_phases, loss_fn=print, task=self.task, seed=0)
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
    self.train("ce", config, task)
    entries = self.weights("ce")
    np.testing.assert_array_equal(entries["index"], task.train_ids)
    np.testing.assert_array_equal(entries["given_label"], task.train.labels)
    np.testing.assert_array_equal(entries["is_noisy"], task.is_noisy)
    np.testing.assert_array_equal(entries["mean_weight"], np.ones(1070))
    np.testing.assert_array_equal(entries["last_weight"], np.ones(1070))
    self.assertEqual([row["step"] for row in self.rows("ce")], [50, 100, 107])
    self.assertEqual([row["effective_sample_size"] for row in self.rows("ce")], [10, 10, 10])

  def test_first_loss_is_that_of_the_initial_params(self):
    config = dataclasses.replace(_CONFIG, methods=("ce",), steps=1, eval_every=1)
    self.train("ce", config)
    task, params, model_state, *_ = self._start(config, self.task)
    rows = data.batch_indices(len(task.train.labels), 10, 0, 0)
    batch = _steps._pick(jax.device_put(task.train), rows)
    loss_fn = jax.jit(_model_of_tests().loss_fn)
    expected = np.mean(loss_fn(params, model_state, batch, None).losses)
    np.testing.assert_allclose(self.rows("ce")[0]["train_loss"], expected, rtol=1e-6)

  def test_without_validation_the_row_says_so(self):
    self.train("run", dataclasses.replace(_CONFIG, methods=("ce",)), _make_task(validation_size=0))
    self.assertEqual([row["validation_accuracy"] for row in self.rows("run")], [None, None])

  @parameterized.parameters(1, 499, 500, 501)
  def test_padding_does_not_count_in_accuracy(self, size):
    class_of = lambda params, state, batch, key: mock.Mock(logits=jax.nn.one_hot(batch.inputs, 3))
    labels = np.arange(size, dtype=np.int32) % 3
    examples = _task.Examples(np.where(np.arange(size) % 5 == 0, labels, (labels + 1) % 3), labels)
    accuracy = _steps.make_evaluator(class_of)((), (), _steps.padded(examples))
    self.assertAlmostEqual(accuracy, -(-size // 5) / size)


class NotFiniteTest(RunTestCase):
  def test_first_bad_loss_is_named_and_finite_checkpoint_stays(self):
    # Weight decay doubles and negates the params each step: finite losses first, then overflow.
    config = dataclasses.replace(
      _CONFIG, methods=("ce",), steps=400, learning_rate=1.0, weight_decay=1e6, momentum=0.0
    )
    with self.assertRaisesRegex(
      _errors.RunError, r"not finite (at|after) step (\d+); the checkpoint of step (\d+) is kept"
    ) as raised:
      self.train("run", config)
    self.assertNotIn("\n", str(raised.exception))
    state = self.carry("run", config=config).state
    self.assertIn(f"the checkpoint of step {state.step} is kept", str(raised.exception))
    self.assertTrue(_steps.is_finite(state))
    self.assertGreater(state.step, 0)
    self.assertFalse((self.root / "run" / "weights.npz").exists())
    for row in self.rows("run"):
      self.assertTrue(np.isfinite(row["train_loss"]))

  def test_bad_inputs_at_the_first_step(self):
    config = dataclasses.replace(_CONFIG, methods=("ce",), learning_rate=1e38)
    with self.assertRaisesRegex(_errors.RunError, "step 2; no checkpoint was taken before. Lower"):
      self.train("run", config)
    self.assertEqual(self.rows("run"), [])

  def test_bad_optimizer_state_is_never_saved(self):
    _, params, _, phases, _ = self._start(_CONFIG, self.task)
    state = mock.Mock(params=params, model_state={}, opt_state=phases[0].tx.init(params))
    self.assertTrue(_steps.is_finite(state))
    state.opt_state = jax.tree.map(lambda leaf: leaf + np.inf, state.opt_state)
    self.assertFalse(_steps.is_finite(state))


class TaskTest(parameterized.TestCase):
  def test_parts_share_no_example_and_the_rest_are_their_own(self):
    digits, task = _dataset(), _make_task()
    self.assertLen(np.unique(task.train_ids), 1300 - 20 - 50)
    at = dict(zip(digits.train_ids.tolist(), digits.train_inputs, strict=True))
    for row in (0, 600, -1):
      np.testing.assert_array_equal(task.train.inputs[row], at[task.train_ids[row].item()])
    left = np.setdiff1d(digits.train_ids, task.train_ids)
    as_rows = lambda inputs: sorted(image.tobytes() for image in inputs)
    aside = np.concatenate([task.meta.inputs, task.validation.inputs])
    self.assertEqual(as_rows(aside), as_rows([at[place] for place in left.tolist()]))

  def test_meta_is_clean_and_balanced_and_test_is_clean(self):
    digits, task = _dataset(), _make_task()
    np.testing.assert_array_equal(np.bincount(task.meta.labels), [2] * 10)
    label_of = {
      image.tobytes(): label
      for image, label in zip(digits.train_inputs, digits.train_labels.tolist(), strict=True)
    }
    clean = [label_of[image.tobytes()] for image in task.meta.inputs]
    np.testing.assert_array_equal(task.meta.labels, clean)
    np.testing.assert_array_equal(task.test.labels, digits.test_labels)

  def test_realized_noise(self):
    digits = _dataset()
    task = _make_task()
    label_of = dict(zip(digits.train_ids.tolist(), digits.train_labels.tolist(), strict=True))
    clean = np.array([label_of[place] for place in task.train_ids.tolist()])
    np.testing.assert_array_equal(task.is_noisy, clean != task.train.labels)
    np.testing.assert_array_equal(task.train.labels[task.is_noisy], (clean[task.is_noisy] + 1) % 10)
    self.assertEqual(task.is_noisy.sum(), round(0.45 * 1230))  # 553.5 is rounded to a neighbor
    self.assertEqual(task.realized_rate, task.is_noisy.mean())

  def test_training_and_validation_share_the_background_class(self):
    for seed in range(5):
      task = _make_task(seed, "background", 0.9, validation_size=200)
      most = [np.bincount(part.labels).argmax() for part in (task.train, task.validation)]
      self.assertEqual(most[0], most[1])

  def test_seed_decides(self):
    first, again, other = _make_task(1), _make_task(1), _make_task(2)
    chex.assert_trees_all_equal(first, again)
    self.assertFalse(np.array_equal(first.train_ids, other.train_ids))


if __name__ == "__main__":
  absltest.main()
