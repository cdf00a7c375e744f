"""Rules of the probability, the class and the index against hand arithmetic and SciPy."""

import fractions

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from reweight_jax import rules
from tests import rule_steps

SIZE, INF = 8, float("inf")


class ProbabilityTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(3)
    self.logits = (3 * rng.normal(size=(12, 3))).astype(np.float32)
    self.labels = np.arange(12) % 3
    chances = special.softmax(self.logits.astype(np.float64), axis=1)
    self.p = chances[np.arange(12), self.labels]

  def _factors(self, rule):
    return rule_steps.weigh(rule, np.ones(12), logits=self.logits, labels=self.labels)

  def test_focal_factors_are_powers_of_the_error_probability(self):
    np.testing.assert_allclose(self._factors(rules.focal(1.5)), (1 - self.p) ** 1.5, rtol=1e-5)

  def test_asymmetric_focal_factors_have_an_exponent_and_a_shift_of_the_class(self):
    gammas, shifts = np.array([0.0, 2.0, 0.5]), np.array([0.0, 0.1, 0.6])
    rest = np.maximum(1 - self.p - shifts[self.labels], 0)
    self.assertIn(0, rest)
    result = self._factors(rules.asymmetric_focal(gammas, shifts))
    np.testing.assert_allclose(result, rest ** gammas[self.labels], rtol=1e-4, atol=1e-6)

  def test_bootstrapped_confidence_is_the_share_and_the_agreement(self):
    agrees = self.logits.argmax(1) == self.labels
    self.assertIn(True, agrees)
    hard = self._factors(rules.bootstrapped_confidence(0.3))
    np.testing.assert_allclose(hard, np.where(agrees, 1, 0.3), rtol=1e-6)
    soft = self._factors(rules.bootstrapped_confidence(0.3, "soft"))
    np.testing.assert_allclose(soft, 0.3 + 0.7 * self.p, rtol=1e-5)

  def test_emphasis_by_the_batch_shares_out_whatever_weights_come_in(self):
    # Shares u w / sum u w of n, in double; the dropped example alone has a weight of e^400 / 4.
    incoming = np.float32([3, 1, 1, 0, 0.5, 2, 0, 1, 1, 0.2, 1, 0])
    mask, p = np.arange(12) < 11, self.p.copy()
    logits = self.logits.copy()
    logits[3], p[3] = np.where(np.arange(3) == self.labels[3], np.log(2), 0), 1 / 2
    for beta, arithmetic in ((4.0, "exact"), (4.0, "release_2020"), (1600.0, "exact")):
      logs = np.where(incoming > 0, beta * p * (1 - p), -INF)
      shares = incoming * np.exp(logs - logs.max())
      expected = mask.sum() * shares / shares.sum()
      rule = rules.exponential_emphasis(beta, 1.0, "batch", arithmetic)
      result = rule_steps.weigh(rule, incoming, logits=logits, labels=self.labels, mask=mask)
      np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)

  def test_logits_in_bfloat16_count_as_the_numbers_that_they_are(self):
    logits = jnp.asarray(self.logits, jnp.bfloat16)
    exact = special.softmax(np.asarray(logits, np.float64), axis=1)[np.arange(12), self.labels]
    evidence = {"logits": logits, "labels": self.labels, "mask": np.ones(12, bool)}
    focal = rule_steps.weigh(rules.focal(1.5), np.ones(12), **evidence)
    np.testing.assert_allclose(focal, (1 - exact) ** 1.5, rtol=1e-5)
    asymmetric = rules.asymmetric_focal([1.5] * 3, [0.001] * 3)
    expected = np.maximum(1 - exact - 0.001, 0) ** 1.5
    np.testing.assert_allclose(
      rule_steps.weigh(asymmetric, np.ones(12), **evidence), expected, rtol=1e-4
    )
    # Bins so narrow that bfloat16 would miss them.
    bins = np.floor((1 - exact) * 1000)
    crowd = (bins[:, None] == bins[None, :]).sum(1)
    result = rule_steps.weigh(rules.gradient_harmonizing(1000), np.ones(12), **evidence)
    np.testing.assert_allclose(result, 12 / (len(set(bins)) * crowd), rtol=1e-5)

  def test_truncated_cross_entropy_prunes_the_improbable(self):
    result = self._factors(rules.generalized_cross_entropy(0.7, truncate_at=0.2))
    np.testing.assert_allclose(result, np.where(self.p > 0.2, self.p**0.7, 0), rtol=1e-5)

  def test_gradient_harmonizing_counts_as_a_histogram_does(self):
    rng, bins, decay = np.random.default_rng(5), 5, 0.75
    rule, state, average = rules.gradient_harmonizing(bins, decay), None, np.zeros(bins)
    for step in (1, 2, 3):
      logits = rng.normal(size=(SIZE, 3)).astype(np.float32)
      labels, mask = rng.integers(3, size=SIZE), np.arange(SIZE) != step
      # Two whose length is 0 and 1 to all digits: the first and the last bin.
      logits[-2:, 0], labels[-2:] = (50, -50), 0
      p = special.softmax(logits.astype(np.float64), axis=1)[np.arange(SIZE), labels]
      histogram, _ = np.histogram(1 - p[mask], bins=bins, range=(0, 1))
      average = decay * average + (1 - decay) * histogram
      density = average / (1 - decay**step)
      place = np.minimum(((1 - p) * bins).astype(int), bins - 1)
      expected = mask.sum() / (np.count_nonzero(histogram) * density[place])
      weights, state = rule_steps.step(rule, mask, state, logits=logits, labels=labels, mask=mask)
      np.testing.assert_allclose(weights, np.where(mask, expected, 0), rtol=1e-5)


