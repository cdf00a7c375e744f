"""All rules: over time, weights that stand for repeated examples, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from reweight_jax import rules
from tests import rule_steps

NAN, INF = float("nan"), float("inf")


class OverTimeTest(parameterized.TestCase):
  def test_a_deferred_rule_starts_with_a_fresh_state(self):
    rule, state = rules.after_burn_in(rules.smooth_by_index(2, decay=0.5), 2), None
    seen = []
    for weight in (1.0, 7.0, 2.0, 8.0):
      evidence = {"indices": np.array([1]), "mask": np.ones(1, bool)}
      result, state = rule_steps.step(rule, [weight], state, **evidence)
      seen.append(float(result[0]))
    # From the third step on: averages 1 and 9/2, corrected by 1/2 and 3/4.
    self.assertEqual(seen, [1, 7, 2, 6])

  def test_a_share_follows_its_schedule_from_step_zero(self):
    rule = optax.inject_hyperparams(rules.small_loss)(keep=lambda step: 1 - step / 4)
    losses, mask, state = np.array([0.3, 0.1, 0.4, 0.2]), np.ones(4, bool), None
    for expected in ([1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0]):
      result, state = rule_steps.step(rule, np.ones(4), state, losses=losses, mask=mask)
      self.assertEqual(result.tolist(), expected)

  def test_a_threshold_that_grows_lets_in_more(self):
    schedule = optax.linear_schedule(1.0, 4.0, transition_steps=3)  # 1, 2, 3, 4
    rule = optax.inject_hyperparams(rules.self_paced)(threshold=schedule, form="linear")
    state = None
    for expected in ([0, 0], [0.25, 0], [0.5, 0], [0.625, 0.25]):  # 1 - loss / threshold
      result, state = rule_steps.step(rule, np.ones(2), state, losses=np.array([1.5, 3.0]))
      np.testing.assert_allclose(result, expected, rtol=1e-6)


# Rules that look at each example alone, and some that look at the batch.
ALONE = {
  "asymmetric focal": rules.asymmetric_focal([0.0, 1.0, 2.0], [0.0, 0.1, 0.0]),
  "asymmetric focal transform": rules.asymmetric_focal_transform([0.0, 1.0, 2.0]),
  "bootstrapped": rules.bootstrapped_confidence(0.3),
  "class balanced": rules.class_balanced([9, 3, 1]),
  "class weights": rules.class_weights([0.5, 1.0, 2.0]),
  "emphasis": rules.exponential_emphasis(4.0, normalization="none"),
  "emphasis by area": rules.exponential_emphasis(4.0, normalization="area"),
  "focal": rules.focal(),
  "focal transform": rules.focal_transform(),
  "generalized": rules.generalized_cross_entropy(),
  "importance": rules.importance_ratio([0.5, 1.0, 3.0, 2.0]),
  "inverse frequency": rules.inverse_frequency([9, 3, 1]),
  "just train twice": rules.just_train_twice([True, False, False, True]),
  "label shift": rules.label_shift(np.eye(3), [1, 2, 3]),
  "loss transform": rules.loss_transform(jnp.tanh),
  "random": rules.random_weights(1),  # of an example, not of a place
  "self-paced": rules.self_paced(3.0, "linear"),
  "self-paced mixture": rules.self_paced_mixture(0.3, 3.0),
  "super loss by threshold": rules.super_loss(threshold=1.0),
  "symmetric": rules.symmetric_cross_entropy(),
  "Taylor": rules.taylor_cross_entropy(),
}
TOGETHER = {
  "emphasis by batch": rules.exponential_emphasis(4.0),
  "harmonizing": rules.gradient_harmonizing(),
  "normalize": rules.normalize(),
  "super loss by mean": rules.super_loss(),
}


@jax.jit
def _totals(weights, mask, places):
  """By rule the sum of the weights of each of four examples."""
  logits = jnp.array([[1.0, 0, 0], [0, 0, 2], [0.5, 0, 0], [0, 1, 3]])[places]
  labels = jnp.array([0, 1, 2, 2])[places]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  evidence = {"logits": logits, "labels": labels, "losses": losses, "mask": mask}
  total = lambda rule: (
    jnp.zeros(4)
    .at[places]
    .add(rule.update(weights, rule.init(weights), indices=places, **evidence)[0])
  )
  return {name: total(rule) for name, rule in (ALONE | TOGETHER).items()}


class RepetitionTest(parameterized.TestCase):
  def test_a_weight_of_k_is_k_repeats_unless_the_rule_looks_at_the_batch(self):
    weighted = _totals(
      jnp.array([3.0, 1, 2, 1, 0, 0, 0]), jnp.arange(7) < 4, jnp.array([0, 1, 2, 3, 0, 0, 0])
    )
    repeated = _totals(jnp.ones(7), jnp.ones(7, bool), jnp.array([0, 0, 0, 1, 2, 2, 3]))
    for name in ALONE:
      np.testing.assert_allclose(weighted[name], repeated[name], rtol=1e-5, err_msg=name)
      self.assertGreater(float(jnp.ptp(repeated[name])), 0.1, name)
    for name in TOGETHER:
      self.assertGreater(float(jnp.abs(weighted[name] - repeated[name]).max()), 0.01, name)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("self_paced", (0.0,), "threshold expects a number > 0, got 0.0"),
    ("self_paced", (1.0, "logarithmic"), "threshold expects a number > 0 and < 1, got 1.0"),
    ("self_paced", (1.0, "soft"), "form expects one of hard, linear, logarithmic; got 'soft'"),
    ("self_paced_mixture", (2.0, 1.0), "high expects a number > 2, got 1.0"),
    ("super_loss", (0.0,), "lam expects a number > 0, got 0.0"),
    ("super_loss", (NAN,), "lam expects a number > 0, got nan"),
    ("small_loss", (0,), "keep expects a number > 0 and <= 1, got 0"),
    ("large_loss", (1.5,), "keep expects a number > 0 and <= 1, got 1.5"),
    ("small_loss", (0.5, "group"), "of expects one of batch, class; got 'group'"),
    ("loss_quantiles", (0.5, 0.5), "high expects a number > 0.5 and <= 1, got 0.5"),
    ("hard_mining", (2.5,), "num_classes expects a whole number >= 1, got 2.5"),
    ("hard_mining", (2, 0), "at_least expects a whole number >= 1, got 0"),
    ("gradient_harmonizing", (2.5,), "num_bins expects a whole number >= 1, got 2.5"),
    ("gradient_harmonizing", (30, 1.0), "decay expects a number >= 0 and < 1, got 1.0"),
    ("smooth_by_index", (2.5,), "num_examples expects a whole number >= 1, got 2.5"),
    ("smooth_by_index", (9, -0.1), "decay expects a number >= 0 and < 1, got -0.1"),
    ("smooth_by_index", (9, 0.99999999), "decay .* float32 can tell from 1, got 0.99999999"),
    ("after_burn_in", (rules.rectify(), -1), "num_steps expects a whole number >= 0, got -1"),
    ("after_burn_in", (rules.rectify(), 1.5), "num_steps expects a whole number >= 0, got 1.5"),
    ("bootstrapped_confidence", (1.5,), "share expects a number >= 0 and <= 1, got 1.5"),
    ("inverse_frequency", ([3, 1], INF), "power expects a finite number, got inf"),
    ("reducible_loss", ([1.0], 0.0), "keep expects a number > 0 and <= 1, got 0.0"),
    ("just_train_twice", ([True], -1.0), "factor expects a number >= 0, got -1.0"),
    ("importance_ratio", ([1, NAN],), "target .* numbers >= 0, got nan for example 1"),
  )
  def test_a_value_out_of_range_is_named_by_rule_and_argument(self, factory, arguments, message):
    with self.assertRaises(ValueError) as caught:
      getattr(rules, factory)(*arguments)
    self.assertRegex(str(caught.exception), rf"^{factory}: {message}\.$")

  @parameterized.parameters(
    ("inverse_frequency", ([3, 0],), r"positive counts, got 0 for class 1\. Leave .* out, or give"),
    ("class_balanced", ([3, NAN],), r"positive counts, got nan for class 1\."),
    ("class_weights", ([1, -2],), r"finite numbers >= 0, got -2 for class 1\."),
    ("class_balanced", (["a", "b"],), r"one count per class, got shape \(2,\) of <U1\."),
    ("inverse_frequency", ([[3, 1]],), r"one count per class, got shape \(1, 2\) of int64\."),
    (
      "importance_ratio",
      ([1, 2, 3], [1, 2]),
      r"two densities for each example, got 3 of target and 2 of source\. Give both for the whole",
    ),
    ("importance_ratio", ([1, 2], [1, 0]), r"> 0, got 0 for example 1: training never draws it\."),
    ("importance_ratio", ([1, 1], [1, 1e-320]), r"float32 can hold, got inf for .* 1\. Clip them"),
    ("importance_ratio", ([1, 1e39],), r"float32 can hold, got 1e\+39 for example 1\. Clip them"),
    ("label_shift", (np.eye(2), [1, 2, 3]), r"a 3 x 3 confusion matrix,.* got shape \(2, 2\)\."),
    ("label_shift", ([[1, -1], [0, 1]], [1, 2]), r"numbers >= 0, got -1 at row 0, column 1\."),
    (
      "label_shift",
      (np.eye(2), [0, 0]),
      r"a confusion matrix and predictions that are not all 0\.",
    ),
    (
      "label_shift",
      ([[1, 1], [0, 0]], [1, 2]),
      r"condition number inf: class 1 is never predicted\. Count more .* or take a better",
    ),
    ("label_shift", ([[1, 0], [1, 0]], [1, 2]), r"number inf: class 1 has no examples\. Count"),
    ("label_shift", ([[2, 1], [2, 1]], [1, 2]), r": some classes are not told apart\. Count more"),
    ("label_shift_ratios", (np.eye(2), [1, 2, 3]), r"a 3 x 3 confusion matrix,.* shape \(2, 2\)\."),
    ("label_shift_ratios", ([[1, 0], [1, 0]], [1, 2]), r"condition number inf: .*examples"),
    ("just_train_twice", ([0, 1],), r"one bool for each example, got int64 of shape \(2,\)\."),
  )
  def test_a_table_that_does_not_fit_is_described_in_one_line(self, factory, arguments, message):
    with self.assertRaises(ValueError) as caught:
      getattr(rules, factory)(*arguments)
    self.assertRegex(str(caught.exception), rf"^{factory} expects [^\n]*{message}")
    self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
  absltest.main()
