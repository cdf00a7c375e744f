"""Every route to the weights of learning to reweight against the definition and differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import meta, per_example
from tests import zoo

ROUTES = ("nested", "forward")  # those that take any model; ghost_test has the others

example_weights = jax.jit(
  meta.example_weights, static_argnums=0, static_argnames=("route", "virtual_optimizer")
)


def _setting(name, dtype=jnp.float64, size=6, meta_size=4):
  loss_fn, params, state = zoo.make(name, dtype)
  batch, meta_batch = zoo.random_batch(1, size, dtype), zoo.random_batch(2, meta_size, dtype)
  return loss_fn, params, state, batch, meta_batch


def _meta_loss_after_step(name, learning_rate):
  """v -> meta loss after one virtual step, written out without the package's routes."""
  loss_fn, params, state, batch, meta_batch = _setting(name)
  key, meta_key = jax.random.split(jax.random.key(7))

  def meta_loss(v):
    grads = jax.grad(lambda p: jnp.sum(v * loss_fn(p, state, batch, key).losses))(params)
    moved = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    return jnp.mean(loss_fn(moved, state, meta_batch, meta_key).losses)

  return jax.jit(meta_loss)


def _paper_weights(meta_gradient):
  """Lines 10 and 11 of algorithm 1 in NumPy."""
  raised = np.maximum(-np.asarray(meta_gradient), 0)
  return raised / (raised.sum() + (raised.sum() == 0))


class RoutesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  # Each net by both routes; the two that draw or couple in every run, the others in the long one.
  @parameterized.parameters("dropout", "batch_norm")
  def test_forward_equals_nested_to_1e_12(self, name):
    self._check_forward(name)

  @parameterized.parameters("mlp", "group_norm")
  @pytest.mark.long  # below: parameters copy the mark
  def test_forward_equals_nested_in_other_nets_too(self, name):
    self._check_forward(name)

  def _check_forward(self, name):
    arguments, key = _setting(name), jax.random.key(7)
    forward, nested = (
      example_weights(*arguments, key=key, route=route) for route in ("forward", "nested")
    )
    self.assertEqual(forward.dtype, jnp.float64)
    self.assertGreater(float(nested.max()), 0)
    np.testing.assert_allclose(forward, nested, rtol=0, atol=1e-12)

  @parameterized.product(name=("dropout", "batch_norm"), route=ROUTES)
  def test_weights_equal_central_differences_to_1e_6(self, name, route):
    self._check_differences(name, route)

  @parameterized.product(name=("mlp", "group_norm"), route=ROUTES)
  @pytest.mark.long  # below: parameters copy the mark
  def test_weights_equal_central_differences_in_other_nets_too(self, name, route):
    self._check_differences(name, route)

  def _check_differences(self, name, route):
    meta_loss, step = _meta_loss_after_step(name, learning_rate=1.0), 1e-5
    shifts = step * np.eye(6)
    differences = [(meta_loss(shift) - meta_loss(-shift)) / (2 * step) for shift in shifts]
    weights = example_weights(*_setting(name), key=jax.random.key(7), route=route)
    np.testing.assert_allclose(weights, _paper_weights(differences), atol=1e-6)

  @parameterized.parameters(*ROUTES)
  def test_the_virtual_learning_rate_does_not_change_the_weights(self, route):
    arguments, key = _setting("dropout"), jax.random.key(7)

    @jax.jit
    def weights_at(rate):
      sgd = optax.sgd(rate)
      return meta.example_weights(*arguments, key=key, route=route, virtual_optimizer=sgd)

    default = example_weights(*arguments, key=key, route=route)
    for rate in (1e-3, 1.0, 100.0):
      np.testing.assert_allclose(weights_at(rate), default, atol=1e-12)

  def test_alignment_is_the_inner_product_of_gradients(self):
    loss_fn, params, state, batch, meta_batch = _setting("mlp")
    grads = jax.jit(per_example.grads, static_argnums=0)
    rows = grads(loss_fn, params, state, batch)
    mean_grad = zoo.numpy_map(
      lambda leaf: leaf.mean(0, keepdims=True), grads(loss_fn, params, state, meta_batch)
    )
    products = zoo.numpy_map(
      lambda r, g: np.sum(r * g, axis=tuple(range(1, r.ndim))), rows, mean_grad
    )
    weights = example_weights(loss_fn, params, state, batch, meta_batch)
    np.testing.assert_allclose(weights, _paper_weights(-sum(jax.tree.leaves(products))), atol=1e-12)


