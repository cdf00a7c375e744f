"""Push, pull and single rows against each other and against brute force."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import per_example
from tests import zoo

INDEPENDENT = ("mlp", "group_norm")

# Eager JAX compiles every operation by itself; one program a test is far faster.
grads = jax.jit(per_example.grads, static_argnums=0, static_argnames="microbatch_size")
grad_norms = jax.jit(per_example.grad_norms, static_argnums=0, static_argnames="microbatch_size")


@functools.partial(jax.jit, static_argnums=0)
def linearized(loss_fn, params, state, batch, key=None, direction=None, weights=None):
  outputs, push, pull = per_example.linearize(loss_fn, params, state, batch, key=key)
  direction = params if direction is None else direction
  weights = jnp.ones_like(outputs.losses) if weights is None else weights
  return outputs, push(direction), pull(weights)


class LinearizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @parameterized.parameters("dropout", "batch_norm")
  def test_push_and_pull_are_the_jacobian_of_the_losses(self, name):
    self._check_jacobian(name)

  @parameterized.parameters("mlp", "group_norm")
  @pytest.mark.long  # below: parameters copy the mark
  def test_of_other_nets_too(self, name):
    self._check_jacobian(name)

  def _check_jacobian(self, name):
    loss_fn, params, state = zoo.make(name, jnp.float64)
    batch, key = zoo.random_batch(1, 5, jnp.float64), jax.random.key(2)
    direction = zoo.random_like(params, seed=3)
    weights = np.array([0.3, -1.0, 2.0, 0.0, 1.5])

    outputs, push, pull = linearized(loss_fn, params, state, batch, key, direction, weights)
    losses_of = lambda p: loss_fn(p, state, batch, key).losses
    losses, jacobian = jax.jit(lambda p: (losses_of(p), jax.jacrev(losses_of)(p)))(params)
    rows = zoo.numpy_map(lambda j, d: np.tensordot(j, d, axes=d.ndim), jacobian, direction)
    chex.assert_trees_all_close(push, sum(jax.tree.leaves(rows)), rtol=1e-10)
    expected = zoo.numpy_map(lambda j: np.tensordot(weights, j, axes=1), jacobian)
    chex.assert_trees_all_close(pull, expected, rtol=1e-9, atol=1e-13)
    chex.assert_trees_all_close(outputs.losses, losses, rtol=1e-12)

  @parameterized.parameters("dropout", "batch_norm")
  def test_push_equals_central_differences_of_the_losses(self, name):
    loss_fn, params, state = zoo.make(name, jnp.float64)
    batch, key, step = zoo.random_batch(1, 5, jnp.float64), jax.random.key(2), 1e-6
    direction = zoo.random_like(params, seed=3)
    losses_at = jax.jit(lambda p: loss_fn(p, state, batch, key).losses)
    shifted = lambda sign: np.asarray(
      losses_at(zoo.numpy_map(lambda p, d: p + sign * step * d, params, direction))
    )
    weights = np.ones(5)  # given, so that the program is that of the Jacobian
    _, push, _ = linearized(loss_fn, params, state, batch, key, direction, weights)
    np.testing.assert_allclose(push, (shifted(1) - shifted(-1)) / (2 * step), rtol=1e-6, atol=1e-8)

  def test_padding_has_no_loss_no_push_and_gives_nothing_to_pull(self):
    loss_fn, params, state = zoo.make("mlp", jnp.float64)
    padded = zoo.random_batch(1, 6, jnp.float64, num_padding=2)
    weights = np.array([0.0, 0, 0, 0, 7, 7])
    outputs, push, only_padding = linearized(loss_fn, params, state, padded, weights=weights)
    self.assertEqual(outputs.losses[4:].tolist(), [0, 0])
    self.assertEqual(push[4:].tolist(), [0, 0])
    chex.assert_trees_all_equal(only_padding, zoo.numpy_map(np.zeros_like, params))

  def test_an_integer_parameter_is_refused_by_name(self):
    loss_fn, params, state = zoo.make("mlp")
    with self.assertRaisesRegex(TypeError, r"int32 at params\['steps'\]"):
      per_example.linearize(
        loss_fn, {**params, "steps": jnp.int32(1)}, state, zoo.random_batch(1, 2)
      )


class GradsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @parameterized.parameters(("mlp", 2), ("group_norm", 4))
  def test_rows_equal_the_gradient_of_each_example_alone(self, name, microbatch_size):
    self._check_rows(name, microbatch_size)

  @parameterized.parameters(None, 100)
  @pytest.mark.long  # below: parameters copy the mark
  def test_at_once_too(self, microbatch_size):
    self._check_rows("mlp", microbatch_size)

  def _check_rows(self, name, microbatch_size):
    loss_fn, params, state = zoo.make(name, jnp.float64)
    batch = zoo.random_batch(1, 5, jnp.float64, num_padding=1)
    rows = grads(loss_fn, params, state, batch, microbatch_size=microbatch_size)
    alone_of = jax.jit(jax.grad(lambda p, i: loss_fn(p, state, batch, None).losses[i]))
    for i in range(5):
      alone = zoo.numpy_map(lambda g, i=i: g * (i < 4), alone_of(params, i))
      row = zoo.numpy_map(lambda leaf, i=i: leaf[i], rows)
      chex.assert_trees_all_close(row, alone, rtol=1e-9, atol=1e-13)

  @parameterized.parameters(*INDEPENDENT)
  def test_pull_equals_tensordot_with_the_rows(self, name):
    loss_fn, params, state = zoo.make(name, jnp.float64)
    batch = zoo.random_batch(1, 5, jnp.float64)
    weights = np.array([0.0, 2.0, 0.5, 1.0, 3.0])
    rows = grads(loss_fn, params, state, batch)
    _, _, pulled = linearized(loss_fn, params, state, batch, weights=weights)
    expected = zoo.numpy_map(lambda leaf: np.tensordot(weights, leaf, axes=1), rows)
    chex.assert_trees_all_close(pulled, expected, rtol=1e-9, atol=1e-13)

  def test_norms_are_the_euclidean_norms_of_the_rows(self):
    loss_fn, params, state = zoo.make("mlp", jnp.float64)
    batch = zoo.random_batch(1, 5, jnp.float64)
    rows = grads(loss_fn, params, state, batch)
    flat = np.concatenate(
      [np.asarray(leaf).reshape(5, -1) for leaf in jax.tree.leaves(rows)], axis=1
    )
    for size in (None, 2):
      norms = grad_norms(loss_fn, params, state, batch, microbatch_size=size)
      np.testing.assert_allclose(norms, np.linalg.norm(flat, axis=1), rtol=1e-12)

  def test_every_example_draws_its_own_dropout_mask(self):
    loss_fn, params, state = zoo.make("dropout", jnp.float64)
    batch = zoo.random_batch(1, 1, jnp.float64)
    twins = zoo.numpy_map(lambda leaf: np.concatenate([leaf] * 4), batch)
    norms = grad_norms(loss_fn, params, state, twins, key=jax.random.key(0))
    self.assertGreater(np.ptp(norms), 1e-3)


class CouplingTest(parameterized.TestCase):
  @parameterized.product(under_jit=(False, True), with_state=(False, True))
  def test_batch_norm_in_training_is_refused_saying_why(self, under_jit, with_state):
    loss_fn, params, state = zoo.make("batch_norm")
    if not with_state:  # batch statistics without running averages leave no trace in the state
      stateful, given = loss_fn, state
      loss_fn = lambda p, s, b, k: stateful(p, given, b, k)._replace(model_state=())
      state = ()
    norms = lambda p: per_example.grad_norms(loss_fn, p, state, zoo.random_batch(1, 4))
    with self.assertRaisesRegex(ValueError, "BatchNorm.*linearize"):
      (jax.jit(norms) if under_jit else norms)(params)

  @parameterized.parameters(
    (64, (128, 128)), (784, (256, 256)), (64, (64,) * 6), (4, (32, 32)), (8, (32, 32))
  )
  def test_batch_norm_is_found_in_nets_of_any_width_and_depth(self, num_inputs, hidden):
    net = rw.models.MLP(num_classes=10, hidden=hidden, norm="batch")
    inputs = jnp.asarray(np.ones((5, num_inputs), np.float32))
    params, state = zoo.init_shapes(net, inputs)
    ones = lambda leaf: jnp.asarray(np.ones(leaf.shape, np.float32))
    params, state = jax.tree.map(ones, (params, state))
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    with self.assertRaisesRegex(ValueError, "BatchNorm"):
      grads(loss_fn, params, state, rw.types.make_batch(inputs, np.zeros(5, np.int32)))

  def test_losses_that_compare_examples_are_found(self):
    def supervised_contrastive(params, state, batch, key):
      embedding = batch.inputs @ params
      embedding = embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)
      others = embedding @ embedding.T - 1e9 * jnp.eye(embedding.shape[0])
      same = (batch.labels[:, None] == batch.labels[None]) & ~jnp.eye(
        embedding.shape[0], dtype=bool
      )
      return rw.types.Outputs(-jnp.sum(jax.nn.log_softmax(others) * same, axis=1))

    def by_class_count(params, state, batch, key):
      counts = jnp.sum(batch.labels[:, None] == batch.labels[None], axis=1)
      return rw.types.Outputs((batch.inputs @ params)[:, 0] / counts)

    batch = rw.types.make_batch(jnp.ones((5, 3)), jnp.zeros(5, jnp.int32))
    for loss_fn in (supervised_contrastive, by_class_count):
      with self.assertRaises(ValueError):
        grads(loss_fn, jnp.ones((3, 4)), (), batch)

  def test_batch_norm_in_evaluation_is_not_coupled(self):
    _, params, state = zoo.make("batch_norm")
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(zoo.NETS["batch_norm"]), train=False)
    chex.assert_shape(grad_norms(loss_fn, params, state, zoo.random_batch(1, 4)), (4,))

  def test_coupling_through_integer_inputs_is_found(self):
    class Tokens(nn.Module):
      couple: bool

      @nn.compact
      def __call__(self, tokens, train):
        x = nn.Embed(5, 4)(tokens).mean(1)
        return nn.Dense(3)(x - x.mean(0, keepdims=True) if self.couple else x)

    batch = rw.types.make_batch(jnp.ones((4, 6), jnp.int32), jnp.zeros(4, jnp.int32))
    for couple in (False, True):
      net = Tokens(couple)
      params = zoo.random_like(zoo.init_shapes(net, batch.inputs)[0], 0)
      loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
      rows = lambda: grads(loss_fn, params, (), batch)  # noqa: B023
      if couple:
        self.assertRaises(ValueError, rows)
      else:
        chex.assert_tree_shape_prefix(rows(), (4,))

  def test_vmap_of_grad_through_batch_norm_would_be_wrong(self):
    net = rw.models.MLP(num_classes=3, hidden=(16, 16), norm="batch")
    batch = zoo.random_batch(1, 8)
    params, state = zoo.init_shapes(net, batch.inputs)
    params = zoo.random_like(params, 0)
    state = jax.tree.map(lambda x: np.ones(x.shape, np.float32), state)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    loss_of = lambda p, b: loss_fn(p, state, jax.tree.map(lambda x: x[None], b), None).losses[0]
    rows = jax.jit(jax.vmap(jax.grad(loss_of), in_axes=(None, 0)))(params, batch)
    leaves = lambda tree: map(np.asarray, jax.tree.leaves(tree))
    wrong = np.concatenate([leaf.sum(0).ravel() for leaf in leaves(rows)])
    _, _, pulled = linearized(loss_fn, params, state, batch)
    right = np.concatenate([leaf.ravel() for leaf in leaves(pulled)])
    cosine = wrong @ right / (np.linalg.norm(wrong) * np.linalg.norm(right))
    self.assertLess(cosine, 0.9)


class WeightedAggregateTest(parameterized.TestCase):
  def test_chained_with_an_optimizer_it_is_the_weighted_training_step(self):
    loss_fn, params, state = zoo.make("mlp")
    batch = zoo.random_batch(1, 6, num_padding=2)
    # A rule that gives padding weight, which the aggregate must not pass on.
    careless = rw.rules.weighting_rule(lambda weights, **unused: weights + 1)
    rule, tx = optax.chain(rw.rules.focal(2.0), careless), optax.sgd(0.1)
    key = jax.random.key(0)
    train = rw.training.init_train_state(params, state, rule, tx, key=key, batch_size=6)
    stepped, _ = jax.jit(rw.training.make_train_step(loss_fn, rule, tx))(train, batch)

    lifted = optax.chain(per_example.weighted_aggregate(rule, batch_size=6), tx)
    rows = grads(loss_fn, params, state, batch)
    logits = jax.jit(loss_fn)(params, state, batch, None).logits
    evidence = {"mask": batch.mask, "logits": logits, "labels": batch.labels}
    updates, _ = jax.jit(lifted.update)(rows, lifted.init(params), params, **evidence)
    chex.assert_trees_all_close(
      zoo.numpy_map(np.add, params, updates), stepped.params, rtol=1e-5, atol=1e-7
    )

  def test_a_leaf_of_another_batch_size_is_refused_by_name(self):
    lifted = per_example.weighted_aggregate(rw.rules.uniform(), batch_size=3)
    with self.assertRaisesRegex(ValueError, r"updates\['w'\] has shape \(2, 5\)"):
      lifted.update({"w": jnp.zeros((2, 5))}, lifted.init({}), mask=jnp.ones(3, bool))


if __name__ == "__main__":
  absltest.main()
