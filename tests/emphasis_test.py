"""Derivative manipulation as a loss and as a rule, against the formula of its logit gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from scipy import special

import reweight_jax as rw
from reweight_jax import densities, losses, rules

SIZE, CLASSES = 7, 10
# The density, its formula of p and q = 1 - p, and its area by hand or by table.
DENSITIES = {
  "exponential of beta": (
    densities.exponential_of_beta(8.0, 0.5),
    lambda p, q: np.exp(8 * np.sqrt(p) * q),
    None,
  ),
  "uniform": (densities.uniform(), lambda p, q: 1 + 0 * p, 1),
  "cross-entropy": (densities.cross_entropy(), lambda p, q: 2 * q, 1),
  "absolute": (densities.mean_absolute_error(), lambda p, q: 2 * p * q, 1 / 3),
  "squared": (densities.mean_squared_error(), lambda p, q: 4 * p * q * q, 1 / 3),
  "Taylor": (densities.taylor_cross_entropy(2), lambda p, q: 2 * q * p * (1 + q), 1 / 2),
  "beta (2, 3)": (densities.beta(2.0, 3.0), lambda p, q: 4 * p * q * q, None),
}
BY_AREA = ("cross-entropy", "Taylor", "absolute")
BY_BATCH = tuple((name, "batch") for name in DENSITIES)
ALL_CASES = (
  *BY_BATCH,
  *((name, "area") for name in BY_AREA),
  *((name, "none") for name in BY_AREA),
)
# Without the batch there is less to go wrong in float32, and less to compile.
FLOAT32_CASES = (*BY_BATCH, ("Taylor", "area"), ("absolute", "none"))


@functools.partial(jax.jit, static_argnames="cases")
def gradients_and_weights(logits, labels, mask, cases=ALL_CASES):
  """Of the mean over the real examples, and by the rule; by density and normalization."""
  dtype = jnp.float32 if logits.dtype == jnp.bfloat16 else logits.dtype
  num_real = jnp.sum(mask).astype(dtype)

  def gradient(density, normalization):
    loss = losses.derivative_manipulation(density, normalization)
    return jax.grad(lambda z: jnp.sum(loss(z, labels, mask)) / num_real)(logits)

  def weights(density, normalization):
    rule = rules.emphasis(density, normalization)
    return rule.update(mask.astype(dtype), (), logits=logits, labels=labels, mask=mask)[0]

  both = lambda name, how: (gradient(DENSITIES[name][0], how), weights(DENSITIES[name][0], how))
  return {case: both(*case) for case in cases}


def _call(logits, labels, mask=None, cases=ALL_CASES):
  mask = np.ones(len(labels), bool) if mask is None else mask
  labels = np.asarray(labels, np.int32)
  return jax.device_get(gradients_and_weights(jnp.asarray(logits), labels, mask, cases=cases))


def _random(seed=0, scale=4.0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(SIZE, CLASSES)) * scale, rng.integers(CLASSES, size=SIZE)


def _margins_and_directions(logits, labels):
  """log(p / (1 - p)) of the labels and (r - e_y) / 2, in float64."""
  rows = np.arange(len(labels))
  others = np.array(logits, np.float64)
  own = others[rows, labels]
  others[rows, labels] = -np.inf
  directions = special.softmax(others, axis=1) / 2
  directions[rows, labels] = -0.5
  return own - special.logsumexp(others, axis=1), directions


def _coefficients(name, normalization, margins):
  """w_i / S, the L1 lengths."""
  _, formula, area = DENSITIES[name]
  weights = formula(special.expit(margins), special.expit(-margins))
  if normalization == "batch":
    return weights / weights.sum()
  return weights / len(margins) / (area if normalization == "area" else 1)


class Float64Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.enter_context(jax.numpy_dtype_promotion("strict"))


class GradientTest(Float64Test):
  @parameterized.parameters((np.float64, 1e-10, ALL_CASES), (np.float32, 1e-5, FLOAT32_CASES))
  def test_loss_and_rule_give_the_formula_its_length_its_signs_and_sum_zero(
    self, dtype, atol, cases
  ):
    logits, labels = _random()
    logits = logits.astype(dtype)
    margins, directions = _margins_and_directions(logits, labels)
    for (name, how), (gradient, weights) in _call(logits, labels, cases=cases).items():
      with self.subTest(name, normalization=how):
        self.assertEqual((gradient.dtype, weights.dtype), (dtype, dtype))
        lengths = _coefficients(name, how, margins)
        np.testing.assert_allclose(gradient, lengths[:, None] * directions, atol=atol)
        # The step multiplies by the weights and divides by the size.
        np.testing.assert_allclose(weights / SIZE, lengths, atol=atol)
        np.testing.assert_allclose(np.abs(gradient).sum(1), lengths, atol=atol)
        np.testing.assert_allclose(gradient.sum(1), 0, atol=atol)
        own = gradient[np.arange(SIZE), labels]
        np.testing.assert_allclose(own, -lengths / 2, atol=atol)
        self.assertTrue((own <= 0).all())
        self.assertTrue((np.delete(gradient[0], labels[0]) >= 0).all())
        if how == "batch":
          np.testing.assert_allclose(np.abs(gradient).sum(), 1, atol=atol)

  def test_dividing_cross_entropy_by_its_area_changes_nothing_and_by_the_batch_does(self):
    results = _call(*_random())
    none, area, batch = (results["cross-entropy", how] for how in ("none", "area", "batch"))
    chex.assert_trees_all_close(none, area, atol=1e-10)
    self.assertGreater(np.abs(batch[0] - none[0]).max(), 0.01)

  def test_without_normalization_it_is_the_mean_loss(self):
    logits, labels = _random()
    results = _call(logits, labels)

    @jax.jit
    @jax.jacobian
    def slopes(z):
      p = jnp.take_along_axis(jax.nn.softmax(z), jnp.asarray(labels)[:, None], 1)[:, 0]
      values = -jnp.log(p), 1 - p, 1 - p + (1 - p) ** 2 / 2
      return jnp.stack([value.mean() for value in values])

    for name, slope in zip(("cross-entropy", "absolute", "Taylor"), slopes(logits), strict=True):
      np.testing.assert_allclose(results[name, "none"][0], slope, atol=1e-10)

  def test_by_the_batch_a_constant_does_not_matter(self):
    results = _call(*_random())  # the weights of the one are 4 times those of the other
    chex.assert_trees_all_close(results["squared", "batch"], results["beta (2, 3)", "batch"])

  def test_gradients_are_parallel_by_example_but_not_by_batch(self):
    logits, labels = _random()
    parallel = special.softmax(logits, axis=1) - np.eye(CLASSES)[labels]
    cosine = lambda a, b: (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    results = {name: g for (name, how), (g, _) in _call(logits, labels).items() if how == "batch"}
    for gradient in results.values():
      for row, other in zip(gradient, parallel, strict=True):
        self.assertAlmostEqual(cosine(row, other), 1, delta=1e-10)
    means = {name: gradient.mean(0) for name, gradient in results.items()}
    self.assertLess(cosine(means["absolute"], means["cross-entropy"]), 0.99)

  def test_it_is_the_slope_of_the_margins_with_weights_frozen(self):
    logits, labels = _random()
    margins, _ = _margins_and_directions(logits, labels)
    lengths = _coefficients("exponential of beta", "batch", margins)
    frozen = lambda z: -0.5 * lengths @ _margins_and_directions(z, labels)[0]
    gradient, _ = _call(logits, labels)["exponential of beta", "batch"]
    loss = jax.jit(losses.derivative_manipulation(DENSITIES["exponential of beta"][0]))
    value = loss(logits, labels).mean()
    np.testing.assert_allclose(value, frozen(logits), rtol=1e-10)
    step, differences = 1e-5, np.zeros_like(logits)
    for place in np.ndindex(3, CLASSES):
      moved = np.zeros_like(logits)
      moved[place] = step
      differences[place] = (frozen(logits + moved) - frozen(logits - moved)) / (2 * step)
    np.testing.assert_allclose(gradient[:3], differences[:3], atol=1e-9)

  def test_shifted_logits_and_permuted_classes_and_examples(self):
    logits, labels = _random()
    plain = _call(logits, labels)
    rng = np.random.default_rng(1)
    shifted = _call(logits + rng.normal(size=(SIZE, 1)) * 30, labels)
    order = rng.permutation(SIZE)
    permuted = _call(logits[order], labels[order])
    columns = np.tile(np.arange(CLASSES), (SIZE, 1))
    for row, label in zip(columns, labels, strict=True):
      row[row != label] = rng.permutation(row[row != label])
    swapped = _call(np.take_along_axis(logits, columns, 1), labels)
    for case, (gradient, weights) in plain.items():
      with self.subTest(case):
        chex.assert_trees_all_close(shifted[case], (gradient, weights), atol=1e-10)
        chex.assert_trees_all_close(permuted[case], (gradient[order], weights[order]), atol=1e-10)
        expected = np.take_along_axis(gradient, columns, 1)
        chex.assert_trees_all_close(swapped[case], (expected, weights), atol=1e-10)

  def test_from_equal_logits_all_schemes_take_one_step_and_cross_entropy_a_longer_one(self):
    labels = np.arange(SIZE) % CLASSES
    results = _call(np.zeros((SIZE, CLASSES)), labels)
    expected = (np.ones(CLASSES) / (CLASSES - 1) * (1 - np.eye(CLASSES)) - np.eye(CLASSES))[labels]
    expected = expected / 2 / SIZE
    for name in DENSITIES:
      np.testing.assert_allclose(results[name, "batch"][0], expected, atol=1e-12)
    ratio = 2 * (1 - 1 / CLASSES)
    np.testing.assert_allclose(results["cross-entropy", "none"][0], ratio * expected, atol=1e-12)

  def test_padding_has_no_gradient_and_its_logits_no_say(self):
    logits, labels = _random()
    mask = np.array([True, False, True, True, True, False, True])
    real = logits[mask], labels[mask]
    margins, directions = _margins_and_directions(*real)
    for value in (0.0, 1e4, -1e4):
      logits[~mask] = 0
      logits[~mask, labels[~mask]] = value
      for (name, how), (gradient, weights) in _call(logits, labels, mask).items():
        with self.subTest(name, normalization=how, value=value):
          lengths = _coefficients(name, how, margins)
          np.testing.assert_allclose(gradient[mask], lengths[:, None] * directions, atol=1e-10)
          np.testing.assert_allclose(weights[mask] / mask.sum(), lengths, atol=1e-10)
          self.assertEqual(np.abs(gradient[~mask]).max() + np.abs(weights[~mask]).max(), 0)


class StabilityTest(Float64Test):
  @parameterized.parameters((jnp.float32, 1e-5), (jnp.bfloat16, 0.02))
  def test_unit_margin_keeps_its_length_at_any_margin(self, dtype, tolerance):
    margins = np.array([10, 20, 50, 200, -10, -20, -50, -200])
    logits = jnp.zeros((8, CLASSES), dtype).at[:, 0].set(jnp.asarray(margins, dtype))
    gradient = jax.jit(jax.vmap(jax.grad(losses.unit_margin), (0, None)))(logits, 0)
    self.assertEqual(gradient.dtype, dtype)
    gradient = np.asarray(gradient, np.float64)
    np.testing.assert_allclose(np.abs(gradient).sum(1), 1, atol=tolerance)
    np.testing.assert_allclose(gradient.sum(1), 0, atol=tolerance)

  @parameterized.parameters((jnp.float32, FLOAT32_CASES), (jnp.bfloat16, BY_BATCH[:1]))
  def test_weights_at_wide_margins_are_finite_and_by_the_batch_average_one(self, dtype, cases):
    for size in (10.0, 20.0, 50.0, 200.0):
      for signs in (-1.0, 1.0, np.where(np.arange(SIZE) % 2, 1.0, -1.0)):
        logits = jnp.zeros((SIZE, CLASSES), dtype).at[:, 0].set(jnp.asarray(size * signs, dtype))
        for (name, how), results in _call(logits, np.zeros(SIZE), cases=cases).items():
          with self.subTest(name, normalization=how, size=size, signs=signs):
            gradient, weights = (np.asarray(result, np.float64) for result in results)
            self.assertTrue(np.isfinite(gradient).all() and np.isfinite(weights).all())
            if how == "batch":
              self.assertAlmostEqual(weights.mean(), 1, delta=1e-5)
              rounding = 1e-5 if dtype == jnp.float32 else 0.02
              self.assertAlmostEqual(np.abs(gradient).sum(), 1, delta=rounding)

  def test_exponents_that_overflow_float32_do_not_by_the_batch(self):
    logits = jnp.log(jnp.array([[1, 3], [1, 1], [3, 1]], jnp.float32))
    evidence = {"logits": logits, "labels": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool)}
    ones = jnp.ones(3, jnp.float32)

    def lengths(density, arithmetic):
      loss = losses.derivative_manipulation(density, "batch", arithmetic)
      gradient = jax.grad(lambda z: loss(z, evidence["labels"]).sum())(logits)
      return jnp.abs(gradient).sum(1)

    @jax.jit
    def weigh(beta):
      density = densities.exponential_of_beta(beta, 1.0)
      made = [rules.emphasis(density, "batch", how) for how in losses.ARITHMETICS]
      by_rule = [rule.update(ones, (), **evidence)[0] for rule in made]
      return [*by_rule, *(lengths(density, how) for how in losses.ARITHMETICS[1:])]

    # p is 1/4, 1/2, 3/4, the exponents 75, 100, 75 and 300, 400, 300. The constants of the releases
    # are millionths of 2 (1 - p).
    for beta in (400.0, 1600.0):
      low = np.exp(-beta / 16)
      expected = 3 * np.array([low, 1, low]) / (1 + 2 * low)
      for result in weigh(jnp.float32(beta)):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-36)

  def test_infinite_weights_share_the_batch_among_themselves(self):
    # Where p rounds to 1 the weight p (1-p)^(-1/2) is infinite, and nothing pulls the label.
    logits = jnp.array([[40, 0], [0, 0], [40, 0]], jnp.float32)
    loss = losses.derivative_manipulation(densities.beta(2.0, 0.5), "batch", "release_2020")
    gradient = jax.jit(jax.grad(lambda z: loss(z, jnp.zeros(3, jnp.int32)).mean()))(logits)
    other = np.exp(-40) / 1e-6 / 2
    expected = [[0, other], [0, 0], [0, other]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="year")
def _release_gradient(logits, year):
  loss = losses.derivative_manipulation(densities.uniform(), "none", f"release_{year}")
  return jax.grad(lambda z: loss(z, jnp.zeros(1, jnp.int32)).sum())(logits)


class FunctionTest(Float64Test):
  """A function of p in a density's place: w = p^2 at p = 1/4, 1/2, 3/4; its area is 1/3."""

  LOGITS = np.log([[1.0, 3.0], [1.0, 1.0], [3.0, 1.0]])
  SIGNS = np.array([-0.5, 0.5])  # of the label 0, half of the length each

  @staticmethod
  def own(p):
    return p**2

  def test_the_loss_of_a_batch_takes_it_under_every_normalization(self):
    @jax.jit
    @jax.jacobian
    def slopes(logits):
      labels = jnp.zeros(3, jnp.int32)
      kinds = [losses.derivative_manipulation(self.own, how) for how in losses.NORMALIZATIONS]
      return jnp.stack([loss(logits, labels).mean() for loss in kinds])

    lengths = {
      "none": np.array([1, 4, 9]) / 16 / 3,
      "area": np.array([1, 4, 9]) / 16,
      "batch": np.array([1, 4, 9]) / 14,
    }
    for how, gradient in zip(losses.NORMALIZATIONS, slopes(self.LOGITS), strict=True):
      expected = lengths[how][:, None] * self.SIGNS
      np.testing.assert_allclose(gradient, expected, rtol=1e-9, err_msg=how)

  def test_the_loss_of_an_example_takes_it(self):
    gradient = jax.jit(jax.vmap(jax.grad(losses.emphasized_margin(self.own)), (0, None)))
    expected = np.array([[1 / 16], [4 / 16], [9 / 16]]) * self.SIGNS
    np.testing.assert_allclose(gradient(self.LOGITS, 0), expected, rtol=1e-12)

  def test_the_rule_takes_it(self):
    evidence = {"labels": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3, bool)}
    rule = rules.emphasis(self.own, "batch")
    weights = jax.jit(rule.update)(jnp.ones(3), (), logits=self.LOGITS, **evidence)[0]
    np.testing.assert_allclose(weights, 3 * np.array([1, 4, 9]) / 14, rtol=1e-12)


