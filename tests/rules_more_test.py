"""Rules against second routes: sorting, counting, minimizing on a grid, SciPy, hand arithmetic."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from scipy import special

from reweight_jax import rules

SIZE, TRIALS = 8, 40
NAN, INF = float("nan"), float("inf")


def _step(rule, weights, state=None, **evidence):
  """The weights of one step and the next state."""
  weights = jnp.asarray(weights, jnp.float32)
  evidence = {name: jnp.asarray(array) for name, array in evidence.items()}
  update = jax.jit(rule.update)
  return update(weights, rule.init(weights) if state is None else state, **evidence)


def _weigh(rule, weights, **evidence):
  return _step(rule, weights, **evidence)[0]


def _of_losses(rule, losses, **evidence):
  """A rule's factors for a vector of losses."""
  losses = np.asarray(losses, np.float32)
  return _weigh(rule, np.ones(losses.size), losses=losses, **evidence)


class PacedTest(parameterized.TestCase):
  """Weights that minimize the weighted loss plus a regularizer of the weight."""

  SHARES = np.linspace(0, 1, 10_001)
  LOSSES = np.array([0.0, 0.02, 0.11, 0.26, 0.48, 0.59, 0.71, 0.9, 1.3, 4.0])

  def _minimizers(self, regularizer):
    objectives = self.SHARES * self.LOSSES[:, None] + regularizer(self.SHARES)
    return self.SHARES[np.argmin(objectives, axis=1)]

  @parameterized.parameters(0.3, 0.6, 0.95)
  def test_each_form_of_self_paced_minimizes_its_published_objective(self, lam):
    zeta = 1 - lam
    regularizers = {
      "hard": lambda v: -lam * v,
      "linear": lambda v: lam * (v**2 / 2 - v),
      "logarithmic": lambda v: zeta * v - zeta**v / np.log(zeta),
    }
    for form, regularizer in regularizers.items():
      with self.subTest(form):
        result = _of_losses(rules.self_paced(lam, form), self.LOSSES)
        np.testing.assert_allclose(result, self._minimizers(regularizer), atol=1e-4)

  @parameterized.parameters((0.2, 0.8), (0.5, 1.5))
  def test_self_paced_mixture_minimizes_its_published_objective(self, low, high):
    zeta = high * low / (high - low)
    expected = self._minimizers(lambda v: -zeta * np.log(v + zeta / high))
    result = _of_losses(rules.self_paced_mixture(low, high), self.LOSSES)
    np.testing.assert_allclose(result, expected, atol=1e-4)

  @parameterized.parameters(("hard", 1), ("linear", 2 / 3), ("logarithmic", 0.5574930))
  def test_a_negative_loss_weighs_as_one_of_zero_and_not_more(self, form, of_a_fifth):
    # Of 0.2: 1 - 0.2 / 0.6, and log(0.2 + 0.4) / log(0.4).
    result = _of_losses(rules.self_paced(0.6, form), [-0.5, -0.1, 0, 0.2])
    np.testing.assert_allclose(result, [1, 1, 1, of_a_fifth], rtol=1e-6)

  def test_a_mixture_with_thresholds_that_meet_is_hard(self):
    # Arrays: the factory refuses equal plain numbers, a schedule may still reach them.
    rule = rules.self_paced_mixture(jnp.float32(0.5), jnp.float32(0.5))
    self.assertEqual(_of_losses(rule, [0.4, 0.6]).tolist(), [1, 0])

  @parameterized.parameters((0.5, 1.0), (3.0, 0.0))
  def test_super_loss_minimizes_its_objective_over_weights_up_to_e(self, lam, tau):
    logs = np.linspace(-8, 1, 90_001)
    losses = np.array([-9.0, -2.0, 0.0, 0.5, 0.99, 1.0, 1.7, 6.0, 40.0])
    objectives = (losses[:, None] - tau) * np.exp(logs) + lam * logs**2
    expected = np.exp(logs[np.argmin(objectives, axis=1)])
    result = _of_losses(rules.super_loss(lam, threshold=tau), losses)
    np.testing.assert_allclose(result, expected, rtol=2e-4)


