"""Rules that learn by the meta-gradient against the nested definition, and the nets of the loss."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import meta

COUNTS, RATE, SIZE = [40, 10, 5], 0.3, 6
GROUPS = [2, 1, 0]  # three sizes, three groups


def _linear(params, state, inputs, key, train):
  del key, train
  return inputs @ params, state


LOSS_FN = rw.losses.from_apply(_linear)
cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def _net(layers, losses):
  """`[batch, heads]`, the published net in matrices."""
  (kernel, bias), (last_kernel, last_bias) = layers
  hidden = jnp.maximum(losses[:, None] @ kernel + bias[None], 0)
  return 1 / (1 + jnp.exp(-(hidden @ last_kernel + last_bias[None])))


def _update(rule, alignment, weights=None, **evidence):
  """One update of a batch whose alignment is given, at whatever virtual weights."""
  weights = np.ones(len(alignment)) if weights is None else np.asarray(weights)
  weights = jnp.asarray(weights, jnp.float32)
  evidence = {"mask": np.ones(len(alignment), bool), **evidence}

  @jax.jit
  def update(state, weights, alignment, evidence):
    return rule.update(weights, state, meta_alignment=lambda at: alignment, **evidence)

  return update(rule.init(weights), weights, np.float32(alignment), evidence)


class NestedDefinitionTest(parameterized.TestCase):
  @parameterized.parameters(
    ("meta_weight_net", True, "forward"),
    ("class_aware_weight_net", False, "nested"),
  )
  def test_the_gradient_is_that_of_the_whole_bilevel_objective(self, name, normalized, route):
    arguments = (COUNTS,) if name == "class_aware_weight_net" else ()
    net = getattr(meta, name)(
      optax.sgd(1.0), *arguments, hidden=5, normalized=normalized, key=jax.random.key(3)
    )
    rule, still = optax.chain(rw.rules.class_balanced(COUNTS, 0.9), net), optax.sgd(0.0)
    rng = np.random.default_rng(0)
    params, inputs, padding = (rng.normal(size=(size, 3)) for size in (3, SIZE, 2))
    clean_inputs, clean_labels = rng.normal(size=(4, 3)), np.array([0, 1, 2, 2])
    labels = np.array([0, 1, 2, 0, 1, 0])
    counts = np.array(COUNTS)
    rarity = 0.1 / (1 - 0.9**counts)
    incoming = (rarity * counts.sum() / (counts * rarity).sum())[labels]
    chosen = np.array(GROUPS)[labels] if arguments else 0 * labels

    # The definition, of the real examples alone.
    def virtual_weights(theta):
      constant = jax.lax.stop_gradient(cross_entropy(inputs @ params, labels))
      weights = incoming * _net(theta, constant)[np.arange(SIZE), chosen]
      return weights / (weights.sum() if normalized else SIZE)

    def meta_loss(theta):
      weighted_loss = lambda p: virtual_weights(theta) @ cross_entropy(inputs @ p, labels)
      moved = params - RATE * jax.grad(weighted_loss)(params)
      return cross_entropy(clean_inputs @ moved, clean_labels).mean()

    @jax.jit
    def both(state, batch, clean):
      step = rw.training.make_train_step(
        LOSS_FN, rule, still, route=route, virtual_optimizer=optax.sgd(RATE)
      )
      new, metrics = step(state, batch, clean)
      before, after = (meta.learned_params(s.rule_state) for s in (state, new))
      moved = jax.tree.map(jnp.subtract, before, after)
      return moved, jax.grad(meta_loss)(before), metrics.weights, SIZE * virtual_weights(after)

    with jax.enable_x64(True):
      mask = np.arange(SIZE + 2) < SIZE
      batch = rw.types.make_batch(np.r_[inputs, padding], np.r_[labels, 1, 1], mask=mask)
      clean = rw.types.make_batch(clean_inputs, clean_labels)
      state = rw.training.init_train_state(
        jnp.asarray(params), (), rule, still, key=jax.random.key(0), batch_size=SIZE + 2
      )
      moved, gradient, weights, expected = both(state, batch, clean)
    self.assertGreater(max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)), 1e-3)
    chex.assert_trees_all_close(moved, gradient, rtol=0, atol=1e-10)
    self.assertEqual(weights.dtype, np.float64)
    np.testing.assert_allclose(weights, [*expected, 0, 0], rtol=0, atol=1e-10)


def _tilt(slope, *, labels, **unused):
  return jnp.exp(slope * labels)


class LearnedWeightsTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_a_hand_worked_step(self, normalized):
    # v = exp(slope * label) / 2, or its share of the sum: at slope 0 dv/dslope = (1/2, -1/2) both
    # ways. Minus the alignment (3, 1) makes the gradient -1, the slope 0.5.
    rule = meta.learned_weights(_tilt, 0.0, optax.sgd(0.5), normalized=normalized)
    weights, state = _update(rule, [3.0, 1.0], labels=jnp.array([1.0, -1.0]))
    self.assertAlmostEqual(float(state.params), 0.5, places=6)
    expected = np.exp([0.5, -0.5])
    expected = 2 * expected / expected.sum() if normalized else expected
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

  def test_the_alignment_is_asked_for_at_the_weights_that_sum_to_the_objective(self):
    asked = []
    rule = meta.learned_weights(_tilt, 0.0, optax.sgd(0.5))

    def alignment(at):
      asked.append(at)
      return jnp.zeros(3)

    mask, weights = jnp.array([True, True, False]), jnp.array([1.0, 3.0, 0.0])
    evidence = {"meta_alignment": alignment, "mask": mask, "labels": jnp.ones(3)}
    rule.update(weights, rule.init(weights), **evidence)
    self.assertEqual(asked[0].tolist(), [0.5, 1.5, 0.0])

  def test_zero_alignment_leaves_the_parameters_to_their_decay(self):
    losses, nothing = jnp.array([0.1, 2.0]), [0.0, 0.0]
    for decay in (0.0, 0.25):
      tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(1.0))
      rule = meta.meta_weight_net(tx, hidden=5, key=jax.random.key(1))
      start = rule.init(losses)
      _, state = _update(rule, nothing, losses=losses)
      expected = jax.tree.map(lambda leaf, decay=decay: (1 - decay) * leaf, start.params)
      chex.assert_trees_all_equal(state.params, expected)

  def test_a_batch_without_weight_teaches_nothing(self):
    rule = meta.learned_weights(_tilt, 0.5, optax.sgd(1.0), normalized=True)
    weights, state = _update(rule, [3.0, 1.0], weights=[0.0, 0.0], labels=jnp.array([1.0, -1.0]))
    self.assertEqual(weights.tolist(), [0.0, 0.0])
    self.assertEqual(float(state.params), 0.5)

  @parameterized.parameters(True, False)
  def test_a_small_step_raises_the_weight_of_what_helps(self, normalized):
    losses, alignment = jnp.array([0.1, 1.0, 2.0, 4.0]), np.array([1.0, -0.5, 0.3, -2.0])
    totals = []
    for rate in (0.0, 1e-2):
      rule = meta.meta_weight_net(
        optax.sgd(rate), hidden=5, normalized=normalized, key=jax.random.key(1)
      )
      weights, _ = _update(rule, alignment, losses=losses)
      totals.append(alignment @ np.asarray(weights))
    self.assertGreater(totals[1], totals[0] + 1e-4)

  def test_bad_factors_and_params_are_refused_in_one_line(self):
    rule = meta.learned_weights(lambda theta, **unused: theta, 1.0, optax.sgd(1.0))
    with self.assertRaisesRegex(ValueError, r"shape \(2,\), got shape \(\)"):
      _update(rule, [1.0, 1.0])
    with self.assertRaisesRegex(TypeError, r"int32 at params\['rank'\]"):
      meta.learned_weights(_tilt, {"rank": jnp.array(1)}, optax.sgd(1.0))

  def test_the_learned_parameters_are_those_of_exactly_one_rule(self):
    rule = meta.learned_weights(_tilt, 0.25, optax.sgd(0.1))
    deep = optax.chain(rw.rules.focal(), rw.rules.after_burn_in(rule, 3)).init(jnp.ones(2))
    self.assertEqual(float(meta.learned_params(deep)), 0.25)
    for several, count in ((optax.chain(rule, rule), 2), (rw.rules.focal(), 0)):
      with self.assertRaisesRegex(ValueError, f"got {count} of them"):
        meta.learned_params(several.init(jnp.ones(2)))


class WeightNetTest(parameterized.TestCase):
  def test_layers_start_uniform_within_one_over_the_root_of_their_inputs(self):
    rule = meta.meta_weight_net(optax.sgd(0.1), hidden=(100, 100), key=jax.random.key(0))
    params = jax.tree.map(np.asarray, rule.init(jnp.ones(2)).params)
    self.assertEqual([layer.kernel.shape for layer in params], [(1, 100), (100, 100), (100, 1)])
    leaves = [params[0].kernel, params[0].bias, params[1].kernel, params[1].bias, params[2].kernel]
    for leaf, bound in zip(leaves, (1, 1, 0.1, 0.1, 0.1), strict=True):
      self.assertLessEqual(float(abs(leaf).max()), bound)
      # Of 100 uniform draws the largest is above 0.9 of the bound, the mean within a third of it.
      self.assertGreater(float(leaf.max()), 0.9 * bound)
      self.assertLess(float(leaf.min()), -0.9 * bound)
      self.assertLess(float(abs(leaf.mean())), bound / 3)

  def test_the_label_chooses_the_curve(self):
    rule = meta.class_aware_weight_net(
      optax.sgd(0.0), COUNTS, hidden=5, normalized=False, key=jax.random.key(2)
    )
    losses, labels = jnp.array([0.0, 0.5, 3.0, 9.0]), jnp.array([2, 0, 1, 7])
    weights, state = _update(rule, jnp.ones(4), losses=losses, labels=labels)
    heads = np.asarray(jax.jit(_net)(state.params, losses))
    groups = [0, 2, 1, 0]  # of the labels; beyond the last class it is the last one
    np.testing.assert_allclose(weights, heads[np.arange(4), np.array(groups)], rtol=1e-6)
    for group in range(3):
      curve = meta.weight_curve(state, losses, group=group)
      np.testing.assert_allclose(curve, heads[:, group], rtol=1e-6)

  @parameterized.parameters(
    ([7, 7, 7], 3, [0, 0, 0]),
    ([9, 1, 9, 2], 5, [2, 0, 2, 1]),
    ([100, 1, 2, 11, 10], 3, [2, 0, 0, 1, 1]),
    ([100, 1, 2, 11, 10], 1, [0, 0, 0, 0, 0]),
  )
  def test_groups_are_of_similar_size(self, counts, num_groups, expected):
    self.assertEqual(meta.class_size_groups(counts, num_groups).tolist(), expected)

  @parameterized.parameters(2, 3, 4)
  def test_no_other_split_has_smaller_squared_distances(self, num_groups):
    counts = np.sort(np.random.default_rng(num_groups).integers(1, 5000, size=9))
    distances = lambda parts: sum(np.square(part - part.mean()).sum() for part in parts)
    cuts = itertools.combinations(range(1, 9), num_groups - 1)
    best = min(distances(np.split(counts, cut)) for cut in cuts)
    groups = meta.class_size_groups(counts, num_groups)
    found = distances([counts[groups == group] for group in range(num_groups)])
    self.assertAlmostEqual(found / best, 1.0, places=9)

  def test_bad_settings_are_refused_in_one_line(self):
    key, tx = jax.random.key(0), optax.sgd(0.1)
    with self.assertRaisesRegex(ValueError, "hidden expects a whole number >= 1, got 0"):
      meta.meta_weight_net(tx, hidden=(4, 0), key=key)
    with self.assertRaisesRegex(ValueError, "num_groups expects a whole number >= 1, got 0"):
      meta.class_size_groups([1, 2], 0)
    with self.assertRaisesRegex(ValueError, "got -3 for class 1"):
      meta.class_aware_weight_net(tx, [5, -3], key=key)
    state = meta.meta_weight_net(tx, hidden=5, key=key).init(jnp.ones(1))
    with self.assertRaisesRegex(ValueError, r"group in \[0, 1\), got 1"):
      meta.weight_curve(state, jnp.ones(3), group=1)
    with self.assertRaisesRegex(ValueError, "another rule that learns"):
      meta.weight_curve(meta.lilaw(tx).init(jnp.ones(1)), jnp.ones(3))


class NoisyLabelsTest(absltest.TestCase):
  def test_with_wrong_labels_the_net_learns_to_weigh_large_losses_less(self):
    # Two classes far apart on a line through the plane; 40 % of the training labels are flipped.
    rng = np.random.default_rng(0)
    classes = np.arange(80) % 2
    inputs = np.stack([4.0 * classes - 2, np.ones(80)], 1) + 0.3 * rng.normal(size=(80, 2))
    wrong = (np.arange(80) < 64) & (rng.random(80) < 0.4)
    inputs, labels = inputs.astype(np.float32), (classes ^ wrong).astype(np.int32)
    batch = rw.types.make_batch(inputs[:64], labels[:64])
    clean = rw.types.make_batch(inputs[64:], labels[64:])

    net = meta.meta_weight_net(optax.sgd(1.0), hidden=5, key=jax.random.key(0))
    tx = optax.sgd(0.5)
    state = rw.training.init_train_state(
      jnp.zeros((2, 2)), (), net, tx, key=jax.random.key(0), batch_size=64
    )
    step = jax.jit(rw.training.make_train_step(LOSS_FN, net, tx, virtual_optimizer=tx))
    for _ in range(150):
      state, metrics = step(state, batch, clean)
    weights, is_wrong = np.asarray(metrics.weights), wrong[:64]
    self.assertLess(weights[is_wrong].mean(), 0.5 * weights[~is_wrong].mean())


if __name__ == "__main__":
  absltest.main()
