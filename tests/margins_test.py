"""Margins of nets, the limit of linear models, and the way there."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from scipy import optimize
from sklearn import svm

import reweight_jax as rw
from reweight_jax import margins


def _separable(seed, num_examples=30, width=4):
  """Rows that some direction separates, of sizes that differ."""
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(num_examples, width)) * rng.uniform(0.5, 3, size=(num_examples, 1))
  oracle = rng.normal(size=width)
  return np.where(inputs @ oracle > 0, 1, -1)[:, None] * inputs


class MaxMarginTest(parameterized.TestCase):
  @parameterized.parameters(*range(6))
  def test_it_is_the_hard_margin_support_vector_machine(self, seed):
    rows = _separable(seed)
    found = margins.max_margin(rows)
    # Examples and their mirror images: the machine's intercept is 0.
    machine = svm.SVC(kernel="linear", C=1e9, tol=1e-9)
    machine.fit(np.concatenate([rows, -rows]), np.repeat([1, -1], len(rows)))
    theta = machine.coef_[0]
    self.assertAlmostEqual(found.margin, 1 / np.linalg.norm(theta), delta=1e-5 * found.margin)
    self.assertGreater(margins.cosine(found.direction, theta), 1 - 1e-8)

  def test_the_dual_makes_the_direction_of_the_nearest_examples_alone(self):
    rows = _separable(7)
    found = margins.max_margin(rows)
    np.testing.assert_allclose(rows.T @ found.dual, found.margin * found.direction, atol=1e-9)
    self.assertAlmostEqual(found.dual.sum(), 1)
    distances = rows @ found.direction
    np.testing.assert_allclose(distances[found.dual > 0], found.margin, rtol=1e-6)
    self.assertGreaterEqual(distances.min(), found.margin * (1 - 1e-6))

  def test_the_unit_of_the_inputs_is_the_unit_of_the_margin(self):
    rows = _separable(8)
    for unit in (1e-6, 1e6):
      found = margins.max_margin(unit * rows)
      self.assertAlmostEqual(found.margin / unit, margins.max_margin(rows).margin, places=6)

  @parameterized.parameters(1e-5, 1e-8)
  def test_margins_far_smaller_than_the_examples_are_found(self, height):
    rng = np.random.default_rng(0)
    # All of one height or more over a plane, the nearest on all sides of its middle, and turned.
    heights = height * np.repeat([1, 2], 20)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    rows = np.concatenate([rng.normal(size=(40, 3)), heights[:, None]], axis=1) @ turn
    found = margins.max_margin(rows)
    np.testing.assert_allclose(found.direction, turn[3], atol=1e-6 * height + 1e-12)
    self.assertAlmostEqual(found.margin / height, 1, places=5)
    np.testing.assert_array_equal(found.dual[20:], 0)

  def test_margins_that_float64_does_not_resolve_are_refused_as_such(self):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(60, 5)), 1e-11 * rng.uniform(1, 2, (60, 1))], axis=1)
    rows = rows @ np.linalg.qr(rng.normal(size=(6, 6)))[0]  # no axis along which they are exact
    with self.assertRaisesRegex(ValueError, "at least 1e-8 of the longest row, got .* Scale"):
      margins.max_margin(rows)

  def test_what_the_solver_calls_best_is_not_taken_on_trust(self):
    shares = np.array([0.5, 0.5]), 0.0
    self.enter_context(absltest.mock.patch.object(optimize, "nnls", return_value=shares))
    with self.assertRaisesRegex(ValueError, "at least 1e-8"):
      margins.max_margin([[2.0, 0.0], [2.0, 3.0]])

  @parameterized.parameters(
    ([[1.0, 0.0], [-1.0, 0.0]], "separates, got the smallest margin"),
    ([[1.0, 0.0], [-1.0, 1.0], [0.5, -2.0]], "separates, got the smallest margin"),
    ([[0.0, 0.0]], "separates, got the smallest margin 0"),
    ([[1.0, float("nan")]], "finite numbers, got others in example 0"),
    ([1.0, 2.0], r"\[examples, features\], got shape \(2,\)"),
  )
  def test_what_cannot_be_separated_is_refused(self, rows, message):
    with self.assertRaisesRegex(ValueError, message):
      margins.max_margin(rows)


class SeparablePartTest(parameterized.TestCase):
  @parameterized.parameters(*range(8))
  def test_no_direction_gets_more_right_without_getting_others_wrong(self, seed):
    rng = np.random.default_rng(seed)
    # In the plane every direction that matters is normal to a row, or next to such a one.
    rows = np.stack([rng.integers(-2, 3, size=5), rng.integers(0, 2, size=5)], axis=1)
    rows = rows[np.abs(rows).sum(1) > 0].astype(float)
    found = margins.separable_part(rows)
    angles = np.arctan2(rows[:, 1], rows[:, 0])
    normal = np.concatenate([angles + np.pi / 2, angles - np.pi / 2])
    turns = np.concatenate([normal, normal + 1e-3, normal - 1e-3])
    values = rows @ np.stack([np.cos(turns), np.sin(turns)])
    values[np.abs(values) < 1e-9] = 0
    counts = (values > 0).sum(0) * (values >= 0).all(0)
    self.assertEqual(found.sum(), counts.max())

  def test_all_of_separable_data_none_of_mirrored(self):
    rows = _separable(1)
    self.assertTrue(margins.separable_part(rows).all())
    self.assertFalse(margins.separable_part(np.concatenate([rows, -rows])).any())

  def test_a_solver_that_gives_up_is_one_line(self):
    gave_up = optimize.OptimizeResult(x=None, status=4, message="hard\nnumbers")
    self.enter_context(absltest.mock.patch.object(optimize, "linprog", return_value=gave_up))
    with self.assertRaisesRegex(RuntimeError, r"3 rows .*\(status 4: hard numbers\)\. Scale"):
      margins.separable_part(np.eye(3))

  def test_thousands_of_examples_need_no_square_table(self):
    rows = np.stack([np.linspace(-1, 1, 4000), np.ones(4000)], axis=1)
    tracemalloc.start()
    found = margins.separable_part(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    self.assertTrue(found.all())
    self.assertLess(peak, 2e7)  # of 4000 x 4000 numbers: 1.28e8


class SignedRowsTest(parameterized.TestCase):
  def test_both_kinds_of_labels(self):
    for labels in ([0, 1], [-1, 1]):
      rows = margins.signed_rows([[2.0], [3.0]], labels, bias=False)
      np.testing.assert_array_equal(rows, [[-2.0], [3.0]])

  @parameterized.parameters(
    ([[1.0]], [2], r"labels 0 and 1, or -1 and 1; got \[2\]"),
    ([[1.0]], [0, 1], r"got shapes \(1, 1\) and \(2,\)"),
    ([[float("inf")]], [1], "got others in example 0"),
  )
  def test_bad_input_is_one_line(self, inputs, labels, message):
    with self.assertRaisesRegex(ValueError, message):
      margins.signed_rows(inputs, labels)


class NormalizedTest(parameterized.TestCase):
  def test_margins_by_hand(self):
    logits = jnp.array([[1.0, 4.0, 2.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(margins.output_margins(logits, jnp.array([2, 0])), [-2, 0])
    half = margins.output_margins(logits.astype(jnp.bfloat16), jnp.array([1, 0]))
    self.assertEqual(half.dtype, jnp.float32)

  def test_scaling_a_homogeneous_net_leaves_normalized_margins(self):
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=shape)) for shape in ((3, 5), (5, 2))]
    inputs = jnp.asarray(rng.normal(size=(4, 3)))
    net = lambda params: jax.nn.relu(inputs @ params[0]) @ params[1]
    labels = jnp.array([0, 1, 0, 1])
    normalized = jax.jit(
      lambda params: margins.normalized_margins(
        margins.output_margins(net(params), labels), params, 2
      )
    )
    results = [normalized(scaled) for scaled in (params, [3 * np.asarray(p) for p in params])]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    self.assertEqual(margins.homogeneity_degree(net, params), 2)

  def test_biases_are_told(self):
    net = lambda params: params["kernel"] * jnp.arange(3.0) + params["bias"] ** 2
    with self.assertRaisesRegex(ValueError, "got L from .* Biases"):
      margins.homogeneity_degree(net, {"kernel": 1.0, "bias": 1.0})

  def test_biases_of_zero_are_not_seen(self):
    net = lambda p: jax.nn.relu(p["first"] * 3.0) * p["last"] + p["bias"]
    params = {"first": 1.0, "last": np.array([1.0, 4.0], np.float32)}
    self.assertEqual(margins.homogeneity_degree(net, {**params, "bias": np.float32(0)}), 2)
    with self.assertRaisesRegex(ValueError, "got L from .* Biases"):
      margins.homogeneity_degree(net, {**params, "bias": np.float32(0.1)})

  @parameterized.parameters("logistic", "exponential")
  def test_the_log_objective_is_the_logarithm_of_the_mean_loss(self, tail):
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=8) * 4, rng.uniform(size=8)
    weights[0] = 0
    losses = np.log1p(np.exp(-values)) if tail == "logistic" else np.exp(-values)
    with jax.enable_x64(True):
      objective = jax.jit(lambda m: margins.log_objective(m, jnp.asarray(weights), tail=tail))
      expected = np.log(np.sum(weights * losses) / weights.sum())
      np.testing.assert_allclose(objective(jnp.asarray(values)), expected, rtol=1e-6)
      slope = losses if tail == "exponential" else 1 / (1 + np.exp(values))
      np.testing.assert_allclose(
        jax.jit(jax.grad(objective))(jnp.asarray(values)),
        -weights * slope / np.sum(weights * losses),
        rtol=1e-5,
      )
    values = np.array([-9, 3.5, 4.5, 9, 14.5, 15.5, 30])
    of_one = jax.jit(jax.vmap(lambda m: margins.log_objective(m[None], jnp.ones(1), tail=tail)))
    losses = np.log1p(np.exp(-values)) if tail == "logistic" else np.exp(-values)
    np.testing.assert_allclose(of_one(jnp.asarray(values)), np.log(losses), rtol=1e-6)
    far = jax.jit(jax.grad(lambda m: margins.log_objective(m, jnp.ones(2), tail=tail)))
    np.testing.assert_allclose(far(jnp.array([3000.0, 3000.0])), [-0.5, -0.5])

  @parameterized.parameters("logistic", "exponential")
  def test_the_smoothed_margin_inverts_the_loss(self, tail):
    smoothed = jax.jit(jax.vmap(lambda *args: margins.smoothed_margin(*args, tail=tail)))
    values = np.array([-20, -1, 0.3, 9, 11, 40, 4000])
    alone = np.stack([values, 0 * values], 1), np.tile([1.0, 0.0], (len(values), 1))
    np.testing.assert_allclose(smoothed(*map(jnp.asarray, alone)), values, rtol=2e-5)
    # Sums of two losses of about exp(-10), to either side of where the inverse is expanded.
    values = np.array([[10.2, 10.9], [10.9, 10.9], [10.1, 20.0], [9.0, 10.4]])
    losses = np.log1p(np.exp(-values)) if tail == "logistic" else np.exp(-values)
    total = losses.sum(1)
    inverse = -np.log(np.expm1(total)) if tail == "logistic" else -np.log(total)
    found = smoothed(jnp.asarray(values), jnp.ones(values.shape))
    np.testing.assert_allclose(found, inverse, rtol=1e-6)
    values = jnp.array([5.0, 3.0, 8.0])
    lower = margins.smoothed_margin(values, jnp.ones(3), tail=tail)
    self.assertLess(lower, 3)
    # At margin m + c all, it nears the smallest as c grows: log(number) is the most it can miss.
    self.assertGreater(lower, 3 - np.log(3))

  def test_an_unknown_tail_is_refused(self):
    with self.assertRaisesRegex(ValueError, "tail"):
      margins.log_objective(jnp.ones(1), jnp.ones(1), tail="heavy")


class DescentTest(absltest.TestCase):
  def test_the_inequality_of_weights_and_dual_holds_for_hundreds_of_problems(self):
    self._check_inequality(800)

  @pytest.mark.long
  def test_the_inequality_of_weights_and_dual_holds_for_thousands_of_problems(self):
    self._check_inequality(2400)

  def _check_inequality(self, num_problems):
    """Without one violation: the gap to the largest margin is at most KL / (step size * T)."""
    rng = np.random.default_rng(0)
    num_steps, most, width = 200, 24, 20
    # Problems of many sizes, filled up with rows of 0 that have no weight.
    rows = np.zeros((num_problems, most, width))
    weights, limit = np.zeros((2, num_problems, most))
    least = np.zeros(num_problems)
    for i in range(num_problems):
      size, features = rng.integers(3, most + 1), rng.choice([2, 3, 5, 10, 20])
      rows[i, :size, :features] = _separable(i, size, features)
      found = margins.max_margin(rows[i, :size, :features])
      least[i], limit[i, :size] = found.margin, found.dual
      nearness = rng.uniform()  # to the dual, at which the bound is 0
      drawn = rng.dirichlet(np.full(size, 0.5)) + 1e-6
      weights[i, :size] = nearness * found.dual + (1 - nearness) * drawn
    weights /= weights.sum(1, keepdims=True)
    step_sizes = 1 / np.abs(rows @ rows.transpose(0, 2, 1)).max((1, 2))
    carries = limit > 0
    terms = np.where(carries, limit, 1) / np.where(carries, weights, 1)
    divergence = np.sum(limit * np.log(terms), axis=1)

    def values(rows, weights, step_size):
      _, dual = margins.loss_normalized_descent(
        rows, weights, num_steps=num_steps, step_size=step_size
      )
      return jnp.square(dual @ rows).sum(1) / 2

    with jax.enable_x64(True):
      run = jax.jit(jax.vmap(values))
      found = np.asarray(run(*map(jnp.asarray, (rows, weights, step_sizes))))
    gaps = found[:, 1:] - np.square(least)[:, None] / 2
    bounds = divergence[:, None] / (step_sizes[:, None] * np.arange(1, num_steps + 1))
    violated = (gaps > bounds * (1 + 1e-9) + 1e-12).any(1)
    self.assertEqual(violated.sum(), 0)
    self.assertGreater((gaps / bounds).max(), 0.05)  # the bound is no idle one

  def test_every_weighting_ends_at_the_same_direction(self):
    rows = _separable(3, 20, 3)
    found = margins.max_margin(rows)
    for weights in (np.ones(20), np.geomspace(1, 100, 20)):
      path, _ = margins.loss_normalized_descent(
        jnp.asarray(rows, jnp.float32), jnp.asarray(weights), num_steps=20_000, step_size=0.05
      )
      self.assertGreater(margins.cosine(path[-1], found.direction), 0.999)

  def test_descent_on_the_log_objective_is_the_same_path(self):
    rows = jnp.asarray(_separable(4, 10, 3), jnp.float32)
    weights = jnp.linspace(0.5, 2, 10)
    objective = lambda theta: margins.log_objective(rows @ theta, weights, tail="exponential")
    theta, tx = jnp.zeros(3), optax.sgd(0.05)
    for _ in range(5):
      theta = theta + tx.update(jax.grad(objective)(theta), tx.init(theta))[0]
    path, _ = rw.margins.loss_normalized_descent(rows, weights, num_steps=5, step_size=0.05)
    np.testing.assert_allclose(path[-1], theta, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