class ReleaseTest(Float64Test):
  # How p rounds hangs on the order of a sum of ten numbers in float32; the tolerances allow any.
  @parameterized.parameters(
    (2020, 10, 0.993, 0.005),
    (2020, 13, 0.83, 0.02),
    (2020, 15, 0.31, 0.1),
    (2020, 16, 0.11, 0.1),
    (2021, 13, 1.02, 0.05),
    (2021, 15, 30.6, 0.1),
    (2021, 16, 11.3, 0.1),
    (2021, 17, 4.1, 0.05),
    (2021, 20, 0.2, 0.01),
  )
  def test_a_fitted_example_gets_the_wrong_length(self, year, margin, length, tolerance):
    logits = np.zeros((1, CLASSES), np.float32)
    logits[0, 0] = margin + np.log(CLASSES - 1)
    p = float(jax.nn.softmax(jnp.asarray(logits))[0, 0])
    if margin >= 17:
      self.assertEqual(p, 1)  # half an ulp away at least, in whatever order one adds
    elif length > 2 and p < 1:
      self.skipTest("this platform's softmax keeps p below 1, where the length is right")
    result = np.asarray(_release_gradient(logits, year), np.float64)
    self.assertAlmostEqual(np.abs(result).sum(), length, delta=tolerance)
    if p == 1:  # nothing pulls the label
      self.assertEqual(result[0, 0], 0)

  @parameterized.parameters((2020, 1e-6, 1e-8), (2021, 1e-8, 0.0))
  def test_the_rule_has_the_factor_of_the_constant(self, year, epsilon, in_sum):
    margins = np.array([-200, -3, 0, 4, 13, 15, 20, 200])
    logits = jnp.stack([jnp.asarray(margins, jnp.float64), jnp.zeros(8)], axis=1)
    evidence = {"logits": logits, "labels": jnp.zeros(8, jnp.int32), "mask": jnp.ones(8, bool)}
    double = 2 * special.expit(-margins)
    weights = np.exp(2 * special.expit(-margins))  # lam 0, beta 2
    for how, scale in (("none", 1), ("batch", 8 / (weights.sum() + in_sum))):
      rule = rules.exponential_emphasis(2.0, 0.0, how, f"release_{year}")
      result = jax.jit(rule.update)(jnp.ones(8), (), **evidence)[0]
      expected = weights * scale * double / (double + epsilon)
      np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-80)


