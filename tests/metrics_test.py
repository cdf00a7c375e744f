"""Metrics against scikit-learn and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics
from absl.testing import absltest, parameterized

from reweight_jax import metrics


class RankingTest(parameterized.TestCase):
  @parameterized.product(seed=(0, 1, 2), num_values=(2, 7, 1000))
  def test_auroc_and_average_precision_agree_with_scikit_learn_with_ties(self, seed, num_values):
    rng = np.random.default_rng(seed)
    scores = rng.integers(num_values, size=200).astype(np.float32)
    positive = rng.random(200) < 0.3
    np.testing.assert_allclose(
      metrics.auroc(jnp.asarray(scores), jnp.asarray(positive)),
      sklearn.metrics.roc_auc_score(positive, scores),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      metrics.average_precision(jnp.asarray(scores), jnp.asarray(positive)),
      sklearn.metrics.average_precision_score(positive, scores),
      rtol=1e-5,
    )

  def test_auroc_of_a_hundred_thousand_examples_keeps_its_digits(self):
    rng = np.random.default_rng(0)
    positive = rng.random(100_000) < 0.5
    scores = (rng.normal(size=100_000) + positive).astype(np.float32)
    expected = sklearn.metrics.roc_auc_score(positive, scores)
    result = metrics.auroc(jnp.asarray(scores), jnp.asarray(positive))
    np.testing.assert_allclose(result, expected, rtol=1e-4)

  def test_examples_never_seen_and_padding_do_not_count(self):
    scores = jnp.array([np.nan, np.nan, 1.0, 2.0, 3.0, 9.0])
    positive = jnp.array([True, True, False, True, False, True])
    mask = jnp.arange(6) < 5
    # Left: negatives 1 and 3, the positive 2 between them.
    self.assertEqual(float(metrics.auroc(scores, positive, mask)), 0.5)
    self.assertEqual(float(metrics.average_precision(scores, positive, mask)), 0.5)

  def test_without_both_kinds_auroc_says_nan(self):
    self.assertTrue(np.isnan(metrics.auroc(jnp.ones(3), jnp.ones(3, bool))))
    self.assertTrue(np.isnan(metrics.auroc(jnp.ones(3), jnp.zeros(3, bool))))


class AccuracyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = rng.normal(size=(300, 5)).astype(np.float32)
    self.labels = rng.integers(4, size=300)
    self.predictions = self.logits.argmax(1)

  def test_accuracy_agrees_with_scikit_learn_and_skips_padding(self):
    mask = np.arange(300) < 200
    expected = sklearn.metrics.accuracy_score(self.labels[:200], self.predictions[:200])
    np.testing.assert_allclose(
      metrics.accuracy(self.logits, self.labels, mask), expected, rtol=1e-6
    )

  def test_per_class_accuracy_is_recall_and_nan_for_an_absent_class(self):
    result = metrics.per_class_accuracy(jnp.asarray(self.logits), jnp.asarray(self.labels), 5)
    expected = sklearn.metrics.recall_score(
      self.labels, self.predictions, labels=range(4), average=None
    )
    np.testing.assert_allclose(result[:4], expected, rtol=1e-6)
    self.assertTrue(np.isnan(result[4]))

  @parameterized.parameters(1, 10, 15)
  def test_calibration_error_agrees_with_a_loop_over_bins(self, num_bins):
    shifted = np.exp(self.logits - self.logits.max(1, keepdims=True))
    confidences = (shifted / shifted.sum(1, keepdims=True)).max(1)
    correct, expected = self.predictions == self.labels, 0.0
    for low in np.arange(num_bins) / num_bins:
      inside = (confidences > low) & (confidences <= low + 1 / num_bins)
      if inside.any():
        gap = abs(correct[inside].mean() - confidences[inside].mean())
        expected += inside.mean() * gap
    result = metrics.expected_calibration_error(
      jnp.asarray(self.logits), jnp.asarray(self.labels), num_bins
    )
    np.testing.assert_allclose(result, expected, rtol=1e-4)

  def test_bfloat16_logits_are_counted_and_calibrated_in_float32(self):
    logits, labels = jnp.asarray(self.logits, jnp.bfloat16), jnp.asarray(self.labels)
    wide = logits.astype(jnp.float32)
    for result, expected in (
      (metrics.per_class_accuracy(logits, labels, 4), metrics.per_class_accuracy(wide, labels, 4)),
      (
        metrics.expected_calibration_error(logits, labels),
        metrics.expected_calibration_error(wide, labels),
      ),
    ):
      np.testing.assert_array_equal(result, expected)

  def test_masked_examples_do_not_count_in_classes_and_bins(self):
    mask = jnp.arange(300) < 200
    logits, labels = jnp.asarray(self.logits), jnp.asarray(self.labels)
    np.testing.assert_allclose(
      metrics.per_class_accuracy(logits, labels, 4, mask),
      metrics.per_class_accuracy(logits[:200], labels[:200], 4),
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      metrics.expected_calibration_error(logits, labels, mask=mask),
      metrics.expected_calibration_error(logits[:200], labels[:200]),
      rtol=1e-5,
    )


class WeightsTest(absltest.TestCase):
  def test_equal_weights_count_all_and_one_weight_counts_one(self):
    self.assertAlmostEqual(float(metrics.effective_sample_size(jnp.full(8, 0.3))), 8, places=5)
    self.assertEqual(float(metrics.effective_sample_size(jnp.array([0.0, 5.0, 0.0]))), 1)
    self.assertEqual(float(metrics.effective_sample_size(jnp.zeros(3))), 0)

  def test_squares_of_tiny_weights_do_not_underflow(self):
    tiny = jnp.array([1e-30, 1e-30, 0.0])
    self.assertAlmostEqual(float(metrics.effective_sample_size(tiny)), 2, places=5)

  def test_zero_weight_share_counts_real_examples_alone(self):
    share = metrics.zero_weight_share(jnp.array([0.0, 1.0, 1.0, 0.0]), jnp.arange(4) < 3)
    self.assertAlmostEqual(float(share), 1 / 3, places=6)


class StrictPromotionTest(parameterized.TestCase):
  @parameterized.product(dtype=(jnp.float32, jnp.bfloat16), with_mask=(True, False))
  def test_metrics_promote_nothing_by_accident(self, dtype, with_mask):
    def compute(logits, labels, scores, positive, mask):
      mask = mask if with_mask else None
      return (
        metrics.accuracy(logits, labels, mask),
        metrics.per_class_accuracy(logits, labels, 3, mask),
        metrics.expected_calibration_error(logits, labels, mask=mask),
        metrics.effective_sample_size(scores),
        metrics.zero_weight_share(scores, mask),
        metrics.auroc(scores, positive, mask),
        metrics.average_precision(scores, positive, mask),
      )

    shapes = [((4, 3), dtype), (4, jnp.int32), (4, dtype), (4, bool), (4, bool)]
    arrays = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
    with jax.numpy_dtype_promotion("strict"):
      results = jax.eval_shape(compute, *arrays)
    self.assertEqual([result.shape for result in results], [(), (3,), *[()] * 5])
    self.assertEqual({result.dtype for result in results}, {jnp.dtype("float32")})


if __name__ == "__main__":
  absltest.main()
