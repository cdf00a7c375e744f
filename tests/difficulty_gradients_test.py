"""Scores from gradients against brute force, closed forms and NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax.difficulty import gradients, saliency


class OneLayer(nn.Module):
  @nn.compact
  def __call__(self, inputs: Any, train: bool) -> Any:
    return nn.Dense(3, name="layer")(inputs)


def _linear(params, state, inputs, key, train):
  layer = params["layer"]
  return inputs @ layer["kernel"] + layer["bias"][None, :], state


def _tanh(params, state, inputs, key, train):
  return jnp.tanh(inputs.reshape(inputs.shape[0], -1) @ params[0]) @ params[1], state


def _batch_mean(params, state, inputs, key, train):
  return (inputs - inputs.mean(axis=0, keepdims=True)) @ params, state


def _noisy(params, state, inputs, key, train):
  return inputs @ params * jax.random.normal(key, (1, 3)), state


# Without a recorder of layers, but for the linen module.
LINEAR, TANH, COUPLED, NOISY = (
  rw.losses.from_apply(apply_fn) for apply_fn in (_linear, _tanh, _batch_mean, _noisy)
)
RECORDED = rw.losses.from_apply(rw.models.linen_apply(OneLayer()))

standardize = jax.jit(saliency.standardize_by_class, static_argnums=2)


def _float32(tree):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _batch(inputs, labels, mask=None):
  return rw.types.make_batch(np.asarray(inputs, np.float32), np.asarray(labels), mask=mask)


def _linear_case(seed, size=6):
  """One dense layer of 4 features and 3 classes in NumPy, with inputs and labels."""
  rng = np.random.default_rng(seed)
  params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
  return {"layer": params}, rng.normal(size=(size, 4)), np.arange(size) % 3


def _probabilities(layer, inputs):
  terms = np.exp(inputs @ layer["kernel"] + layer["bias"])
  return terms / terms.sum(axis=1, keepdims=True)


class GradientNormsTest(parameterized.TestCase):
  def test_equal_the_norms_of_the_whole_jacobian(self):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      networks = [((rng.normal(size=(6, 5)), rng.normal(size=(5, 3))), ()) for _ in range(2)]
      mask = np.array([True, True, True, False])
      batch = rw.types.make_batch(rng.normal(size=(4, 6)), np.array([0, 2, 1, 2]), mask=mask)
      norms = gradients.gradient_norms(TANH, networks, batch)
      jacobian = jax.jit(jax.jacobian(lambda params: TANH(params, (), batch, None).losses))
      for number, (params, _) in enumerate(networks):
        rows = [np.asarray(leaf).reshape(4, -1) for leaf in jacobian(params)]
        expected = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
        np.testing.assert_allclose(norms[number, :3], expected[:3], rtol=1e-10)
      self.assertTrue(np.isnan(norms[:, 3]).all())
      self.assertEqual(norms.dtype, np.float64)

  @parameterized.parameters((RECORDED, "ghost"), (RECORDED, "auto"), (LINEAR, "auto"))
  def test_of_one_layer_are_error_times_input_with_the_bias_as_an_input_of_1(self, loss_fn, route):
    params, inputs, labels = _linear_case(0)
    errors = _probabilities(params["layer"], inputs) - np.eye(3)[labels]
    expected = np.linalg.norm(errors, axis=1) * np.sqrt(np.sum(inputs**2, axis=1) + 1)
    networks = [(_float32(params), ())]
    norms = gradients.gradient_norms(loss_fn, networks, _batch(inputs, labels), route=route)
    np.testing.assert_allclose(norms[0], expected, rtol=1e-5)

  def test_networks_draw_each_from_a_key_of_their_own(self):
    _, inputs, labels = _linear_case(0)
    networks = [(jnp.ones((4, 3)), ())] * 2
    batch, key = _batch(inputs, labels), jax.random.key(0)
    norms = gradients.gradient_norms(NOISY, networks, batch, key=key)
    self.assertGreater(np.abs(norms[0] - norms[1]).min(), 1e-3)

  def test_batch_statistics_are_refused(self):
    _, inputs, labels = _linear_case(0)
    with self.assertRaisesRegex(ValueError, "do not see each other.*BatchNorm"):
      gradients.gradient_norms(COUPLED, [(jnp.ones((4, 3)), ())], _batch(inputs, labels))

  def test_a_single_network_not_in_a_list_is_refused_saying_how_to_give_it(self):
    params, inputs, labels = _linear_case(0)
    batch = _batch(inputs, labels)
    with self.assertRaisesRegex(TypeError, r"pairs, got dict at 0.*\[\(params, model_state\)\]"):
      gradients.gradient_norms(LINEAR, (params, ()), batch)
    with self.assertRaisesRegex(ValueError, "at least one network"):
      gradients.grand(LINEAR, [], batch)


class GrandTest(absltest.TestCase):
  def test_is_the_mean_norm_over_networks_read_one_at_a_time(self):
    batch = _batch([[3.0, 4.0], [0.0, 2.0]], [0, 0])
    # One logit a class, (w x, 0): the gradient by w is p(other) times the input.
    apply_fn = lambda params, state, x, key, train: (
      jnp.stack([x @ params, jnp.zeros(x.shape[0])], axis=1),
      state,
    )
    loss_fn = rw.losses.from_apply(apply_fn)
    networks = ((jnp.full(2, scale, jnp.float32), ()) for scale in (0.0, 1.0))
    # Networks 0 and 1 err by 1/2, 1/2 and by sigmoid(-7), sigmoid(-2), at norms 5 and 2.
    expected = [5 * (0.5 + 0.0009110512) / 2, 2 * (0.5 + 0.1192029) / 2]
    scores = gradients.grand(loss_fn, networks, batch)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


class SelfInfluenceTest(parameterized.TestCase):
  def test_adds_up_learning_rates_times_squared_norms(self):
    norms = np.array([[1.0, 2.0, 0.0], [3.0, np.nan, 0.5]], np.float32)
    scores = gradients.self_influence(norms, [0.1, 2.0])
    np.testing.assert_allclose(scores, [18.1, np.nan, 0.5], rtol=1e-6)

  def test_is_how_far_a_small_step_on_an_example_lowers_its_loss(self):
    params, inputs, labels = _linear_case(3)
    rate, falls = 1e-4, []
    for x, label in zip(inputs, labels, strict=True):
      layer = params["layer"]
      before = _probabilities(layer, x[None])[0]
      error = before - np.eye(3)[label]
      stepped = {
        "kernel": layer["kernel"] - rate * np.outer(x, error),
        "bias": layer["bias"] - rate * error,
      }
      falls.append(np.log(_probabilities(stepped, x[None])[0, label] / before[label]))
    networks = [(_float32(params), ())]
    norms = gradients.gradient_norms(LINEAR, networks, _batch(inputs, labels))
    np.testing.assert_allclose(gradients.self_influence(norms, [rate]), falls, rtol=1e-2)

  @parameterized.parameters(
    ((2, 3), [0.1], "learning rate for each checkpoint, got norms of shape .2, 3. and 1"),
    ((3,), [0.1, 0.1, 0.1], "shape .3,."),
    ((2, 3), [0.1, -1.0], "got -1.0 for checkpoint 1"),
  )
  def test_what_does_not_fit_is_refused(self, shape, learning_rates, message):
    with self.assertRaisesRegex(ValueError, message):
      gradients.self_influence(np.ones(shape), learning_rates)


class InputGradientsTest(parameterized.TestCase):
  def test_of_a_hidden_layer_follow_the_chain_rule_in_the_shape_of_the_inputs(self):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(4, 2, 3)), np.array([0, 2, 1, 2])
    networks = [(rng.normal(size=(6, 5)), rng.normal(size=(5, 3))) for _ in range(2)]
    expected = []
    for first, second in networks:
      slopes = 1 - np.tanh(inputs.reshape(4, 6) @ first) ** 2
      expected.append(((slopes * second[:, labels].T) @ first.T).reshape(4, 2, 3))
    mask = np.array([True, True, True, False])
    pairs = [(_float32(net), ()) for net in networks]
    maps = saliency.input_gradients(TANH, pairs, _batch(inputs, labels, mask))
    np.testing.assert_allclose(maps[:, :3], np.stack(expected)[:, :3], rtol=2e-5, atol=1e-5)
    self.assertTrue(np.isnan(maps[:, 3]).all())

  def test_coupled_examples_tokens_and_missing_logits_are_refused(self):
    _, inputs, labels = _linear_case(0)
    networks, batch = [(jnp.ones((4, 3)), ())], _batch(inputs, labels)
    with self.assertRaisesRegex(ValueError, "BatchNorm.*train=False"):
      saliency.input_gradients(COUPLED, networks, batch)
    tokens = batch._replace(inputs=np.zeros((6, 4), np.int32))
    with self.assertRaisesRegex(TypeError, "floating inputs, got int32. Embed tokens"):
      saliency.input_gradients(LINEAR, networks, tokens)
    bare = lambda params, state, batch, key: rw.types.Outputs((batch.inputs @ params)[:, 0])
    with self.assertRaisesRegex(ValueError, r"got no logits and labels \(6,\)"):
      saliency.input_gradients(bare, networks, batch)


class VarianceOfGradientsTest(parameterized.TestCase):
  def test_is_the_mean_over_entries_of_the_deviation_over_snapshots(self):
    maps = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype(np.float32)
    expected = np.std(maps.astype(np.float64), axis=0).mean(axis=(1, 2))
    np.testing.assert_allclose(saliency.variance_of_gradients(maps), expected, rtol=1e-5)
    # In a tree every entry counts alike: parts of 4 and of 2 entries are the same 6.
    parts = {"a": maps[:, :, :2], "b": maps[:, :, 2]}
    np.testing.assert_allclose(saliency.variance_of_gradients(parts), expected, rtol=1e-5)

  @parameterized.parameters(((1, 5, 3),), ((4,),))
  def test_a_single_snapshot_is_refused(self, shape):
    with self.assertRaisesRegex(ValueError, "at least 2 snapshots, got shapes"):
      saliency.variance_of_gradients(np.ones(shape, np.float32))


class StandardizeByClassTest(parameterized.TestCase):
  def test_gives_every_class_mean_0_and_deviation_1(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 30)
    scores = (rng.normal(size=30) * 10.0**labels + 100 * labels).astype(np.float32)
    standard = np.asarray(standardize(scores, labels, 4))
    for label in range(3):
      own = scores[labels == label].astype(np.float64)
      expected = (own - own.mean()) / own.std()
      np.testing.assert_allclose(standard[labels == label], expected, rtol=1e-3, atol=1e-4)

  def test_what_has_no_score_or_no_class_does_not_count(self):
    scores = np.array([1.0, 3.0, np.nan, np.inf, 7.0, 5.0, 5.0], np.float32)
    labels = np.array([0, 0, 0, 0, 1, -1, 2])
    expected = [-1, 1, np.nan, np.inf, 0, np.nan, np.nan]
    np.testing.assert_allclose(standardize(scores, labels, 2), expected)

  def test_lengths_that_differ_are_refused(self):
    with self.assertRaisesRegex(ValueError, r"shapes \(3,\) and \(2,\)"):
      saliency.standardize_by_class(np.ones(3), np.zeros(2, np.int32), 2)


if __name__ == "__main__":
  absltest.main()