class SuperLossTest(parameterized.TestCase):
  @parameterized.parameters(1e-3, 1.0, 1e3)
  def test_weights_are_lambert_s_function_up_to_the_largest_finite_loss(self, lam):
    # Beyond the first -1/e the argument stops; close to it see the next test.
    losses = np.float32([-1e30, 0, 1, 1.001, 2, 20, 1e3, 1e10, 1e30, 1e37, 3.4e38])
    excess = np.maximum((losses.astype(np.float64) - 1) / (2 * lam), -1 / math.e)
    # The largest float32 stands for arguments beyond it.
    excess = np.minimum(excess, np.finfo(np.float32).max)
    expected = np.exp(-special.lambertw(excess).real)
    expected[excess == -1 / math.e] = math.e  # where SciPy says NaN
    result = _of_losses(rules.super_loss(lam, threshold=1.0), losses)
    np.testing.assert_allclose(result, expected, rtol=1e-4)

  def test_close_to_the_branch_point_it_is_right_to_three_digits(self):
    excess = -1 / math.e + np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    result = _of_losses(rules.super_loss(0.5, threshold=0.0), excess)
    np.testing.assert_allclose(result, np.exp(-special.lambertw(excess).real), rtol=1e-3)

  def test_a_large_lam_is_uniform_and_a_small_one_a_hard_threshold(self):
    losses = [0.5, 0.999, 1.001, 3.0]
    uniform = _of_losses(rules.super_loss(1e4, threshold=1.0), losses)
    # To the first order 1 - (l - tau) / (2 lam).
    np.testing.assert_allclose(uniform, 1 - (np.array(losses) - 1) / 2e4, atol=1e-7)
    hard = _of_losses(rules.super_loss(1e-7, threshold=1.0), losses)
    np.testing.assert_allclose(hard[:2], math.e, rtol=1e-3)
    self.assertLess(float(hard[2:].max()), 0.01)

  def test_the_threshold_is_the_bias_corrected_mean_of_real_losses(self):
    # Means 2 and 4 of the first three; averages 1 and 2.5; thresholds 2 and 2.5 / 0.75.
    rule, mask = rules.super_loss(1.0, decay=0.5), np.array([True, True, True, False])
    state = None
    for losses, tau in (([1.0, 2.0, 3.0, 50.0], 2.0), ([2.0, 4.0, 6.0, 0.0], 10 / 3)):
      losses = np.float32(losses)
      weights, state = _step(rule, mask, state, losses=losses, mask=mask)
      excess = np.maximum((losses[:3] - tau) / 2, -1 / math.e)
      expected = np.exp(-special.lambertw(excess + 1e-12).real)
      np.testing.assert_allclose(weights, [*expected, 0], rtol=1e-3)
    waited = _step(rule, 0 * mask, state, losses=losses, mask=np.zeros(4, bool))[1]
    self.assertEqual([float(x) for x in waited], [float(x) for x in state])

  def test_huge_losses_neither_overflow_the_mean_nor_the_weights(self):
    # The mean is 2e38, the sum would be 4e38; each loss is 1e38 / 2 away from it, in units of lam.
    result = _of_losses(rules.super_loss(1.0), [1e38, 3e38], mask=np.ones(2, bool))
    expected = [math.e, math.exp(-special.lambertw(0.5e38).real)]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


SHARES = tuple(
  fractions.Fraction(*share)
  for share in ((1, 100), (1, 10), (3, 10), (1, 2), (2, 3), (7, 8), (1, 1))
)
BANDS = tuple(
  (low, high) for low in (fractions.Fraction(0), *SHARES) for high in SHARES if low < high
)


