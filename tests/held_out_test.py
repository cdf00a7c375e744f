"""What held-out members say, by hand arithmetic and against NumPy in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax.difficulty import confident, held_out

NUM_MEMBERS, NUM_EXAMPLES, NUM_CLASSES = 12, 40, 5


@functools.cache
def random_ensemble():
  """Log-probabilities in double precision, masks and labels; example 0 is never held out."""
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(NUM_MEMBERS, NUM_EXAMPLES, NUM_CLASSES))
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  trained_on = rng.random((NUM_MEMBERS, NUM_EXAMPLES)) < 0.6
  trained_on[:, 0] = True
  return log_probs, trained_on, rng.integers(0, NUM_CLASSES, NUM_EXAMPLES)


def as_given(log_probs, trained_on, labels):
  return jnp.asarray(log_probs, jnp.float32), trained_on, labels


def of_example(i):
  """An example's held-out log-probabilities `[members, classes]` and its label."""
  log_probs, trained_on, labels = random_ensemble()
  return log_probs[~trained_on[:, i], i], labels[i]


class BiasVarianceTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("cross_entropy", held_out.bias_variance),
    ("brier", held_out.brier_bias_variance),
  )
  def test_error_is_bias_plus_variance(self, split):
    error, bias, variance = split(*as_given(*random_ensemble()))
    np.testing.assert_allclose(error[1:], (bias + variance)[1:], rtol=0, atol=1e-6)
    self.assertGreater(np.min(variance[1:]), 0)

  def test_cross_entropy_parts_are_those_of_the_normalized_geometric_mean(self):
    error, bias, variance = held_out.bias_variance(*as_given(*random_ensemble()))
    for i in range(1, NUM_EXAMPLES):
      logs, label = of_example(i)
      center = np.exp(logs).prod(0) ** (1 / len(logs))
      center /= center.sum()
      divergences = (center * (np.log(center) - logs)).sum(-1)
      np.testing.assert_allclose(error[i], -logs[:, label].mean(), rtol=1e-5)
      np.testing.assert_allclose(bias[i], -np.log(center[label]), rtol=1e-5)
      np.testing.assert_allclose(variance[i], divergences.mean(), rtol=1e-4)

  def test_around_the_arithmetic_mean_the_cross_entropy_does_not_split(self):
    gaps = []
    for i in range(1, NUM_EXAMPLES):
      logs, label = of_example(i)
      center = np.exp(logs).mean(0)
      variance = (center * (np.log(center) - logs)).sum(-1).mean()
      gaps.append(abs(-logs[:, label].mean() - (variance - np.log(center[label]))))
    self.assertGreater(np.median(gaps), 0.1)

  def test_brier_parts_are_those_of_the_arithmetic_mean(self):
    error, bias, variance = held_out.brier_bias_variance(*as_given(*random_ensemble()))
    for i in range(1, NUM_EXAMPLES):
      logs, label = of_example(i)
      probs, truth = np.exp(logs), np.eye(NUM_CLASSES)[label]
      np.testing.assert_allclose(error[i], ((probs - truth) ** 2).sum(-1).mean(), rtol=1e-5)
      np.testing.assert_allclose(bias[i], ((probs.mean(0) - truth) ** 2).sum(), rtol=1e-4)
      np.testing.assert_allclose(variance[i], probs.var(0).sum(), rtol=1e-4)

  def test_the_variance_does_not_know_the_label(self):
    log_probs, trained_on, labels = as_given(*random_ensemble())
    one = held_out.bias_variance(log_probs, trained_on, labels)
    other = held_out.bias_variance(log_probs, trained_on, (labels + 1) % NUM_CLASSES)
    np.testing.assert_array_equal(one.variance, other.variance)
    self.assertGreater(np.abs(one.bias - other.bias)[1:].max(), 1)

  def test_one_member_is_all_bias(self):
    log_probs = jnp.log(jnp.array([[[0.5, 0.3, 0.2]], [[0.1, 0.2, 0.7]]]))
    split = held_out.bias_variance(log_probs, np.array([[False], [True]]), np.array([1]))
    np.testing.assert_allclose(split, [[-np.log(0.3)], [-np.log(0.3)], [0]], atol=1e-6)

  @parameterized.parameters(1e-7, 1e-3)
  def test_a_sure_and_wrong_member_costs_what_the_clip_says(self, clip):
    log_probs = jnp.array([[[0.0, -jnp.inf]], [[-1000.0, 0.0]]])
    trained_on, labels = np.zeros((2, 1), bool), np.array([1])
    error, bias, variance = held_out.bias_variance(log_probs, trained_on, labels, clip=clip)
    np.testing.assert_allclose(error, -np.log(clip) / 2, rtol=1e-6)
    # The geometric mean of (1, clip) and (clip, 1) is even.
    np.testing.assert_allclose(bias, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(variance, error - bias, rtol=1e-6)
    self.assertEqual(held_out.brier_bias_variance(log_probs, trained_on, labels).error.item(), 1)


class HeldOutTest(parameterized.TestCase):
  def test_members_that_saw_an_example_do_not_count(self):
    log_probs, trained_on, labels = random_ensemble()
    others = np.where(trained_on[:, :, None], np.roll(log_probs, 1, axis=-1), log_probs)
    for name, measure in held_out.OF_ENSEMBLE.items():
      if name != "memorization":
        np.testing.assert_array_equal(
          measure(*as_given(log_probs, trained_on, labels)),
          measure(*as_given(others, trained_on, labels)),
          name,
        )

  @parameterized.parameters(*held_out.OF_ENSEMBLE)
  def test_an_example_never_held_out_is_nan_and_the_others_finite(self, name):
    scores = held_out.OF_ENSEMBLE[name](*as_given(*random_ensemble()))
    self.assertEqual(scores.shape, (NUM_EXAMPLES,))
    self.assertEqual(scores.dtype, jnp.float32)
    self.assertEqual(np.flatnonzero(~np.isfinite(scores)).tolist(), [0])

  @parameterized.parameters(*held_out.OF_ENSEMBLE)
  def test_the_example_that_all_get_wrong_is_the_hardest(self, name):
    # Members 0 and 1 hold out both examples; member 2 was trained on them and has both right.
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    log_probs = jnp.log(jnp.array([[right, wrong], [right, [0.3, 0.7]], [right, right]]))
    trained_on = np.array([[False, False], [False, False], [True, True]])
    easy, hard = held_out.OF_ENSEMBLE[name](log_probs, trained_on, np.array([0, 0]))
    self.assertGreater(hard, easy)

  def test_inconsistency_and_memorization_count_members(self):
    # Of four members two were trained on the example. Right: one of those out, both of those in.
    log_probs = jnp.log(jnp.array([[[0.6, 0.4]], [[0.2, 0.8]], [[0.9, 0.1]], [[0.7, 0.3]]]))
    trained_on = np.array([[False], [False], [True], [True]])
    self.assertEqual(held_out.inconsistency(log_probs, trained_on, np.array([0])).item(), 0.5)
    self.assertEqual(held_out.memorization(log_probs, trained_on, np.array([0])).item(), 0.5)
    self.assertEqual(held_out.memorization(log_probs, trained_on, np.array([1])).item(), -0.5)
    never = held_out.memorization(log_probs, np.zeros((4, 1), bool), np.array([0]))
    self.assertTrue(np.isnan(never.item()))

  def test_measures_are_jittable(self):
    given = as_given(*random_ensemble())
    jitted = jax.jit(lambda *given: [held_out.bias_variance(*given), held_out.memorization(*given)])
    plain = [held_out.bias_variance(*given), held_out.memorization(*given)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), jitted(*given), plain)

  @parameterized.named_parameters(
    ("nan", np.nan, "got nan of member 2 for example 1.* diverged"),
    ("a_logit", 3.0, "at most 0, got 3.0 of member 2 for example 1.* log_softmax"),
  )
  def test_what_is_no_log_probability_is_refused(self, value, message):
    log_probs, trained_on, labels = random_ensemble()
    log_probs = log_probs.copy()
    log_probs[2, 1, 3] = value
    with self.assertRaisesRegex(ValueError, message):
      held_out.held_out_error(log_probs, trained_on, labels)

  def test_what_does_not_fit_is_refused(self):
    log_probs, trained_on, labels = random_ensemble()
    with self.assertRaisesRegex(ValueError, r"got shapes \(12, 40, 5\), \(40, 12\)"):
      held_out.held_out_error(log_probs, trained_on.T, labels)
    with self.assertRaisesRegex(ValueError, r"\(int64\)|\(int32\)"):
      held_out.held_out_error(log_probs, trained_on.astype(int), labels)
    with self.assertRaisesRegex(
      ValueError, r"labels in \[0, 5\) are expected, got 5 for example 3"
    ):
      held_out.inconsistency(log_probs, trained_on, np.where(np.arange(40) == 3, 5, labels))
    with self.assertRaisesRegex(ValueError, "clip expects"):
      held_out.bias_variance(log_probs, trained_on, labels, clip=0)


