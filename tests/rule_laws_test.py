"""The laws that every weighting rule keeps, as one table; exemptions are columns with a reason."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import per_example, rules

SIZE, CLASSES = 6, 4
ALIGNMENT = jnp.array([0.5, -1.0, 0.0, 2.0, 1e-3, -0.2])


@dataclasses.dataclass(frozen=True)
class Law:
  """A rule of the table: how to make it, what it needs, and which laws it is exempt from."""

  make: Callable[[], rw.types.WeightingRule]
  needs: tuple[str, ...] = ()
  hyperparams: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `factory`
  factory: Callable[..., rw.types.WeightingRule] | None = None
  negative: str = ""  # why its weights may be below 0
  waits: str = ""  # why it cannot be switched on after a burn-in


LAWS = {
  "after_burn_in": Law(
    lambda: rules.after_burn_in(rules.focal(), 1),
    waits="it is the one rule that waits, so a switch around it would count its steps twice",
  ),
  "align": Law(
    rw.meta.align, ("meta_alignment",), negative="an alignment has a sign; rectify drops it"
  ),
  "asymmetric_focal": Law(
    lambda: rules.asymmetric_focal([0.0, 1.0, 2.0, 0.5], [0.0, 0.1, 0.2, 0.0]), ("logits", "labels")
  ),
  "asymmetric_focal_transform": Law(
    lambda: rules.asymmetric_focal_transform([0.0, 1.0, 2.0, 0.5], [0.0, 0.1, 0.2, 0.0]),
    ("logits", "labels"),
  ),
  "bootstrapped_confidence": Law(
    rules.bootstrapped_confidence,
    ("logits", "labels"),
    {"share": 0.3},
    lambda share: rules.bootstrapped_confidence(share, "soft"),
  ),
  "class_balanced": Law(
    lambda: rules.class_balanced([5, 3, 2, 1]),
    ("labels",),
    {"beta": 0.9},
    lambda beta: rules.class_balanced([5, 3, 2, 1], beta),
  ),
  "class_weights": Law(lambda: rules.class_weights([0.5, 1, 2, 0]), ("labels",)),
  "clip_weights": Law(
    lambda: rules.clip_weights(0.7, 0.1), ("mask",), {"max_weight": 0.7}, rules.clip_weights
  ),
  "emphasis": Law(
    lambda: rules.emphasis(lambda p: p * (1 - p), "area"), ("logits", "labels", "mask")
  ),
  "exponential_emphasis": Law(
    lambda: rules.exponential_emphasis(8.0),
    ("logits", "labels", "mask"),
    {"beta": 8.0, "lam": 0.5},
    rules.exponential_emphasis,
  ),
  "focal": Law(rules.focal, ("logits", "labels"), {"gamma": 1.5}, rules.focal),
  "focal_transform": Law(
    rules.focal_transform, ("logits", "labels"), {"gamma": 1.5}, rules.focal_transform
  ),
  "generalized_cross_entropy": Law(
    lambda: rules.generalized_cross_entropy(0.7, truncate_at=0.2),
    ("logits", "labels"),
    {"q": 0.7, "truncate_at": 0.2},
    rules.generalized_cross_entropy,
  ),
  "gradient_harmonizing": Law(
    rules.gradient_harmonizing,
    ("logits", "labels", "mask"),
    {"decay": 0.5},
    lambda decay: rules.gradient_harmonizing(10, decay),
  ),
  "hard_mining": Law(lambda: rules.hard_mining(CLASSES), ("losses", "labels", "mask")),
  "importance_ratio": Law(
    lambda: rules.importance_ratio(np.linspace(0, 2, 20)),
    ("indices",),
    {"power": 0.5},
    lambda power: rules.importance_ratio(np.linspace(0, 2, 20), power=power),
  ),
  "inverse_frequency": Law(
    lambda: rules.inverse_frequency([5, 3, 2, 1]),
    ("labels",),
    {"power": 0.5},
    lambda power: rules.inverse_frequency([5, 3, 2, 1], power),
  ),
  "just_train_twice": Law(
    lambda: rules.just_train_twice(np.arange(20) % 2 == 0),
    ("indices",),
    {"factor": 3.0},
    lambda factor: rules.just_train_twice(np.arange(20) % 2 == 0, factor),
  ),
  "label_shift": Law(lambda: rules.label_shift(np.eye(4), [1, 2, 3, 4]), ("labels",)),
  "large_loss": Law(
    lambda: rules.large_loss(0.4), ("losses", "mask"), {"keep": 0.4}, rules.large_loss
  ),
  "learning_to_reweight": Law(rw.meta.learning_to_reweight, ("meta_alignment", "mask")),
  "loss_quantiles": Law(
    lambda: rules.loss_quantiles(0.2, 0.8),
    ("losses", "mask"),
    {"low": 0.2, "high": 0.8},
    rules.loss_quantiles,
  ),
  "loss_transform": Law(lambda: rules.loss_transform(jnp.tanh), ("losses",)),
  "mix_with_uniform": Law(
    lambda: rules.mix_with_uniform(0.3), ("mask",), {"share": 0.3}, rules.mix_with_uniform
  ),
  "normalize": Law(rules.normalize, ("mask",)),
  "normalize_decay": Law(
    lambda: rules.normalize(decay=0.5),
    ("mask",),
    {"decay": 0.5},
    lambda decay: rules.normalize(decay=decay),
  ),
  "random_weights": Law(rules.random_weights, ("indices",)),
  "rectify": Law(rules.rectify),
  "reducible_loss": Law(
    lambda: rules.reducible_loss(np.linspace(0, 2, 20), 0.5),
    ("losses", "indices", "mask"),
    {"keep": 0.5},
    lambda keep: rules.reducible_loss(np.linspace(0, 2, 20), keep),
  ),
  "self_paced": Law(
    lambda: rules.self_paced(1.5, "linear"),
    ("losses",),
    {"threshold": 0.9},
    lambda threshold: rules.self_paced(threshold, "logarithmic"),
  ),
  "self_paced_mixture": Law(
    lambda: rules.self_paced_mixture(1.0, 2.0),
    ("losses",),
    {"low": 1.0, "high": 2.0},
    rules.self_paced_mixture,
  ),
  "small_loss": Law(
    lambda: rules.small_loss(0.5, "class"),
    ("losses", "labels", "mask"),
    {"keep": 0.5},
    rules.small_loss,
  ),
  "smooth_by_index": Law(
    lambda: rules.smooth_by_index(20, 0.5),
    ("indices", "mask"),
    {"decay": 0.5},
    lambda decay: rules.smooth_by_index(20, decay),
  ),
  "super_loss": Law(
    lambda: rules.super_loss(3.0), ("losses", "mask"), {"lam": 3.0, "decay": 0.5}, rules.super_loss
  ),
  "symmetric_cross_entropy": Law(
    rules.symmetric_cross_entropy,
    ("logits", "labels"),
    {"mu": 0.5, "nu": 2.0},
    rules.symmetric_cross_entropy,
  ),
  "taylor_cross_entropy": Law(rules.taylor_cross_entropy, ("logits", "labels")),
  "uniform": Law(rules.uniform, ("mask",)),
  "where_examples": Law(
    lambda: rules.where_examples(lambda *, losses, **unused: losses > 1, rules.focal()),
    ("losses", "logits", "labels", "mask"),
  ),
}
NAMES = tuple(LAWS)


def _evidence(dtype=jnp.float32, scale=1.0, num_padding=0):
  """Weights and all evidence of a batch of SIZE real examples followed by padding."""
  rng = np.random.default_rng(0)
  size = SIZE + num_padding
  logits = jnp.asarray(
    np.concatenate(
      [scale * rng.normal(size=(SIZE, CLASSES)), rng.normal(size=(num_padding, CLASSES))]
    ),
    dtype,
  )
  labels = jnp.asarray([*(np.arange(SIZE) % CLASSES), *[1] * num_padding], jnp.int32)
  mask = np.arange(size) < SIZE
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  # At padding the step gives 0 for both; a rule must not depend on that.
  alignment = jnp.asarray([*ALIGNMENT, *[1e3] * num_padding], dtype)
  indices = jnp.asarray(np.r_[10 : 10 + SIZE, [0] * num_padding].astype(np.int32))
  arrays = {
    "losses": jnp.where(mask, losses, 1e3),
    "logits": logits,
    "labels": labels,
    "indices": indices,
    "mask": jnp.asarray(mask),
    "alignment": alignment,
  }
  # Not all ones: a rule comes after others in a chain.
  weights = jnp.asarray(np.where(mask, np.linspace(0.2, 1.4, size), 0), dtype)
  return weights, arrays


def _update(rule, weights, arrays, state=None):
  """One update; the meta alignment becomes a function again."""
  alignment = arrays["alignment"]
  evidence = {name: array for name, array in arrays.items() if name != "alignment"}
  state = rule.init(jnp.ones_like(weights)) if state is None else state
  return rule.update(weights, state, None, meta_alignment=lambda at=None: alignment, **evidence)


def _two_steps(rule, weights, arrays):
  """The weights of a first step, and of a second one that the state of another has reached."""
  first, _ = _update(rule, weights, arrays)
  _, state = _update(rule, weights / 2, arrays)
  return first, _update(rule, weights, arrays, state)[0]


@functools.cache
def _compiled(name):
  """The same as one program for each shape, shared by the laws: compiling is what takes time."""
  rule = LAWS[name].make()
  return jax.jit(lambda weights, arrays: _two_steps(rule, weights, arrays))


class RuleLawsTest(parameterized.TestCase):
  @parameterized.product(name=NAMES, dtype=("float32", "float64"))
  def test_shape_and_dtype_stay_under_strict_promotion(self, name, dtype):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      weights, arrays = _evidence(jnp.dtype(dtype))
      rule = LAWS[name].make()
      results = jax.eval_shape(lambda *args: _two_steps(rule, *args), weights, arrays)
    for result in results:
      self.assertEqual((result.shape, result.dtype), ((SIZE,), jnp.dtype(dtype)))

  @parameterized.product(name=NAMES, scale=(1.0, 1e4))
  def test_weights_are_finite_and_not_negative_even_for_huge_logits(self, name, scale):
    for result in _compiled(name)(*_evidence(scale=scale)):
      self.assertTrue(np.isfinite(result).all(), result)
      if not LAWS[name].negative:
        self.assertGreaterEqual(float(result.min()), 0)

  @parameterized.parameters(*NAMES)
  def test_padding_has_zero_weight_and_changes_nothing(self, name):
    weights, arrays = _evidence()
    padded_weights, padded_arrays = _evidence(num_padding=3)
    padded_weights = padded_weights.at[:SIZE].set(weights)
    plain = _compiled(name)(weights, arrays)
    for padded, expected in zip(_compiled(name)(padded_weights, padded_arrays), plain, strict=True):
      self.assertEqual(padded[SIZE:].tolist(), [0.0, 0.0, 0.0])
      np.testing.assert_allclose(padded[:SIZE], expected, rtol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_permuting_the_batch_permutes_the_weights(self, name):
    weights, arrays = _evidence(num_padding=3)
    order = np.array([3, 6, 0, 5, 8, 2, 1, 4, 7])
    permuted = {name: array[order] for name, array in arrays.items()}
    plain = _compiled(name)(weights, arrays)
    for result, expected in zip(_compiled(name)(weights[order], permuted), plain, strict=True):
      np.testing.assert_allclose(result, expected[order], rtol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_jit_equals_eager_and_the_second_step_does_not_recompile(self, name):
    rule = LAWS[name].make()
    weights, arrays = _evidence()
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(lambda *args: _update(rule, *args), n=1)
    jitted, state = jax.jit(traced), rule.init(weights)
    eager = state
    for _ in range(2):
      expected, eager = _update(rule, weights, arrays, eager)
      result, state = jitted(weights, arrays, state)
      np.testing.assert_allclose(result, expected, rtol=1e-5)

  @parameterized.parameters(*NAMES)
  def test_chained_it_is_the_product_of_its_links(self, name):
    weights, arrays = _evidence()
    rule = LAWS[name].make()
    chained = optax.chain(rules.rectify(), rule)
    alone, _ = _update(rule, weights, arrays)
    np.testing.assert_allclose(_update(chained, weights, arrays)[0], alone, rtol=1e-6)

  def test_a_named_chain_is_a_chain(self):
    weights, arrays = _evidence()
    links = rules.focal(), rules.loss_transform(jnp.exp)
    named = optax.named_chain(("first", links[0]), ("second", links[1]))
    expected, _ = _update(optax.chain(*links), weights, arrays)
    np.testing.assert_allclose(_update(named, weights, arrays)[0], expected)

  @parameterized.parameters(*(name for name in NAMES if LAWS[name].factory))
  def test_its_numbers_can_be_injected(self, name):
    law, (weights, arrays) = LAWS[name], _evidence()
    injected = optax.inject_hyperparams(law.factory)(**law.hyperparams)
    expected, _ = _update(law.factory(**law.hyperparams), weights, arrays)
    result = jax.jit(lambda *args: _update(injected, *args)[0])(weights, arrays)
    np.testing.assert_allclose(result, expected, rtol=1e-5)

  @parameterized.parameters(*(name for name in NAMES if not LAWS[name].waits))
  def test_it_can_be_switched_on_after_a_burn_in(self, name):
    weights, arrays = _evidence()
    rule = optax.conditionally_transform(LAWS[name].make(), lambda step: step >= 1)
    step = jax.jit(lambda state: _update(rule, weights, arrays, state))
    before, state = step(rule.init(weights))
    np.testing.assert_array_equal(before, weights)
    after, _ = step(state)
    np.testing.assert_allclose(after, _compiled(name)(weights, arrays)[0], rtol=1e-5)

  @parameterized.parameters(*((name, need) for name in NAMES for need in LAWS[name].needs))
  def test_missing_evidence_is_a_type_error_that_names_it(self, name, need):
    rule = LAWS[name].make()
    weights, arrays = _evidence()
    evidence = {**arrays, "meta_alignment": lambda at=None: arrays["alignment"]}
    del evidence[need]
    with self.assertRaisesRegex(TypeError, need):
      rule.update(weights, rule.init(weights), **evidence)

  @parameterized.parameters(*NAMES)
  def test_the_step_pulls_the_weights_through_the_examples_gradients(self, name):
    rule, tx = LAWS[name].make(), optax.sgd(1.0)
    params, batch, clean, rows = _linear_problem()
    state = rw.training.init_train_state(
      params, (), rule, tx, key=jax.random.key(0), batch_size=SIZE
    )
    step = rw.training.make_train_step(rw.losses.from_apply(_linear), rule, tx)
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
  def test_every_public_rule_is_in_the_table(self):
    states = {name for name in rules.__all__ if name.endswith("State")} | {"label_shift_ratios"}
    routes = {
      "ROUTES",
      "example_weights",
      "forward_alignment",
      "meta_direction",
      "nested_alignment",
    }
    public = (set(rules.__all__) - states - {"weighting_rule"}) | (set(rw.meta.__all__) - routes)
    self.assertLessEqual(public, set(NAMES))


if __name__ == "__main__":
  absltest.main()
