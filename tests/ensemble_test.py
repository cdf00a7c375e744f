"""Masks hold out what they say, and members are what training on their subsets alone makes."""

import functools
import json
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax.difficulty import _members, ensemble, masks

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES, NUM_MEMBERS = 20, 4, 3, 5


class MasksTest(parameterized.TestCase):
  @parameterized.parameters(
    (20, 17, 0.7), (23, 30, 0.7), (10, 14, 0.5), (101, 7, 0.15), (7, 40, 0.8)
  )
  def test_all_examples_are_held_out_equally_often(self, num_examples, num_members, keep):
    table = masks.subset_masks(num_examples, num_members, keep=keep, seed=0)
    self.assertEqual(set(table.sum(1)), {round(keep * num_examples)})
    counts = (~table).sum(0)
    self.assertLessEqual(counts.max() - counts.min(), 1)
    self.assertGreaterEqual(counts.min(), 5)

  def test_subsets_are_random_and_follow_the_seed(self):
    one, same, other = (masks.subset_masks(50, 20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertLess(abs(np.mean(one == other) - (0.7**2 + 0.3**2)), 0.1)

  @parameterized.parameters((10, 16, 0.7), (11, 10, 0.6), (1000, 30, 0.9))
  def test_too_few_members_are_refused_and_the_number_that_would_do_does(self, size, few, keep):
    with self.assertRaisesRegex(
      ValueError, r"at least 5 members; .* (\d+) members would do"
    ) as caught:
      masks.subset_masks(size, few, keep=keep, seed=0)
    enough = int(str(caught.exception).split(" members would do")[0].split()[-1])
    counts = (~masks.subset_masks(size, enough, keep=keep, seed=0)).sum(0)
    self.assertGreaterEqual(counts.min(), 5)
    with self.assertRaisesRegex(ValueError, "would do"):
      masks.subset_masks(size, enough - 1, keep=keep, seed=0)

  def test_a_share_that_leaves_nothing_out_is_refused(self):
    with self.assertRaisesRegex(ValueError, "leaves some out and some in, got keep 0.99"):
      masks.subset_masks(10, 100, keep=0.99, seed=0)

  def test_folds_are_stratified_and_hold_each_example_out_once_a_repeat(self):
    labels = np.repeat([4, 7, 9], [13, 5, 9])
    table = masks.fold_masks(labels, num_folds=4, num_repeats=3, seed=0)
    self.assertEqual(table.shape, (12, 27))
    folds = ~table.reshape(3, 4, 27)
    np.testing.assert_array_equal(folds.sum(1), 1)
    self.assertEqual(set(folds.sum(2).ravel()), {6, 7})
    for label, counts in ((4, {3, 4}), (7, {1, 2}), (9, {2, 3})):
      self.assertEqual(set(folds[:, :, labels == label].sum(2).ravel()), counts)
    self.assertFalse((folds[0] == folds[1]).all())

  def test_a_class_with_fewer_examples_than_folds_is_refused_by_name(self):
    with self.assertRaisesRegex(ValueError, "at least 3 examples .* class 8 has 2"):
      masks.fold_masks([5, 5, 5, 8, 8, 1, 1, 1], num_folds=3, seed=0)


def net(params, model_state, inputs, key, train):
  """An MLP with dropout, in plain functions."""
  hidden = jnp.tanh(inputs @ params["first"])
  if train:
    hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden, 0)
  return hidden @ params["last"], model_state


def init_net(key):
  first, last = jax.random.split(key)
  params = {
    "first": jax.random.normal(first, (NUM_FEATURES, 6)),
    "last": jax.random.normal(last, (6, NUM_CLASSES)),
  }
  return params, ()


LOSS_FN, TX = rw.losses.from_apply(net), optax.sgd(0.3, momentum=0.9)


@functools.cache
def data():
  """Random examples, the last two of them padding."""
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(NUM_EXAMPLES, NUM_FEATURES)).astype(np.float32)
  labels = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES)
  return rw.types.make_batch(inputs, labels, mask=np.arange(NUM_EXAMPLES) < NUM_EXAMPLES - 2)


