"""Rules of the loss against second routes: sorting, minimizing on a grid, SciPy."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from reweight_jax import rules
from tests import rule_steps

SIZE, TRIALS = 8, 40
NAN = float("nan")


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
        result = rule_steps.of_losses(rules.self_paced(lam, form), self.LOSSES)
        np.testing.assert_allclose(result, self._minimizers(regularizer), atol=1e-4)

  @parameterized.parameters((0.2, 0.8), (0.5, 1.5))
  def test_self_paced_mixture_minimizes_its_published_objective(self, low, high):
    zeta = high * low / (high - low)
    expected = self._minimizers(lambda v: -zeta * np.log(v + zeta / high))
    result = rule_steps.of_losses(rules.self_paced_mixture(low, high), self.LOSSES)
    np.testing.assert_allclose(result, expected, atol=1e-4)

  @parameterized.parameters(("hard", 1), ("linear", 2 / 3), ("logarithmic", 0.5574930))
  def test_a_negative_loss_weighs_as_one_of_zero_and_not_more(self, form, of_a_fifth):
    # Of 0.2: 1 - 0.2 / 0.6, and log(0.2 + 0.4) / log(0.4).
    result = rule_steps.of_losses(rules.self_paced(0.6, form), [-0.5, -0.1, 0, 0.2])
    np.testing.assert_allclose(result, [1, 1, 1, of_a_fifth], rtol=1e-6)

  def test_a_mixture_with_thresholds_that_meet_is_hard(self):
    # Arrays: the factory refuses equal plain numbers, a schedule may still reach them.
    rule = rules.self_paced_mixture(jnp.float32(0.5), jnp.float32(0.5))
    self.assertEqual(rule_steps.of_losses(rule, [0.4, 0.6]).tolist(), [1, 0])

  @parameterized.parameters((0.5, 1.0), (3.0, 0.0))
  def test_super_loss_minimizes_its_objective_over_weights_up_to_e(self, lam, tau):
    logs = np.linspace(-8, 1, 90_001)
    losses = np.array([-9.0, -2.0, 0.0, 0.5, 0.99, 1.0, 1.7, 6.0, 40.0])
    objectives = (losses[:, None] - tau) * np.exp(logs) + lam * logs**2
    expected = np.exp(logs[np.argmin(objectives, axis=1)])
    result = rule_steps.of_losses(rules.super_loss(lam, threshold=tau), losses)
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
    result = rule_steps.of_losses(rules.super_loss(lam, threshold=1.0), losses)
    np.testing.assert_allclose(result, expected, rtol=1e-4)

  def test_close_to_the_branch_point_it_is_right_to_three_digits(self):
    excess = -1 / math.e + np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    result = rule_steps.of_losses(rules.super_loss(0.5, threshold=0.0), excess)
    np.testing.assert_allclose(result, np.exp(-special.lambertw(excess).real), rtol=1e-3)

  def test_a_large_lam_is_uniform_and_a_small_one_a_hard_threshold(self):
    losses = [0.5, 0.999, 1.001, 3.0]
    uniform = rule_steps.of_losses(rules.super_loss(1e4, threshold=1.0), losses)
    # To the first order 1 - (l - tau) / (2 lam).
    np.testing.assert_allclose(uniform, 1 - (np.array(losses) - 1) / 2e4, atol=1e-7)
    hard = rule_steps.of_losses(rules.super_loss(1e-7, threshold=1.0), losses)
    np.testing.assert_allclose(hard[:2], math.e, rtol=1e-3)
    self.assertLess(float(hard[2:].max()), 0.01)

  def test_the_threshold_is_the_bias_corrected_mean_of_real_losses(self):
    # Means 2 and 4 of the first three; averages 1 and 2.5; thresholds 2 and 2.5 / 0.75.
    rule, mask = rules.super_loss(1.0, decay=0.5), np.array([True, True, True, False])
    state = None
    for losses, tau in (([1.0, 2.0, 3.0, 50.0], 2.0), ([2.0, 4.0, 6.0, 0.0], 10 / 3)):
      losses = np.float32(losses)
      weights, state = rule_steps.step(rule, mask, state, losses=losses, mask=mask)
      excess = np.maximum((losses[:3] - tau) / 2, -1 / math.e)
      expected = np.exp(-special.lambertw(excess + 1e-12).real)
      np.testing.assert_allclose(weights, [*expected, 0], rtol=1e-3)
    waited = rule_steps.step(rule, 0 * mask, state, losses=losses, mask=np.zeros(4, bool))[1]
    self.assertEqual([float(x) for x in waited], [float(x) for x in state])

  def test_huge_losses_neither_overflow_the_mean_nor_the_weights(self):
    # The mean is 2e38, the sum would be 4e38; each loss is 1e38 / 2 away from it, in units of lam.
    result = rule_steps.of_losses(rules.super_loss(1.0), [1e38, 3e38], mask=np.ones(2, bool))
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
    kept = rule_steps.of_losses(rules.small_loss(0.72), losses, mask=mask)
    np.testing.assert_array_equal(kept, losses < count)
    band = rule_steps.of_losses(rules.loss_quantiles(0.72, 1.0), losses, mask=mask)
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
    result = rule_steps.weigh(rule, mask, losses=losses, labels=np.zeros(5, np.int32), mask=mask)
    self.assertEqual(result.tolist(), expected)

  def test_hard_mining_takes_a_label_outside_for_a_class_that_is_never_the_rarest(self):
    losses = np.float32([1, 4, 2, 3, 5, 6, 7, 8, 9])
    labels = np.array([0, 0, 0, 1, 1, 7, 7, 7, -1])  # two of the rarest known class
    evidence = {"losses": losses, "labels": labels, "mask": np.ones(9, bool)}
    result = rule_steps.weigh(rules.hard_mining(2), np.ones(9), **evidence)
    self.assertEqual(result.tolist(), [0, 1, 1, 1, 1, 0, 1, 1, 1])

  def test_the_kept_keep_the_weight_that_came_in(self):
    losses, mask = np.array([3.0, 0.1, 2.0]), np.ones(3, bool)
    weights = rule_steps.weigh(rules.small_loss(0.5), [0.3, 0.7, 1.9], losses=losses, mask=mask)
    np.testing.assert_allclose(weights, [0, 0.7, 1.9], rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
