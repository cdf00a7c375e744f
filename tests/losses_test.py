"""Losses of one example against formulas written another way."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

import reweight_jax as rw
from reweight_jax import losses
from reweight_jax.losses import whole_batch

LOGITS = st.lists(st.floats(-20, 20), min_size=3, max_size=3)
unit_margin_grad = jax.jit(jax.grad(losses.unit_margin))
focal_value_and_grad = jax.jit(jax.value_and_grad(losses.focal_loss))
token_value_and_grad = jax.jit(jax.value_and_grad(losses.token_cross_entropy))


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

  @parameterized.parameters(0, 0.1, 0.7, 1.0)
  def test_smoothed_cross_entropy_mixes_the_label_with_all_classes(self, smoothing):
    logits = np.array([0.3, -1.0, 2.0, 0.0], np.float32)
    log_p = logits - np.log(np.exp(logits).sum())
    expected = -(1 - smoothing) * log_p[2] - smoothing * log_p.mean()
    result = losses.smoothed_cross_entropy(smoothing)(jnp.asarray(logits), 2)
    np.testing.assert_allclose(result, expected, rtol=1e-5)

  @parameterized.parameters(-0.1, 1.5)
  def test_smoothing_outside_of_its_range_is_refused(self, smoothing):
    with self.assertRaisesRegex(ValueError, "smoothing expects a number >= 0 and <= 1"):
      losses.smoothed_cross_entropy(smoothing)

  def test_squared_error_takes_a_scalar_target_for_one_output_and_refuses_other_shapes(self):
    self.assertEqual(float(losses.squared_error(jnp.array([3.0]), jnp.array(1.0))), 2.0)
    with self.assertRaisesRegex(ValueError, r"shapes \(2,\) and \(\)"):
      losses.squared_error(jnp.zeros(2), jnp.array(0.0))

  def test_token_loss_is_the_mean_over_positions_with_a_target(self):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    labels = np.array([2, -1, 0, -1])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(log_p[0, 2] + log_p[2, 0]) / 2
    result, _ = token_value_and_grad(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(result, expected, rtol=1e-5)

  def test_a_sequence_without_targets_has_no_loss_and_no_gradient(self):
    value, gradient = token_value_and_grad(jnp.ones((4, 5)), jnp.full(4, -1))
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
        run = lambda x, params: loss_fn(
          params, (), rw.types.make_batch(x, jnp.zeros(2, jnp.int32)), None
        )
        outputs = jax.eval_shape(run, *(jax.ShapeDtypeStruct(s, dtype) for s in ((2, 3), (3, 4))))
        self.assertEqual((outputs.losses.dtype, outputs.logits.dtype), (expected, expected))

  def test_a_loss_that_is_no_scalar_is_refused(self):
    model = lambda params, state, x, key, train: (x, state)
    loss_fn = losses.from_apply(model, lambda prediction, label: prediction - label)
    batch = rw.types.make_batch(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    with self.assertRaisesRegex(ValueError, r"returns a scalar.*returned shape \(2, 3\)"):
      loss_fn((), (), batch, None)


# Six real examples and two paddings that stand between them.
MASK = np.array([True, True, False, True, True, False, True, True])
LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 1])
MIX_KEY = jax.random.key(3)


def tanh_net(params, state, inputs, key, train):
  del key, train
  return jnp.tanh(inputs) @ params, state


mix_fn = losses.mixup(tanh_net, 4.0)
run_mixup = jax.jit(lambda params, batch, key: mix_fn(params, (), batch, key))


@jax.jit
def pull_mixup(params, batch, weights):
  return rw.per_example.linearize(mix_fn, params, (), batch, key=MIX_KEY).pull(weights)


class MixupTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.inputs = rng.normal(size=(8, 2)).astype(np.float32)
    self.params = rng.normal(size=(2, 3)).astype(np.float32)
    share, partners = whole_batch._draw_mixture(
      jax.random.split(MIX_KEY)[0], 4.0, jnp.asarray(MASK)
    )
    self.share, self.partners = float(share), np.asarray(partners)
    self.assertBetween(self.share, 0.55, 0.95)  # else the tests below would see too little

  def batch(self, inputs=None, labels=LABELS):
    return rw.types.make_batch(self.inputs if inputs is None else inputs, labels, mask=MASK)

  def log_p(self):
    """The log-probabilities of every mixture, by a loop."""
    rows = []
    for i, j in enumerate(self.partners):
      z = np.tanh(self.share * self.inputs[i] + (1 - self.share) * self.inputs[j]) @ self.params
      rows.append(z - np.log(np.exp(z).sum()))
    return np.stack(rows)

  def test_each_loss_holds_both_terms_of_its_own_label(self):
    outputs = run_mixup(self.params, self.batch(), MIX_KEY)
    log_p = self.log_p()
    for i in range(8):
      (mixture,) = np.flatnonzero(self.partners == i)
      label = LABELS[i]
      expected = -self.share * log_p[i, label] - (1 - self.share) * log_p[mixture, label]
      self.assertAlmostEqual(float(outputs.losses[i]), expected, places=5)
    np.testing.assert_allclose(jax.nn.log_softmax(outputs.logits), log_p, rtol=1e-5)

  def test_the_sum_is_that_of_ordinary_mixup(self):
    one_hot = np.eye(3)[LABELS]
    targets = self.share * one_hot + (1 - self.share) * one_hot[self.partners]
    expected = -(targets * self.log_p())[MASK].sum()
    outputs = run_mixup(self.params, self.batch(), MIX_KEY)
    np.testing.assert_allclose(outputs.losses[MASK].sum(), expected, rtol=1e-5)

  def test_a_label_of_weight_zero_teaches_nothing_anywhere(self):
    weights = MASK.astype(np.float32)
    for i in np.flatnonzero(MASK):
      changed = LABELS.copy()
      changed[i] = (LABELS[i] + 1) % 3
      without = np.where(np.arange(8) == i, np.float32(0), weights)
      before, after = (
        pull_mixup(self.params, self.batch(labels=labels), without) for labels in (LABELS, changed)
      )
      np.testing.assert_array_equal(before, after)
      after = pull_mixup(self.params, self.batch(labels=changed), weights)
      before = pull_mixup(self.params, self.batch(), weights)
      self.assertGreater(np.abs(np.asarray(after) - np.asarray(before)).max(), 1e-2)

  def test_padding_reaches_no_real_example(self):
    inputs = np.where(MASK[:, None], self.inputs, 100).astype(np.float32)
    before, after = (
      run_mixup(self.params, self.batch(x), MIX_KEY).losses for x in (self.inputs, inputs)
    )
    np.testing.assert_array_equal(before[MASK], after[MASK])
    self.assertFalse(np.array_equal(before[~MASK], after[~MASK]))

  def test_real_examples_are_permuted_uniformly_and_the_share_is_the_larger_one(self):
    keys = jax.random.split(jax.random.key(0), 3000)
    mask = jnp.array([True, False, True, True])
    draw = jax.jit(jax.vmap(lambda key: whole_batch._draw_mixture(key, 1.0, mask)))
    shares, partners = map(np.asarray, draw(keys))
    orders, counts = np.unique(partners, axis=0, return_counts=True)
    np.testing.assert_array_equal(orders[:, 1], np.ones(6))  # padding is its own partner
    np.testing.assert_array_equal(np.sort(orders, axis=1), [[0, 1, 2, 3]] * 6)
    # Binomial with mean 500 and deviation 20.4.
    np.testing.assert_allclose(counts, 500, atol=5 * 20.4)
    # Beta(1, 1) is uniform, the larger part uniform in [1/2, 1]: deviation 1 / sqrt(48).
    self.assertAlmostEqual(shares.mean(), 0.75, delta=5 / np.sqrt(48 * 3000))
    self.assertAlmostEqual(shares.std(), 1 / np.sqrt(48), delta=0.01)
    self.assertGreaterEqual(shares.min(), 0.5)

  def test_inputs_labels_and_predictions_may_be_trees_and_keep_their_dtypes(self):
    def model(params, state, inputs, key, train):
      self.assertEqual((inputs["x"].dtype, train), (jnp.bfloat16, True))
      return {"mean": inputs["x"] * params}, {"count": state["count"] + 1}

    loss = lambda prediction, label: (prediction["mean"] - label["y"]) ** 2
    labels = {"y": jnp.array([1.0, 1.0, 1.0])}
    batch = rw.types.make_batch({"x": jnp.full(3, 3, jnp.bfloat16)}, labels)
    loss_fn = losses.mixup(model, 0.2, loss)
    outputs = loss_fn(jnp.bfloat16(1), {"count": 0}, batch, MIX_KEY)
    self.assertEqual((outputs.losses.dtype, outputs.model_state["count"]), (jnp.float32, 1))
    np.testing.assert_allclose(outputs.losses, [4, 4, 4], rtol=1e-6)

  def test_gradients_of_single_examples_are_refused(self):
    # It mixes so little that a look at the losses cannot tell.
    loss_fn = losses.mixup(tanh_net, 0.05)
    with self.assertRaisesRegex(ValueError, "per_example.linearize"):
      rw.per_example.grads(loss_fn, self.params, (), self.batch(), key=MIX_KEY)

  def test_what_cannot_be_mixed_is_refused_in_one_line(self):
    tokens = rw.types.make_batch({"ids": jnp.ones((2, 3), jnp.int32)}, jnp.zeros(2, jnp.int32))
    for batch, key, error, message in (
      (self.batch(), None, ValueError, "expects a key"),
      (tokens, MIX_KEY, TypeError, r"int32 at inputs\['ids'\]"),
      (jax.tree.map(lambda x: x[:1], self.batch()), MIX_KEY, ValueError, "two or more examples"),
    ):
      with self.assertRaisesRegex(error, message) as caught:
        mix_fn(self.params, (), batch, key)
      self.assertNotIn("\n", str(caught.exception))
    with self.assertRaisesRegex(ValueError, "alpha expects a number > 0"):
      losses.mixup(tanh_net, 0.0)


class StrictPromotionTest(parameterized.TestCase):
  @parameterized.product(
    loss=(
      losses.softmax_cross_entropy,
      losses.unit_margin,
      losses.log_error_probability,
      losses.focal_loss,
      losses.smoothed_cross_entropy(0.1),
      lambda z, label: losses.squared_error(z, jnp.ones(3)),
      lambda z, label: losses.squared_error(z, jnp.ones(3, jnp.int32)),
      lambda z, label: losses.token_cross_entropy(jnp.stack([z, z]), jnp.stack([label, -label])),
    ),
    dtype=(jnp.float32, jnp.bfloat16),
  )
  def test_losses_promote_nothing_by_accident(self, loss, dtype):
    logits, label = jax.ShapeDtypeStruct((3,), dtype), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
      value, gradient = jax.eval_shape(jax.value_and_grad(loss), logits, label)
    self.assertEqual((value.shape, gradient.dtype), ((), dtype))

  @parameterized.product(
    loss_fn=(losses.from_apply(tanh_net), mix_fn), dtype=(jnp.float32, jnp.bfloat16)
  )
  def test_losses_of_batches_promote_nothing_by_accident(self, loss_fn, dtype):
    run = lambda x, params, key: loss_fn(
      params, (), rw.types.make_batch(x, jnp.zeros(4, jnp.int32)), key
    )
    arrays = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((4, 2), (2, 3)))
    with jax.numpy_dtype_promotion("strict"):
      outputs = jax.eval_shape(run, *arrays, MIX_KEY)
    self.assertEqual((outputs.losses.dtype, outputs.logits.dtype), (jnp.float32, jnp.float32))


if __name__ == "__main__":
  absltest.main()