@functools.cache
def subsets():
  return masks.subset_masks(NUM_EXAMPLES, NUM_MEMBERS, seed=0, min_held_out=1)


def train(loss_fn=LOSS_FN, init_fn=init_net, tx=TX, *, of=None, table=None, **options):
  options = {"key": jax.random.key(1), "num_steps": 12, "batch_size": 8} | options
  table = subsets() if table is None else table
  return ensemble.train_members(loss_fn, init_fn, tx, of or data(), table, **options)


def assert_equal(one, other, atol=0.0):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), one, other)


def same_start(key):
  return init_net(jax.random.key(0))


@functools.cache
def without_dropout():
  """Three members of one start that count their steps; the third is kept from an example."""
  apply_fn = lambda params, state, inputs, key, train: (
    net(params, (), inputs, key, False)[0],
    state + 1,
  )
  table = np.ones((3, NUM_EXAMPLES), bool)
  table[2, 0] = False
  start = lambda key: (same_start(key)[0], jnp.zeros(()))
  return train(rw.losses.from_apply(apply_fn), start, table=table)


class TrainMembersTest(parameterized.TestCase):
  def test_forms_agree(self):
    together, apart = train(form="vmap"), train(form="one_by_one")
    assert_equal(together, apart, atol=1e-5)
    # Twelve steps lead members of other masks and starts far from each other.
    spread = np.ptp(together.params["last"], axis=0)
    self.assertGreater(spread.min(), 0.1)

  def test_a_member_is_trained_on_its_subset_alone(self):
    # Full batches without momentum: gradient descent on the mean loss of the subset, by NumPy.
    linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    loss_fn = rw.losses.from_apply(linear, rw.losses.squared_error)
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(7, 2)), rng.normal(size=7)
    mask = np.array([True] * 6 + [False])
    of = rw.types.make_batch(inputs.astype(np.float32), targets.astype(np.float32), mask=mask)
    table = np.array([[1, 1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]], bool)
    start = lambda key: (jnp.zeros((2, 1)), ())
    members = train(loss_fn, start, optax.sgd(0.1), of=of, table=table, num_steps=5, batch_size=6)
    for trained, row in zip(members.params, table & mask, strict=True):
      x, y, params = inputs[row], targets[row], np.zeros(2)
      scale = float(loss_fn(jnp.zeros((2, 1)), (), of, None).losses[0]) / targets[0] ** 2
      for _ in range(5):
        params -= 0.1 * 2 * scale * x.T @ (x @ params - y) / len(y)
      np.testing.assert_allclose(trained[:, 0], params, rtol=1e-4)

  def test_a_stopped_ensemble_goes_on_with_its_missing_chunk(self):
    whole = train(form="vmap", members=range(1, 5), members_at_once=2)
    with mock.patch.object(_members, "programs", _members.programs.__wrapped__):  # compiled anew
      late = train(form="vmap", members=[3, 4], members_at_once=2)
    assert_equal(late, jax.tree.map(lambda leaf: leaf[2:], whole))
    alone = train(form="one_by_one", members=[4, 3])  # in the order asked for
    assert_equal(alone, jax.tree.map(lambda leaf: leaf[:1:-1], whole), atol=1e-5)

  def test_chunks_are_as_equal_as_can_be_and_no_larger_than_asked(self):
    for num_members, at_once in ((30, 8), (7, 3), (5, 5), (4, 9), (3, 1)):
      chunks = ensemble.member_chunks(num_members, at_once)
      sizes = [len(chunk) for chunk in chunks]
      self.assertEqual([member for chunk in chunks for member in chunk], list(range(num_members)))
      self.assertLessEqual(max(sizes), at_once)
      self.assertLessEqual(max(sizes) - min(sizes), 1)
      self.assertLess((len(chunks) - 1) * at_once, num_members)

  def test_members_share_the_order_of_batches_but_for_what_a_mask_leaves_out(self):
    first, second, third = without_dropout().params["last"]
    np.testing.assert_array_equal(first, second)
    self.assertGreater(np.abs(first - third).max(), 1e-3)

  def test_each_member_draws_for_itself(self):
    first, second = train(LOSS_FN, same_start, table=np.ones((2, 20), bool)).params["last"]
    self.assertGreater(np.abs(first - second).max(), 1e-3)

  def test_a_state_of_the_model_moves_with_each_member(self):
    self.assertEqual(without_dropout().model_state.tolist(), [12, 12, 12])

  def test_batches_pass_over_the_real_examples_and_a_longer_run_begins_like_a_shorter(self):
    real = np.arange(7) != 3
    order = functools.partial(_members.batch_positions, jax.random.key(0), real, 4)
    ((first, positions),) = order(6)
    self.assertEqual(first, 0)
    self.assertEqual(np.bincount(positions.ravel()).tolist(), [4, 4, 4, 0, 4, 4, 4])
    longer = list(order(250))
    self.assertEqual([step for step, _ in longer], [0, 100, 200])
    np.testing.assert_array_equal(longer[0][1][:6], positions)
    self.assertEqual(sum(len(part) for _, part in longer), 250)

  def test_steps_on_the_host_and_in_a_program_agree(self):
    # 130 steps: one full loop and a part of one.
    run = functools.partial(train, num_steps=130, members=[1], form="one_by_one")
    fused = run()
    with mock.patch.object(_members, "inspect", return_value=("one_by_one", False)):
      assert_equal(fused, run(), atol=1e-4)

  @parameterized.parameters(
    (True, "cpu", ("one_by_one", False)),
    (True, "gpu", ("vmap", True)),
    (False, "cpu", ("vmap", True)),
  )
  def test_convolutions_are_trained_one_by_one_on_a_cpu(self, convolves, backend, expected):
    @jax.checkpoint  # a program within the program
    def convolve(images, kernel):
      return jax.lax.conv(images, kernel, (1,), "SAME")

    def apply_fn(params, model_state, inputs, key, train):
      if convolves:
        inputs = convolve(inputs[:, :, None], params["first"][:, :4, None])[:, :, 0]
      return net(params, (), inputs, key, train)

    with (
      mock.patch.object(jax, "default_backend", return_value=backend),
      mock.patch.object(_members, "examples_are_coupled", return_value=False),
    ):
      loss_fn = rw.losses.from_apply(apply_fn)
      found = _members.inspect(loss_fn, init_net, data(), 4, jax.random.key(0))
    self.assertEqual(found, expected)

  @parameterized.parameters(("cpu", ("one_by_one", True)), ("gpu", ("vmap", True)))
  def test_members_of_many_params_are_trained_one_by_one_on_a_cpu(self, backend, expected):
    with (
      mock.patch.object(jax, "default_backend", return_value=backend),
      mock.patch.object(_members, "examples_are_coupled", return_value=False),
      mock.patch.object(_members, "MANY_PARAMS", 1),
    ):
      found = _members.inspect(LOSS_FN, init_net, data(), 4, jax.random.key(0))
    self.assertEqual(found, expected)

  def test_chunks_of_one_size_share_a_program_and_progress_counts_steps(self):
    traces, steps = [], []

    def counting(*given):
      traces.append(1)
      return LOSS_FN(*given)

    train(counting, members=[0, 1], progress=steps.append, num_steps=150)
    self.assertEqual(steps, [200, 100])
    before = len(traces)
    train(counting, members=[2, 4], num_steps=150)
    # Looking at the loss again traces it; no program does.
    self.assertLessEqual(len(traces) - before, 2)

  def test_a_model_whose_examples_see_each_other_is_refused(self):
    centered = lambda params, state, inputs, key, train: net(
      params, state, inputs - inputs.mean(0, keepdims=True), key, train
    )
    with self.assertRaisesRegex(ValueError, "do not see each other.*BatchNorm.*GroupNorm"):
      train(rw.losses.from_apply(centered))

  def test_a_model_that_averages_over_batches_is_refused(self):
    def keeps_an_average(params, model_state, inputs, key, train):
      return net(params, (), inputs, key, train)[0], 0.9 * model_state + 0.1 * inputs.mean()

    with self.assertRaisesRegex(ValueError, "state that does not depend on the batch"):
      train(rw.losses.from_apply(keeps_an_average), lambda key: (init_net(key)[0], jnp.zeros(())))

  def test_bad_input_is_refused_in_one_line(self):
    empty = subsets().copy()
    empty[3, :-2] = False  # what is left to it is padding
    for message, options in (
      (
        r"masks \[members, 20 examples\] of bools, got int64",
        {"table": subsets().astype(np.int64)},
      ),
      (r"got bool of shape \(20, 5\)", {"table": subsets().T}),
      ("member 3 has none", {"table": empty}),
      ("batch_size expects .* <= 18, got 19", {"batch_size": 19}),
      ("from 0 to 4, got", {"members": [5]}),
      ("from 0 to 4, got", {"members": []}),
      ("form expects one of auto, vmap, one_by_one", {"form": "loop"}),
      ("num_steps expects", {"num_steps": 0}),
      ("members_at_once expects", {"form": "vmap", "members_at_once": 0}),
    ):
      with self.assertRaisesRegex(ValueError, message) as caught:
        train(**options)
      self.assertNotIn("\n", str(caught.exception))