@functools.cache
def _batches():
  """Batches of 0 to 8 real examples, many of their losses equal."""
  rng = np.random.default_rng(0)
  losses = rng.integers(5, size=(TRIALS, SIZE)) / np.float32(4)
  losses[::2] += rng.normal(size=(TRIALS // 2, SIZE)).astype(np.float32)  # without ties
  labels = rng.integers(3, size=(TRIALS, SIZE))
  mask = rng.random((TRIALS, SIZE)) < rng.random((TRIALS, 1))
  mask[0], mask[1], mask[2] = False, True, np.arange(SIZE) == 5
  return losses, labels, mask


@functools.partial(jax.jit, static_argnames=("factory", "options"))
def _selected(factory, options, *numbers):
  """Weights `[numbers, trials, batch]`, of weights 1 where there are examples."""
  losses, labels, mask = _batches()

  def one(numbers, losses, labels, mask):
    evidence = {"losses": losses, "labels": labels, "mask": mask}
    return factory(*numbers, *options).update(mask.astype(jnp.float32), (), **evidence)[0]

  over_trials = jax.vmap(one, (None, 0, 0, 0))
  return jax.vmap(over_trials, (0, None, None, None))(numbers, losses, labels, mask)


def _groups(labels, mask, of):
  """The places of the real examples, of all or of each class."""
  if of == "batch":
    return [np.flatnonzero(mask)]
  return [np.flatnonzero(mask & (labels == label)) for label in range(3)]


class SelectionTest(parameterized.TestCase):
  def _check(self, result, choose, numbers):
    """Compares with a function `(losses, labels, mask, number) -> places kept`."""
    for row, number in zip(np.asarray(result), numbers, strict=True):
      for weights, *batch in zip(row, *_batches(), strict=True):
        expected = np.zeros(SIZE)
        expected[choose(*batch, number)] = 1
        np.testing.assert_array_equal(weights, expected, err_msg=f"{number}, {batch}")

  @parameterized.product(factory=("small_loss", "large_loss"), of=("batch", "class"))
  def test_the_share_that_stays_is_the_head_of_the_sorted_losses_with_its_ties(self, factory, of):
    sign = 1 if factory == "small_loss" else -1

    def choose(losses, labels, mask, share):
      kept = []
      for places in _groups(labels, mask, of):
        if places.size:
          ordered = np.sort(sign * losses[places])
          border = ordered[math.ceil(share * places.size) - 1]
          kept += [place for place in places if sign * losses[place] <= border]
      return kept

    result = _selected(getattr(rules, factory), (of,), jnp.array([float(s) for s in SHARES]))
    self._check(result, choose, SHARES)

  @parameterized.parameters("batch", "class")
  def test_a_band_is_what_has_a_share_of_smaller_losses_within_it(self, of):
    def choose(losses, labels, mask, band):
      kept = []
      for places in _groups(labels, mask, of):
        ordered = np.sort(losses[places])
        for place in places:
          smaller = int(np.searchsorted(ordered, losses[place]))
          if band[0] <= fractions.Fraction(smaller, places.size) < band[1]:
            kept.append(place)
      return kept

    bounds = np.array([[float(bound) for bound in band] for band in BANDS]).T
    self._check(_selected(rules.loss_quantiles, (of,), *map(jnp.asarray, bounds)), choose, BANDS)

  @parameterized.parameters(1, 2)
  def test_hard_mining_keeps_as_many_of_each_class_as_the_rarest_has(self, at_least):
    def choose(losses, labels, mask, _):
      groups = _groups(labels, mask, "class")
      count = max(at_least, min(len(places) for places in groups))
      kept = []
      for places in groups:
        ordered = np.sort(losses[places])[::-1]
        kept += [place for place in places if losses[place] >= ordered[:count].min()]
      return kept

    make = lambda _: rules.hard_mining(3, at_least)
    self._check(_selected(make, (), jnp.zeros(1)), choose, (None,))

  def test_a_share_of_a_large_batch_is_not_one_too_many(self):
    size, count = 4275, 3078  # 0.72 of them exactly, in float32 a little more
    losses, mask = np.arange(size, dtype=np.float32), np.ones(size, bool)
    kept = _of_losses(rules.small_loss(0.72), losses, mask=mask)
    np.testing.assert_array_equal(kept, losses < count)
    band = _of_losses(rules.loss_quantiles(0.72, 1.0), losses, mask=mask)
    np.testing.assert_array_equal(band, losses >= count)

  @parameterized.parameters(
    (rules.small_loss(0.5), [0, 1, 1, 0, 0]),
    (rules.small_loss(0.5, "class"), [0, 1, 1, 0, 0]),
    (rules.large_loss(0.5), [0, 0, 1, 1, 0]),
    (rules.loss_quantiles(0.5, 1.0), [1, 0, 0, 1, 0]),
    (rules.hard_mining(2, 3), [0, 1, 1, 1, 0]),
  )
  def test_a_loss_that_is_not_a_number_is_the_last_to_stay(self, rule, expected):
    losses, mask = np.float32([NAN, 1, 2, 3, NAN]), np.arange(5) < 4
    result = _weigh(rule, mask, losses=losses, labels=np.zeros(5, np.int32), mask=mask)
    self.assertEqual(result.tolist(), expected)

  def test_hard_mining_takes_a_label_outside_for_a_class_that_is_never_the_rarest(self):
    losses = np.float32([1, 4, 2, 3, 5, 6, 7, 8, 9])
    labels = np.array([0, 0, 0, 1, 1, 7, 7, 7, -1])  # two of the rarest known class
    evidence = {"losses": losses, "labels": labels, "mask": np.ones(9, bool)}
    result = _weigh(rules.hard_mining(2), np.ones(9), **evidence)
    self.assertEqual(result.tolist(), [0, 1, 1, 1, 1, 0, 1, 1, 1])

  def test_the_kept_keep_the_weight_that_came_in(self):
    losses, mask = np.array([3.0, 0.1, 2.0]), np.ones(3, bool)
    weights = _weigh(rules.small_loss(0.5), [0.3, 0.7, 1.9], losses=losses, mask=mask)
    np.testing.assert_allclose(weights, [0, 0.7, 1.9], rtol=1e-6)


class ProbabilityTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(3)
    self.logits = (3 * rng.normal(size=(12, 3))).astype(np.float32)
    self.labels = np.arange(12) % 3
    chances = special.softmax(self.logits.astype(np.float64), axis=1)
    self.p = chances[np.arange(12), self.labels]

  def _factors(self, rule):
    return _weigh(rule, np.ones(12), logits=self.logits, labels=self.labels)

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
      result = _weigh(rule, incoming, logits=logits, labels=self.labels, mask=mask)
      np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)

  def test_logits_in_bfloat16_count_as_the_numbers_that_they_are(self):
    logits = jnp.asarray(self.logits, jnp.bfloat16)
    exact = special.softmax(np.asarray(logits, np.float64), axis=1)[np.arange(12), self.labels]
    evidence = {"logits": logits, "labels": self.labels, "mask": np.ones(12, bool)}
    focal = _weigh(rules.focal(1.5), np.ones(12), **evidence)
    np.testing.assert_allclose(focal, (1 - exact) ** 1.5, rtol=1e-5)
    asymmetric = rules.asymmetric_focal([1.5] * 3, [0.001] * 3)
    expected = np.maximum(1 - exact - 0.001, 0) ** 1.5
    np.testing.assert_allclose(_weigh(asymmetric, np.ones(12), **evidence), expected, rtol=1e-4)
    # Bins so narrow that bfloat16 would miss them.
    bins = np.floor((1 - exact) * 1000)
    crowd = (bins[:, None] == bins[None, :]).sum(1)
    result = _weigh(rules.gradient_harmonizing(1000), np.ones(12), **evidence)
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
      weights, state = _step(rule, mask, state, logits=logits, labels=labels, mask=mask)
      np.testing.assert_allclose(weights, np.where(mask, expected, 0), rtol=1e-5)


class ClassesTest(parameterized.TestCase):
  def test_class_balanced_is_the_published_fraction_exactly(self):
    # Rational numbers keep what 1 - beta^n loses in floating point.
    counts, beta = (5000, 60, 1), fractions.Fraction(999, 1000)
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    mean = sum(n * factor for n, factor in zip(counts, raw, strict=True)) / sum(counts)
    result = _weigh(rules.class_balanced(counts, 0.999), np.ones(3), labels=np.arange(3))
    np.testing.assert_allclose(result, [float(factor / mean) for factor in raw], rtol=1e-5)

  @parameterized.parameters(0.0, 0.5, 1.0, -1.0, 30.0)
  def test_inverse_frequency_is_a_power_with_mean_one_over_the_training_set(self, power):
    counts = np.array([900, 90, 10])
    raw = (counts / 10.0) ** -power
    expected = raw / np.average(raw, weights=counts)
    result = _weigh(rules.inverse_frequency(counts, power), np.ones(3), labels=np.arange(3))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-37)

  def test_at_power_one_every_class_has_the_same_total(self):
    counts = np.array([70, 20, 10])
    result = _weigh(rules.inverse_frequency(counts), np.ones(3), labels=np.arange(3))
    np.testing.assert_allclose(result * counts, np.full(3, 100 / 3), rtol=1e-5)

  def test_class_weights_are_looked_up_and_clamped_at_both_ends(self):
    labels = np.array([0, 2, 1, -3, 9])
    result = _weigh(rules.class_weights([0.5, 0, 2]), [1, 2, 1, 1, 1], labels=labels)
    np.testing.assert_allclose(result, [0.5, 4, 0, 0.5, 2])

  def test_a_known_label_shift_is_recovered(self):
    rng = np.random.default_rng(7)
    predicted = rng.dirichlet(np.ones(6), size=6).T + 2 * np.eye(6)
    predicted /= predicted.sum(0)  # columns: the chances of each prediction, given the class
    source, target = rng.dirichlet(np.full(6, 5.0), size=2)
    confusion, shares = 1000 * predicted * source, predicted @ target
    result = rules.label_shift_ratios(confusion, shares)
    np.testing.assert_allclose(result, target / source, rtol=1e-10)
    weights = _weigh(rules.label_shift(confusion, shares), np.ones(6), labels=np.arange(6))
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
    result = _weigh(
      rules.importance_ratio(target, source, power=power), np.ones(5), indices=indices
    )
    np.testing.assert_allclose(result, ratio**power, rtol=1e-5)

  def test_an_injected_power_that_overflows_leaves_padding_at_zero(self):
    rule = rules.importance_ratio([1e30, 3], power=jnp.float32(2))
    self.assertEqual(_weigh(rule, [0, 1], indices=np.array([0, 1])).tolist(), [0, 9])

  def test_reducible_loss_is_the_head_of_the_sorted_differences(self):
    rng = np.random.default_rng(11)
    reference, losses = 3 * rng.normal(size=20), rng.normal(size=SIZE).astype(np.float32)
    indices, mask = rng.integers(20, size=SIZE), np.arange(SIZE) != 3
    result = _weigh(
      rules.reducible_loss(reference, 0.4), mask, losses=losses, indices=indices, mask=mask
    )
    difference = np.where(mask, losses - reference[indices], -INF)
    expected = np.zeros(SIZE)
    expected[np.argsort(-difference)[:3]] = 1  # 0.4 of 7, rounded up
    self.assertNotIn(np.argmax(np.where(mask, losses, -INF)), np.flatnonzero(expected))
    np.testing.assert_array_equal(result, expected)

  def test_just_train_twice_multiplies_the_errors_alone(self):
    rule = rules.just_train_twice([False, True, False], 6.0)
    result = _weigh(rule, [0.5, 0.5, 0.5, 0.0], indices=np.array([1, 2, 1, 1]))
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
      result, state = _step(rule, weights, state, indices=np.array(indices), mask=mask)
      np.testing.assert_allclose(result, expected, rtol=1e-6)
    self.assertEqual(state.times_seen.tolist(), [2, 1, 0, 3, 2])


