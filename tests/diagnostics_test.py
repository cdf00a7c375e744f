"""Whether weights still matter, by hand and beside what they do."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import margins

ALL = jnp.ones(4, bool)


class DiagnosticsTest(parameterized.TestCase):
  def test_padding_and_examples_without_weight_do_not_count(self):
    mask = jnp.array([True, True, True, False])
    found = jax.jit(margins.weight_diagnostics)(
      jnp.array([0.9, 5.0, -1.1, -7.0]), jnp.array([8.0, 1.0, 0.0, 100.0]), mask
    )
    # log(8) / 2 = 1.04: of 0.9, 5 and -1.1 the first is within.
    worst = -1.1 / ((0.81 + 25 + 1.21) / 3) ** 0.5
    np.testing.assert_allclose(found, [2 / 3, worst, 8, 81 / 65 / 3, 1 / 3, 1 / 3], rtol=1e-6)

  def test_the_relative_margin_is_that_of_the_direction(self):
    # A linear model without bias: its margins and their mean square at twice the params.
    rng = np.random.default_rng(2)
    rows, params = rng.normal(size=(4, 3)), rng.normal(size=3)
    one, two = (
      margins.weight_diagnostics(jnp.array(rows @ p), jnp.ones(4), ALL)
      for p in (params, 2 * params)
    )
    self.assertAlmostEqual(float(one.relative_margin), float(two.relative_margin), places=5)
    # Over its value by the norm of the params: the norm of the direction's margins, over root 4.
    direction = params / np.linalg.norm(params)
    by_norm = margins.normalized_margins(jnp.array(rows @ params), jnp.array(params), 1).min()
    ratio = float(by_norm / one.relative_margin)
    self.assertAlmostEqual(ratio, np.linalg.norm(rows @ direction) / 2, places=5)

  def test_no_example_is_no_division_by_zero(self):
    for weights, mask in ((jnp.zeros(4), ALL), (jnp.ones(4), ~ALL)):
      found = margins.weight_diagnostics(jnp.ones(4), weights, mask)
      self.assertTrue(np.isfinite(np.asarray(found)).all())
      self.assertEqual((found.weight_ratio, found.flippable_share), (1, 0))
      self.assertEqual(found.relative_margin, 1 if mask is ALL else 0)

  def test_the_band_is_what_a_class_ratio_can_turn(self):
    # Two Gaussian classes whose weighted optimum is the unweighted one, shifted by log R to either
    # side: half of what weights R and 1 / R turn is about what lies within half of log R.
    rng = np.random.default_rng(0)
    labels = rng.choice([-1.0, 1.0], 200_000)
    logits = 2 * (rng.normal(size=labels.size) + labels)  # the log-odds of N(1, 1) against N(-1, 1)
    shift = np.log(9.0)
    turned = (np.mean(logits > -shift) - np.mean(logits > shift)) / 2
    weights = jnp.where(labels > 0, 9.0, 1.0)
    found = margins.weight_diagnostics(
      jnp.asarray(labels * logits), weights, jnp.ones(labels.size, bool)
    )
    self.assertAlmostEqual(float(found.flippable_share), turned, delta=0.01)
    # The same, when they are given as decisions elsewhere.
    other = margins.weight_diagnostics(
      jnp.full(4, 50.0), jnp.array([9.0, 1, 1, 1]), ALL, jnp.asarray(logits)
    )
    self.assertAlmostEqual(float(other.flippable_share), float(found.flippable_share), places=6)

  def test_the_cosine_is_that_of_the_two_gradients(self):
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 1, 0])
    batch = rw.types.make_batch(inputs, labels)
    linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    loss_fn, params = rw.losses.from_apply(linear), jnp.zeros((3, 2))
    pull = rw.per_example.linearize(loss_fn, params, (), batch).pull
    weights = np.array([3.0, 1.0, 0.0, 0.5])
    errors = 0.5 - np.eye(2)[labels]  # softmax minus one-hot, at params 0
    rows = np.einsum("bi,bc->bic", inputs, errors).reshape(4, -1)
    expected = margins.cosine(weights @ rows, rows.sum(0))
    found = margins.gradient_cosine(pull, jnp.asarray(weights, jnp.float32), batch.mask)
    self.assertAlmostEqual(float(found), expected, places=5)

  def test_half_precision_and_large_batches_are_counted_in_float32(self):
    size = 70_000  # more than float16 can hold
    wide = np.full(size, 300.0)  # whose square is too
    wide[:7] = -300
    for dtype in (jnp.float16, jnp.bfloat16):
      found = margins.weight_diagnostics(
        jnp.asarray(wide, dtype), jnp.ones(size, dtype), jnp.ones(size, bool)
      )
      expected = [1 - 7 / size, -1, 1, 1, 0, 0]
      np.testing.assert_allclose(found, expected, rtol=1e-6)

  @parameterized.parameters(
    (dict(), True),
    (dict(accuracy=margins.FITTED), True),
    (dict(accuracy=margins.FITTED - 1e-3), False),
    (dict(flippable_share=margins.IDLE - 1e-3), True),
    (dict(flippable_share=margins.IDLE), False),
    (dict(zero_share=margins.IDLE), False),  # they have no say
    (dict(weight_ratio=margins.EVEN), False),  # never had an effect
    (dict(weight_ratio=float("nan")), False),
    (dict(flippable_share=float("nan")), False),
    (dict(effective_share=float("nan")), False),
  )
  def test_advice_where_all_is_fitted_and_hardly_a_decision_can_turn(self, changed, is_told):
    idle = margins.WeightDiagnostics(1.0, 0.5, 16.0, 0.4, 0.0, 0.0)
    said = margins.advice(idle._replace(**changed))
    self.assertEqual(said is not None, is_told)

  def test_advice_names_the_numbers(self):
    weights = jnp.array([16.0, 1.0, 16.0, 1.0])
    said = margins.advice(margins.weight_diagnostics(jnp.full(4, 20.0), weights, ALL))
    self.assertStartsWith(said, "weights hardly matter any more: 100.0 % of the training examples")
    self.assertIn("a ratio of 16 can turn about 0 % of the decisions", said)

  def test_the_divergence_is_one_less_than_n_over_the_effective_sample_size(self):
    ratios = jnp.array([1.0, 2.0, 0.5, 4.0])
    terms = margins.bound_terms(jnp.array([0.0, 1.0, 2.0, 3.0]), ratios, ALL, 1.5)
    size = float(rw.metrics.effective_sample_size(ratios))
    self.assertAlmostEqual(float(terms.divergence), 4 / size - 1, places=5)
    self.assertAlmostEqual(float(terms.margin_error), 3 / 7.5, places=5)

  def test_bound_terms_of_nothing_are_no_numbers_and_padding_does_not_count(self):
    ratios, mask = jnp.array([1.0, 3.0, 100.0, 7.0]), jnp.array([True, True, False, False])
    terms = margins.bound_terms(jnp.array([2.0, 0.5, 0.0, 0.0]), ratios, mask, 1.0)
    # Of 1 and 3, scaled to 0.5 and 1.5: the second is below the margin.
    np.testing.assert_allclose(terms, [0.75, (0.25 + 2.25) / 2 - 1])
    for empty in (
      margins.bound_terms(ratios, ratios, ~ALL, 1.0),
      margins.bound_terms(ratios, 0 * ratios, ALL, 1.0),
    ):
      self.assertTrue(np.isnan(empty).all())

  def test_a_negative_margin_is_refused(self):
    with self.assertRaisesRegex(ValueError, "bound_terms: margin"):
      margins.bound_terms(jnp.ones(4), jnp.ones(4), ALL, -1.0)


if __name__ == "__main__":
  absltest.main()
