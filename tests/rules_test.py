"""Weights worked out by hand, and what each rule refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import rules

ONES, MASK = np.ones(4, np.float32), np.array([True, True, True, False])


def _update(rule, weights, **evidence):
  weights = jnp.asarray(weights, jnp.float32)
  evidence = {name: jnp.asarray(array) for name, array in evidence.items()}
  return rule.update(weights, rule.init(weights), **evidence)[0]


class NormalizeTest(parameterized.TestCase):
  def test_real_weights_average_one(self):
    np.testing.assert_allclose(
      _update(rules.normalize(), [1.0, 0.0, 3.0, 0.0], mask=MASK), [0.75, 0, 2.25, 0]
    )

  def test_all_zero_stays_all_zero(self):
    self.assertEqual(_update(rules.normalize(), [0.0] * 4, mask=MASK).tolist(), [0.0] * 4)

  @parameterized.parameters(0.0, -60.0)
  def test_its_gradient_is_that_of_a_softmax_however_small_the_weights(self, logit):
    rule = rules.normalize()
    weigh = lambda logits: rule.update(jnp.exp(logits), (), mask=jnp.ones(2, bool))[0]
    # Weights 2 s with s = softmax, so the Jacobian is 2 (s_i 1[i = j] - s_i s_j).
    found = jax.jacrev(weigh)(jnp.array([logit, logit]))
    np.testing.assert_allclose(found, [[0.5, -0.5], [-0.5, 0.5]], rtol=1e-5)

  @parameterized.parameters(-75.0, -87.0, -200.0)
  def test_weights_at_the_end_of_float32_have_no_gradient_rather_than_nan(self, logit):
    rule = rules.normalize()
    weigh = lambda logits: (
      rule.update(jnp.exp(logits), (), mask=jnp.ones(2, bool))[0] @ jnp.array([1.0, 300.0])
    )
    np.testing.assert_array_equal(jax.grad(weigh)(jnp.array([logit, logit])), [0, 0])

  @parameterized.parameters(1e-37, 5e37, 3e38, 1e-30)
  def test_neither_tiny_nor_huge_weights_overflow(self, scale):
    weights = np.array([1.0, 1.0, 0.5, 0.0]) * scale
    np.testing.assert_allclose(_update(rules.normalize(), weights, mask=MASK), [1.2, 1.2, 0.6, 0])

  def test_weights_below_the_smallest_normal_number_count_as_zero(self):
    self.assertEqual(_update(rules.normalize(), [1e-42, 0, 0, 0], mask=MASK).tolist(), [0.0] * 4)

  def test_with_decay_it_divides_by_the_bias_corrected_average(self):
    # Batch means 2, then 4. Averages with decay 1/2: 1 and 2.5; corrected: 2 and 2.5 / 0.75.
    rule = rules.normalize(decay=0.5)
    first, second = jnp.full(4, 2.0), jnp.full(4, 4.0)
    mask = jnp.ones(4, bool)
    weights, state = rule.update(first, rule.init(first), mask=mask)
    np.testing.assert_allclose(weights, np.ones(4))
    weights, state = rule.update(second, state, mask=mask)
    np.testing.assert_allclose(weights, np.full(4, 1.2), rtol=1e-6)

  def test_with_decay_a_batch_of_huge_weights_is_weighed_and_forgotten(self):
    # Averages 3e38 times 1/2, 1/4 and 5/8; corrected by 1/2, 3/4 and 7/8.
    rule, mask, state = rules.normalize(decay=0.5), jnp.ones(4, bool), None
    for scale, expected in ((3e38, 1), (0.0, 0), (3e38, 7 / 5)):
      weights = jnp.full(4, scale)
      state = rule.init(weights) if state is None else state
      weights, state = rule.update(weights, state, mask=mask)
      np.testing.assert_allclose(weights, np.full(4, expected), rtol=1e-6)

  def test_with_decay_an_all_zero_first_batch_stays_finite(self):
    self.assertEqual(_update(rules.normalize(decay=0.9), [0.0] * 4, mask=MASK).tolist(), [0.0] * 4)

  def test_with_decay_a_batch_without_examples_leaves_the_average_alone(self):
    rule, weights = rules.normalize(decay=0.5), jnp.full(4, 2.0)
    _, state = rule.update(weights, rule.init(weights), mask=jnp.ones(4, bool))
    nothing, waited = rule.update(0 * weights, state, mask=jnp.zeros(4, bool))
    self.assertEqual(nothing.tolist(), [0.0] * 4)
    self.assertEqual([float(x) for x in waited], [float(x) for x in state])

  def test_other_scales_and_decays_out_of_range_are_refused(self):
    with self.assertRaisesRegex(ValueError, "one of mean; got 'sum'"):
      rules.normalize("sum")
    for decay in (-0.1, 1.0, float("nan")):
      with self.assertRaisesRegex(ValueError, "decay expects a number >= 0 and < 1, got"):
        rules.normalize(decay=decay)


class ShapingTest(parameterized.TestCase):
  def test_clipping_bounds_real_weights_on_both_sides(self):
    rule = rules.clip_weights(2.0, 0.5)
    np.testing.assert_allclose(_update(rule, [3.0, 0.0, 1.0, 0.0], mask=MASK), [2, 0.5, 1, 0])

  def test_clipping_refuses_bounds_in_the_wrong_order(self):
    with self.assertRaisesRegex(ValueError, "min_weight expects a number >= 0 and <= 1, got 2"):
      rules.clip_weights(1.0, 2.0)

  def test_mixing_a_quarter_of_uniform(self):
    rule = rules.mix_with_uniform(0.25)
    np.testing.assert_allclose(_update(rule, [2.0, 0.0, 1.0, 0.0], mask=MASK), [1.75, 0.25, 1, 0])
    with self.assertRaisesRegex(ValueError, "share expects a number >= 0 and <= 1, got 1.5"):
      rules.mix_with_uniform(1.5)

  def test_a_normalize_for_some_examples_averages_over_those_alone(self):
    rule = rules.where_examples(lambda *, labels, **unused: labels == 1, rules.normalize())
    weights = _update(rule, [5.0, 1.0, 3.0, 0.0], mask=MASK, labels=np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(weights, [5.0, 0.5, 1.5, 0.0])

  def test_a_stateful_rule_for_some_examples_keeps_its_state(self):
    inner = rules.normalize(decay=0.5)
    rule = rules.where_examples(lambda *, mask, **unused: mask, inner)
    weights = jnp.full(4, 2.0)
    _, state = rule.update(weights, rule.init(weights), mask=jnp.ones(4, bool))
    self.assertEqual(float(state.scale), 1.0)

  def test_rectify_keeps_nan_in_sight(self):
    self.assertTrue(np.isnan(_update(rules.rectify(), [np.nan, 1, 1, 1])[0]))


class BaselinesTest(absltest.TestCase):
  def test_random_weights_are_rectified_gaussians(self):
    size = 20_000
    rule = rules.random_weights(3)
    weights, _ = jax.jit(rule.update)(
      jnp.ones(size), rule.init(jnp.ones(size)), indices=jnp.arange(size)
    )
    self.assertAlmostEqual(float(jnp.mean(weights == 0)), 0.5, delta=0.02)
    self.assertAlmostEqual(float(weights.mean()), 1 / np.sqrt(2 * np.pi), delta=0.01)
    self.assertAlmostEqual(float((weights**2).mean()), 0.5, delta=0.02)

  def test_random_weights_differ_between_steps_examples_and_seeds(self):
    weights = jnp.ones(50)
    draws = []
    for seed in (0, 1):
      rule = rules.random_weights(seed)
      state, update = rule.init(weights), jax.jit(rule.update)
      for _ in range(2):
        drawn, state = update(weights, state, indices=jnp.arange(50))
        draws.append(tuple(drawn.tolist()))
    self.assertLen(set(draws), 4)
    self.assertGreater(len(set(draws[0])), 20)

  def test_uniform_forgets_the_weights_that_came_in(self):
    self.assertEqual(_update(rules.uniform(), [7, 0, -2, 0], mask=MASK).tolist(), [1, 1, 1, 0])


class LossRulesTest(parameterized.TestCase):
  def test_loss_transform_is_training_on_the_transformed_loss(self):
    transform = lambda loss: (1 - jnp.exp(-0.7 * loss)) / 0.7  # generalized cross-entropy
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    inputs, labels = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), jnp.arange(5) % 4
    batch = rw.types.make_batch(inputs, labels)
    linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    loss_fn = rw.losses.from_apply(linear)
    mean = lambda p: transform(loss_fn(p, (), batch, None).losses).mean()
    direct = jax.jit(jax.grad(mean))(params)
    rule, tx = rules.loss_transform(transform), optax.sgd(1.0)
    key = jax.random.key(0)
    state = rw.training.init_train_state(params, (), rule, tx, key=key, batch_size=5)
    new, _ = jax.jit(rw.training.make_train_step(loss_fn, rule, tx))(state, batch)
    np.testing.assert_allclose(params - new.params, direct, rtol=1e-5, atol=1e-6)

  def test_padding_of_loss_zero_stays_at_zero_where_the_derivative_is_infinite(self):
    # The derivatives of the root are 1/2 and 1/4; the step sets the loss of padding to 0.
    rule, mask = rules.loss_transform(jnp.sqrt), np.array([True, True, False])
    weights = _update(rule, mask, losses=np.float32([1, 4, 0]))
    np.testing.assert_allclose(weights, [0.5, 0.25, 0])
    np.testing.assert_allclose(_update(rules.normalize(), weights, mask=mask), [4 / 3, 2 / 3, 0])

  def test_loss_transform_takes_a_function(self):
    with self.assertRaisesRegex(TypeError, "function of one loss, got 0.5"):
      rules.loss_transform(0.5)

  @parameterized.parameters((0.0, 1.0), (1.0, 0.75), (2.0, 0.5625))
  def test_focal_of_four_equal_logits(self, gamma, weight):
    logits, labels = np.zeros((4, 4), np.float32), np.arange(4)
    np.testing.assert_allclose(
      _update(rules.focal(gamma), ONES, logits=logits, labels=labels), np.full(4, weight), rtol=1e-6
    )

  def test_focal_weight_of_a_well_fitted_example_does_not_round_to_zero(self):
    logits = np.array([[30.0, 0.0]], np.float32)  # p rounds to 1, 1 - p is e^-30
    weight = _update(rules.focal(1.0), [1.0], logits=logits, labels=np.array([0]))
    np.testing.assert_allclose(weight, np.exp(-30), rtol=1e-5)

  def test_the_focal_rule_is_not_the_focal_loss(self):
    logits = jnp.array([0.5, -0.2, 0.1])
    weight = _update(rules.focal(2.0), [1.0], logits=logits[None], labels=jnp.array([0]))[0]
    gradient = lambda loss: np.asarray(jax.jit(jax.grad(loss))(logits, 0))
    rule = np.asarray(weight) * gradient(rw.losses.softmax_cross_entropy)
    self.assertGreater(np.abs(rule - gradient(rw.losses.focal_loss)).max(), 0.05)

  def test_focal_refuses_a_negative_exponent(self):
    with self.assertRaisesRegex(ValueError, "gamma expects a number >= 0, got -1"):
      rules.focal(-1)


class WeightingRuleTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda weights, **unused: 1.0, r"shape \(4,\), got shape \(\) from"),
    (lambda weights, **unused: weights[:1], r"shape \(4,\), got shape \(1,\) from"),
  )
  def test_another_shape_than_came_in_is_refused_when_it_comes_out(self, weigh, message):
    with self.assertRaisesRegex(ValueError, f"weighting_rule expects one weight .*, {message}"):
      _update(rules.weighting_rule(weigh), ONES)


class ClassBalancedTest(parameterized.TestCase):
  def test_weights_of_two_classes_by_hand(self):
    # beta 1/2, counts 1 and 2: effective numbers 1 and 1.5, rarities 1 and 2/3;
    # the mean over the 3 examples is (1 + 2 * 2/3) / 3 = 7/9.
    rule = rules.class_balanced([1, 2], beta=0.5)
    weights = _update(rule, np.ones(2), labels=np.array([0, 1]))
    np.testing.assert_allclose(weights, [9 / 7, 6 / 7], rtol=1e-6)

  @parameterized.parameters(0.0, 0.5, 0.99, 0.9999, 0.9999999)
  def test_weights_average_one_over_the_training_set(self, beta):
    counts = [5000, 500, 17, 1]
    weights = _update(rules.class_balanced(counts, beta), np.ones(4), labels=np.arange(4))
    self.assertAlmostEqual(np.average(weights, weights=counts), 1, places=5)

  def test_at_beta_zero_all_weigh_one_and_towards_one_it_is_inverse_frequency(self):
    counts = np.array([30, 10])
    flat = _update(rules.class_balanced(counts, 0.0), np.ones(2), labels=np.arange(2))
    np.testing.assert_allclose(flat, [1, 1], rtol=1e-6)
    inverse = _update(rules.class_balanced(counts, 0.9999999), np.ones(2), labels=np.arange(2))
    np.testing.assert_allclose(inverse, 20 / counts, rtol=1e-5)

  def test_an_injected_beta_that_rounds_to_one_is_inverse_frequency(self):
    make = optax.inject_hyperparams(lambda beta: rules.class_balanced([30, 10], beta))
    weights = _update(make(beta=0.99999999), np.ones(2), labels=np.arange(2))
    np.testing.assert_allclose(weights, [2 / 3, 2], rtol=1e-6)

  def test_a_label_outside_the_classes_counts_as_the_nearest(self):
    rule = rules.class_balanced([90, 5, 5])
    weights = _update(rule, np.ones(4), labels=np.array([-1, 0, 2, 7]))
    self.assertEqual((weights[0], weights[3]), (weights[1], weights[2]))

  def test_bad_counts_and_betas_are_refused(self):
    with self.assertRaisesRegex(ValueError, "positive counts, got 0 for class 1"):
      rules.class_balanced([3, 0])
    with self.assertRaisesRegex(ValueError, r"one count per class, got shape \(0,\)"):
      rules.class_balanced([])
    with self.assertRaisesRegex(ValueError, "beta expects a number >= 0 and < 1, got 1"):
      rules.class_balanced([1, 2], beta=1.0)


if __name__ == "__main__":
  absltest.main()
