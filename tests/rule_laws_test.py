"""The laws that every weighting rule keeps, as one table; exemptions are columns with a reason."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from scipy import special

import reweight_jax as rw
from reweight_jax import per_example, rules

SIZE, PADDING, CLASSES = 6, 3, 4
ALIGNMENT = [0.5, -1.0, 0.0, 2.0, 1e-3, -0.2]
META_LOGITS, META_LABELS = [[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 0.0, 0.0]], [0, 3]


@dataclasses.dataclass(frozen=True)
class Law:
  """A rule of the table: how to make it, what it needs, and which laws it is exempt from."""

  factory: Callable[..., rw.types.WeightingRule]
  needs: tuple[str, ...] = ()
  hyperparams: dict[str, Any] = dataclasses.field(default_factory=dict)  # to be injected, too
  negative: str = ""  # why its weights may be below 0
  waits: str = ""  # why it cannot be switched on after a burn-in
  rescales: str = ""  # why twice the weights that come in are not twice those that go out

  def rule(self) -> rw.types.WeightingRule:
    return self.factory(**self.hyperparams)


COUNTS, EXPONENTS, SHIFTS = [5, 3, 2, 1], [0.0, 1.0, 2.0, 0.5], [0.0, 0.1, 0.2, 0.0]
BY_LABEL, BY_LOSS = ("logits", "labels"), ("losses", "mask")
LAWS = {
  "after_burn_in": Law(
    lambda: rules.after_burn_in(rules.focal(), 1),
    waits="it is the one rule that waits, so a switch around it would count its steps twice",
  ),
  "align": Law(
    rw.meta.align, ("meta_alignment",), negative="an alignment has a sign; rectify drops it"
  ),
  "asymmetric_focal": Law(lambda: rules.asymmetric_focal(EXPONENTS, SHIFTS), BY_LABEL),
  "asymmetric_focal_transform": Law(
    lambda: rules.asymmetric_focal_transform(EXPONENTS, SHIFTS), BY_LABEL
  ),
  "bootstrapped_confidence": Law(rules.bootstrapped_confidence, BY_LABEL),
  "bootstrapped_confidence_soft": Law(
    lambda share: rules.bootstrapped_confidence(share, "soft"), BY_LABEL, {"share": 0.3}
  ),
  "class_aware_weight_net": Law(
    lambda rate: rw.meta.class_aware_weight_net(
      optax.sgd(rate), COUNTS, hidden=4, key=jax.random.key(0)
    ),
    ("meta_alignment", *BY_LOSS, "labels"),
    {"rate": 1.0},
    rescales="weights average 1",
  ),
  "class_balanced": Law(
    lambda beta: rules.class_balanced(COUNTS, beta), ("labels",), {"beta": 0.9}
  ),
  "class_weights": Law(lambda: rules.class_weights([0.5, 1, 2, 0]), ("labels",)),
  "clip_weights": Law(
    lambda max_weight: rules.clip_weights(max_weight, 0.1),
    ("mask",),
    {"max_weight": 0.7},
    rescales="its bounds stay where they are",
  ),
  "difficulty_weights": Law(
    lambda ratio: rw.difficulty.difficulty_weights(
      np.linspace(2, 0, 20), rw.difficulty.hard_first(ratio)
    ),
    ("indices",),
    {"ratio": 4.0},
  ),
  "emphasis": Law(lambda: rules.emphasis(lambda p: p * (1 - p), "area"), (*BY_LABEL, "mask")),
  "exponential_emphasis": Law(
    rules.exponential_emphasis,
    (*BY_LABEL, "mask"),
    {"beta": 8.0, "lam": 0.5},
    rescales="by the batch, lengths add up to 1",
  ),
  "focal": Law(rules.focal, BY_LABEL, {"gamma": 1.5}),
  "focal_transform": Law(rules.focal_transform, BY_LABEL, {"gamma": 1.5}),
  "generalized_cross_entropy": Law(
    rules.generalized_cross_entropy, BY_LABEL, {"q": 0.7, "truncate_at": 0.2}
  ),
  "gradient_harmonizing": Law(
    lambda decay: rules.gradient_harmonizing(10, decay), (*BY_LABEL, "mask"), {"decay": 0.5}
  ),
  "hard_mining": Law(lambda: rules.hard_mining(CLASSES), (*BY_LOSS, "labels")),
  "importance_ratio": Law(
    lambda power: rules.importance_ratio(np.linspace(0, 2, 20), power=power),
    ("indices",),
    {"power": 0.5},
  ),
  "inverse_frequency": Law(
    lambda power: rules.inverse_frequency(COUNTS, power), ("labels",), {"power": 0.5}
  ),
  "just_train_twice": Law(
    lambda factor: rules.just_train_twice(np.arange(20) % 2 == 0, factor),
    ("indices",),
    {"factor": 3.0},
  ),
  "label_shift": Law(lambda: rules.label_shift(np.eye(4), [1, 2, 3, 4]), ("labels",)),
  "large_loss": Law(rules.large_loss, BY_LOSS, {"keep": 0.4}),
  "ldam": Law(lambda max_margin: rules.ldam(COUNTS, max_margin), BY_LABEL, {"max_margin": 2.0}),
  "learned_weights": Law(
    lambda rate: rw.meta.learned_weights(
      lambda power, *, losses, **unused: jnp.exp(-power * losses), 0.1, optax.sgd(rate)
    ),
    ("meta_alignment", *BY_LOSS),
    {"rate": 1.0},
    rescales="the weights that come in teach it",
  ),
  "learning_to_reweight": Law(
    rw.meta.learning_to_reweight, ("meta_alignment", "mask"), rescales="it ends with normalize"
  ),
  "lilaw": Law(
    lambda rate: rw.meta.lilaw(optax.sgd(rate)), ("meta_outputs", *BY_LABEL), {"rate": 1.0}
  ),
  "lilaw_meta_gradient": Law(
    lambda rate: rw.meta.lilaw_meta_gradient(optax.sgd(rate)),
    ("meta_alignment", *BY_LABEL, "mask"),
    {"rate": 5.0},
    rescales="the weights that come in teach it",
  ),
  "loss_quantiles": Law(rules.loss_quantiles, BY_LOSS, {"low": 0.2, "high": 0.8}),
  "loss_transform": Law(lambda: rules.loss_transform(jnp.tanh), ("losses",)),
  "meta_weight_net": Law(
    lambda rate: rw.meta.meta_weight_net(optax.sgd(rate), hidden=4, key=jax.random.key(0)),
    ("meta_alignment", *BY_LOSS),
    {"rate": 1.0},
    rescales="weights average 1",
  ),
  "mix_with_uniform": Law(
    rules.mix_with_uniform, ("mask",), {"share": 0.3}, rescales="the share of 1 stays what it is"
  ),
  "normalize": Law(rules.normalize, ("mask",), rescales="weights average 1"),
  "normalize_decay": Law(
    lambda decay: rules.normalize(decay=decay),
    ("mask",),
    {"decay": 0.5},
    rescales="weights average 1 over time",
  ),
  "polynomial_tail": Law(rules.polynomial_tail, BY_LABEL, {"power": 1.5}),
  "random_weights": Law(rules.random_weights, ("indices",)),
  "rectify": Law(rules.rectify),
  "reducible_loss": Law(
    lambda keep: rules.reducible_loss(np.linspace(0, 2, 20), keep),
    (*BY_LOSS, "indices"),
    {"keep": 0.5},
  ),
  "record_dynamics": Law(
    lambda: rw.difficulty.record_dynamics(20), (*BY_LOSS, "logits", "labels", "indices")
  ),
  "refreshed_difficulty_weights": Law(
    lambda ratio: rw.difficulty.refreshed_difficulty_weights(
      20, rw.difficulty.final_loss, rw.difficulty.easy_first(ratio), every_steps=1
    ),
    (*BY_LOSS, "logits", "labels", "indices"),
    {"ratio": 4.0},
  ),
  "self_paced": Law(
    lambda threshold: rules.self_paced(threshold, "linear"), ("losses",), {"threshold": 1.5}
  ),
  "self_paced_logarithmic": Law(
    lambda threshold: rules.self_paced(threshold, "logarithmic"), ("losses",), {"threshold": 0.9}
  ),
  "self_paced_mixture": Law(rules.self_paced_mixture, ("losses",), {"low": 1.0, "high": 2.0}),
  "small_loss": Law(
    lambda keep: rules.small_loss(keep, "class"), (*BY_LOSS, "labels"), {"keep": 0.5}
  ),
  "smooth_by_index": Law(
    lambda decay: rules.smooth_by_index(20, decay), ("indices", "mask"), {"decay": 0.5}
  ),
  "super_loss": Law(rules.super_loss, BY_LOSS, {"lam": 3.0, "decay": 0.5}),
  "symmetric_cross_entropy": Law(rules.symmetric_cross_entropy, BY_LABEL, {"mu": 0.5, "nu": 2.0}),
  "taylor_cross_entropy": Law(rules.taylor_cross_entropy, BY_LABEL),
  "uniform": Law(rules.uniform, ("mask",), rescales="it forgets the weights that came in"),
  "where_examples": Law(
    lambda: rules.where_examples(lambda *, losses, **unused: losses > 1, rules.focal()),
    (*BY_LOSS, *BY_LABEL),
  ),
}
NAMES = tuple(LAWS)
# One of each module, for what does not depend on the rule and takes long.
FAMILIES = (
  "class_balanced",
  "difficulty_weights",
  "exponential_emphasis",
  "focal",
  "generalized_cross_entropy",
  "gradient_harmonizing",
  "importance_ratio",
  "learned_weights",
  "learning_to_reweight",
  "normalize_decay",
  "polynomial_tail",
  "random_weights",
  "self_paced",
  "small_loss",
  "smooth_by_index",
)


@functools.cache
def _evidence(
  dtype=jnp.float32, logits_dtype=None, *, scale=1.0, num_padding=PADDING, at_padding=(1e3, 1.0)
):
  """Weights and all evidence of SIZE real examples and padding, of given loss and logits."""
  rng = np.random.default_rng(0)
  size = SIZE + num_padding
  padding_loss, padding_logits = at_padding
  logits = scale * rng.normal(size=(SIZE, CLASSES))
  padding = padding_logits * rng.normal(size=(num_padding, CLASSES))
  # By NumPy: eager JAX would compile every operation for each shape and dtype.
  logits = np.concatenate([logits, padding])
  labels = np.array([*(np.arange(SIZE) % CLASSES), *[1] * num_padding], np.int32)
  mask = np.arange(size) < SIZE
  losses = special.logsumexp(logits, axis=1) - logits[np.arange(size), labels]
  # At padding the step gives 0 for both; a rule must not depend on that.
  alignment = jnp.asarray(np.array([*ALIGNMENT, *[1e3] * num_padding]), dtype)
  indices = jnp.asarray(np.r_[10 : 10 + SIZE, [0] * num_padding].astype(np.int32))
  arrays = {
    "losses": jnp.asarray(np.where(mask, losses, padding_loss), dtype),
    "logits": jnp.asarray(logits, logits_dtype or dtype),
    "labels": jnp.asarray(labels),
    "indices": indices,
    "mask": jnp.asarray(mask),
    "alignment": alignment,
  }
  # Not all ones: a rule comes after others in a chain.
  weights = np.array([*np.linspace(0.2, 1.4, SIZE), *[0] * num_padding])
  return jnp.asarray(weights, dtype), arrays


def _with_functions(arrays):
  """The evidence, with the two functions of the meta batch among it."""
  evidence, alignment = dict(arrays), arrays["alignment"]
  del evidence["alignment"]

  def meta_outputs():
    logits, labels = jnp.asarray(META_LOGITS, alignment.dtype), jnp.asarray(META_LABELS, jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return rw.types.Outputs(losses, logits), labels

  return {"meta_alignment": lambda at=None: alignment, "meta_outputs": meta_outputs, **evidence}


def _update(rule, weights, arrays, state=None):
  """One update; what is known of the meta batch becomes functions again."""
  state = rule.init(jnp.ones_like(weights)) if state is None else state
  return rule.update(weights, state, None, **_with_functions(arrays))


def _two_steps(update, weights, arrays, state):
  """The weights of a first step, and of a second one that the state of another has reached."""
  first, _ = update(weights, arrays, state)
  _, state = update(weights / 2, arrays, state)
  return first, update(weights, arrays, state)[0]


class Program:
  """A rule compiled, which is what takes time: the laws share two for each rule."""

  def __init__(self, rule):
    self.init, self.num_traces = rule.init, 0

    def update(*args):
      self.num_traces += 1
      return _update(rule, *args)

    self.update = jax.jit(update)


@functools.cache
def _chained(name):
  """The rule at the end of a chain that is switched on after a burn-in of one step."""
  rule = optax.chain(rules.rectify(), LAWS[name].rule())
  if not LAWS[name].waits:
    rule = optax.conditionally_transform(rule, lambda step: step >= 1)
  return Program(rule)


def _burn_in(name, weights, arrays):
  """The weights and the state of a first step with the rule switched off."""
  program = _chained(name)
  state = program.init(jnp.ones_like(weights))
  return (weights, state) if LAWS[name].waits else program.update(weights, arrays, state)


def _run(name, weights, arrays):
  """The two steps after the burn-in."""
  _, state = _burn_in(name, weights, arrays)
  return _two_steps(_chained(name).update, weights, arrays, state)


@functools.cache
def _alone(name):
  """Two steps without padding of the rule alone, its numbers injected if it has any."""
  law, (weights, arrays) = LAWS[name], _evidence(num_padding=0)
  injected = optax.inject_hyperparams(law.factory) if law.hyperparams else law.factory
  program = Program(injected(**law.hyperparams))
  return _two_steps(program.update, weights, arrays, program.init(jnp.ones_like(weights)))


class RuleLawsTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_shape_and_dtype_stay_under_strict_promotion(self, name):
    self._check_dtypes(name, "float32", "bfloat16")

  @parameterized.parameters(*FAMILIES)
  def test_float64_stays_under_strict_promotion(self, name):
    self._check_dtypes(name, "float64", "float64")

  @parameterized.parameters(*sorted(set(NAMES) - set(FAMILIES)))
  @pytest.mark.long  # below: parameters copy the mark
  def test_float64_stays_in_every_rule(self, name):
    self._check_dtypes(name, "float64", "float64")

  def _check_dtypes(self, name, *dtypes):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      weights, arrays = _evidence(*map(jnp.dtype, dtypes))  # of the weights, of the logits
      rule = LAWS[name].rule()
      first, state = jax.eval_shape(lambda *args: _update(rule, *args), weights, arrays)
      second, _ = jax.eval_shape(lambda *args: _update(rule, *args), weights, arrays, state)
    for result in (first, second):
      self.assertEqual((result.shape, result.dtype), (weights.shape, weights.dtype))

  @parameterized.product(name=NAMES, scale=(1.0, 1e4))
  def test_weights_are_finite_and_not_negative_even_for_huge_logits(self, name, scale):
    for result in _run(name, *_evidence(scale=scale)):
      self.assertTrue(np.isfinite(result).all(), result)
      if not LAWS[name].negative:
        self.assertGreaterEqual(float(result.min()), 0)

  @parameterized.product(name=NAMES, at_padding=((1e3, 1.0), (0.0, np.nan)))
  def test_padding_has_zero_weight_and_changes_nothing(self, name, at_padding):
    padded = _run(name, *_evidence(at_padding=at_padding))
    for result, expected in zip(padded, _alone(name), strict=True):
      self.assertEqual(result[SIZE:].tolist(), [0.0] * PADDING)
      np.testing.assert_allclose(result[:SIZE], expected, rtol=1e-5)

  @parameterized.parameters(*NAMES)
  def test_permuting_the_batch_permutes_the_weights(self, name):
    weights, arrays = _evidence()
    order = np.array([3, 6, 0, 5, 8, 2, 1, 4, 7])
    permuted = {name: array[order] for name, array in arrays.items()}
    plain = _run(name, weights, arrays)
    for result, expected in zip(_run(name, weights[order], permuted), plain, strict=True):
      np.testing.assert_allclose(result, expected[order], rtol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_twice_the_weights_that_come_in_are_twice_those_that_go_out(self, name):
    weights, arrays = _evidence()
    once, twice = (np.array(_run(name, factor * weights, arrays)) for factor in (1, 2))
    if LAWS[name].rescales:
      self.assertGreater(np.abs(twice - 2 * once).max(), 0.1)
    else:
      np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_in_a_chain_that_is_switched_on_later_it_is_what_it_is_alone(self, name):
    before, _ = _burn_in(name, *_evidence())
    np.testing.assert_array_equal(before, _evidence()[0])
    for result, expected in zip(_run(name, *_evidence()), _alone(name), strict=True):
      np.testing.assert_allclose(result[:SIZE], expected, rtol=1e-5)

  @parameterized.parameters(*NAMES)
  def test_the_second_step_does_not_recompile(self, name):
    _run(name, *_evidence())
    self.assertEqual(_chained(name).num_traces, 1)

  @parameterized.parameters(*(name for name in NAMES if LAWS[name].hyperparams))
  def test_its_numbers_can_be_injected(self, name):
    for plain, injected in zip(_run(name, *_evidence()), _alone(name), strict=True):
      np.testing.assert_allclose(injected, plain[:SIZE], rtol=1e-5)

  @parameterized.parameters(*FAMILIES[::2])
  def test_jit_equals_eager(self, name):
    self._check_eager(name)

  @parameterized.parameters(*FAMILIES[1::2])
  @pytest.mark.long  # below: parameters copy the mark
  def test_jit_equals_eager_in_the_other_families(self, name):
    self._check_eager(name)

  def _check_eager(self, name):
    rule, (weights, arrays) = LAWS[name].rule(), _evidence(num_padding=0)
    eager = _two_steps(functools.partial(_update, rule), weights, arrays, rule.init(weights))
    for result, expected in zip(_run(name, *_evidence()), eager, strict=True):
      np.testing.assert_allclose(result[:SIZE], expected, rtol=1e-5)

  def test_a_named_chain_is_a_chain(self):
    links = rules.clip_weights(0.7), rules.mix_with_uniform(0.3)
    named = optax.named_chain(("first", links[0]), ("second", links[1]))
    weights, arrays = _evidence(num_padding=0)
    # min(w, 0.7) of 0.2, 0.44, 0.68, 0.92, 1.16, 1.4; then 0.7 of that and 0.3.
    expected = 0.3 + 0.7 * np.array([0.2, 0.44, 0.68, 0.7, 0.7, 0.7])
    weights = jax.jit(functools.partial(_update, named))(weights, arrays)[0]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

  @parameterized.parameters(*((name, need) for name in NAMES for need in LAWS[name].needs))
  def test_missing_evidence_is_a_type_error_that_names_it(self, name, need):
    rule = LAWS[name].rule()
    weights, arrays = _evidence(num_padding=0)
    evidence = _with_functions(arrays)
    del evidence[need]
    with self.assertRaisesRegex(TypeError, need):
      rule.update(weights, rule.init(weights), **evidence)

  @parameterized.parameters(*FAMILIES[::2])
  def test_the_step_pulls_the_weights_through_the_examples_gradients(self, name):
    self._check_pull(name)

  @parameterized.parameters(*FAMILIES[1::2])
  @pytest.mark.long  # below: parameters copy the mark
  def test_the_step_pulls_the_weights_of_other_families(self, name):
    self._check_pull(name)

  def _check_pull(self, name):
    rule, tx = LAWS[name].rule(), optax.sgd(1.0)
    params, batch, clean, rows = _linear_problem()
    state = rw.training.init_train_state(
      params, (), rule, tx, key=jax.random.key(0), batch_size=SIZE
    )
    step = rw.training.make_train_step(
      rw.losses.from_apply(_linear), rule, tx, virtual_optimizer=optax.sgd(0.1)
    )
    new, metrics = step(state, batch, clean)
    expected = params - jnp.tensordot(metrics.weights, rows, axes=1) / (SIZE - 1)
    np.testing.assert_allclose(new.params, expected, rtol=1e-5, atol=1e-6)


def _linear(params, state, inputs, key, train):
  del key, train
  return inputs @ params, state


@functools.cache
def _linear_problem():
  """Params, a batch with padding, a clean batch, and every example's gradient."""
  rng = np.random.default_rng(1)
  inputs = jnp.asarray(rng.normal(size=(SIZE, 3)), jnp.float32)
  params = jnp.asarray(rng.normal(size=(3, CLASSES)), jnp.float32)
  labels = jnp.arange(SIZE) % CLASSES
  batch = rw.types.make_batch(inputs, labels, mask=jnp.arange(SIZE) < SIZE - 1)
  clean = rw.types.make_batch(inputs[:2], labels[:2])
  rows = jax.jit(per_example.grads, static_argnums=0)(
    rw.losses.from_apply(_linear), params, (), batch
  )
  return params, batch, clean, rows


class TableTest(absltest.TestCase):
  def test_every_rule_of_difficulty_is_in_the_table(self):
    public = {
      name
      for name in rw.difficulty.__all__
      if inspect.isfunction(value := getattr(rw.difficulty, name))
      and inspect.signature(value).return_annotation is rw.types.WeightingRule
    }
    self.assertIn("difficulty_weights", public)
    self.assertLessEqual(public, set(NAMES))

  def test_every_public_rule_is_in_the_table(self):
    states = {name for name in rules.__all__ if name.endswith("State")} | {"label_shift_ratios"}
    others = {
      "LearnedWeightsState",
      "LilawScalars",
      "ROUTES",
      "class_size_groups",
      "example_weights",
      "forward_alignment",
      "learned_params",
      "ChosenLayers",
      "choose_layers",
      "meta_direction",
      "nested_alignment",
      "weight_curve",
    }
    public = (set(rules.__all__) - states - {"weighting_rule"}) | (set(rw.meta.__all__) - others)
    self.assertLessEqual(public, set(NAMES))


if __name__ == "__main__":
  absltest.main()
