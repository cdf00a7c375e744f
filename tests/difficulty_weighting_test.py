"""Weights by difficulty against hand arithmetic: the four modes, and the two rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax import metrics
from reweight_jax.difficulty import dynamics, modes, scales, weighting

NAN, INF = float("nan"), float("inf")
_weigh = jax.jit(modes.weights_of_difficulty, static_argnames="scale")
_ranks, _shares = jax.jit(scales.ranks), jax.jit(scales.share_of_range)


def _mean_one(weights):
  return np.array(weights) / np.mean(weights)


class ScalesTest(absltest.TestCase):
  def test_ranks_share_ties_and_leave_out_what_was_never_seen(self):
    # Of the four known: -1 is first, the two 3 share places 1 and 2, infinity is last; over 3.
    result = _ranks(jnp.array([3.0, NAN, INF, -1.0, 3.0]))
    np.testing.assert_allclose(result, [0.5, NAN, 1, 0, 0.5], rtol=1e-6)

  def test_a_rank_is_the_same_for_any_increasing_function(self):
    scores = np.random.default_rng(0).normal(size=5).astype(np.float32)
    expected = np.argsort(np.argsort(scores)) / 4
    np.testing.assert_allclose(_ranks(scores), expected, rtol=1e-6)
    np.testing.assert_allclose(_ranks(np.exp(3 * scores)), expected, rtol=1e-6)

  def test_infinite_and_negative_infinite_scores_have_ranks(self):
    result = _ranks(jnp.array([-INF, NAN, INF, 0.0, -INF]))
    np.testing.assert_allclose(result, [1 / 6, NAN, 1, 2 / 3, 1 / 6], rtol=1e-6)

  def test_the_range_is_of_the_finite_scores_however_large(self):
    result = _shares(jnp.array([2e38, NAN, -2e38, INF, 1e38]))
    np.testing.assert_allclose(result, [1, NAN, 0, 1, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(_shares(jnp.array([7.0, 7, NAN, 7, 7])), [0, 0, NAN, 0, 0])


class ModesTest(parameterized.TestCase):
  def test_easy_first_halves_the_weight_at_each_third_of_the_ranks(self):
    # 8^-d at d = 0, 1/3, 2/3, 1.
    result = _weigh(jnp.array([0.1, 5.0, 0.3, 0.2]), modes.easy_first(8.0))
    np.testing.assert_allclose(result, _mean_one([1, 1 / 8, 1 / 4, 1 / 2]), rtol=1e-5)

  def test_hard_first_is_a_power(self):
    # (1 + d)^3 at d = 0, 1/3, 2/3, 1; and (1/3 + d)^(1/2): 4 = (4/3) / (1/3).
    result = _weigh(jnp.arange(4.0), modes.hard_first(8.0))
    np.testing.assert_allclose(result, _mean_one([27, 64, 125, 216]), rtol=1e-5)
    result = _weigh(jnp.arange(4.0), modes.hard_first(2.0, offset=1 / 3))
    np.testing.assert_allclose(result, _mean_one(np.sqrt([1, 2, 3, 4])), rtol=1e-5)

  @parameterized.parameters(
    (2.0, 3.0, 0.5),  # d* = 2/3 - 1/2 = 1/6
    (3.0, 2.0, 1.0),  # 3/2 - 1 = 1/2
    (7.5, 5.0, 0.75),  # 3/2 - 3/4 = 3/4
  )
  def test_the_only_extremum_is_at_power_over_rate_less_the_offset(self, power, rate, offset):
    difficulty = np.linspace(0, 1, 61)
    top = round(60 * (power / rate - offset))
    for sign in (1, -1):
      mode = modes.flexible(sign * power, sign * rate, offset)
      logs = sign * np.log(_weigh(difficulty, mode, scale="range"))
      self.assertEqual(int(np.argmax(logs)), top)
      self.assertTrue((np.diff(logs[: top + 1]) > 0).all())
      self.assertTrue((np.diff(logs[top:]) < 0).all())

  @parameterized.parameters(
    (0.0, 2.0, -1),
    (-2.0, 0.0, -1),
    (-1.0, 2.0, -1),
    (2.0, 0.0, 1),
    (0.0, -2.0, 1),
    (1.0, -2.0, 1),
    # Both of one sign, with the extremum outside: 1 / 4 - 1 < 0, and 8 / 2 - 1 > 1.
    (1.0, 4.0, -1),
    (8.0, 2.0, 1),
    (-1.0, -4.0, 1),
    (-8.0, -2.0, -1),
  )
  def test_the_other_numbers_rise_or_fall_everywhere(self, power, rate, sign):
    weights = np.array(_weigh(np.linspace(0, 1, 61), modes.flexible(power, rate), scale="range"))
    self.assertTrue((sign * np.diff(weights) > 0).all())

  def test_the_family_is_its_formula(self):
    difficulty = np.array([0.0, 0.25, 1.0])
    expected = (difficulty + 0.5) ** 1.5 * np.exp(-2.5 * (difficulty + 0.5))
    result = _weigh(4 * difficulty + 3, modes.flexible(1.5, 2.5, 0.5), scale="range")
    np.testing.assert_allclose(result, _mean_one(expected), rtol=1e-5)

  @parameterized.parameters(0.1, 1.0, 50.0)
  def test_peak_and_trough_lie_where_and_as_high_as_asked(self, offset):
    difficulty = np.linspace(0, 1, 61)
    for place in (0.0, 0.3, 0.5, 1.0):
      mode = modes.medium_first(6.0, place, offset)
      high = np.array(_weigh(difficulty, mode, scale="range"))
      self.assertEqual(int(np.argmax(high)), round(60 * place))
      self.assertAlmostEqual(high.max() / min(high[0], high[-1]), 6.0, delta=0.02)
      mode = modes.two_ends_first(6.0, place, offset)
      low = np.array(_weigh(difficulty, mode, scale="range"))
      np.testing.assert_allclose(low, _mean_one(1 / high), rtol=1e-3)

  @parameterized.parameters(*modes.MODES)
  def test_a_ratio_bounds_the_weights_and_one_weighs_all_alike(self, name):
    scores = np.random.default_rng(1).normal(size=61)
    weights = np.array(_weigh(scores, modes.MODES[name](9.0)))
    self.assertAlmostEqual(weights.max() / weights.min(), 9.0, delta=0.01)
    self.assertBetween(weights.min(), 1 / 9, 1)
    self.assertBetween(weights.max(), 1, 9)
    np.testing.assert_allclose(_weigh(scores, modes.MODES[name](1.0)), np.ones(61), rtol=1e-6)

  def test_an_example_without_a_score_weighs_one_and_the_others_average_one(self):
    result = _weigh(jnp.array([NAN, 0.0, 2.0, NAN]), modes.easy_first(4.0))
    np.testing.assert_allclose(result, [1, 1.6, 0.4, 1], rtol=1e-5)
    np.testing.assert_array_equal(_weigh(jnp.full(4, NAN), modes.easy_first(4.0)), np.ones(4))

  def test_equal_scores_weigh_one(self):
    for scale in scales.SCALES:
      weights = _weigh(jnp.full(4, 3.0), modes.hard_first(4.0), scale=scale)
      np.testing.assert_allclose(weights, np.ones(4), rtol=1e-6)

  def test_bounds_hold_and_the_mean_stays_one(self):
    # 1000^-d at d = 0, 1/4, ..., 1, a factor 5.6 each: the scale that makes the mean 1 cuts the
    # first at 2 and the last three at 1/2, which leaves 5 - 2 - 3/2 = 3/2 for the second.
    result = _weigh(jnp.arange(5.0), modes.easy_first(1000.0), max_weight=2.0)
    np.testing.assert_allclose(result, [2, 1.5, 0.5, 0.5, 0.5], rtol=1e-5)
    # Wide bounds do nothing; one of 1 leaves nothing.
    free = _weigh(jnp.arange(5.0), modes.easy_first(1000.0))
    wide = _weigh(jnp.arange(5.0), modes.easy_first(1000.0), max_weight=1000.0)
    np.testing.assert_allclose(wide, free, rtol=1e-4)
    none = _weigh(jnp.arange(5.0), modes.easy_first(1000.0), max_weight=1.0)
    np.testing.assert_allclose(none, np.ones(5), rtol=1e-6)

  def test_bounds_count_only_examples_with_a_score(self):
    result = _weigh(jnp.array([0.0, NAN, 1.0, NAN, NAN]), modes.easy_first(100.0), max_weight=1.5)
    np.testing.assert_allclose(result, [4 / 3, 1, 2 / 3, 1, 1], rtol=1e-5)

  def test_effective_sample_size_of_the_table_is_what_is_left(self):
    # 16, 8, 4, 2, 1: 31^2 / (256 + 64 + 16 + 4 + 1).
    weights = _weigh(jnp.arange(5.0), modes.easy_first(16.0))
    self.assertAlmostEqual(float(metrics.effective_sample_size(weights)), 961 / 341, delta=1e-4)

  def test_huge_numbers_stay_finite(self):
    for mode in (modes.flexible(0.0, 1e6), modes.flexible(1e6, 0.0), modes.flexible(-1e6, -1e6)):
      weights = np.array(_weigh(jnp.arange(5.0), mode))
      self.assertTrue(np.isfinite(weights).all())
      self.assertAlmostEqual(weights.mean(), 1, delta=1e-5)

  def test_bad_numbers_are_one_line(self):
    for message, make in (
      (
        "offset expects a finite number > 0|offset expects a number > 0",
        lambda: modes.flexible(1, 1, 0),
      ),
      ("ratio expects a number >= 1, got 0.5", lambda: modes.easy_first(0.5)),
      ("hard_first: offset", lambda: modes.hard_first(2.0, -1.0)),
      ("medium_first: peak", lambda: modes.medium_first(2.0, 1.5)),
      ("two_ends_first: trough", lambda: modes.two_ends_first(2.0, -0.5)),
      ("scale expects one of ranks, range", lambda: _flat(scale="rank")),
      ("max_weight", lambda: _flat(max_weight=0.5)),
      ("vector", lambda: modes.weights_of_difficulty(jnp.ones((2, 2)), modes.easy_first())),
    ):
      with self.assertRaisesRegex(ValueError, message) as caught:
        make()
      self.assertNotIn("\n", str(caught.exception))


def _flat(**options):
  return modes.weights_of_difficulty(jnp.ones(2), modes.easy_first(), **options)


class StaticRuleTest(absltest.TestCase):
  def test_it_looks_up_the_weight_of_the_index(self):
    # 4^-d at d = 1, 0, 1/2: 1/4, 1, 1/2, whose mean is 7/12.
    rule = weighting.difficulty_weights([9, 1, 2], modes.easy_first(4.0))
    result, _ = rule.update(jnp.array([1.0, 2.0, 0.0]), (), indices=jnp.array([0, 2, 1]))
    np.testing.assert_allclose(result, [3 / 7, 12 / 7, 0], rtol=1e-6)

  def test_never_learned_is_hardest(self):
    rule = weighting.difficulty_weights([9, INF, 2], modes.easy_first(4.0))
    result, _ = rule.update(jnp.ones(3), (), indices=jnp.arange(3))
    np.testing.assert_allclose(result, [6 / 7, 3 / 7, 12 / 7], rtol=1e-6)

  def test_bad_scores_are_one_line(self):
    easy = modes.easy_first()
    for message, scores in (("nan for example 1", [0.0, NAN]), ("vector", []), ("vector", "ab")):
      with self.assertRaisesRegex(ValueError, message):
        weighting.difficulty_weights(scores, easy)
    with self.assertRaisesRegex(ValueError, "scale"):
      weighting.difficulty_weights([1.0], easy, scale="rank")
    with self.assertRaisesRegex(ValueError, "max_weight"):
      weighting.difficulty_weights([1.0], easy, max_weight=0.0)


def _last_loss(record):
  return jnp.where(record.times_seen > 0, record.last_loss, jnp.nan)


RULE = weighting.refreshed_difficulty_weights(
  4, _last_loss, modes.easy_first(4.0), every_steps=2, burn_in_steps=1
)


@functools.partial(jax.jit, static_argnames="rule")
def _step(state, losses, indices, mask, rule=RULE):
  count = losses.shape[0]
  evidence = {"logits": jnp.zeros((count, 2)), "labels": jnp.zeros(count, jnp.int32), "mask": mask}
  weights = mask.astype(jnp.float32)
  return rule.update(weights, state, losses=losses, indices=indices, **evidence)


class RefreshedRuleTest(absltest.TestCase):
  def _steps(self, *batches):
    """The weights of each batch of (losses, indices), and the last state."""
    state, results = RULE.init(jnp.ones(3)), []
    for losses, indices in batches:
      mask = np.array([True, True, indices[2] != -9])
      weights, state = _step(state, np.float32(losses), np.int32(indices), mask)
      results.append(np.array(weights))
    return results, state

  def test_it_waits_refreshes_and_keeps_the_table_in_between(self):
    results, state = self._steps(
      ([1.0, 2.0, 3.0], [0, 1, 2]),  # burn-in: records only
      ([9.0, 2.5, 3.0], [0, 1, 2]),  # refreshed: losses 9, 2.5, 3 are d = 1, 0, 1/2
      ([0.1, 9.0, 3.0], [0, 1, 2]),  # recorded, but the table stays
      ([0.1, 9.0, 5.0], [0, 1, 3]),  # refreshed: 0.1, 9, 3, 5 are d = 0, 1, 1/3, 2/3
    )
    np.testing.assert_array_equal(results[0], np.ones(3))
    for result in results[1:3]:
      np.testing.assert_allclose(result, [3 / 7, 12 / 7, 6 / 7], rtol=1e-5)
    table = _mean_one([4**-d for d in (0, 1, 1 / 3, 2 / 3)])
    np.testing.assert_allclose(results[3], table[[0, 1, 3]], rtol=1e-5)
    np.testing.assert_allclose(state.weights, table, rtol=1e-5)
    self.assertEqual(int(state.num_steps), 4)

  def test_what_was_never_seen_and_what_is_outside_keep_their_weight(self):
    results, state = self._steps(
      ([1.0, 2.0, 7.0], [0, 1, 99]),
      ([1.0, 2.0, 7.0], [0, 1, 99]),
      ([1.0, 2.0, 7.0], [2, 1, -1]),
    )
    np.testing.assert_allclose(results[1], [1.6, 0.4, 1], rtol=1e-5)
    np.testing.assert_allclose(results[2], [1, 0.4, 1], rtol=1e-5)
    np.testing.assert_allclose(state.weights, [1.6, 0.4, 1, 1], rtol=1e-5)

  def test_padding_is_neither_weighed_nor_recorded(self):
    results, state = self._steps(
      ([1.0, 2.0, 7.0], [0, 1, -9]),
      ([1.0, 2.0, NAN], [0, 1, -9]),
    )
    np.testing.assert_allclose(results[1], [1.6, 0.4, 0], rtol=1e-5)
    np.testing.assert_array_equal(dynamics.dynamics_of(state).times_seen, [2, 2, 0, 0])

  def test_every_measure_of_the_dynamics_can_be_given(self):
    for measure in dynamics.OF_DYNAMICS.values():
      rule = weighting.refreshed_difficulty_weights(
        4, measure, modes.two_ends_first(), every_steps=3, scale="range", max_weight=3.0
      )
      state = rule.init(jnp.ones(3))
      shapes = jax.eval_shape(
        functools.partial(_step.__wrapped__, rule=rule),
        state,
        jnp.ones(3),
        jnp.arange(3),
        jnp.ones(3, bool),
      )
      self.assertEqual(shapes[0].shape, (3,))
      self.assertEqual(
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes[1]),
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state),
      )

  def test_bad_arguments_are_one_line(self):
    make = functools.partial(
      weighting.refreshed_difficulty_weights, measure=_last_loss, mode=modes.easy_first()
    )
    for message, options in (
      ("num_examples", {"num_examples": 0, "every_steps": 1}),
      ("every_steps", {"num_examples": 3, "every_steps": 0}),
      ("burn_in_steps", {"num_examples": 3, "every_steps": 1, "burn_in_steps": -1}),
      ("scale", {"num_examples": 3, "every_steps": 1, "scale": "log"}),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make(**options)

  def test_a_measure_of_another_shape_is_refused(self):
    rule = weighting.refreshed_difficulty_weights(
      4, lambda record: record.last_loss[:2], modes.easy_first(), every_steps=1
    )
    with self.assertRaisesRegex(ValueError, r"one score for each example, shape \(4,\)"):
      jax.eval_shape(
        functools.partial(_step.__wrapped__, rule=rule),
        rule.init(jnp.ones(3)),
        jnp.ones(3),
        jnp.arange(3),
        jnp.ones(3, bool),
      )


if __name__ == "__main__":
  absltest.main()
