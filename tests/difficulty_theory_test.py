"""What difficulty does by theory, shown with the library's own measures.

Expected values are closed forms, quadrature, or statements about order; trainings are small
logistic regressions that Newton's method solves exactly.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import _made_up
from reweight_jax import data, difficulty, margins, metrics

SEEDS = (0, 1, 2, 3, 4)
RATES = (0.1, 0.2, 0.4)


def two_class(logits):
  """Log-probabilities `[..., 2]` of models whose logit of class 1 against 0 is given."""
  return -np.logaddexp(0, np.stack([logits, -np.asarray(logits)], axis=-1))


def none_trained_on(log_probs):
  return np.zeros(log_probs.shape[:2], bool)


@functools.cache
def noisy_fits(seed, rate):
  """An almost interpolating fit with wrong labels: held-out errors, in-sample losses, who is wrong,
  and the log-probabilities of the folds' models with their masks and labels.
  """
  rng = np.random.default_rng(seed)
  drawn = _made_up.draw(rng, 200, num_test=100)
  noisy = data.corrupt_labels(drawn.labels, 2, "symmetric", rate, rng)
  fit = lambda mask: _made_up.fit_logistic(drawn.features, noisy.labels, mask * 1.0, 1e-6)
  masks = difficulty.fold_masks(noisy.labels, 5, seed=seed)
  said = np.stack([_made_up.log_probs(drawn.features, fit(mask)) for mask in masks])
  inside = _made_up.log_probs(drawn.features, fit(np.ones(200)))
  held_out = np.asarray(difficulty.held_out_error(said, masks, noisy.labels))
  own = np.asarray(difficulty.cross_entropy(jnp.asarray(inside), jnp.asarray(noisy.labels)))
  return held_out, own, noisy.is_noisy, (said, noisy.labels)


class BiasVarianceTest(absltest.TestCase):
  def test_of_trained_models_the_error_splits_around_the_geometric_mean_alone(self):
    _, _, _, (said, labels) = noisy_fits(0, 0.2)
    error, bias, variance = difficulty.bias_variance(said, none_trained_on(said), labels)
    np.testing.assert_allclose(error, bias + variance, rtol=1e-6, atol=1e-6)
    # The same two terms around the arithmetic mean: its loss, and the divergence from it.
    probs = np.exp(np.maximum(said, math.log(1e-7))).astype(float)
    center = probs.mean(0)
    divergence = (center * (np.log(center) - np.log(probs))).sum(-1).mean(0)
    around_mean = divergence - np.log(center[np.arange(len(labels)), labels])
    gaps = np.abs(np.asarray(error) - around_mean)
    self.assertGreater(np.median(gaps), 0.01)
    self.assertGreater(gaps.max(), 1)


class MarginLawTest(parameterized.TestCase):
  """Margins of an example over training sets, taken as normal with mean mu and deviation s."""

  CASES = ((2, 0.5), (2, 1.0), (2, 1.5), (1, 0.5), (-1, 0.5), (-1, 1.5))

  def _margins(self):
    # The middles of 20,000 slices of equal probability stand for as many training sets.
    grid = np.linspace(-6, 6, 60_001)
    below = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in grid])
    normal = np.interp((np.arange(20_000) + 0.5) / 20_000, below, grid)
    return np.stack([mu + s * normal for mu, s in self.CASES], axis=1)  # [training sets, cases]

  def test_mean_exponential_loss_is_that_of_a_log_normal(self):
    drawn = jnp.asarray(self._margins(), jnp.float32)
    for i, (mu, s) in enumerate(self.CASES):
      found = margins.log_objective(
        drawn[:, i], jnp.full(len(drawn), 1 / len(drawn)), tail="exponential"
      )
      self.assertAlmostEqual(float(found), -mu + s**2 / 2, delta=2e-3)

  def test_held_out_error_rises_with_spread_and_falls_with_the_margin(self):
    said = two_class(self._margins())
    labels = np.ones(len(self.CASES), np.int32)
    error = np.asarray(difficulty.held_out_error(said, none_trained_on(said), labels))
    # By quadrature of softplus(-m) over the normal law.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    expected = [weights @ np.logaddexp(0, -(mu + s * nodes)) for mu, s in self.CASES]
    np.testing.assert_allclose(error, np.array(expected) / math.sqrt(2 * math.pi), rtol=1e-3)
    np.testing.assert_allclose(
      error[[0, 1, 2, 3, 5]], [0.140, 0.183, 0.256, 0.338, 1.512], atol=1e-3
    )
    self.assertLess(error[0], error[1])  # more spread
    self.assertLess(error[1], error[2])
    self.assertLess(error[0], error[3])  # less margin
    self.assertLess(error[4], error[5])  # more spread where the mean margin is negative, too

  def test_spread_lowers_the_zero_one_error_where_the_mean_margin_is_negative(self):
    said = two_class(self._margins())
    labels = np.ones(len(self.CASES), np.int32)
    wrong = np.asarray(difficulty.inconsistency(said, none_trained_on(said), labels))
    below_0 = [0.5 * math.erfc(mu / s / math.sqrt(2)) for mu, s in self.CASES]
    np.testing.assert_allclose(wrong, below_0, atol=1e-3)
    self.assertLess(wrong[0], wrong[2])
    self.assertGreater(wrong[4], wrong[5])
    np.testing.assert_allclose(wrong[4:], [0.977, 0.748], atol=1e-3)


class ImbalanceTest(parameterized.TestCase):
  """Bayes' rule for two normal classes at distance 2, one `ratio` times as frequent."""

  def _of_both(self, ratio, measure):
    """The mean of a measure over the frequent class, and over the rare one."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    points = np.concatenate([nodes - 1, nodes + 1])  # of the frequent class 0, of the rare class 1
    said = two_class(2 * points - math.log(ratio))
    labels = np.repeat(np.arange(2, dtype=np.int32), 60)
    scores = np.asarray(measure(jnp.asarray(said), jnp.asarray(labels))).reshape(2, 60)
    return scores @ weights / math.sqrt(2 * math.pi)

  @parameterized.parameters(
    (1.0, 0.776, 0.776),
    (1.5, 0.818, 0.726),
    (math.e, 0.871, 0.648),
    (10.0, 0.945, 0.453),
    (100.0, 0.992, 0.161),
  )
  def test_probability_of_the_true_class(self, ratio, frequent, rare):
    doubt = self._of_both(ratio, lambda said, y: difficulty.low_self_confidence(jnp.exp(said), y))
    np.testing.assert_allclose(1 - doubt, [frequent, rare], atol=0.005)

  def test_any_ratio_above_1_makes_the_rare_class_harder(self):
    for ratio in (1.01, 1.1, 2.0):
      frequent, rare = self._of_both(ratio, difficulty.cross_entropy)
      self.assertGreater(rare, frequent)
    # From the start: by log(ratio) the one error falls and the other rises at the rate 1 - p.
    frequent, rare = self._of_both(1.01, difficulty.cross_entropy)
    self.assertAlmostEqual((rare - frequent) / math.log(1.01), 2 * (1 - 0.776), delta=0.01)
    np.testing.assert_allclose(*self._of_both(1.0, difficulty.cross_entropy), rtol=1e-5)


class FeatureNoiseTest(absltest.TestCase):
  """Models linear in what moves: five folds' logistic regressions on points of a plane."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.points = rng.standard_normal((60, 2))
    self.labels = (self.points @ [2.0, 1.0] + rng.logistic(size=60) > 0).astype(np.int32)
    masks = difficulty.fold_masks(self.labels, 5, seed=0)
    fit = lambda mask: _made_up.fit_logistic(self.points, self.labels, mask * 1.0, 1e-2)
    self.params = np.stack([fit(mask) for mask in masks])  # [members, 2]
    toward = np.where(self.labels == 1, 1.0, -1.0)[:, None] * self.params.mean(0)
    self.toward = toward / np.linalg.norm(toward, axis=1, keepdims=True)

  def _error(self, points):
    said = two_class(np.einsum("md,nd->mn", self.params, points))
    return np.asarray(difficulty.held_out_error(said, none_trained_on(said), self.labels), float)

  def test_noise_against_the_label_is_harder_and_noise_toward_it_easier_to_first_order(self):
    before = self._error(self.points)
    changes = []
    for size in (0.05, 0.1):
      against = self._error(self.points - size * self.toward) - before
      toward = self._error(self.points + size * self.toward) - before
      self.assertGreater(against.min(), 0)
      self.assertLess(toward.max(), 0)
      changes.append(against.mean())
    self.assertAlmostEqual(changes[1] / changes[0], 2, delta=0.1)

  def test_noise_of_random_direction_is_harder_to_second_order_only(self):
    before = self._error(self.points)
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, 60)
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sizes = (0.25, 0.5)
    changes = []
    for size in sizes:  # both signs of every direction are as likely
      both = self._error(self.points + size * direction) + self._error(
        self.points - size * direction
      )
      self.assertGreater((both / 2 - before).min(), -1e-6)  # convex
      changes.append((both / 2 - before).mean())
    self.assertAlmostEqual(changes[1] / changes[0], 4, delta=0.2)
    against = (self._error(self.points - sizes[0] * self.toward) - before).mean()
    self.assertLess(changes[0], 0.1 * against)


