"""The forms of the step against one another, and what a step promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import training
from tests import zoo

RULE = rw.meta.learning_to_reweight()
TX = optax.sgd(0.1, momentum=0.9)


def _begin(name, rule=RULE, tx=TX, dtype=jnp.float32, size=6):
  loss_fn, params, state = zoo.make(name, dtype)
  key = jax.random.key(3)
  # In one program: eagerly, every array of zeros would be one.
  train = jax.jit(
    lambda params, state, key: training.init_train_state(
      params, state, rule, tx, key=key, batch_size=size
    )
  )(params, state, key)
  batch, clean = zoo.random_batch(1, size, dtype), zoo.random_batch(2, 4, dtype)
  return loss_fn, train, batch, clean


def _linear(theta=0.0):
  """Squared loss of theta * x: the gradient of (x, y) at theta = 0 is -x y."""
  model = lambda theta, state, x, key, train: (x * theta, state)
  return rw.losses.from_apply(model, rw.losses.squared_error), jnp.float32(theta)


def _squared(loss_fn):
  """The same model under the square of its loss."""

  def squared(*arguments):
    outputs = loss_fn(*arguments)
    return outputs._replace(losses=outputs.losses**2)

  return squared


class FormsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @parameterized.parameters(("batch_norm", None), ("mlp", optax.sgd(0.3)))
  def test_fused_nested_and_split_steps_are_equal(self, name, virtual):
    self._check_forms(name, virtual)

  @pytest.mark.long
  def test_fused_nested_and_split_steps_are_equal_with_dropout(self):
    self._check_forms("dropout", None)

  def _check_forms(self, name, virtual):
    loss_fn, train, batch, clean = _begin(name, dtype=jnp.float64)
    # A meta loss of its own, and weight decay in the virtual step, must reach every form.
    meta_loss_fn = None if virtual is None else _squared(loss_fn)
    virtual = virtual and optax.chain(optax.add_decayed_weights(0.5), virtual)
    options = {"meta_loss_fn": meta_loss_fn, "virtual_optimizer": virtual}
    steps = {
      "forward": jax.jit(training.make_train_step(loss_fn, RULE, TX, **options)),
      "nested": jax.jit(training.make_train_step(loss_fn, RULE, TX, route="nested", **options)),
      "split": training.make_split_train_step(loss_fn, RULE, TX, **options),
      "parts": training.make_accumulating_train_step(
        loss_fn, RULE, TX, num_microbatches=2, **options
      ),
    }
    if name != "mlp":  # microbatches have dropout masks and batch statistics of their own
      del steps["parts"]
    results = {}
    for route, step in steps.items():
      state = train
      for _ in range(2):
        state, metrics = step(state, batch, clean)
      results[route] = (state._replace(key=None), metrics)
    for route in results:
      chex.assert_trees_all_close(results[route], results["nested"], rtol=1e-9, atol=1e-11)

  def test_accumulating_over_microbatches_is_the_step_over_the_whole_batch(self):
    self._check_accumulating(3)

  @pytest.mark.long
  def test_accumulating_over_one_microbatch_too(self):
    self._check_accumulating(1)

  def _check_accumulating(self, num_microbatches):
    rule = optax.chain(rw.rules.focal(1.0), RULE)
    loss_fn, train, batch, clean = _begin("mlp", rule, dtype=jnp.float64)
    batch = batch._replace(mask=np.array([True, True, True, True, False, True]))
    whole = jax.jit(training.make_train_step(loss_fn, rule, TX))
    parts = training.make_accumulating_train_step(
      loss_fn, rule, TX, num_microbatches=num_microbatches
    )
    expected, result = whole(train, batch, clean), parts(train, batch, clean)
    for _, metrics in (expected, result):
      self.assertAlmostEqual(float(metrics.weights.sum()), 5.0)
    strip = lambda pair: (pair[0]._replace(key=None), pair[1])
    chex.assert_trees_all_close(strip(result), strip(expected), rtol=1e-10, atol=1e-12)

  def test_accumulating_without_a_meta_batch_runs_rules_that_need_none(self):
    rule = rw.rules.loss_transform(jnp.square)
    loss_fn, train, batch, _ = _begin("mlp", rule, dtype=jnp.float64)
    batch = batch._replace(mask=np.arange(6) < 4)
    expected, told = jax.jit(training.make_train_step(loss_fn, rule, TX))(train, batch)
    step = training.make_accumulating_train_step(loss_fn, rule, TX, num_microbatches=2)
    state, metrics = step(train, batch)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-10)
    chex.assert_trees_all_close(metrics, told, rtol=1e-10)

  def test_microbatches_must_divide_the_batch(self):
    loss_fn, train, batch, clean = _begin("mlp")
    step = training.make_accumulating_train_step(loss_fn, RULE, TX, num_microbatches=4)
    with self.assertRaisesRegex(ValueError, "divisible by 4 microbatches, got 6"):
      step(train, batch, clean)


class StepTest(parameterized.TestCase):
  def test_one_step_of_a_hand_worked_problem(self):
    # Clean gradient -2 * 3 = -6; products with -1, 2, -4: 6, -12, 24. Weights, mean 1 over the
    # three: 0.6, 0, 2.4. Gradient (0.6 * -1 + 2.4 * -4) / 3 = -3.4; SGD at rate 0.1: 0.34.
    loss_fn, theta = _linear()
    batch = rw.types.make_batch(jnp.array([1.0, 1.0, 2.0]), jnp.array([1.0, -2.0, 2.0]))
    clean = rw.types.make_batch(jnp.array([2.0]), jnp.array([3.0]))
    tx = optax.sgd(0.1)
    key = jax.random.key(0)
    state = training.init_train_state(theta, (), RULE, tx, key=key, batch_size=3)
    state, metrics = jax.jit(training.make_train_step(loss_fn, RULE, tx))(state, batch, clean)
    np.testing.assert_allclose(metrics.weights, [0.6, 0, 2.4], rtol=1e-6)
    np.testing.assert_allclose(state.params, 0.34, rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, (0.5 + 2 + 2) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics.effective_sample_size, 9 / (0.36 + 5.76), rtol=1e-6)
    np.testing.assert_allclose(metrics.zero_weight_share, 1 / 3, rtol=1e-6)
    self.assertFalse(bool(metrics.all_zero))
    self.assertEqual(int(state.step), 1)

  def test_the_identity_is_training_on_the_mean_loss(self):
    loss_fn, train, batch, _ = _begin("mlp", optax.identity(), optax.sgd(0.1))
    batch = batch._replace(mask=np.arange(6) < 5)
    new, _ = jax.jit(training.make_train_step(loss_fn, optax.identity(), optax.sgd(0.1)))(
      train, batch
    )
    mean_loss = lambda p: loss_fn(p, (), batch, None).losses[:5].mean()
    expected = zoo.numpy_map(
      lambda p, g: p - 0.1 * g, train.params, jax.jit(jax.grad(mean_loss))(train.params)
    )
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-7)

  @parameterized.parameters("nested", "forward")
  def test_an_all_zero_batch_leaves_params_alone_and_is_reported(self, route):
    loss_fn, theta = _linear(0.5)
    batch = rw.types.make_batch(jnp.ones(3), -jnp.ones(3))
    clean = rw.types.make_batch(jnp.ones(1), jnp.ones(1))
    tx = optax.sgd(0.1)
    key = jax.random.key(0)
    state = training.init_train_state(theta, (), RULE, tx, key=key, batch_size=3)
    step = jax.jit(training.make_train_step(loss_fn, RULE, tx, route=route))
    new, metrics = step(state, batch, clean)
    self.assertEqual(float(new.params), 0.5)
    self.assertTrue(bool(metrics.all_zero))
    self.assertEqual(float(metrics.effective_sample_size), 0)
    self.assertEqual(float(metrics.zero_weight_share), 1)

  def test_in_an_all_zero_batch_momentum_still_moves_the_params(self):
    loss_fn, theta = _linear(0.5)
    good = rw.types.make_batch(jnp.ones(1), jnp.ones(1))
    bad = rw.types.make_batch(jnp.ones(1), -jnp.ones(1))
    key = jax.random.key(0)
    state = training.init_train_state(theta, (), RULE, TX, key=key, batch_size=1)
    step = jax.jit(training.make_train_step(loss_fn, RULE, TX))
    # First gradient -0.5, velocity -0.5, theta 0.55; then velocity -0.45, theta 0.595.
    state, _ = step(state, good, good)
    state, metrics = step(state, bad, good)
    self.assertTrue(bool(metrics.all_zero))
    np.testing.assert_allclose(state.params, 0.595, rtol=1e-6)

  def test_running_averages_move_once_and_by_the_train_batch_alone(self):
    loss_fn, train, batch, clean = _begin("batch_norm")
    step = jax.jit(training.make_train_step(loss_fn, RULE, TX))
    new, _ = step(train, batch, clean)
    once = jax.jit(loss_fn)(train.params, train.model_state, batch, None).model_state
    chex.assert_trees_all_close(new.model_state, once, rtol=1e-5, atol=1e-6)
    other, _ = step(train, batch, zoo.random_batch(9, 4))
    chex.assert_trees_all_close(other.model_state, once, rtol=1e-5, atol=1e-6)

  def test_every_step_and_every_microbatch_draws_its_own_dropout_mask(self):
    rule, tx = rw.rules.uniform(), optax.set_to_zero()
    loss_fn, train, batch, _ = _begin("dropout", rule, tx)
    twins = zoo.numpy_map(lambda leaf: np.concatenate([leaf[:1]] * 6), batch)
    for step in (
      jax.jit(training.make_train_step(loss_fn, rule, tx)),
      training.make_accumulating_train_step(loss_fn, rule, tx, num_microbatches=2),
    ):
      state, first = step(train, twins)
      _, second = step(state, twins)
      first, second = (np.asarray(metrics.losses) for metrics in (first, second))
      self.assertGreater(np.abs(first - second).max(), 1e-3)
    self.assertGreater(np.abs(first[:3] - first[3:]).max(), 1e-3)

  def test_a_donated_state_is_used_up_and_the_rule_can_start_again(self):
    rule = optax.chain(rw.rules.random_weights(jax.random.key(3)), rw.rules.normalize())
    loss_fn, theta = _linear(0.5)
    tx = optax.sgd(0.1, momentum=0.9)
    batch = rw.types.make_batch(jnp.ones(4), jnp.arange(4.0))
    step = training.make_split_train_step(loss_fn, rule, tx, donate_state=True)
    ends = []
    for _ in range(2):
      state = training.init_train_state(
        jnp.copy(theta), (), rule, tx, key=jax.random.key(0), batch_size=4
      )
      params = state.params
      state, _ = step(state, batch)
      self.assertTrue(params.is_deleted())
      ends.append(float(step(state, batch)[0].params))
    self.assertEqual(ends[0], ends[1])

  def test_a_rule_that_needs_a_meta_batch_is_refused_without_one(self):
    loss_fn, train, batch, _ = _begin("mlp")
    for step in (
      jax.jit(training.make_train_step(loss_fn, RULE, TX)),
      training.make_split_train_step(loss_fn, RULE, TX),
      training.make_accumulating_train_step(loss_fn, RULE, TX, num_microbatches=2),
    ):
      with self.assertRaisesRegex(
        ValueError, r"needs a meta batch.*step\(state, batch, meta_batch\)"
      ):
        step(train, batch)

  def test_a_rule_can_read_the_meta_outputs_and_align_away_from_zero(self):
    def weigh(weights, *, meta_outputs, meta_alignment, **unused):
      outputs, labels = meta_outputs()
      return weights * outputs.losses.mean() * (labels == 0).sum() + 0 * meta_alignment(at=weights)

    rule = rw.rules.weighting_rule(weigh)
    loss_fn, train, batch, clean = _begin("mlp", rule)
    step = training.make_train_step(loss_fn, rule, TX, virtual_optimizer=TX)
    _, metrics = jax.jit(step)(train, batch, clean)
    mean = jax.jit(loss_fn)(train.params, (), clean, None).losses.mean()
    np.testing.assert_allclose(metrics.weights, np.full(6, 2 * mean), rtol=1e-5)
    with self.assertRaisesRegex(ValueError, "other virtual weights than 0.*use make_train_step"):
      training.make_split_train_step(loss_fn, rule, TX)(train, batch, clean)

  def test_a_separate_meta_loss_is_used_for_the_meta_batch(self):
    loss_fn, theta = _linear()
    flipped = lambda *args: loss_fn(*args)._replace(losses=-loss_fn(*args).losses)
    batch = rw.types.make_batch(jnp.ones(2), jnp.array([1.0, -1.0]))
    clean = rw.types.make_batch(jnp.ones(1), jnp.ones(1))
    tx, key = optax.sgd(0.1), jax.random.key(0)
    state = training.init_train_state(theta, (), RULE, tx, key=key, batch_size=2)
    weights = [
      jax.jit(training.make_train_step(loss_fn, RULE, tx, meta_loss_fn=meta))(state, batch, clean)[
        1
      ].weights.tolist()
      for meta in (None, flipped)
    ]
    self.assertEqual(weights, [[2.0, 0.0], [0.0, 2.0]])

  def test_the_second_step_does_not_recompile(self):
    loss_fn, train, batch, clean = _begin("mlp")
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(training.make_train_step(loss_fn, RULE, TX), n=1))
    for _ in range(3):
      train, _ = step(train, batch, clean)

  def test_a_bfloat16_model_keeps_losses_and_weights_in_float32(self):
    net = rw.models.MLP(num_classes=3, hidden=(8,), dtype=jnp.bfloat16)
    params, _ = zoo.init_shapes(net, jnp.zeros((2, 6, 6, 2)))
    params = zoo.random_like(params, 0, scale=0.25)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    key = jax.random.key(0)
    state = training.init_train_state(params, (), RULE, TX, key=key, batch_size=8)
    step = jax.jit(training.make_train_step(loss_fn, RULE, TX))
    new, metrics = step(state, zoo.random_batch(1, 8), zoo.random_batch(2, 4))
    self.assertEqual((metrics.losses.dtype, metrics.weights.dtype), (jnp.float32, jnp.float32))
    chex.assert_trees_all_equal_dtypes(new.params, params)
    chex.assert_tree_all_finite(new.params)

  def test_evaluation_has_no_loss_at_padding_and_no_dropout(self):
    _, params, _ = zoo.make("dropout")
    apply_fn = rw.models.linen_apply(zoo.NETS["dropout"])
    evaluate = training.make_eval_step(rw.losses.from_apply(apply_fn, train=False))
    batch = zoo.random_batch(1, 6, num_padding=2)
    first, second = evaluate(params, (), batch), evaluate(params, (), batch)
    chex.assert_trees_all_equal(first, second)
    self.assertEqual(first.losses[4:].tolist(), [0, 0])

  def test_bad_arguments_are_refused(self):
    loss_fn, params, state = zoo.make("mlp")
    with self.assertRaisesRegex(ValueError, "nested, forward, ghost, auto; got 'backward'"):
      training.make_train_step(loss_fn, RULE, TX, route="backward")
    with self.assertRaisesRegex(ValueError, "forward, ghost, auto; got 'nested'"):
      training.make_split_train_step(loss_fn, RULE, TX, route="nested")
    with self.assertRaisesRegex(TypeError, "floating leaves, got int32"):
      training.init_train_state(jnp.int32(1), (), RULE, TX, key=jax.random.key(0), batch_size=1)
    with self.assertRaisesRegex(ValueError, "batch_size expects a number >= 1, got 0"):
      training.init_train_state(params, state, RULE, TX, key=jax.random.key(0), batch_size=0)
    with self.assertRaisesRegex(ValueError, "num_microbatches expects a number >= 1, got 0"):
      training.make_accumulating_train_step(loss_fn, RULE, TX, num_microbatches=0)


if __name__ == "__main__":
  absltest.main()