class ExampleWeightsTest(parameterized.TestCase):
  def test_weights_of_a_hand_worked_problem(self):
    # Squared loss of theta * x at theta = 0: the gradient of (x, y) is -x y. Clean: -2 * 3 = -6.
    # Products with the examples' gradients -1, 2, -4: 6, -12, 24. Rectified: 6, 0, 24.
    model = lambda theta, state, x, key, train: (x * theta, state)
    loss_fn = rw.losses.from_apply(model, rw.losses.squared_error)
    batch = rw.types.make_batch(jnp.array([1.0, 1.0, 2.0]), jnp.array([1.0, -2.0, 2.0]))
    clean = rw.types.make_batch(jnp.array([2.0]), jnp.array([3.0]))
    for route in ROUTES:
      weights = example_weights(loss_fn, jnp.float32(0), (), batch, clean, route=route)
      np.testing.assert_allclose(weights, [0.2, 0.0, 0.8], rtol=1e-6)

  def test_a_wrong_label_weighs_less_than_the_right_one(self):
    model = lambda params, state, x, key, train: (x @ params, state)
    loss_fn = rw.losses.from_apply(model)
    x = jnp.array([[2.0, 1.0]])
    batch = rw.types.make_batch(jnp.concatenate([x, x]), jnp.array([0, 1]))
    clean = rw.types.make_batch(x + 0.1, jnp.array([0]))
    right, wrong = example_weights(loss_fn, jnp.zeros((2, 2)), (), batch, clean)
    self.assertEqual((float(right), float(wrong)), (1.0, 0.0))

  def test_two_copies_of_an_example_get_equal_weights(self):
    loss_fn, params, state, batch, clean = _setting("mlp", jnp.float32)
    batch = zoo.numpy_map(lambda leaf: leaf[np.array([0, 0, 2, 3, 4, 5])], batch)
    weights = example_weights(loss_fn, params, state, batch, clean)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)

  @parameterized.parameters(*ROUTES)
  def test_permuting_the_batch_permutes_the_weights(self, route):
    loss_fn, params, state, batch, clean = _setting("batch_norm", jnp.float32)
    order = np.array([3, 1, 5, 0, 2, 4])
    weights = example_weights(loss_fn, params, state, batch, clean, route=route)
    permuted = zoo.numpy_map(lambda leaf: leaf[order], batch)
    again = example_weights(loss_fn, params, state, permuted, clean, route=route)
    np.testing.assert_allclose(again, weights[order], atol=1e-6)

  @parameterized.parameters(*ROUTES)
  def test_padding_in_either_batch_changes_nothing(self, route):
    loss_fn, params, state, batch, clean = _setting("mlp", jnp.float32)
    pad = lambda b: zoo.numpy_map(lambda leaf: np.concatenate([leaf, leaf[:2]]), b)._replace(
      mask=np.append(b.mask, [False, False])
    )
    plain = example_weights(loss_fn, params, state, batch, clean, route=route)
    padded = example_weights(loss_fn, params, state, pad(batch), pad(clean), route=route)
    np.testing.assert_allclose(padded[:6], plain, atol=1e-6)
    self.assertEqual(padded[6:].tolist(), [0.0, 0.0])

  @parameterized.parameters(*ROUTES)
  def test_when_no_example_helps_all_weights_are_zero(self, route):
    model = lambda theta, state, x, key, train: (x * theta, state)
    loss_fn = rw.losses.from_apply(model, rw.losses.squared_error)
    batch = rw.types.make_batch(jnp.ones(3), -jnp.ones(3))
    clean = rw.types.make_batch(jnp.ones(1), jnp.ones(1))
    weights = example_weights(loss_fn, jnp.float32(0), (), batch, clean, route=route)
    self.assertEqual(weights.tolist(), [0.0, 0.0, 0.0])

  def test_a_bfloat16_model_keeps_weights_in_float32(self):
    net = rw.models.MLP(num_classes=3, hidden=(8,), dtype=jnp.bfloat16)
    params, state = zoo.init_shapes(net, jnp.zeros((2, 6, 6, 2)))
    half = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
    params = zoo.random_like(jax.tree.map(half, params), 0, scale=0.25)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    batch, clean = zoo.random_batch(1, 8), zoo.random_batch(2, 4)
    for route in ROUTES:
      weights = example_weights(loss_fn, params, state, batch, clean, route=route)
      self.assertEqual(weights.dtype, jnp.float32)
      self.assertAlmostEqual(float(weights.sum()), 1.0, places=5)

  def test_running_averages_do_not_matter_and_are_not_touched(self):
    loss_fn, params, state, batch, clean = _setting("batch_norm", jnp.float32)
    other = zoo.numpy_map(lambda leaf: leaf + 3, state)
    weights = [example_weights(loss_fn, params, s, batch, clean) for s in (state, other)]
    chex.assert_trees_all_equal(*weights)

  def test_an_unknown_route_is_refused_listing_the_known(self):
    with self.assertRaisesRegex(ValueError, "one of nested, forward, ghost, auto; got 'backward'"):
      meta.example_weights(*_setting("mlp", jnp.float32), route="backward")


@pytest.mark.long
class ResNetTest(parameterized.TestCase):
  def test_routes_agree_in_float32_to_1e_4_of_the_largest_weight(self):
    net = rw.models.build("resnet8", 10)
    inputs = zoo.random_like(jnp.zeros((12, 8, 8, 3)), seed=0)
    params, state = zoo.init_shapes(net, inputs[:2])
    params = jax.tree.map(
      lambda leaf: leaf * (2 / leaf[..., 0].size) ** 0.5, zoo.random_like(params, seed=1)
    )
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state)
    labels = jnp.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])
    batch = rw.types.make_batch(inputs[:8], labels[:8])
    clean = rw.types.make_batch(inputs[8:], labels[8:])
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    weights = jax.jit(
      lambda: [
        example_weights(loss_fn, params, state, batch, clean, route=route)
        for route in ("forward", "nested")
      ]
    )()
    self.assertGreater(float(weights[1].max()), 0)
    np.testing.assert_allclose(*weights, rtol=0, atol=1e-4 * float(weights[1].max()))


if __name__ == "__main__":
  absltest.main()
