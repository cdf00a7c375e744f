"""MNIST, 4 against 9: who trains, who is trusted, the net's two logits, the command."""

import functools
import json
from unittest import mock

import chex
import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from experiments import _command, mnist_imbalanced
from experiments._errors import DivergedError, UsageError
from experiments.mnist_imbalanced import MnistConfig
from reweight_jax import data
from tests import commands


@functools.cache
def _fake_mnist(num_train=600, num_test=60):
  """Ten classes of random images; the brightness tells the class."""
  rng = np.random.default_rng(0)

  def draw(size):
    labels = (np.arange(size) % 10).astype(np.int32)
    images = rng.integers(0, 30, (size, 28, 28, 1)) + 20 * labels[:, None, None, None]
    return images.astype(np.uint8), labels

  train, test = draw(num_train), draw(num_test)
  names = tuple(map(str, range(10)))
  ids = np.arange(num_train, dtype=np.int32)
  return data.Dataset("mnist", *train, *test, names, ids)


def _use_fake_mnist(test):
  """Puts the made-up images in the place of MNIST, for one test; the mock that counts loads."""
  test.addCleanup(mnist_imbalanced._load.cache_clear)
  mnist_imbalanced._load.cache_clear()
  return test.enterContext(mock.patch.object(data, "load", return_value=_fake_mnist(60_000)))


class TaskTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    _use_fake_mnist(self)

  def test_nines_are_class_0_and_fours_class_1_as_many_of_each_in_test(self):
    dataset, mnist = mnist_imbalanced.load(MnistConfig()), _fake_mnist(60_000)
    self.assertEqual((dataset.class_names, dataset.num_classes), (("9", "4"), 2))
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [6000, 6000])
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [6, 6])
    true = mnist.train_labels[dataset.train_ids]
    np.testing.assert_array_equal(true, np.where(dataset.train_labels == 1, 4, 9))
    np.testing.assert_array_equal(dataset.train_inputs, mnist.train_inputs[dataset.train_ids])

  @parameterized.parameters(
    # Majority and minority that train: of 5000 images by share, five of each given away.
    (0.9, [4495, 495]),
    (0.95, [4745, 245]),
    (0.98, [4895, 95]),
    (0.99, [4945, 45]),
    (0.995, [4970, 20]),
  )
  def test_a_share_of_5000_images_of_which_ten_are_the_meta_set(self, share, counts):
    config = MnistConfig(majority_share=share)
    dataset = mnist_imbalanced.load(config)
    task = mnist_imbalanced.make_task(config, dataset, 3)
    self.assertEqual(task.class_counts("train"), tuple(counts))
    self.assertEqual(task.class_counts("meta"), (5, 5))
    self.assertEmpty(np.intersect1d(task.train, task.meta))
    chex.assert_trees_all_equal(task, mnist_imbalanced.make_task(config, dataset, 3))
    other = mnist_imbalanced.make_task(config, dataset, 4)
    self.assertFalse(np.array_equal(task.train, other.train))

  def test_too_large_a_meta_set_is_refused(self):
    config = MnistConfig(meta_size=50)
    with self.assertRaisesRegex(ValueError, "--meta_size: .*needs 25 .* at a share of 0.995 .* 25"):
      mnist_imbalanced.make_task(config, mnist_imbalanced.load(config), 0)

  @parameterized.parameters(({}, 10), ({"meta_size": 4}, 4), ({"meta_size": 40}, 10))
  def test_ten_meta_examples_a_step_or_all_of_fewer(self, fields, expected):
    self.assertEqual(MnistConfig(**fields).num_meta(), expected)


class ModelTest(absltest.TestCase):
  def test_softmax_of_the_two_logits_is_the_sigmoid_of_the_one(self):
    model = mnist_imbalanced.JOB.make_model(MnistConfig(), None)
    images = _fake_mnist(4).train_inputs
    params, state = jax.eval_shape(model.init, jax.random.key(0), images[:2])
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(params)), 167_113)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
    batch = mnist_imbalanced.rw.types.make_batch(images, np.array([0, 1, 1, 0]))
    outputs = jax.jit(model.loss_fn)(params, state, batch, None)
    logit = outputs.logits[:, 1]
    np.testing.assert_array_equal(outputs.logits[:, 0], np.zeros(4))
    expected = optax.sigmoid_binary_cross_entropy(logit, batch.labels)
    np.testing.assert_allclose(outputs.losses, expected, rtol=1e-6)


