"""Emphasis densities against their formulas, closed-form integrals and a published table."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import integrate, special

from reweight_jax import densities

# The density, and its formula of p and q = 1 - p.
FORMULAS = {
  "exponential of beta": (
    densities.exponential_of_beta(12.0, 0.5),
    lambda p, q: np.exp(12 * np.sqrt(p) * q),
  ),
  "steep at 0": (densities.exponential_of_beta(-3.0, 0.3), lambda p, q: np.exp(-3 * p**0.3 * q)),
  "lam 0": (densities.exponential_of_beta(2.0, 0.0), lambda p, q: np.exp(2 * q)),
  "exponential": (densities.exponential(-0.52), lambda p, q: np.exp(-0.52 * q)),
  "normal": (densities.normal(3.0, 0.3), lambda p, q: np.exp(-3 * p * (p - 0.6))),
  "beta": (densities.beta(1.5, 3.5), lambda p, q: p**0.5 * q**2.5),
  "uniform": (densities.uniform(), lambda p, q: np.ones_like(p)),
  "cross-entropy": (densities.cross_entropy(), lambda p, q: 2 * q),
  "absolute": (densities.mean_absolute_error(), lambda p, q: 2 * p * q),
  "absolute, scale 2": (densities.mean_absolute_error(2.0), lambda p, q: 4 * p * q),
  "squared": (densities.mean_squared_error(), lambda p, q: 4 * p * q * q),
  "generalized": (densities.generalized_cross_entropy(0.7), lambda p, q: 2 * p**0.7 * q),
  "generalized, q 0": (densities.generalized_cross_entropy(0.0), lambda p, q: 2 * q),
  "symmetric": (
    densities.symmetric_cross_entropy(0.1, 0.5, -6.0),
    lambda p, q: 0.2 * q * (1 + 30 * p),
  ),
  "reverse": (densities.symmetric_cross_entropy(0.0, 0.5, -6.0), lambda p, q: 6 * p * q),
  # 1 - q^3, without the cancellation.
  "Taylor": (densities.taylor_cross_entropy(3), lambda p, q: 2 * q * p * (1 + q + q * q)),
  "IMAE": (densities.improved_mean_absolute_error(8.0), lambda p, q: np.exp(8 * p * q)),
  "one's own": (densities.from_function(lambda p: 1 + jnp.cos(p)), lambda p, q: 1 + np.cos(p)),
}
LAMBDAS = (0.0, 0.3, 0.5, 1.0, 2.0, 3.5)

# lam, beta, peak, area, variance, variance/area^2, h(0), h(1), h(mode), w(0.1), w(0.01), where h is
# w over its area: by midpoint quadrature of 20,000 points in plain Python, not by this package.
TABLE = """
0  1  2.718  1.7183 0.2420 0.0820 1.5820 0.5820 1.5820 2.460 2.691
0  2  7.389  3.1945 3.1945 0.3130 2.3130 0.3130 2.3130 6.050 7.243
.3 6.5 25.04 12.487 69.70  0.4470 0.0801 0.0801 2.0054 18.76 5.035
.5 8  21.741 11.408 50.409 0.3873 0.0877 0.0877 1.9057 9.746 2.208
.5 12 101.37 44.363 1257.7 0.6391 0.0225 0.0225 2.2850 30.43 3.281
1  2  1.6487 1.4107 0.0400 0.0201 0.7089 0.7089 1.1687 1.197 1.020
1  8  7.3891 4.4197 4.5461 0.2327 0.2263 0.2263 1.6718 2.054 1.082
1  16 54.598 24.080 354.11 0.6107 0.0415 0.0415 2.2674 4.221 1.172
2  8  3.2713 2.1064 0.6287 0.1417 0.4747 0.4747 1.5530 1.075 1.001
2  12 5.917  3.2212 2.9776 0.2870 0.3104 0.3104 1.8368 1.114 1.001
2  24 35.007 13.354 142.73 0.8004 0.0749 0.0749 2.6215 1.241 1.002
"""


@jax.jit
def all_weights(margins):
  log_p, log_q = densities.log_probabilities(margins)
  return {
    name: jnp.exp(density.log_weight(log_p, log_q)) for name, (density, _) in FORMULAS.items()
  }


def _last_digit(text):
  """One unit of the last printed digit."""
  return 10.0 ** -len(text.partition(".")[2])


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.enter_context(jax.numpy_dtype_promotion("strict"))

  @parameterized.parameters((jnp.float64, 1e-12), (jnp.float32, 2e-5))
  def test_weights_are_the_formulas_at_any_margin(self, dtype, rtol):
    sizes = np.array([0, 1e-3, 0.3, 1, 3, 10, 20, 50, 200])
    margins = np.concatenate([-sizes, sizes])
    result = all_weights(jnp.asarray(margins, dtype))
    p, q = special.expit(margins), special.expit(-margins)
    for name, (_, formula) in FORMULAS.items():
      with self.subTest(name):
        self.assertEqual(result[name].dtype, dtype)
        # Below the smallest normal number 0 is as good.
        tiny = float(np.finfo(dtype).tiny)
        np.testing.assert_allclose(result[name], formula(p, q), rtol=rtol, atol=tiny)

  @parameterized.parameters((jnp.float64, 1e-12), (jnp.float32, 1e-5))
  def test_a_call_takes_probabilities_of_any_shape_and_both_ends(self, dtype, rtol):
    p = np.array([[0, 1e-6, 0.125], [0.5, 0.875, 1]])
    for name, (density, formula) in FORMULAS.items():
      with self.subTest(name):
        result = density(jnp.asarray(p, dtype))
        self.assertEqual(result.dtype, dtype)
        np.testing.assert_allclose(result, formula(p, 1 - p), rtol=rtol, atol=1e-12)

  def test_a_positive_lam_gives_both_ends_weight_one_and_its_mode_the_peak(self):
    for lam in LAMBDAS[1:]:
      for beta in (-2.0, 0.7, 9.0):
        mode = lam / (lam + 1)
        result = densities.exponential_of_beta(beta, lam)(jnp.array([0, 1, mode]))
        peak = np.exp(beta * lam**lam / (lam + 1) ** (lam + 1))
        np.testing.assert_allclose(result, [1, 1, peak], rtol=1e-12)

  def test_families_meet_where_the_formulas_do(self):
    p, grid = np.linspace(0, 1, 4001), jnp.linspace(0, 1, 4001)
    for beta in (-2.0, 0.5, 8.0):
      with self.subTest(beta=beta):
        chain = densities.exponential_of_beta(beta, 0.0), densities.exponential(beta)
        for density in chain:
          np.testing.assert_allclose(density(grid), np.exp(beta * (1 - p)), rtol=1e-12)
        same = (
          densities.exponential_of_beta(beta, 1.0),
          densities.normal(beta, 0.5),
          densities.improved_mean_absolute_error(beta),
        )
        for density in same:
          np.testing.assert_allclose(density(grid), np.exp(beta * p * (1 - p)), rtol=1e-12)
    flat = [densities.exponential_of_beta(0.0, lam) for lam in LAMBDAS]
    flat += [densities.normal(0.0, 0.7), densities.exponential(0.0), densities.beta(1.0, 1.0)]
    for density in [*flat, densities.uniform()]:
      self.assertEqual(density(grid).tolist(), [1.0] * 4001)

  def test_beta_densities_are_the_losses_up_to_a_constant(self):
    grid = jnp.linspace(0, 1, 4001)
    for alpha, eta, constant, density in (
      (1.0, 2.0, 2, densities.cross_entropy()),
      (2.0, 2.0, 2, densities.mean_absolute_error()),
      (2.0, 3.0, 4, densities.mean_squared_error()),
      (1.7, 2.0, 2, densities.generalized_cross_entropy(0.7)),
      (1.0, 2.0, 2, densities.generalized_cross_entropy(0.0)),
      (2.0, 2.0, 2, densities.generalized_cross_entropy(1.0)),
      (2.0, 2.0, 2, densities.taylor_cross_entropy(1)),
    ):
      expected = constant * densities.beta(alpha, eta)(grid)
      np.testing.assert_allclose(density(grid), expected, rtol=1e-12, atol=1e-15)

  def test_the_coefficient_of_symmetric_cross_entropy_is_not_halved(self):
    density = densities.symmetric_cross_entropy(0.1, 1.0, -4.0)
    np.testing.assert_allclose(density(jnp.float64(0.4)), 2.04, rtol=1e-12)


class IntegralsTest(parameterized.TestCase):
  def test_the_published_table(self):
    for row in TABLE.strip().splitlines():
      lam, beta, *printed = row.split()
      lam, beta = float(lam), float(beta)
      with self.subTest(lam=lam, beta=beta):
        density = densities.exponential_of_beta(beta, lam)
        area, variance = densities.area(density), densities.variance(density)
        mode = densities.mode(density)
        with jax.enable_x64(True):
          # Of the size for which `mode` has compiled already.
          w = np.asarray(density(jnp.asarray(np.resize([0, 1, mode, 0.1, 0.01], 4001))))[:5]
        relative = densities.variance(density, relative=True)
        result = [w[2], area, variance, relative, *w[:3] / area, *w[3:]]
        for got, text in zip(result, printed, strict=True):
          # Half a unit for the rounding and half for the quadrature behind the table.
          self.assertAlmostEqual(got, float(text), delta=_last_digit(text))
        self.assertAlmostEqual(mode, lam / (lam + 1), delta=1e-6)

  def test_areas_of_closed_form(self):
    root = np.sqrt
    b, psi = 3.0, 0.3
    spread = special.erf(root(b) * (1 - psi)) + special.erf(root(b) * psi)
    normal = np.exp(b * psi**2) * root(np.pi / b) / 2 * spread
    imae = np.exp(2) * root(np.pi / 8) * special.erf(root(8) / 2)
    for density, expected in (
      (densities.normal(b, psi), normal),
      (densities.exponential_of_beta(8.0, 1.0), imae),
      (densities.exponential(-0.52), (np.exp(-0.52) - 1) / -0.52),
      (densities.exponential_of_beta(2.0, 0.0), (np.exp(2) - 1) / 2),
      (densities.beta(1.5, 3.5), special.beta(1.5, 3.5)),
      (densities.beta(0.5, 0.5), np.pi),
      (densities.beta(0.01, 1.0), 100),  # nearly all of it below p = 1e-40
      (densities.beta(1.0, 0.001), 1000),
      (densities.uniform(), 1),
      (densities.cross_entropy(), 1),
      (densities.mean_absolute_error(), 1 / 3),
      (densities.mean_absolute_error(2.0), 2 / 3),
      (densities.mean_squared_error(), 1 / 3),
      (densities.generalized_cross_entropy(0.7), 2 * special.beta(1.7, 2)),
      (densities.symmetric_cross_entropy(0.1, 1.0, -4.0), 0.1 + 4 / 3),
      (densities.symmetric_cross_entropy(0.0, 1.0, -4.0), 4 / 3),
      (densities.taylor_cross_entropy(3), 1 - 2 / 5),
    ):
      with self.subTest(density.name):
        self.assertAlmostEqual(densities.area(density) / expected, 1, delta=1e-10)

  def test_areas_without_one_by_adaptive_quadrature(self):
    for name in ("exponential of beta", "steep at 0", "one's own"):
      density, formula = FORMULAS[name]
      # In t = p^(1/10) the slope at 0 is tame.
      integrand = lambda t, f=formula: f(t**10, 1 - t**10) * 10 * t**9
      expected = integrate.quad(integrand, 0, 1, epsabs=1e-13, epsrel=1e-13)[0]
      self.assertAlmostEqual(densities.area(density) / expected, 1, delta=1e-10)

  def test_the_normalized_density_has_area_one(self):
    for name, (density, formula) in FORMULAS.items():
      with self.subTest(name):
        whole = integrate.quad(lambda p, f=formula: f(p, 1 - p), 0, 1, epsabs=1e-10)[0]
        self.assertAlmostEqual(whole / densities.area(density), 1, delta=1e-7)

  def test_variances_of_the_losses_and_of_imae(self):
    for density, expected in (
      (densities.cross_entropy(), 1 / 3),
      (densities.mean_absolute_error(2.0), 4 / 45),
      (densities.mean_absolute_error(), 1 / 45),
      (densities.mean_squared_error(), 16 * special.beta(3, 5) - 1 / 9),
      (
        densities.generalized_cross_entropy(0.7),
        4 * special.beta(2.4, 3) - 4 * special.beta(1.7, 2) ** 2,
      ),
      (densities.uniform(), 0),
      # Of p^(a-1) the square has area 1 / (2a - 1).
      (densities.beta(0.51, 1.0), 1 / 0.02 - 1 / 0.51**2),
      (densities.beta(0.5, 2.0), np.inf),
      (densities.beta(1.0, 0.3), np.inf),
    ):
      with self.subTest(density.name):
        self.assertAlmostEqual(densities.variance(density), expected, delta=1e-10)
    for temperature, printed in ((0.5, ".0016"), (4, ".298"), (8, "4.546"), (16, "354.1")):
      result = densities.variance(densities.improved_mean_absolute_error(temperature))
      self.assertAlmostEqual(result, float(printed), delta=_last_digit(printed))

  @parameterized.parameters(0.5, 0.3)
  def test_narrow_peaks_are_not_overlooked(self, mode):
    for beta in (4e4, 4e6):
      # exp(-beta (p - mode)^2), a bell of area sqrt(pi / beta); of its square sqrt(pi / 2 beta).
      normal, top = densities.normal(beta, mode), beta * mode**2
      shifted = lambda log_p, log_q, n=normal, top=top: n.log_weight(log_p, log_q) - top
      bell = densities.Density("bell", shifted)
      self.assertAlmostEqual(densities.area(bell) / np.sqrt(np.pi / beta), 1, delta=1e-9)
      relative = np.sqrt(beta / 2 / np.pi) - 1
      self.assertAlmostEqual(densities.variance(bell, relative=True) / relative, 1, delta=1e-9)
      # Also where weights are beyond floats.
      self.assertEqual(densities.area(normal), np.inf)
      self.assertAlmostEqual(densities.variance(normal, relative=True) / relative, 1, delta=1e-9)

  def test_steps_of_a_function_are_found(self):
    step = densities.from_function(lambda p: jnp.where(p > 0.3, 1.0, 0.0))
    self.assertAlmostEqual(densities.area(step), 0.7, delta=1e-9)
    self.assertAlmostEqual(densities.variance(step), 0.3 * 0.7, delta=1e-9)

  def test_a_nearly_flat_density_has_the_variance_of_its_exponent(self):
    # w is 1 + b p (1 - p), whose variance is b^2 (1/30 - 1/36).
    result = densities.variance(densities.normal(1e-8, 0.5))
    self.assertAlmostEqual(result / (1e-16 / 180), 1, delta=1e-5)

  def test_an_integral_that_is_zero_or_does_not_settle_is_refused(self):
    for name, log_weight, message in (
      ("zero", lambda log_p, log_q: log_p - jnp.inf, "area expects a weight above 0 .* 'zero'"),
      (
        "bad",
        lambda log_p, log_q: jnp.log(jnp.exp(log_q) - 0.5),
        "area expects .* settles .*'bad'",
      ),
      ("rough", lambda log_p, log_q: jnp.sin(1e9 * log_p), "area expects .* settles .*'rough'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        densities.area(densities.Density(name, log_weight))
    self.assertEqual(densities.area(densities.Density("1 / p", lambda log_p, _: -log_p)), np.inf)

  def test_a_traced_parameter_has_no_integral_and_no_mode(self):
    for statistic in (densities.area, densities.variance, densities.mode):
      measure = lambda beta, f=statistic: f(densities.normal(beta, 0.5))
      message = (
        f"^{statistic.__name__} expects a density of plain numbers, got 'normal' with a traced"
      )
      with self.assertRaisesRegex(ValueError, message):
        jax.jit(measure)(8.0)

  def test_a_constant_scales_the_variance_but_not_the_relative_one(self):
    once, twice = densities.mean_absolute_error(1.0), densities.mean_absolute_error(2.0)
    ratio = densities.variance(twice) / densities.variance(once)
    self.assertAlmostEqual(ratio, 4, delta=1e-9)
    for density in (once, twice):  # (1/45) / (1/9)
      self.assertAlmostEqual(densities.variance(density, relative=True), 0.2, delta=1e-9)


class NamesTest(absltest.TestCase):
  def test_a_name_has_all_of_its_numbers_or_none(self):
    for density, name in (
      (densities.exponential_of_beta(np.float32(8), 0.5), "exponential of beta (8, 0.5)"),
      (densities.exponential_of_beta(jnp.float32(8), 0.5), "exponential of beta"),
      (densities.mean_absolute_error(), "mean absolute error"),
      (densities.mean_absolute_error(2.0), "mean absolute error (2)"),
      (densities.symmetric_cross_entropy(0.1, 1.0, -6.0), "symmetric cross-entropy (0.1, 1, -6)"),
    ):
      self.assertEqual(density.name, name)


class ModesTest(parameterized.TestCase):
  def test_modes_are_the_formulas(self):
    cases = [(densities.exponential_of_beta(5.0, lam), lam / (lam + 1)) for lam in LAMBDAS]
    cases += [
      (densities.beta(a, e), (a - 1) / (a + e - 2)) for a, e in ((1.5, 3.5), (4, 2), (3, 3))
    ]
    cases += [(densities.normal(4.0, mode), min(mode, 1)) for mode in (0, 0.3, 1, 1.7)]
    cases += [(densities.generalized_cross_entropy(q), q / (q + 1)) for q in (0, 0.7, 1)]
    cases += [(densities.taylor_cross_entropy(t), 1 - (t + 1) ** (-1 / t)) for t in (1, 2, 6)]
    cases += [
      (densities.cross_entropy(), 0),
      (densities.mean_absolute_error(), 1 / 2),
      (densities.mean_squared_error(), 1 / 3),
      (densities.improved_mean_absolute_error(), 1 / 2),
      (densities.exponential(2.0), 0),
      (densities.exponential(-2.0), 1),
      (densities.exponential_of_beta(-2.0, 0.0), 1),
      # Of (1 - p)(mu + 4 p) the slope 4 - mu - 8 p is 0 at 0.4875.
      (densities.symmetric_cross_entropy(0.1, 1.0, -4.0), 0.4875),
    ]
    for density, expected in cases:
      with self.subTest(density.name):
        self.assertAlmostEqual(densities.mode(density), expected, delta=1e-6)

  def test_of_two_modes_it_is_the_smaller_and_of_equal_weights_nan(self):
    self.assertEqual(densities.mode(densities.exponential_of_beta(-2.0, 1.0)), 0)
    for flat in (densities.uniform(), densities.normal(0.0, 0.5), densities.beta(1.0, 1.0)):
      self.assertTrue(np.isnan(densities.mode(flat)))

  @parameterized.parameters((0.5, 2.0, 0.0), (2.0, 0.5, 1.0), (0.5, 0.5, 0.0))
  def test_an_infinite_weight_is_the_mode(self, alpha, eta, mode):
    self.assertEqual(densities.mode(densities.beta(alpha, eta)), mode)


NAN, INF = float("nan"), float("inf")


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("exponential_of_beta", (NAN, 1.0), "exponential_of_beta: beta", "nan"),
    ("exponential_of_beta", (INF, 1.0), "exponential_of_beta: beta", "inf"),
    ("exponential_of_beta", (1.0, -0.5), "exponential_of_beta: lam", "-0.5"),
    ("exponential_of_beta", (1.0, NAN), "exponential_of_beta: lam", "nan"),
    ("exponential", (NAN,), "exponential: beta", "nan"),
    ("exponential", (-INF,), "exponential: beta", "-inf"),
    ("normal", (NAN, 0.5), "normal: beta", "nan"),
    ("normal", (1.0, -0.1), "normal: mode", "-0.1"),
    ("normal", (1.0, NAN), "normal: mode", "nan"),
    ("beta", (0, 1.0), "beta: alpha", "0"),
    ("beta", (NAN, 1.0), "beta: alpha", "nan"),
    ("beta", (1.0, -2.0), "beta: eta", "-2.0"),
    ("beta", (1.0, NAN), "beta: eta", "nan"),
    ("mean_absolute_error", (0.0,), "mean_absolute_error: scale", "0.0"),
    ("mean_absolute_error", (NAN,), "mean_absolute_error: scale", "nan"),
    ("generalized_cross_entropy", (1.1,), "generalized_cross_entropy: q", "1.1"),
    ("generalized_cross_entropy", (-0.1,), "generalized_cross_entropy: q", "-0.1"),
    ("generalized_cross_entropy", (NAN,), "generalized_cross_entropy: q", "nan"),
    ("symmetric_cross_entropy", (-0.1, 1.0), "symmetric_cross_entropy: mu", "-0.1"),
    ("symmetric_cross_entropy", (NAN, 1.0), "symmetric_cross_entropy: mu", "nan"),
    ("symmetric_cross_entropy", (1.0, -1.0), "symmetric_cross_entropy: nu", "-1.0"),
    ("symmetric_cross_entropy", (1.0, NAN), "symmetric_cross_entropy: nu", "nan"),
    ("symmetric_cross_entropy", (1.0, 1.0, 0.0), "symmetric_cross_entropy: log_zero", "0.0"),
    ("symmetric_cross_entropy", (1.0, 1.0, NAN), "symmetric_cross_entropy: log_zero", "nan"),
    ("taylor_cross_entropy", (0,), "taylor_cross_entropy: order", "0"),
    ("taylor_cross_entropy", (NAN,), "taylor_cross_entropy: order", "nan"),
    ("improved_mean_absolute_error", (NAN,), "improved_mean_absolute_error: temperature", "nan"),
    ("improved_mean_absolute_error", (INF,), "improved_mean_absolute_error: temperature", "inf"),
    ("improved_mean_absolute_error", (-INF,), "improved_mean_absolute_error: temperature", "-inf"),
  )
  def test_a_parameter_out_of_range_is_named_with_its_value(self, factory, arguments, name, value):
    with self.assertRaises(ValueError) as caught:
      getattr(densities, factory)(*arguments)
    message = str(caught.exception)
    expected = rf"^{name} expects a ((finite|whole) )?number( .*)?, got {value}\.$"
    self.assertRegex(message, expected)
    self.assertNotIn("\n", message)

  @parameterized.parameters(
    (lambda p: jnp.where(p > 0.5, -2, 1), r"finite and not negative.*, got -2 at p = 0.501\."),
    (lambda p: jnp.where(p > 0.25, jnp.nan, 1), r"got nan at p = 0.251\."),
    (lambda p: 1 / p, r"got inf at p = 0\."),
    (lambda p: 0 * p, "a weight above 0 somewhere on .*, got 0 everywhere"),
    (lambda p: p[:3], r"elementwise function: of 1001 .* shape \(3,\)"),
    (lambda p: jnp.stack([p, p]), r"returned shape \(2, 1001\)"),
  )
  def test_a_function_of_ones_own_is_tried_on_a_grid(self, function, pattern):
    with self.assertRaisesRegex(ValueError, rf"from_function expects .*{pattern}"):
      densities.from_function(function)

  def test_what_jax_cannot_trace_is_refused(self):
    for function in (np.exp, lambda p: 1.0 if p[0] > 0.5 else 2.0 * p, lambda p: p * np.asarray(p)):
      with self.assertRaisesRegex(TypeError, "^from_function expects .* jax can trace, got .*"):
        densities.from_function(function)

  def test_factories_without_parentheses_are_told_to_be_called(self):
    own = lambda p: densities.beta(p, 1.0)
    for factory in (densities.cross_entropy, densities.exponential, densities.beta, own):
      name = factory.__name__
      with self.assertRaisesRegex(TypeError, rf"got the factory {name}. Call it: {name}\(\.\.\.\)"):
        densities.from_function(factory)

  @parameterized.parameters(3.0, "cross_entropy", None)
  def test_what_is_no_function_is_refused(self, value):
    with self.assertRaisesRegex(TypeError, f"expects a function of the probability, got {value!r}"):
      densities.from_function(value)


if __name__ == "__main__":
  absltest.main()
