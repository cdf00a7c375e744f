"""Scores of one forward pass, with and without labels, against SciPy and automatic derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special, stats

from reweight_jax.difficulty import scores, uncertainty

OF_LABELS = {
  "cross_entropy": scores.cross_entropy,
  "el2n": scores.el2n,
  "negative_margin": scores.negative_margin,
  "negative_normalized_margin": lambda z, y: scores.negative_normalized_margin(z, y, 1.5, 3),
}
UNLABELED = {
  "uncertainty_margin": uncertainty.uncertainty_margin,
  "entropy": uncertainty.entropy,
}


@jax.jit
def _of_logits(logits, labels):
  return {name: score(logits, labels) for name, score in OF_LABELS.items()} | {
    name: score(logits) for name, score in UNLABELED.items()
  }


@jax.jit
def _of_draws(log_probs):
  return uncertainty.predictive_entropy(log_probs), uncertainty.bald(log_probs)


class ScoresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = (2 * rng.normal(size=(8, 4))).astype(np.float32)
    self.labels = rng.integers(4, size=8)

  def _expected(self, logits):
    z = np.asarray(logits, np.float64)
    p, rows = special.softmax(z, axis=1), np.arange(len(z))
    others = np.where(np.eye(4, dtype=bool)[self.labels], -np.inf, z).max(1)
    top = np.sort(z, axis=1)
    return {
      "cross_entropy": -np.log(p[rows, self.labels]),
      "el2n": np.linalg.norm(p - np.eye(4)[self.labels], axis=1),
      "negative_margin": others - z[rows, self.labels],
      "negative_normalized_margin": (others - z[rows, self.labels]) / 1.5**3,
      "uncertainty_margin": top[:, -2] - top[:, -1],
      "entropy": stats.entropy(p, axis=1),
    }

  @parameterized.parameters("float32", "bfloat16")
  def test_scores_are_their_formulas_in_double_precision(self, dtype):
    logits = jnp.asarray(self.logits, dtype)
    found = _of_logits(logits, self.labels)
    for name, expected in self._expected(logits).items():
      self.assertEqual(found[name].dtype, jnp.float32)
      np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)

  def test_a_larger_logit_of_the_label_is_easier(self):
    before = _of_logits(self.logits, self.labels)
    after = _of_logits(self.logits + 0.5 * np.eye(4, dtype=np.float32)[self.labels], self.labels)
    for name in OF_LABELS:
      self.assertTrue((np.asarray(after[name]) < before[name]).all(), name)

  def test_digits_survive_where_the_probability_rounds_to_one_or_to_zero(self):
    logits = np.zeros((8, 4), np.float32)
    # The label leads by 30, by 1e4, or is behind by as much; below it are equals.
    logits[np.arange(8), self.labels] = [30, 1e4, -30, -1e4, 0, 0, 0, 0]
    found = _of_logits(logits, self.labels)
    small = 3 * np.exp(-30)
    np.testing.assert_allclose(
      found["cross_entropy"][:5], [small, 0, 30 + np.log(3), 1e4 + np.log(3), np.log(4)], rtol=1e-5
    )
    # Three equals share the error: its length is 1 - p times sqrt(1 + 3/9).
    expected = np.sqrt(4 / 3) * np.array([small, 0, 1, 1, 3 / 4])
    np.testing.assert_allclose(found["el2n"][:5], expected, rtol=1e-5)
    for name, values in found.items():
      self.assertTrue(np.isfinite(values).all(), name)

  def test_last_layer_grand_is_the_length_of_the_derivative_in_kernel_and_bias(self):
    features = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    kernel = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)

    def loss(layer, one, label):
      return -jax.nn.log_softmax(one @ layer["kernel"] + layer["bias"])[label]

    @jax.jit
    def both(features):
      layer = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}
      grads = jax.vmap(jax.grad(loss), (None, 0, 0))(layer, features, self.labels)
      squares = {name: jnp.sum(grad.reshape(8, -1) ** 2, axis=1) for name, grad in grads.items()}
      with_bias, without = (
        scores.last_layer_grand(features @ kernel, self.labels, features, has_bias=has_bias)
        for has_bias in (True, False)
      )
      return squares, with_bias, without

    squares, with_bias, without = both(features)
    np.testing.assert_allclose(with_bias, np.sqrt(squares["kernel"] + squares["bias"]), rtol=1e-4)
    np.testing.assert_allclose(without, np.sqrt(squares["kernel"]), rtol=1e-4)

  def test_rarity_is_the_information_in_the_class(self):
    labels = jnp.array([2, 0, 2, 2, -1, 0, 2, 3])
    # Of six known: class 0 twice, class 2 four times; -1 and 3 are no classes.
    expected = -np.log([4 / 6, 2 / 6, 4 / 6, 4 / 6, np.nan, 2 / 6, 4 / 6, np.nan])
    np.testing.assert_allclose(scores.class_rarity(labels, 3), expected, rtol=1e-6)

  def test_float64_stays_float64_under_strict_promotion(self):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      logits = jax.ShapeDtypeStruct((8, 4), jnp.float64)
      labels = jax.ShapeDtypeStruct((8,), jnp.int32)
      draws = jax.ShapeDtypeStruct((2, 8, 4), jnp.float64)
      grand = jax.eval_shape(scores.last_layer_grand, logits, labels, logits)
      found = jax.eval_shape(_of_logits, logits, labels) | {"last_layer_grand": grand}
      for score in (*found.values(), *jax.eval_shape(_of_draws, draws)):
        self.assertEqual((score.shape, score.dtype), ((8,), jnp.float64))

  def test_what_is_no_batch_of_logits_is_refused(self):
    for logits, labels, what in (
      (np.zeros(3), np.zeros(3, int), r"logits \[batch, classes\].* got shape \(3,\)"),
      (np.zeros((3, 1)), np.zeros(3, int), "at least two classes"),
      (np.zeros((3, 2)), np.zeros((3, 2), int), "integer labels, not one-hot rows"),
    ):
      for score in OF_LABELS.values():
        with self.assertRaisesRegex(ValueError, what):
          score(logits, labels)
    for score in (uncertainty.predictive_entropy, uncertainty.bald):
      with self.assertRaisesRegex(ValueError, r"got shape \(3, 2\).*log_probs\[None\]"):
        score(np.zeros((3, 2)))
    with self.assertRaisesRegex(ValueError, r"features \[batch, features\].*\(3, 1, 2\)"):
      scores.last_layer_grand(np.zeros((3, 2)), np.zeros(3, int), np.zeros((3, 1, 2)))
    with self.assertRaisesRegex(ValueError, "depth expects a number > 0, got 0"):
      scores.negative_normalized_margin(np.zeros((3, 2)), np.zeros(3, int), 1.0, 0)
    with self.assertRaisesRegex(ValueError, "num_classes expects a whole number >= 1, got 0"):
      scores.class_rarity(np.zeros(3, int), 0)


class DrawsTest(absltest.TestCase):
  def test_disagreement_is_the_entropy_of_the_mean_less_the_mean_entropy(self):
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.full(4, 0.5), size=(3, 8))
    probs[:, 0] = probs[0, 0]  # all agree
    probs[:, 1] = np.eye(4)[:3]  # all are sure, each of another class
    probs[:, 2, 0], probs[1, 2, 0] = 0, 0.7  # a class that most rule out
    probs /= probs.sum(2, keepdims=True)
    with np.errstate(divide="ignore"):
      total, disagreement = _of_draws(np.log(probs).astype(np.float32))
    expected = stats.entropy(probs.mean(0), axis=1)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    expected -= stats.entropy(probs, axis=2).mean(0)
    np.testing.assert_allclose(disagreement, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(disagreement[:2], [0, np.log(3)], rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