class ShiftTest(parameterized.TestCase):
  """Training law N(0, 1), test law N(1, 1), weights (test density / training density) ** kappa."""

  @parameterized.parameters(0.0, 0.5, 1.0, 1.5)
  def test_chi_square_to_the_weighted_law_is_one_over_the_effective_sample_share(self, kappa):
    # The weighted training law is N(kappa, 1).
    points = kappa + np.random.default_rng(0).standard_normal(1_000_000)
    ratios = np.exp(((points - kappa) ** 2 - (points - 1) ** 2) / 2)
    share = metrics.effective_sample_size(jnp.asarray(ratios, jnp.float32)) / len(points)
    np.testing.assert_allclose(1 / share, math.exp((1 - kappa) ** 2), rtol=0.02)

  @parameterized.parameters((0.0, 1.0), (0.5, 0.78), (1.0, 0.37))
  def test_effective_sample_share_of_the_weights_falls_where_the_chi_square_does(
    self, kappa, about
  ):
    points = np.random.default_rng(0).standard_normal(1_000_000)
    weights = jnp.asarray(np.exp(kappa * (points - 0.5)), jnp.float32)
    share = float(metrics.effective_sample_size(weights)) / len(points)
    np.testing.assert_allclose(share, math.exp(-(kappa**2)), rtol=0.02)
    self.assertAlmostEqual(share, about, delta=0.01)


