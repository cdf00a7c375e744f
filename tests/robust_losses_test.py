"""Robust losses: autodiff, emphasis and rule give one gradient, that of the formula in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from reweight_jax import densities, losses, rules

MAX_CLASSES = 12
GAMMAS = np.array([0, 1, 2, 3, 1.5, 1, 2, 0, 1, 4, 2, 1])
SHIFTS = np.array([0, 0.1, 0, 0.23, 0, 0, 0.07, 0, 0.4, 0, 0, 0.9])


def _focal(gamma):
  # The slope of -q^gamma log p in -log p, times the length of cross-entropy.
  def length(p, q, log_p, label):
    safe = np.maximum(q, 1e-300)
    return 2 * q * (safe**gamma - gamma * p * safe ** (gamma - 1) * log_p)

  return length


def _asymmetric(p, q, log_p, label):
  rest = np.maximum(q - SHIFTS[label], 0)
  gamma, safe = GAMMAS[label], np.maximum(rest, 1e-300)
  slope = p * (safe**gamma / (p + SHIFTS[label]) - gamma * safe ** (gamma - 1) * np.log1p(-rest))
  # Where nothing is shifted log(1 - r) is log p, which keeps its digits.
  plain = p * (safe**gamma / p - gamma * safe ** (gamma - 1) * log_p)
  return 2 * q * np.where(SHIFTS[label] == 0, plain, np.where(rest > 0, slope, 0))


def _fixed(made):
  """A factory for cases without a parameter."""
  return lambda _: made


def _taylor(order):
  return (
    _fixed(losses.taylor_cross_entropy(order)),
    _fixed(densities.taylor_cross_entropy(order)),
    _fixed(rules.taylor_cross_entropy(order)),
    (0.0,),
    # 1 - q^order, without the cancellation.
    lambda _: lambda p, q, *_: 2 * q * p * sum(q**k for k in range(order)),
  )


# By factories of one parameter the loss, the density and the rule (None where there is none), the
# parameters, and the L1 length of the logit gradient.
CASES = {
  "unit margin": (
    _fixed(losses.unit_margin),
    _fixed(densities.uniform()),
    None,
    (0.0,),
    lambda _: lambda p, q, *_: 1 + 0 * p,
  ),
  "absolute": (
    lambda scale: functools.partial(losses.absolute_error, scale=scale),
    densities.mean_absolute_error,
    None,
    (1.0, 2.0),
    lambda scale: lambda p, q, *_: 2 * scale * p * q,
  ),
  "squared": (
    _fixed(losses.squared_probability_error),
    _fixed(densities.mean_squared_error()),
    None,
    (0.0,),
    lambda _: lambda p, q, *_: 4 * p * q * q,
  ),
  # q = 0 is cross-entropy and q = 1 the absolute error.
  "generalized": (
    losses.generalized_cross_entropy,
    densities.generalized_cross_entropy,
    rules.generalized_cross_entropy,
    (0.0, 0.3, 0.7, 1.0),
    lambda power: lambda p, q, *_: 2 * p**power * q,
  ),
  "symmetric": (
    lambda nu: losses.symmetric_cross_entropy(0.1, nu, -6.0),
    lambda nu: densities.symmetric_cross_entropy(0.1, nu, -6.0),
    lambda nu: rules.symmetric_cross_entropy(0.1, nu, -6.0),
    (0.0, 0.5),
    lambda nu: lambda p, q, *_: 2 * q * (0.1 + 6 * nu * p),
  ),
  "Taylor 1": _taylor(1),
  "Taylor 5": _taylor(5),
  # gamma = 0 is cross-entropy.
  "focal": (
    lambda gamma: functools.partial(losses.focal_loss, gamma=gamma),
    None,
    rules.focal_transform,
    (0.0, 0.5, 2.0),
    _focal,
  ),
  "cross-entropy": (
    _fixed(losses.softmax_cross_entropy),
    _fixed(densities.cross_entropy()),
    _fixed(rules.focal_transform(0.0)),
    (0.0,),
    lambda _: _focal(0),
  ),
  "asymmetric focal": (
    _fixed(losses.asymmetric_focal_loss(GAMMAS, SHIFTS)),
    None,
    _fixed(rules.asymmetric_focal_transform(GAMMAS, SHIFTS)),
    (0.0,),
    lambda _: _asymmetric,
  ),
}


def _gradient(loss):
  return jax.vmap(jax.grad(loss))


@jax.jit
def all_gradients(logits, labels):
  """The logit gradients `[parameters, batch, classes]` of each case, by route."""
  mask, ones = jnp.ones(labels.shape, bool), jnp.ones(labels.shape, logits.dtype)
  unit = _gradient(losses.unit_margin)(logits, labels)
  cross_entropy = _gradient(losses.softmax_cross_entropy)(logits, labels)
  weigh = lambda rule: rule.update(ones, (), logits=logits, labels=labels, mask=mask)[0][:, None]
  results = {}
  for name, (loss, density, rule, parameters, _) in CASES.items():
    routes = {"autodiff": lambda x, loss=loss: _gradient(loss(x))(logits, labels)}
    if density is not None:
      routes["emphasis"] = lambda x, make=density: weigh(rules.emphasis(make(x))) * unit
    if rule is not None:
      routes["rule"] = lambda x, make=rule: weigh(make(x)) * cross_entropy
    for route, make in routes.items():
      results[name, route] = jax.vmap(make)(jnp.asarray(parameters, logits.dtype))
  return results


def _expected(name, p, q, log_p, directions, labels):
  *_, parameters, length = CASES[name]
  lengths = np.stack([length(x)(p, q, log_p, labels) for x in parameters])
  return lengths[:, :, None] * directions


def _draw(num_classes, seed, margins):
  """Logits with the margins of the labels given, the classes beyond -inf."""
  rng = np.random.default_rng(seed)
  logits = np.full((len(margins), MAX_CLASSES), -np.inf)
  labels = rng.integers(num_classes, size=len(margins))
  for row, label, margin in zip(logits, labels, margins, strict=True):
    row[:num_classes] = rng.normal(size=num_classes) * 3
    row[label] = special.logsumexp(np.delete(row, label)) + margin
  return logits, labels


def _parts(logits, labels):
  """p, 1 - p, log p of the labels and the directions (r - e_y) / 2, in float64."""
  rows = np.arange(len(labels))
  others = np.array(logits, np.float64)
  own = others[rows, labels]
  others[rows, labels] = -np.inf
  margins = own - special.logsumexp(others, axis=1)
  directions = special.softmax(others, axis=1) / 2
  directions[rows, labels] = -0.5
  p, q = special.expit(margins), special.expit(-margins)
  return p, q, -np.logaddexp(0, -margins), directions


class GradientsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.enter_context(jax.numpy_dtype_promotion("strict"))

  @parameterized.parameters((np.float64, 1e-10), (np.float32, 1e-5))
  def test_autodiff_emphasis_and_rule_are_the_formula(self, dtype, atol):
    @settings(deadline=None, max_examples=15, derandomize=True)
    @given(
      st.integers(2, MAX_CLASSES),
      st.integers(0, 1000),
      st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    )
    def check(num_classes, seed, margins):
      logits, labels = _draw(num_classes, seed, margins)
      logits = logits.astype(dtype)
      parts = _parts(logits, labels)
      results = jax.device_get(all_gradients(logits, labels.astype(np.int32)))
      for (name, route), result in results.items():
        self.assertEqual(result.dtype, dtype)
        expected = _expected(name, *parts, labels)
        np.testing.assert_allclose(result, expected, atol=atol, rtol=0, err_msg=f"{name}, {route}")
        np.testing.assert_allclose(result.sum(2), 0, atol=atol)

    check()

  @parameterized.parameters((10, 20), (50, 200))
  def test_gradients_are_finite_at_wide_margins(self, one, other):
    labels = np.array([0, 1, 2, 1], np.int32)
    for dtype, atol in ((np.float32, 1e-5), (np.float64, 1e-10)):
      logits = np.zeros((4, MAX_CLASSES), dtype)
      logits[np.arange(4), labels] = one, -one, other, -other
      parts = _parts(logits, labels)
      for (name, route), result in jax.device_get(all_gradients(logits, labels)).items():
        expected = _expected(name, *parts, labels)
        np.testing.assert_allclose(result, expected, atol=atol, rtol=0, err_msg=f"{name}, {route}")

  def test_the_length_of_symmetric_cross_entropy_at_p_four_tenths(self):
    # 2 mu (1 - p)(1 - (A nu / mu) p) = 2 * 0.1 * 0.6 * (1 + 40 * 0.4); half of A nu gives 1.08.
    gradient = jax.jit(jax.grad(losses.symmetric_cross_entropy(0.1, 1.0, -4.0)))
    result = np.abs(gradient(jnp.log(jnp.array([0.25, 0.4, 0.35])), 1)).sum()
    self.assertAlmostEqual(result, 2.04, delta=1e-12)

  def test_a_small_q_is_nearly_cross_entropy(self):
    p = np.array([1e-3, 0.02, 0.3, 0.9, 0.999])
    logits = jnp.log(jnp.array([p, 1 - p]).T)
    labels = jnp.zeros(5, jnp.int32)
    gradient = jax.jit(lambda q: _gradient(losses.generalized_cross_entropy(q))(logits, labels))
    small, limit = gradient(1e-4), gradient(0.0)
    np.testing.assert_allclose(small, limit, rtol=1e-3)
    self.assertGreater(float(jnp.abs(small / limit - 1).max()), 1e-4)

  @parameterized.parameters(0.5, 2.0)
  def test_focal_weights_of_fitted_examples_keep_their_digits(self, gamma):
    margins = np.array([2, 6, 8, 9, 9.9, 10.5, 12, 16], np.float32)
    logits = np.stack([margins + 5, 0 * margins + 5], axis=1)
    p, q, log_p, _ = _parts(logits, np.zeros(8, int))
    expected = _focal(gamma)(p, q, log_p, None) / (2 * q)
    for rule in (rules.focal_transform(gamma), rules.asymmetric_focal_transform([gamma] * 2)):
      evidence = {"logits": jnp.asarray(logits), "labels": jnp.zeros(8, jnp.int32)}
      result = jax.jit(rule.update)(jnp.ones(8, jnp.float32), (), **evidence)[0]
      np.testing.assert_allclose(result, expected, rtol=1e-5)

  @parameterized.parameters(0.5, 2.0)
  def test_focal_losses_of_fitted_examples_keep_their_digits(self, gamma):
    margins = np.array([2, 6, 8, 9.9, 10.5, 12, 14, 16], np.float32)
    logits = np.stack([margins + 5, 0 * margins + 5], axis=1)
    p, q, log_p, directions = _parts(logits, np.zeros(8, int))
    expected = _focal(gamma)(p, q, log_p, None)[:, None] * directions
    focal, asymmetric = losses.focal_loss, losses.asymmetric_focal_loss([gamma] * 2)
    for loss in (functools.partial(focal, gamma=gamma), asymmetric):
      run = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, None)))
      values, gradient = run(jnp.asarray(logits), 0)
      np.testing.assert_allclose(values, -(q**gamma) * log_p, rtol=1e-5)
      np.testing.assert_allclose(gradient, expected, rtol=1e-5)

  @parameterized.parameters((16.0, 0.5), (8.0, 1.0), (-3.0, 2.0), (2.0, 0.0))
  def test_the_density_is_the_slope_of_its_potential(self, beta, lam):
    # The loss whose derivative in p is -w / (2 p (1 - p)), from 1/2, where it is finite.
    def potential(logits, label):
      integrand = lambda p: np.exp(beta * p**lam * (1 - p)) / (2 * p * (1 - p))
      p = special.softmax(logits)[label]
      return integrate.quad(integrand, p, 0.5, epsabs=1e-13, epsrel=1e-13)[0]

    logits, step = np.array([0.3, -0.8, 0.1]), 1e-3
    gradient = jax.jit(jax.grad(losses.emphasized_margin(densities.exponential_of_beta(beta, lam))))
    for label in range(3):
      # Central differences of the fourth order.
      differences = [
        sum(c * potential(logits + k * step * e, label) for k, c in ((2, -1), (1, 8)))
        - sum(c * potential(logits - k * step * e, label) for k, c in ((2, -1), (1, 8)))
        for e in np.eye(3)
      ]
      expected = np.array(differences) / (12 * step)
      np.testing.assert_allclose(gradient(logits, label), expected, rtol=1e-8, atol=1e-8)


class ValuesTest(parameterized.TestCase):
  def test_values_are_the_formulas(self):
    p = 0.4
    logits = np.log([0.25, p, 0.35])
    taylor = 0.6 + 0.6**2 / 2 + 0.6**3 / 3
    rest = 0.6 - 0.1  # shifted
    cases = (
      (losses.absolute_error, 0.6),
      (functools.partial(losses.absolute_error, scale=2.0), 1.2),
      (losses.squared_probability_error, 0.36),
      (losses.generalized_cross_entropy(0.5), 2 * (1 - np.sqrt(p))),
      (losses.generalized_cross_entropy(0.0), -np.log(p)),
      (losses.symmetric_cross_entropy(0.2, 0.5, -6.0), -0.2 * np.log(p) + 3 * 0.6),
      (losses.taylor_cross_entropy(3), taylor),
      (losses.asymmetric_focal_loss((0, 3, 1)), -(0.6**3) * np.log(p)),
      (losses.asymmetric_focal_loss((0, 3, 1), (0, 0.1, 0)), -(rest**3) * np.log(1 - rest)),
    )
    values = jax.jit(lambda z: [loss(z, 1) for loss, _ in cases])(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(values, [expected for _, expected in cases], rtol=1e-5)

  def test_the_shift_drops_easy_examples_of_its_class_alone(self):
    both = jax.jit(jax.value_and_grad(losses.asymmetric_focal_loss((2, 2), (0.6, 0))))
    value, gradient = both(jnp.zeros(2), 0)  # p is 1/2 for both
    self.assertEqual([float(value), *gradient.tolist()], [0, 0, 0])
    other, _ = both(jnp.zeros(2), 1)
    np.testing.assert_allclose(other, np.log(2) / 4, rtol=1e-5)


NAN = float("nan")


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(losses, rules)
  def test_a_parameter_out_of_range_is_named_with_its_value(self, module):
    for factory, arguments, name, value in (
      ("generalized_cross_entropy", (1.1,), "q", "1.1"),
      ("generalized_cross_entropy", (-0.1,), "q", "-0.1"),
      ("generalized_cross_entropy", (NAN,), "q", "nan"),
      ("symmetric_cross_entropy", (-0.1, 1.0), "mu", "-0.1"),
      ("symmetric_cross_entropy", (NAN, 1.0), "mu", "nan"),
      ("symmetric_cross_entropy", (1.0, -1.0), "nu", "-1.0"),
      ("symmetric_cross_entropy", (1.0, NAN), "nu", "nan"),
      ("symmetric_cross_entropy", (1.0, 1.0, 0.0), "log_zero", "0.0"),
      ("symmetric_cross_entropy", (1.0, 1.0, NAN), "log_zero", "nan"),
      ("taylor_cross_entropy", (0,), "order", "0"),
      ("taylor_cross_entropy", (NAN,), "order", "nan"),
    ):
      with self.subTest(factory, arguments=arguments):
        with self.assertRaises(ValueError) as caught:
          getattr(module, factory)(*arguments)
        message = rf"^{factory}: {name} expects a (whole )?number [^\n]*, got {value}\.$"
        self.assertRegex(str(caught.exception), message)

  @parameterized.parameters(
    losses.asymmetric_focal_loss, rules.asymmetric_focal, rules.asymmetric_focal_transform
  )
  def test_exponents_and_shifts_of_classes_are_checked(self, factory):
    for arguments, message in (
      (((1.0, -2.0),), "gammas expects finite numbers >= 0, got -2.0 for class 1"),
      (((NAN, 1.0),), "gammas expects finite numbers >= 0, got nan for class 0"),
      (((1.0, 1.0), (0.1, -0.1)), "shifts expects finite numbers >= 0, got -0.1 for class 1"),
      (((1.0, 1.0), (0.1, 1.0)), r"shifts expects 2 numbers in \[0, 1\).*got \[0.1, 1.0\]"),
      (((1.0, 1.0), (0.1,)), r"shifts expects 2 numbers in \[0, 1\).*got \[0.1\]"),
    ):
      with self.assertRaisesRegex(ValueError, f"^{factory.__name__}: {message}"):
        factory(*arguments)

  def test_a_truncation_out_of_range_is_named(self):
    with self.assertRaisesRegex(ValueError, r"truncate_at expects .* >= 0 and < 1, got 1.0\."):
      rules.generalized_cross_entropy(0.7, truncate_at=1.0)


if __name__ == "__main__":
  absltest.main()