class OverTimeTest(parameterized.TestCase):
  def test_a_deferred_rule_starts_with_a_fresh_state(self):
    rule, state = rules.after_burn_in(rules.smooth_by_index(2, decay=0.5), 2), None
    seen = []
    for weight in (1.0, 7.0, 2.0, 8.0):
      evidence = {"indices": np.array([1]), "mask": np.ones(1, bool)}
      result, state = _step(rule, [weight], state, **evidence)
      seen.append(float(result[0]))
    # From the third step on: averages 1 and 9/2, corrected by 1/2 and 3/4.
    self.assertEqual(seen, [1, 7, 2, 6])

  def test_a_share_follows_its_schedule_from_step_zero(self):
    rule = optax.inject_hyperparams(rules.small_loss)(keep=lambda step: 1 - step / 4)
    losses, mask, state = np.array([0.3, 0.1, 0.4, 0.2]), np.ones(4, bool), None
    for expected in ([1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0]):
      result, state = _step(rule, np.ones(4), state, losses=losses, mask=mask)
      self.assertEqual(result.tolist(), expected)

  def test_a_threshold_that_grows_lets_in_more(self):
    schedule = optax.linear_schedule(1.0, 4.0, transition_steps=3)  # 1, 2, 3, 4
    rule = optax.inject_hyperparams(rules.self_paced)(threshold=schedule, form="linear")
    state = None
    for expected in ([0, 0], [0.25, 0], [0.5, 0], [0.625, 0.25]):  # 1 - loss / threshold
      result, state = _step(rule, np.ones(2), state, losses=np.array([1.5, 3.0]))
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
    ("class_balanced", ([3, 0],), r"positive counts, got 0 for class 1\. Leave .* out, or give"),
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