def _linear(params, state, inputs, key, train):
  del key, train
  return inputs @ params, state


DENSITY = DENSITIES["exponential of beta"][0]
UNIT_MARGIN = rw.losses.from_apply(_linear, losses.unit_margin)


def _whole_batch_loss(params, model_state, batch, key):
  """Derivative manipulation without a rule."""
  logits, model_state = _linear(params, model_state, batch.inputs, key, True)
  values = losses.derivative_manipulation(DENSITY)(logits, batch.labels, batch.mask)
  return rw.types.Outputs(values, logits, model_state)


class StepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def test_loss_rule_and_chain_take_the_step_of_the_formula(self):
    rng = np.random.default_rng(2)
    inputs, params = rng.normal(size=(SIZE, 3)), rng.normal(size=(3, CLASSES))
    labels, mask = rng.integers(CLASSES, size=SIZE), np.arange(SIZE) != 2
    inputs[2] *= 1e4
    margins, directions = _margins_and_directions((inputs @ params)[mask], labels[mask])
    lengths = _coefficients("exponential of beta", "batch", margins)
    expected = params - 0.5 * inputs[mask].T @ (lengths[:, None] * directions)

    batch = rw.types.make_batch(
      jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), mask=jnp.asarray(mask)
    )
    tx = optax.sgd(0.5)
    in_rule = rules.emphasis(DENSITY, "batch")
    chained = optax.chain(rules.emphasis(DENSITY, "none"), rules.normalize("mean"))
    for loss_fn, rule in (
      (UNIT_MARGIN, in_rule),
      (UNIT_MARGIN, chained),
      (_whole_batch_loss, optax.identity()),
    ):
      state = rw.training.init_train_state(
        jnp.asarray(params), (), rule, tx, key=jax.random.key(0), batch_size=SIZE
      )
      state, _ = jax.jit(rw.training.make_train_step(loss_fn, rule, tx))(state, batch)
      np.testing.assert_allclose(state.params, expected, rtol=1e-10, atol=1e-12)

  def test_microbatches_are_weighed_as_one_batch(self):
    rng = np.random.default_rng(5)
    batch = rw.types.make_batch(
      rng.normal(size=(8, 3)), rng.integers(3, size=8, dtype=np.int32), mask=np.arange(8) != 5
    )
    params = rng.normal(size=(3, 3))
    # The first rule counts lengths in the batch, the second adds up its weights.
    rule = optax.chain(rules.gradient_harmonizing(4, 0.5), rules.emphasis(DENSITY, "batch"))
    tx = optax.sgd(0.5)
    results = []
    for make, options in (
      (lambda *parts: jax.jit(rw.training.make_train_step(*parts)), {}),
      (rw.training.make_accumulating_train_step, {"num_microbatches": 2}),
    ):
      state = rw.training.init_train_state(
        jnp.asarray(params), (), rule, tx, key=jax.random.key(0), batch_size=8
      )
      state, metrics = make(UNIT_MARGIN, rule, tx, **options)(state, batch)
      results.append((state.params, state.rule_state, metrics.weights))
    chex.assert_trees_all_close(*results, rtol=1e-12)
    # By microbatches of their own, the sums of weights would be 3 and 4.
    weights = results[0][2]
    self.assertGreater(abs(float(weights[4:].sum()) - 3), 0.01)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (rules.emphasis, "emphasis"), (losses.derivative_manipulation, "derivative_manipulation")
  )
  def test_unknown_words_are_named(self, factory, name):
    with self.assertRaisesRegex(ValueError, rf"^{name}: normalization expects .*; got 'mean'\.$"):
      factory(densities.uniform(), "mean")
    with self.assertRaisesRegex(ValueError, rf"^{name}: arithmetic expects .*; got 'fast'\.$"):
      factory(densities.uniform(), "batch", "fast")

  @parameterized.parameters(
    rules.emphasis, losses.emphasized_margin, losses.derivative_manipulation
  )
  def test_a_density_of_ones_own_is_checked_before_any_step(self, factory):
    name = factory.__name__
    with self.assertRaisesRegex(ValueError, rf"^{name} .* on \[0, 1\], got -2 at p = 0.501\."):
      factory(lambda p: jnp.where(p > 0.5, -2, 1))
    with self.assertRaisesRegex(TypeError, f"^{name} expects a function of .*, got 0.5"):
      factory(0.5)
    with self.assertRaisesRegex(TypeError, f"^{name} .* factory uniform. Call it: uniform"):
      factory(densities.uniform)

  def test_an_injected_parameter_has_no_area(self):
    rule = optax.inject_hyperparams(lambda b: rules.emphasis(densities.normal(b, 0.5), "area"))(8.0)
    with self.assertRaisesRegex(
      ValueError, "area expects a density of plain numbers, got 'normal'"
    ):
      jax.eval_shape(rule.init, jnp.ones(2))
    with self.assertRaisesRegex(ValueError, "expects plain numbers for normalization 'area'"):
      rules.exponential_emphasis(jnp.float32(8.0), 1.0, "area")

  def test_factories_may_be_called_under_jit(self):
    own = lambda p: 2 * (1 - p)

    def weigh(logits):
      evidence = {"logits": logits, "labels": jnp.array([0]), "mask": jnp.ones(1, bool)}
      return rules.emphasis(own, "area").update(jnp.ones(1), (), **evidence)[0]

    np.testing.assert_allclose(jax.jit(weigh)(jnp.zeros((1, 4))), 1.5, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
