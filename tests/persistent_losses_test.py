"""Losses under which weights persist: formulas, the rules that equal them, and that they do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize, special

from reweight_jax import losses, rules
from reweight_jax.losses import persistent

COUNTS = (81, 16, 256, 1)  # fourth roots 3, 2, 4, 1
CLASSES = len(COUNTS)
AT_ONE = np.log1p(np.exp(-1))
SCALES, SHIFTS = (1.0, 0.5, 2.0, 0.25), (0.0, -1.0, 0.3, 2.0)


def _margins(logits, labels):
  """The logarithms of the labels' odds, in float64."""
  rows, others = np.arange(len(labels)), np.array(logits, np.float64)
  own = others[rows, labels]
  others[rows, labels] = -np.inf
  return own - special.logsumexp(others, axis=1)


def _cross_entropy(logits, labels):
  return special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]


def _tail(power):
  def loss(logits, labels):
    margins = _margins(logits, labels)
    return np.where(
      margins <= 1, np.logaddexp(0, -margins) / AT_ONE, np.maximum(margins, 1) ** -float(power)
    )

  return loss


def _adjusted(tau):
  """In pairs: log(1 + sum over the others of (n_c / n_y)^tau e^(z_c - z_y))."""

  def loss(logits, labels):
    counts, rows = np.array(COUNTS, float), np.arange(len(labels))
    ratios = (counts / counts[labels][:, None]) ** tau
    terms = ratios * np.exp(logits - logits[rows, labels][:, None])
    terms[rows, labels] = 0
    return np.log1p(terms.sum(1))

  return loss


def _ldam(max_margin, scale):
  def loss(logits, labels):
    moved = np.array(logits)
    margins = max_margin / np.array([3, 2, 4, 1])
    moved[np.arange(len(labels)), labels] -= margins[labels]
    return _cross_entropy(scale * moved, labels)

  return loss


def _scaled_for(gamma, tau):
  counts = np.array(COUNTS) / 256
  scales, shifts = counts**gamma, tau * np.log(np.array(COUNTS) / 354)
  return lambda logits, labels: _cross_entropy(scales * logits + shifts, labels)


# The loss, and the same in NumPy for a batch.
CASES = {
  "tail 1": (losses.polynomial_tail(1.0), _tail(1)),
  "tail 2": (losses.polynomial_tail(2.0), _tail(2)),
  "tail 0.5": (losses.polynomial_tail(0.5), _tail(0.5)),
  "scaling": (
    losses.vector_scaling(SCALES, SHIFTS),
    lambda z, y: _cross_entropy(np.array(SCALES) * z + np.array(SHIFTS), y),
  ),
  "scaling for": (losses.vector_scaling_for(COUNTS, 0.3, 1.2), _scaled_for(0.3, 1.2)),
  "adjusted": (losses.logit_adjustment(COUNTS), _adjusted(1.0)),
  "adjusted 0.5": (losses.logit_adjustment(COUNTS, 0.5), _adjusted(0.5)),
  "ldam": (losses.ldam(COUNTS), _ldam(0.5, 30)),
  "ldam plain": (losses.ldam(COUNTS, 2.0, 1.0), _ldam(2.0, 1)),
}
MARGINS = np.r_[
  np.linspace(-30, 30, 25), 0.97, 1.03, [1 - 1e-9] * 4, [1 + 1e-9] * 4, [-1e4, 1e4] * 2, -400, 400
]
# By loss the rule and the base loss that make it.
AS_RULES = {
  "tail 1": (rules.polynomial_tail(1.0), losses.unit_margin),
  "tail 2": (rules.polynomial_tail(2.0), losses.unit_margin),
  "tail 0.5": (rules.polynomial_tail(0.5), losses.unit_margin),
  "ldam plain": (rules.ldam(COUNTS, 2.0), losses.softmax_cross_entropy),
}


@jax.jit
def both(logits, labels):
  """By case the values and logit gradients; for a rule its weights and the weighted gradients."""
  ones = jnp.ones(labels.shape, logits.dtype)
  bases = {
    base: jax.vmap(jax.grad(base))(logits, labels)
    for base in (losses.unit_margin, losses.softmax_cross_entropy)
  }
  found = {"unit margin": (ones, bases[losses.unit_margin])}
  for name, (loss, _) in CASES.items():
    found[name] = jax.vmap(jax.value_and_grad(loss))(logits, labels)
  for name, (rule, base) in AS_RULES.items():
    weights, _ = rule.update(ones, (), logits=logits, labels=labels)
    found[f"{name}, rule"] = weights, weights[:, None] * bases[base]
  return found