class LabelNoiseTest(parameterized.TestCase):
  def test_a_flipped_label_is_harder_wherever_the_true_one_is_likelier_than_not(self):
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((500, 4))
    labels = rng.integers(0, 4, 500)
    flipped = (labels + rng.integers(1, 4, 500)) % 4
    own, other = (
      np.asarray(difficulty.cross_entropy(jnp.asarray(logits), jnp.asarray(y)))
      for y in (labels, flipped)
    )
    likely = own < math.log(2)
    self.assertGreater(likely.sum(), 50)
    self.assertTrue((other > own)[likely].all())
    self.assertFalse((other > own)[~likely].all())  # elsewhere it need not be

  def test_wrong_labels_have_the_larger_held_out_error_less_so_the_more_there_are(self):
    gaps = []
    for rate in (0.1, 0.4):
      found = [noisy_fits(seed, rate) for seed in SEEDS[:3]]
      gaps.append(np.median([e[wrong].mean() - e[~wrong].mean() for e, _, wrong, _ in found]))
    self.assertGreater(gaps[1], 0)
    self.assertGreater(gaps[0], 1.5 * gaps[1])

  @pytest.mark.long
  def test_held_out_error_finds_more_than_the_loss_of_a_fit_that_has_seen_the_labels(self):
    # Of most draws, not of each.
    aurocs = np.array(
      [
        [[metrics.auroc(score, wrong) for score in (e, own)] for e, own, wrong, _ in found]
        for found in ([noisy_fits(seed, rate) for seed in SEEDS] for rate in RATES)
      ]
    )  # [rates, seeds, 2]
    ahead = (aurocs[:2, :, 0] - aurocs[:2, :, 1]).ravel()
    self.assertGreater(np.median(ahead), 0.005)
    self.assertGreaterEqual((ahead > 0).mean(), 0.6)
    medians = np.median(aurocs[:, :, 0], axis=1)
    self.assertEqual(medians.tolist(), sorted(medians, reverse=True))
    self.assertGreater(medians[-1], 0.5)


if __name__ == "__main__":
  absltest.main()
