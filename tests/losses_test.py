"""Losses of one example against formulas written another way."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

import reweight_jax as rw
from reweight_jax import losses

LOGITS = st.lists(st.floats(-20, 20), min_size=3, max_size=3)
unit_margin_grad = jax.jit(jax.grad(losses.unit_margin))
focal_value_and_grad = jax.jit(jax.value_and_grad(losses.focal_loss))


class UnitMarginTest(parameterized.TestCase):
  @settings(deadline=None, max_examples=50)
  @given(LOGITS, st.integers(0, 2))
  def test_the_logit_gradient_has_l1_length_one(self, logits, label):
    gradient = unit_margin_grad(jnp.array(logits, jnp.float32), label)
    np.testing.assert_allclose(np.abs(gradient).sum(), 1, rtol=1e-5)
    self.assertEqual(float(gradient[label]), -0.5)

  @parameterized.parameters(0.0, 5.0, 200.0, -200.0)
  def test_for_two_classes_it_is_minus_half_the_margin(self, margin):
    logits = jnp.array([margin, 0.0], jnp.float32)
    self.assertAlmostEqual(float(losses.unit_margin(logits, 0)), -margin / 2, places=4)

  def test_it_is_half_the_log_odds_against_the_label(self):
    logits = np.array([0.3, -1.0, 2.0])
    p = np.exp(logits)[1] / np.exp(logits).sum()
    result = losses.unit_margin(jnp.asarray(logits, jnp.float32), 1)
    self.assertAlmostEqual(float(result), -0.5 * np.log(p / (1 - p)), places=5)


class OtherLossesTest(parameterized.TestCase):
  @settings(deadline=None, max_examples=50)
  @given(LOGITS, st.integers(0, 2))
  def test_focal_loss_is_its_formula(self, logits, label):
    z = np.array(logits)
    log_p = z[label] - z.max() - np.log(np.exp(z - z.max()).sum())
    expected = -((1 - np.exp(log_p)) ** 2) * log_p
    value, _ = focal_value_and_grad(jnp.array(logits, jnp.float32), label)
    np.testing.assert_allclose(value, expected, rtol=2e-4, atol=1e-6)

  def test_focal_gradient_by_central_differences_in_float64(self):
    with jax.enable_x64(True):
      z, step = np.array([0.4, -0.7, 1.1]), 1e-6
      _, gradient = focal_value_and_grad(jnp.asarray(z), 1)
      value = lambda shift: float(focal_value_and_grad(jnp.asarray(z + shift), 1)[0])
      differences = [(value(step * e) - value(-step * e)) / (2 * step) for e in np.eye(3)]
      np.testing.assert_allclose(gradient, differences, rtol=1e-7)

  def test_log_error_probability_keeps_its_digits_where_p_rounds_to_one(self):
    for margin in (0.0, 3.0, 40.0, 150.0):
      expected = -np.logaddexp(0, margin)
      result = losses.log_error_probability(jnp.array([margin, 0.0], jnp.float32), 0)
      np.testing.assert_allclose(result, expected, rtol=1e-6)

  def test_squared_error_takes_a_scalar_target_for_one_output_and_refuses_other_shapes(self):
    self.assertEqual(float(losses.squared_error(jnp.array([3.0]), jnp.array(1.0))), 2.0)
    with self.assertRaisesRegex(ValueError, r"shapes \(2,\) and \(\)"):
      losses.squared_error(jnp.zeros(2), jnp.array(0.0))

  def test_token_loss_is_the_mean_over_positions_with_a_target(self):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    labels = np.array([2, -1, 0, -1])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(log_p[0, 2] + log_p[2, 0]) / 2
    result = losses.token_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(result, expected, rtol=1e-5)

  def test_a_sequence_without_targets_has_no_loss_and_no_gradient(self):
    value, gradient = jax.value_and_grad(losses.token_cross_entropy)(
      jnp.ones((3, 4)), jnp.full(3, -1)
    )
    self.assertEqual(float(value), 0)
    self.assertEqual(float(jnp.abs(gradient).max()), 0)


class FromApplyTest(absltest.TestCase):
  def test_predictions_and_labels_may_be_trees(self):
    model = lambda params, state, x, key, train: ({"mean": x * params, "scale": x * 0 + 2.0}, state)
    loss = lambda prediction, label: (prediction["mean"] - label["y"]) / prediction["scale"]
    loss_fn = losses.from_apply(model, loss)
    batch = rw.types.make_batch(jnp.arange(3.0), {"y": jnp.ones(3)})
    self.assertEqual(loss_fn(2.0, (), batch, None).losses.tolist(), [-0.5, 0.5, 1.5])

  def test_bfloat16_predictions_give_float32_losses_and_float64_ones_float64(self):
    model = lambda params, state, x, key, train: (x @ params, state)
    loss_fn = losses.from_apply(model)
    with jax.enable_x64(True):
      for dtype, expected in ((jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)):
        batch = rw.types.make_batch(jnp.ones((2, 3), dtype), jnp.zeros(2, jnp.int32))
        outputs = loss_fn(jnp.ones((3, 4), dtype), (), batch, None)
        self.assertEqual((outputs.losses.dtype, outputs.logits.dtype), (expected, expected))

  def test_a_loss_that_is_no_scalar_is_refused(self):
    model = lambda params, state, x, key, train: (x, state)
    loss_fn = losses.from_apply(model, lambda prediction, label: prediction - label)
    batch = rw.types.make_batch(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    with self.assertRaisesRegex(ValueError, r"returns a scalar.*returned shape \(2, 3\)"):
      loss_fn((), (), batch, None)


if __name__ == "__main__":
  absltest.main()