@functools.cache
def results(dtype="float64"):
  """What `both` gives on the margins, with logits and labels; compiled once a dtype."""
  logits, labels = _draw(MARGINS)
  return jax.device_get(both(jnp.asarray(logits, dtype), labels)), logits, labels


def _draw(margins, seed=0):
  """Logits of the labels' margins given, in float64, and labels of all classes."""
  rng = np.random.default_rng(seed)
  labels = np.arange(len(margins)) % CLASSES
  logits = rng.normal(size=(len(margins), CLASSES))
  rows = np.arange(len(margins))
  logits[rows, labels] += np.array(margins) - _margins(logits, labels)
  return logits, labels.astype(np.int32)


class FormulaTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.enter_context(jax.numpy_dtype_promotion("strict"))

  def test_values_are_the_formulas_and_gradients_their_central_differences(self):
    found, logits, labels = results()
    near, step = (np.abs(MARGINS) < 20) & (np.abs(MARGINS - 1) > 1e-3), 1e-5
    logits, labels = logits[near], labels[near]
    for name, (_, formula) in CASES.items():
      values, gradients = (array[near] for array in found[name])
      np.testing.assert_allclose(
        values, formula(logits, labels), rtol=1e-9, atol=1e-14, err_msg=name
      )
      for c, unit in enumerate(np.eye(CLASSES)):
        difference = formula(logits + step * unit, labels) - formula(logits - step * unit, labels)
        expected = difference / (2 * step)
        np.testing.assert_allclose(gradients[:, c], expected, atol=2e-7, rtol=1e-6, err_msg=name)

  def test_the_weight_times_the_gradient_of_the_base_loss_is_the_gradient_of_the_loss(self):
    found, _, _ = results()
    for name, (_, base) in AS_RULES.items():
      _, gradients = found[name]
      _, by_rule = found[f"{name}, rule"]
      # Cross-entropy has lost digits where p is near 1, as its gradient there is p - 1.
      atol = 1e-14 if base is losses.softmax_cross_entropy else 0
      np.testing.assert_allclose(by_rule, gradients, rtol=1e-9, atol=atol, err_msg=name)

  def test_by_hand(self):
    one, at_one = losses.polynomial_tail(1.0), np.log(1 + 1 / np.e)
    adjusted, margin = losses.logit_adjustment([30, 10]), losses.ldam([16, 1], 0.5, 4.0)
    cases = (
      (one, [0.0, 0.0], 0, np.log(2) / at_one),
      (one, [4.0, 0.0], 0, 0.25),
      (losses.polynomial_tail(2.0), [0.0, 4.0], 1, 1 / 16),
      (losses.polynomial_tail(0.5), [4.0, 0.0], 0, 0.5),
      (one, [4.0 + np.log(3), 0.0, 0.0, 0.0], 0, 0.25),
      # log(1 + 3 / 1 e^0), log(1 + 1 / 3 e^0) and log(1 + (3 / 1)^2 e^0).
      (adjusted, [0.0, 0.0], 1, np.log(4)),
      (adjusted, [0.0, 0.0], 0, np.log(4 / 3)),
      (losses.logit_adjustment([30, 10], 2.0), [0.0, 0.0], 1, np.log(10)),
      # Margins 1/2 for one example and 1/4 for 16.
      (margin, [0.25, 0.0], 0, np.log(2)),
      (margin, [0.0, 0.5], 1, np.log(2)),
      (margin, [0.0, 0.0], 1, np.log(1 + np.e**2)),
      # Scales 1 and (1/16)^(1/2) = 1/4, shifts log(16/17) and log(1/17).
      (losses.vector_scaling_for([16, 1], 0.5, 1.0), [0.0, np.log(16) * 4], 1, np.log(2)),
      (losses.vector_scaling([1, 2], [0, 3]), [1.0, -1.0], 0, np.log(2)),
    )
    of_rules = (
      (rules.polynomial_tail(1.0), [2.0, 0.0], 0, 0.5),  # 2 / 2^2
      (rules.polynomial_tail(2.0), [0.0, 2.0], 1, 0.5),  # 4 / 2^3
      (rules.polynomial_tail(3.0), [0.0, 0.0], 1, 1 / at_one),
      (rules.ldam([16, 1], 0.5), [0.0, 0.5], 1, 1 + (np.exp(0.5) - 1) / 2),
    )

    def weight(rule, logits, label):
      evidence = {"logits": jnp.asarray([logits]), "labels": jnp.asarray([label])}
      return rule.update(jnp.ones(1), (), **evidence)[0][0]

    found = jax.jit(
      lambda: (
        [loss(jnp.asarray(logits), label) for loss, logits, label, _ in cases],
        [weight(*case[:3]) for case in of_rules],
      )
    )()
    for values, known in zip(found, (cases, of_rules), strict=True):
      np.testing.assert_allclose(values, [case[3] for case in known], rtol=1e-12)

  def test_the_tail_is_continuous_at_one_and_its_slope_jumps_as_told(self):
    found, _, labels = results()
    left, right = np.flatnonzero(MARGINS == 1 - 1e-9), np.flatnonzero(MARGINS == 1 + 1e-9)
    for power in (1, 2, 0.5):
      values, gradients = found[f"tail {power}"]
      np.testing.assert_allclose(values[[left, right]], 1, atol=1e-8)
      slopes = gradients[np.arange(len(labels)), labels]
      np.testing.assert_allclose(slopes[left], -1 / (1 + np.e) / AT_ONE, rtol=1e-7)
      np.testing.assert_allclose(slopes[right], -power, rtol=1e-7)
    self.assertAlmostEqual(1 / (1 + np.e) / AT_ONE, 0.8585, places=4)

  def test_limits_of_the_parameters_are_cross_entropy(self):
    logits, labels = _draw([-3, 0.5, 2, 8])
    limits = (
      losses.vector_scaling([1] * CLASSES),
      losses.vector_scaling_for(COUNTS, 0.0, 0.0),
      losses.logit_adjustment(COUNTS, 0.0),
      losses.logit_adjustment([7] * CLASSES),
      losses.ldam(COUNTS, 0.0, 1.0),
    )
    found = jax.jit(lambda z, y: [jax.vmap(loss)(z, y) for loss in limits])(logits, labels)
    for values in found:
      np.testing.assert_allclose(values, _cross_entropy(logits, labels), rtol=1e-12)