# In a process of its own: the number of devices is fixed when JAX starts.
SHARDED = """
import jax, json
import reweight_jax as rw
from tests import ensemble_test

assert len(jax.devices()) == 4
members = ensemble_test.train(mesh=rw.sharding.batch_mesh())
print(json.dumps(jax.tree.map(lambda leaf: leaf.tolist(), members.params)))
"""


@pytest.mark.long
class ShardingTest(absltest.TestCase):
  def test_four_devices_give_the_members_of_one(self):
    # Five members: the devices are given eight.
    environment = {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "PATH": "",
    }
    result = subprocess.run(
      [sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment, check=False
    )
    self.assertEqual(result.returncode, 0, result.stderr[-2000:])
    alone = train(form="vmap").params
    shared = {name: np.array(leaf) for name, leaf in json.loads(result.stdout).items()}
    self.assertEqual(shared["last"].shape, (5, 6, 3))
    assert_equal(shared, alone, atol=1e-5)

  def test_members_of_a_mesh_cannot_be_trained_one_by_one(self):
    with self.assertRaisesRegex(ValueError, 'form "vmap" or "auto" with a mesh'):
      train(form="one_by_one", mesh=rw.sharding.batch_mesh())


class PredictMembersTest(absltest.TestCase):
  def test_log_probabilities_of_every_member_and_example(self):
    rng = np.random.default_rng(2)
    params, inputs = rng.normal(size=(3, 4, 2)), rng.normal(size=(7, 4))
    logits = np.einsum("nf,mfc->mnc", inputs, params)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    members = ensemble.Members(jnp.asarray(params, jnp.float32), ())
    linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    for examples_at_once in (7, 3, 100):  # in one pass, with a part at the end, with room to spare
      found = ensemble.predict_members(
        linear, members, inputs.astype(np.float32), examples_at_once=examples_at_once
      )
      np.testing.assert_allclose(found, expected, atol=1e-5)
      self.assertEqual(found.dtype, np.float32)

  def test_a_model_of_one_logit_is_refused(self):
    single = lambda params, state, inputs, key, train: (inputs @ params, state)
    members = ensemble.Members(jnp.ones((2, 4, 1)), ())
    with self.assertRaisesRegex(ValueError, r"two classes or more, got \(5, 1\)"):
      ensemble.predict_members(single, members, jnp.ones((5, 4)), examples_at_once=5)


if __name__ == "__main__":
  absltest.main()