class CommandTest(commands.CommandTestCase):
  MODULE = mnist_imbalanced

  @parameterized.parameters(
    ("--majority_shares: expected numbers in .*got 0.3", "--majority_shares=0.3"),
    ("--majority_shares: expected numbers in .*got 1.0", "--majority_shares=1"),
    ("--majority_shares: .*each once.*got 0.9,0.9", "--majority_shares=0.9,0.9"),
    ("--majority_shares: .*got none", "--majority_shares="),
    ("--majority_shares: expected numbers .*got 'half'", "--majority_shares=half"),
    ("--meta_size: expected an even number, got 5", "--meta_size=5", "--meta_batch_size=5"),
    ("--method: expected one of ce, .*got 'none'", "--method=none"),
    ("--noise: no such flag", "--noise=pair"),
    ("--train_size: no such flag", "--train_size=100"),
    ("--method: expected at least one, got none", "--method="),
    ("mnist: .*no-such-folder", "--data_dir=no-such-folder"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def test_error_at_two_shares_beside_what_was_published(self):
    _use_fake_mnist(self)
    argv = ("--majority_shares=0.9,0.995", "--method=ce,resample,hard_mining", "--steps=2")
    # A linear model in the place of the LeNet: compiled in no time.
    apply_fn = lambda params, state, inputs, key, train: (
      inputs.reshape(len(inputs), -1) / 255 @ params, state
    )  # fmt: skip
    init = lambda key, inputs: (jax.numpy.zeros((784, 2)), {})
    model = mnist_imbalanced._model.from_apply(apply_fn, init)
    job = mnist_imbalanced.JOB._replace(make_model=lambda config, dataset: model)
    self.enterContext(mock.patch.object(mnist_imbalanced, "JOB", job))
    stdout = self.command(*argv)
    rows = [line.split(" | ") for line in stdout.splitlines() if line.startswith("| ")]
    self.assertEqual(
      [row[0] for row in rows[::2]], ["| method", "| ce", "| resample", "| hard_mining"]
    )
    self.assertEqual(rows[3][1:], ["1.62 ± 0.21", "18.26 ± 1.72 |"])
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual(list(summary), ["0.9", "0.995"])
    error = 100 * (1 - summary["0.9"]["ce"]["last"]["mean"])
    self.assertEqual(rows[2][1], f"{error:.2f}")
    self.assertTrue((self.workdir / "error.png").exists())

    # Another command tells of its own runs; the files keep those of the first.
    stdout = self.command("--majority_shares=0.95", "--method=ce", "--steps=2")
    rows = [line.split(" | ") for line in stdout.splitlines() if line.startswith("| ")]
    self.assertEqual([rows[0], rows[2][0]], [["| method", "95 % |"], "| ce"])
    merged = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual(list(merged), ["0.9", "0.95", "0.995"])
    self.assertEqual(list(merged["0.95"]), ["ce"])
    self.assertEqual(merged["0.9"], summary["0.9"])
    self.assertIn(
      "| hard_mining, published | 1.34 ± 0.39 | 1.48 ± 0.53 | 7.74 ± 1.98 |",
      (self.workdir / "summary.md").read_text(),
    )
    with self.assertRaisesRegex(UsageError, "share_0.9/ce/seed_0 .*: steps 2 there, 4000 here"):
      mnist_imbalanced.plan(MnistConfig(workdir=str(self.workdir)), (0.98,))

  def test_all_shares_are_looked_at_before_the_first_runs_and_mnist_is_read_once(self):
    load = _use_fake_mnist(self)
    self.assert_refused("--meta_size: .* at a share of 0.9999 ", "--majority_shares=0.9,0.9999")
    self.assertEqual(load.call_count, 1)
    self.assert_refused("at a share of 0.999 there are 5", "--majority_shares=0.99,0.999")

  def test_two_shares_that_look_alike_have_folders_of_their_own(self):
    config = MnistConfig(methods=("ce",))
    found = mnist_imbalanced.commands(config, (0.98, 0.9800000001))
    self.assertLen({one.workdir for one in found.values()}, 2)
    self.assertEndsWith(found[0.98, "ce"].workdir, "share_0.98")

  def test_what_diverges_is_told_and_the_rest_goes_on(self):
    _use_fake_mnist(self)

    def train(plan, progress):
      (self.workdir / "share_0.9").mkdir(exist_ok=True)
      with self.assertRaisesRegex(UsageError, "at work in"), _command.at_work_in(self.workdir):
        pass
      if plan.config.methods == ("ce",):
        raise DivergedError("not finite at step 3")
      return {plan.config.methods[0]: {"last": {"mean": 0.9, "std": None}}}

    with mock.patch.object(_command, "train", train):
      stdout = self.command("--majority_shares=0.9", "--method=ce,random", "--meta_size=4")
    self.assertIn("| ce | diverged |", stdout)
    self.assertIn("| random | 10.00 |", stdout)
    self.assertEqual(json.loads((self.workdir / "summary.json").read_text()), {"0.9": {"ce": None}})

  def test_nothing_runs_if_one_workdir_does_not_fit(self):
    folder = self.workdir / "share_0.995" / "ce" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    config = MnistConfig(workdir=str(self.workdir))
    with (
      mock.patch.object(_command, "train", side_effect=AssertionError),
      self.assertRaisesRegex(UsageError, "--workdir: .*share_0.995"),
    ):
      mnist_imbalanced.run(config, (0.9, 0.995))


if __name__ == "__main__":
  absltest.main()