class ConfidentTest(parameterized.TestCase):
  # Thresholds: class 0: (0.9 + 0.5 + 0.1) / 3 = 0.5; class 1: (0.6 + 0.2) / 2 = 0.4; class 2 has
  # no label, though one example believes in it.
  PROBABILITIES = np.array(
    [[0.9, 0.1, 0], [0.5, 0.45, 0.05], [0.1, 0.7, 0.2], [0.3, 0.6, 0.1], [0.05, 0.2, 0.75]]
  )
  LABELS = np.array([0, 0, 0, 1, 1])

  def test_issues_and_joint_by_hand(self):
    # Example 1 reaches both thresholds and is likelier of class 0; example 4 reaches none.
    found = confident.confident_classes(self.PROBABILITIES, self.LABELS)
    self.assertEqual(found.tolist(), [0, 0, 1, 1, -1])
    issues = confident.label_issues(self.PROBABILITIES, self.LABELS)
    self.assertEqual(issues.tolist(), [False, False, True, False, False])
    joint = confident.confident_joint(self.PROBABILITIES, self.LABELS)
    self.assertEqual(joint.tolist(), [[2, 1, 0], [0, 1, 0], [0, 0, 0]])

  def test_a_class_that_is_believed_less_has_a_lower_threshold(self):
    # The likeliest class is 0 everywhere, yet the last example stands out as a 1.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.55, 0.45]])
    issues = confident.label_issues(probabilities, np.array([0, 0, 1, 1, 0]))
    self.assertEqual(issues.tolist(), [False, False, False, False, True])

  def test_scores_by_hand(self):
    np.testing.assert_allclose(
      confident.low_self_confidence(self.PROBABILITIES, self.LABELS),
      [0.1, 0.5, 0.9, 0.4, 0.8],
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      confident.low_normalized_margin(self.PROBABILITIES, self.LABELS),
      [0.1, 0.475, 0.8, 0.35, 0.775],
      rtol=1e-6,
    )

  def test_an_example_without_probabilities_is_nan_and_changes_nothing(self):
    probabilities = np.concatenate([self.PROBABILITIES, np.full((1, 3), np.nan)])
    labels = np.append(self.LABELS, 0)
    self.assertTrue(np.isnan(confident.low_normalized_margin(probabilities, labels)[-1]))
    found = confident.confident_classes(probabilities, labels)
    self.assertEqual(found.tolist(), [0, 0, 1, 1, -1, -1])
    self.assertEqual(confident.confident_joint(probabilities, labels).sum(), 4)

  def test_what_is_no_probability_is_refused(self):
    with self.assertRaisesRegex(ValueError, r"in \[0, 1\], got others for example 0.*exp"):
      confident.label_issues(np.log(self.PROBABILITIES + 0.01), self.LABELS)
    with self.assertRaisesRegex(ValueError, r"got shapes \(5, 3\) and \(4,\)"):
      confident.label_issues(self.PROBABILITIES, self.LABELS[:4])
    with self.assertRaisesRegex(ValueError, "of integers are expected, got float"):
      confident.label_issues(self.PROBABILITIES, self.LABELS / 1)


if __name__ == "__main__":
  absltest.main()