class DirectionTest(absltest.TestCase):
  """Which losses are a factor times the gradient of the margin, as any rule is."""

  def test_functions_of_the_margin_keep_the_direction_and_the_others_turn_it(self):
    with jax.enable_x64(True):
      found, _, _ = results()
    near = np.abs(MARGINS) < 5
    directions = found["unit margin"][1][near]
    for name in CASES:
      gradients = found[name][1][near]
      lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(directions, axis=1)
      cosines = (gradients * directions).sum(1) / lengths
      if name in AS_RULES:
        np.testing.assert_allclose(cosines, 1, atol=1e-12, err_msg=name)
      else:
        self.assertLess(cosines.min(), 0.99, name)

  def test_with_two_classes_an_adjustment_is_a_weight_and_scales_are_not(self):
    logits = jnp.array([[0.3, 1.0], [2.0, -1.0]])
    adjusted = losses.logit_adjustment([30, 10])
    scaled = losses.vector_scaling([1.0, 0.5])
    gradients = jax.jit(
      lambda z: [jax.vmap(jax.grad(loss))(z, jnp.array([0, 1])) for loss in (adjusted, scaled)]
    )(logits)
    # Half of 2 sigma(tau log(n_other / n_y) - m), for margins -0.7 and -3.
    slopes = special.expit([-np.log(3) + 0.7, np.log(3) + 3])
    np.testing.assert_allclose(gradients[0], slopes[:, None] * [[-1, 1], [1, -1]], rtol=1e-5)
    np.testing.assert_allclose(gradients[1][:, 0], -2 * gradients[1][:, 1], rtol=1e-5)


class WideMarginsTest(absltest.TestCase):
  def test_all_is_finite_and_the_tail_exact_in_float32_up_to_margins_of_ten_thousand(self):
    found, _, labels = results("float32")
    for name, arrays in found.items():
      for array in arrays:
        self.assertEqual(array.dtype, np.float32)
        self.assertTrue(np.isfinite(array).all(), name)
    wide = np.abs(MARGINS) > 100
    margins, rows = MARGINS[wide], np.arange(len(labels))
    self.assertEqual([margins.min(), margins.max()], [-1e4, 1e4])
    for power in (1, 2, 0.5):
      values, gradients = found[f"tail {power}"]
      expected = np.where(margins > 1, np.maximum(margins, 1) ** -float(power), -margins / AT_ONE)
      np.testing.assert_allclose(values[wide], expected, rtol=1e-5)
      slopes = power * np.maximum(margins, 1) ** (-power - 1.0)
      slopes = np.where(margins > 1, slopes, 1 / AT_ONE)
      np.testing.assert_allclose(-gradients[rows, labels][wide], slopes, rtol=1e-5)
      np.testing.assert_allclose(found[f"tail {power}, rule"][0][wide], 2 * slopes, rtol=1e-5)