class ClassesTest(parameterized.TestCase):
  def test_class_balanced_is_the_published_fraction_exactly(self):
    # Rational numbers keep what 1 - beta^n loses in floating point.
    counts, beta = (5000, 60, 1), fractions.Fraction(999, 1000)
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    mean = sum(n * factor for n, factor in zip(counts, raw, strict=True)) / sum(counts)
    result = rule_steps.weigh(rules.class_balanced(counts, 0.999), np.ones(3), labels=np.arange(3))
    np.testing.assert_allclose(result, [float(factor / mean) for factor in raw], rtol=1e-5)

  @parameterized.parameters(0.0, 0.5, 1.0, -1.0, 30.0)
  def test_inverse_frequency_is_a_power_with_mean_one_over_the_training_set(self, power):
    counts = np.array([900, 90, 10])
    raw = (counts / 10.0) ** -power
    expected = raw / np.average(raw, weights=counts)
    result = rule_steps.weigh(
      rules.inverse_frequency(counts, power), np.ones(3), labels=np.arange(3)
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-37)

  def test_at_power_one_every_class_has_the_same_total(self):
    counts = np.array([70, 20, 10])
    result = rule_steps.weigh(rules.inverse_frequency(counts), np.ones(3), labels=np.arange(3))
    np.testing.assert_allclose(result * counts, np.full(3, 100 / 3), rtol=1e-5)

  def test_class_weights_are_looked_up_and_clamped_at_both_ends(self):
    labels = np.array([0, 2, 1, -3, 9])
    result = rule_steps.weigh(rules.class_weights([0.5, 0, 2]), [1, 2, 1, 1, 1], labels=labels)
    np.testing.assert_allclose(result, [0.5, 4, 0, 0.5, 2])

  def test_a_known_label_shift_is_recovered(self):
    rng = np.random.default_rng(7)
    predicted = rng.dirichlet(np.ones(6), size=6).T + 2 * np.eye(6)
    predicted /= predicted.sum(0)  # columns: the chances of each prediction, given the class
    source, target = rng.dirichlet(np.full(6, 5.0), size=2)
    confusion, shares = 1000 * predicted * source, predicted @ target
    result = rules.label_shift_ratios(confusion, shares)
    np.testing.assert_allclose(result, target / source, rtol=1e-10)
    weights = rule_steps.weigh(
      rules.label_shift(confusion, shares), np.ones(6), labels=np.arange(6)
    )
    np.testing.assert_allclose(weights, target / source, rtol=1e-5)
    same = rules.label_shift_ratios(confusion, predicted @ source)
    np.testing.assert_allclose(same, np.ones(6), rtol=1e-10)

  def test_shares_beyond_what_a_shift_explains_give_zero_and_not_less(self):
    # 0.4 a + 0.1 b = 0.05 and 0.1 a + 0.4 b = 0.95: a = -1/2, b = 5/2.
    result = rules.label_shift_ratios([[40, 10], [10, 40]], [5, 95])
    np.testing.assert_allclose(result, [0, 2.5], rtol=1e-10)


class ByIndexTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.5, 1.0, 2.0)
  def test_importance_is_a_power_of_the_ratio_of_densities(self, power):
    rng = np.random.default_rng(9)
    target, source = rng.random(10), rng.random(10) + 0.1
    target[4] = 0
    indices = np.array([4, 9, 0, 9, 12])  # 12 is clamped to 9
    ratio = (target / source)[[4, 9, 0, 9, 9]]
    result = rule_steps.weigh(
      rules.importance_ratio(target, source, power=power), np.ones(5), indices=indices
    )
    np.testing.assert_allclose(result, ratio**power, rtol=1e-5)

  def test_an_injected_power_that_overflows_leaves_padding_at_zero(self):
    rule = rules.importance_ratio([1e30, 3], power=jnp.float32(2))
    self.assertEqual(rule_steps.weigh(rule, [0, 1], indices=np.array([0, 1])).tolist(), [0, 9])

  def test_reducible_loss_is_the_head_of_the_sorted_differences(self):
    rng = np.random.default_rng(11)
    reference, losses = 3 * rng.normal(size=20), rng.normal(size=SIZE).astype(np.float32)
    indices, mask = rng.integers(20, size=SIZE), np.arange(SIZE) != 3
    result = rule_steps.weigh(
      rules.reducible_loss(reference, 0.4), mask, losses=losses, indices=indices, mask=mask
    )
    difference = np.where(mask, losses - reference[indices], -INF)
    expected = np.zeros(SIZE)
    expected[np.argsort(-difference)[:3]] = 1  # 0.4 of 7, rounded up
    self.assertNotIn(np.argmax(np.where(mask, losses, -INF)), np.flatnonzero(expected))
    np.testing.assert_array_equal(result, expected)

  def test_just_train_twice_multiplies_the_errors_alone(self):
    rule = rules.just_train_twice([False, True, False], 6.0)
    result = rule_steps.weigh(rule, [0.5, 0.5, 0.5, 0.0], indices=np.array([1, 2, 1, 1]))
    self.assertEqual(result.tolist(), [3, 0.5, 3, 0])

  def test_smoothing_by_index_by_hand(self):
    rule, state = rules.smooth_by_index(5, decay=0.5), None
    # Index 3: weights 1, then 2 and 6 (4 on average), then 0. Averages 1/2, 9/4, 9/8, corrected by
    # 1/2, 3/4, 7/8. Index 0 comes in steps 1 and 3 with 2 and 8: averages 1, 9/2; 4.5 / 0.75.
    # The last place is padding, the index 7 before it is outside of the table.
    for indices, weights, expected in (
      ([3, 0, 4, 7, 3], [1, 2, 0.5, 9, 0], [1, 2, 0.5, 9, 0]),
      ([3, 3, 4, 7, 0], [2, 6, 0.5, 8, 0], [3, 3, 0.5, 8, 0]),
      ([3, 0, 1, -1, 4], [0, 8, 3, 7, 0], [9 / 7, 6, 3, 7, 0]),
    ):
      mask = np.array([True, True, True, True, False])
      result, state = rule_steps.step(rule, weights, state, indices=np.array(indices), mask=mask)
      np.testing.assert_allclose(result, expected, rtol=1e-6)
    self.assertEqual(state.times_seen.tolist(), [2, 1, 0, 3, 2])


if __name__ == "__main__":
  absltest.main()
