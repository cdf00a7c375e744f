"""Tests of the ways out of Flax: linen and NNX modules as plain functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import errors, nnx

from reweight_jax import models
from tests.models_zoo import (
  KEY,
  assert_trees_equal,
  compiled,
  drawn,
  normal,
)


class LinenApplyTest(absltest.TestCase):
  def test_init_draws_kernels_of_he_deviation_and_plain_norms(self):
    net = models.MLP(num_classes=2, hidden=(400,), norm="batch")
    params, state = models.init_linen(net, jnp.ones((1, 50)), KEY)
    # 20,000 draws: the standard error of their deviation is 0.2 / sqrt(40,000) = 0.001.
    self.assertAlmostEqual(float(params["Dense_0"]["kernel"].std()), np.sqrt(2 / 50), delta=0.004)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], np.zeros(400))
    np.testing.assert_array_equal(params["Norm_0"]["scale"], np.ones(400))
    np.testing.assert_array_equal(state["batch_stats"]["Norm_0"]["mean"], np.zeros(400))
    np.testing.assert_array_equal(state["batch_stats"]["Norm_0"]["var"], np.ones(400))

  def test_evaluation_returns_the_state_as_it_was(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch", dropout_rate=0.5)
    inputs = normal(3, 4)
    params, state = drawn(net, 3, 4)
    logits, same = models.linen_apply(net)(params, state, inputs, None, False)
    self.assertIs(same, state)
    np.testing.assert_array_equal(
      logits, net.apply({"params": params, **state}, inputs, train=False)
    )

  def test_training_keeps_the_structure_of_the_state_and_the_old_values(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch")
    inputs = normal(3, 4)
    params, state = drawn(net, 3, 4)
    old = jax.tree.map(np.array, state)
    _, new = compiled(net)(params, state, inputs, None, True)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))
    assert_trees_equal(state, old)

  def test_an_empty_tuple_is_a_state(self):
    net = models.MLP(num_classes=2, hidden=(4,))
    params, state = drawn(net, 1, 4)
    self.assertEqual(state, {})
    _, new = models.linen_apply(net)(params, (), jnp.ones((3, 4)), None, True)
    self.assertEqual(new, ())

  def test_dropout_needs_a_key_and_the_key_decides(self):
    net = models.MLP(num_classes=2, hidden=(64,), dropout_rate=0.5)
    inputs = jnp.ones((3, 4))
    params, state = drawn(net, 3, 4)
    apply_fn = compiled(net)
    with self.assertRaises(errors.InvalidRngError):
      apply_fn(params, state, inputs, None, True)
    first, again, other = (
      apply_fn(params, state, inputs, jax.random.key(seed), True)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    self.assertGreater(float(jnp.abs(first - other).max()), 0)

  def test_a_module_without_train_is_refused(self):
    with self.assertRaisesRegex(TypeError, "Dense takes"):
      models.linen_apply(nn.Dense(3))
    with self.assertRaisesRegex(TypeError, "nnx_apply"):
      models.linen_apply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


class Net(nnx.Module):
  """A net with params, running averages and two dropout layers."""

  def __init__(self, rate, rngs):
    self.linear = nnx.Linear(3, 64, rngs=rngs)
    self.norm = nnx.BatchNorm(64, rngs=rngs)
    self.first = nnx.Dropout(rate, rngs=rngs)
    self.second = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, inputs):
    return self.second(self.first(self.norm(self.linear(inputs))))


class TwoDropouts(nnx.Module):
  """The two masks of one pass."""

  def __init__(self, rngs):
    self.first = nnx.Dropout(0.5, rngs=rngs)
    self.second = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, inputs):
    return self.first(inputs), self.second(inputs)


class NnxApplyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.inputs = normal(5, 3)

  @parameterized.parameters(True, False)
  def test_calling_the_function_is_calling_the_module(self, jitted):
    model = Net(0.0, nnx.Rngs(0))
    apply_fn, params, state = models.nnx_apply(model)
    if jitted:
      apply_fn = jax.jit(apply_fn, static_argnums=4)
    logits, new_state = apply_fn(params, state, self.inputs, KEY, True)
    evaluated, same = apply_fn(params, new_state, self.inputs, None, False)
    model.train()
    np.testing.assert_allclose(logits, model(self.inputs), rtol=1e-5, atol=1e-6)
    assert_trees_equal(same, new_state)
    expected = nnx.state(model, nnx.BatchStat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new_state, expected)
    model.eval()
    np.testing.assert_allclose(evaluated, model(self.inputs), rtol=1e-5, atol=1e-6)

  def test_arguments_and_module_are_not_written_to(self):
    model = Net(0.5, nnx.Rngs(0))
    model.eval()
    before = jax.tree.map(np.array, nnx.state(model, nnx.Not(nnx.RngState)))
    apply_fn, params, state = models.nnx_apply(model)
    old = jax.tree.map(np.array, state)
    first, _ = apply_fn(params, state, self.inputs, KEY, True)
    again, _ = apply_fn(params, state, self.inputs, KEY, True)
    np.testing.assert_array_equal(first, again)
    assert_trees_equal(state, old)
    assert_trees_equal(nnx.state(model, nnx.Not(nnx.RngState)), before)
    self.assertTrue(model.first.deterministic)

  def test_dropout_needs_a_key_and_the_key_decides(self):
    apply_fn, params, state = models.nnx_apply(Net(0.5, nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, "Net has random streams"):
      apply_fn(params, state, self.inputs, None, True)
    first, again, other, raw = (
      apply_fn(params, state, self.inputs, key, True)[0]
      for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), jax.random.PRNGKey(1))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, raw)
    self.assertGreater(float(jnp.abs(first - other).max()), 0)

  def test_two_dropout_layers_do_not_share_their_mask(self):
    apply_fn, params, state = models.nnx_apply(TwoDropouts(nnx.Rngs(dropout=0)))
    (first, second), _ = apply_fn(params, state, jnp.ones(1000), KEY, True)
    agreement = float(jnp.mean((first > 0) == (second > 0)))
    self.assertBetween(agreement, 0.4, 0.6)  # half by chance; standard deviation 0.016

  def test_derivatives_pass_through_and_the_state_rides_along(self):
    apply_fn, params, state = models.nnx_apply(Net(0.0, nnx.Rngs(0)))

    def loss(params):
      logits, new_state = apply_fn(params, state, self.inputs, KEY, True)
      return jnp.mean(logits**3), new_state

    @jax.jit
    def both_ways(params):
      value, push, new_state = jax.linearize(loss, params, has_aux=True)
      gradient, _ = jax.grad(loss, has_aux=True)(params)
      return value, gradient, push(gradient), new_state

    value, gradient, pushed, new_state = both_ways(params)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    self.assertTrue(bool(jnp.isfinite(value)))
    np.testing.assert_allclose(pushed, squares, rtol=1e-4)
    self.assertEqual(jax.tree.structure(new_state), jax.tree.structure(state))

  def test_trained_values_go_back_into_the_module(self):
    model = Net(0.0, nnx.Rngs(0))
    apply_fn, params, state = models.nnx_apply(model)
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    expected, _ = apply_fn(params, state, self.inputs, None, False)
    nnx.update(model, params, state)
    model.eval()
    np.testing.assert_allclose(model(self.inputs), expected, rtol=1e-6)

  def test_a_linen_module_is_refused(self):
    with self.assertRaisesRegex(TypeError, "linen_apply"):
      models.nnx_apply(models.MLP())


class ScaleTest(absltest.TestCase):
  def test_bytes_go_to_the_interval(self):
    scaled = models.scale_uint8(np.array([[0, 51, 255]], np.uint8))
    self.assertEqual(scaled.dtype, jnp.float32)
    np.testing.assert_allclose(scaled, [[-1.0, -0.6, 1.0]], rtol=1e-6)

  def test_floats_pass_unchanged(self):
    for dtype in (jnp.float32, jnp.bfloat16):
      inputs = jnp.array([0.0, 51.0], dtype)
      np.testing.assert_array_equal(models.scale_uint8(inputs), inputs)
      self.assertEqual(models.scale_uint8(inputs).dtype, dtype)

  def test_other_integers_are_refused(self):
    with self.assertRaisesRegex(TypeError, "int32"):
      models.scale_uint8(jnp.arange(3))


if __name__ == "__main__":
  absltest.main()