class PersistenceTest(parameterized.TestCase):
  """Where the boundary goes on two separable points when the heavier one is on the right."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def boundary(self, loss, ratio, norm):
    """-b / a of the best a x + b of a length, x = +1 of class 0 (weight `ratio`), x = -1 of 1.

    Tries angles, all of which have both points on their side, first coarsely and then finely. The
    loss is of margins, or a pair of such, for each of the classes.
    """
    first, second = loss if isinstance(loss, list) else (loss, loss)
    low, high = -np.pi / 4, np.pi / 4
    for _ in range(2):
      angles = np.linspace(low, high, 20_001)[1:-1]
      a, b = norm * np.cos(angles), norm * np.sin(angles)
      best = int(np.argmin(ratio * first(a + b) + second(a - b)))
      low, high = angles[max(best - 1, 0)], angles[min(best + 1, len(angles) - 1)]
    return -np.tan(angles[best])

  @parameterized.parameters(1.0, 2.0)
  def test_the_polynomial_tail_keeps_the_boundary_where_the_weights_put_it(self, power):
    of_two = jax.vmap(losses.polynomial_tail(power), (0, None))
    loss = jax.jit(lambda margins: of_two(jnp.stack([margins, 0 * margins], 1), 0))
    for ratio in (4.0, 16.0, 256.0):
      root = ratio ** (1 / (power + 2))
      for norm in (100.0, 1e4):
        found = self.boundary(loss, ratio, norm)
        self.assertAlmostEqual(found, -(root - 1) / (root + 1), delta=1e-5)
    # The third root of 8 and the fourth of 16 are 2: margins in the ratio 2 to 1.
    self.assertAlmostEqual(self.boundary(loss, 4 * 2**power, 1e3), -1 / 3, delta=1e-5)

  @parameterized.parameters(4.0, 16.0, 256.0)
  def test_the_logistic_loss_forgets_the_weights_as_the_net_grows(self, ratio):
    for norm in (40.0, 160.0, 640.0):
      found = self.boundary(lambda margins: np.log1p(np.exp(-margins)), ratio, norm)
      # R e^-(a+b) = e^-(a-b): b is log(R) / 2, and a tends to the norm.
      self.assertAlmostEqual(found, -np.log(ratio) / (2 * norm), delta=0.02 * 40 / norm)

  def test_with_two_classes_a_scale_of_the_label_stays_and_scales_of_the_logits_do_not(self):
    scales, margins = jnp.array([0.25, 1.0]), np.linspace(-3, 20, 24)
    of_label = lambda logits, label: losses.softmax_cross_entropy(scales[label] * logits, label)
    of_logits = losses.vector_scaling([0.25, 1.0])
    logits = np.stack([margins, -margins], 1) / 2
    found = jax.jit(
      lambda: [
        jax.vmap(loss, (0, None))(sign * logits, label)
        for loss in (of_label, of_logits)
        for label, sign in ((0, 1), (1, -1))
      ]
    )()
    # (a + b) / 4 = a - b, so b / a = 3 / 5; in the other both margins are (1/4 + 1) / 2 of m.
    for pair, slopes, limit in ((found[:2], (0.25, 1), -3 / 5), (found[2:], (0.625,) * 2, 0)):
      formulas = [lambda m, slope=slope: np.log1p(np.exp(-slope * m)) for slope in slopes]
      for values, formula in zip(pair, formulas, strict=True):
        np.testing.assert_allclose(values, formula(margins), rtol=1e-6)
      self.assertAlmostEqual(self.boundary(formulas, 1.0, 600.0), limit, delta=0.005)

  @parameterized.parameters((2, 1.0), (3, 8 / 7))
  def test_scales_stay_from_three_classes_on_and_shifts_fade(self, num_classes, limit):
    # An example a class, orthogonal, the last class of scale 1/2; least norm with scaled margins 1.
    # On each example alone: least t^2 / s_y^2 + (1 - t)^2 S, S the sum of 1 / s^2 over the others,
    # so t = S / (S + 1 / s_y^2); the plain margin is t / s_y + (1 - t) / s. Three classes: 4/3 of
    # the rare against frequent, 7/6 of the frequent against rare.
    def found(loss, decay):
      labels, shape = jnp.arange(num_classes), (num_classes, num_classes)
      objective = jax.jit(
        jax.value_and_grad(
          lambda z: jax.vmap(loss)(z.reshape(shape), labels).mean() + decay / 2 * jnp.sum(z * z)
        )
      )
      best = optimize.minimize(
        lambda z: tuple(map(np.asarray, objective(z))), np.zeros(num_classes**2), jac=True,
        method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-16, "gtol": 1e-4 * decay},
      )  # fmt: skip
      z = best.x.reshape(shape)
      return z[-1, -1] - z[-1, 0], z[0, 0] - z[0, -1]  # plain margins of rare and frequent

    scaled = losses.vector_scaling([1.0] * (num_classes - 1) + [0.5])
    rare, frequent = found(scaled, 1e-8)
    self.assertAlmostEqual(rare / frequent, limit, delta=0.01)
    adjusted = losses.logit_adjustment([100] * (num_classes - 1) + [1])
    early, late = found(adjusted, 1e-2), found(adjusted, 1e-8)
    # Shifts of log(100) from either side: margins that grow past a bounded difference.
    self.assertLess(late[0] - late[1], 2 * np.log(100))
    self.assertGreater(early[0] / early[1], 4)
    self.assertLess(late[0] / late[1], 1.8)


class LabelsOutOfRangeTest(absltest.TestCase):
  def test_the_margin_is_that_of_the_nearest_class(self):
    margin_of = persistent.ldam_margins("ldam", [16, 1, 1], 0.5)
    found = margin_of(jnp.array([-2, -1, 0, 1, 9]), jnp.float32)
    np.testing.assert_array_equal(found, [0.25, 0.25, 0.25, 0.5, 0.5])  # -1 is not the last class


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (losses.polynomial_tail, (0,), r"^polynomial_tail: power expects a number > 0, got 0\.$"),
    (rules.polynomial_tail, (-1.0,), r"^polynomial_tail: power expects a number > 0, got -1.0\.$"),
    (
      losses.vector_scaling,
      ([1, 0],),
      r"^vector_scaling: scales expects .* > 0, got 0 for class 1",
    ),
    (losses.vector_scaling, ([1, -2],), "scales expects .*, got -2 for class 1"),
    (losses.vector_scaling, ([1, 1], [0]), "shifts expects 2 numbers, one for each scale, got 1"),
    (losses.vector_scaling, ([1, 1], [0, np.inf]), "shifts expects finite .*got inf for class 1"),
    (losses.vector_scaling_for, ([1, 0], 1.0, 1.0), "counts expects .*>= 1, got 0 for class 1"),
    (losses.vector_scaling_for, ([1, 1], -1.0, 1.0), "gamma expects a number >= 0, got -1.0"),
    (losses.vector_scaling_for, ([1, 1], 1.0, np.nan), "tau expects a finite number, got nan"),
    (losses.logit_adjustment, ([1, 0],), "^logit_adjustment: counts expects .*got 0 for class 1"),
    (losses.logit_adjustment, ([1, 1], np.nan), "tau expects a finite number, got nan"),
    (losses.ldam, ([0, 1],), "^ldam: counts expects finite numbers >= 1, got 0 for class 0"),
    (losses.ldam, ([1, 1], -1.0), "^ldam: max_margin expects a number >= 0, got -1.0"),
    (losses.ldam, ([1, 1], 0.5, 0.0), "^ldam: scale expects a number > 0, got 0.0"),
    (rules.ldam, ([1, 1], -1.0), "^ldam: max_margin expects a number >= 0, got -1.0"),
  )
  def test_mistakes_are_one_line(self, factory, arguments, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as raised:
      factory(*arguments)
    self.assertNotIn("\n", str(raised.exception))

  @parameterized.parameters(
    losses.vector_scaling([1, 1]), losses.logit_adjustment([1, 2]), losses.ldam([1, 2])
  )
  def test_another_number_of_logits_is_refused(self, loss):
    for shape in ((3,), (1,), (5, 2)):
      with self.assertRaisesRegex(ValueError, r"expects the 2 logits .*got shape \("):
        jax.eval_shape(loss, jnp.zeros(shape), 0)

  def test_every_loss_of_the_module_is_exported(self):
    for name in ("polynomial_tail", "vector_scaling", "vector_scaling_for", "ldam"):
      self.assertIs(getattr(losses, name), getattr(persistent, name))
      self.assertIn(name, losses.__all__)


if __name__ == "__main__":
  absltest.main()
