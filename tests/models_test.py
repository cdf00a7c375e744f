"""Tests of the models: sizes and numbers by hand, purity, dtypes, and both ways out of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from reweight_jax import models
from reweight_jax.models import resnet
from tests.models_zoo import (
  KEY,
  compiled,
  count,
  drawn,
  normal,
  shapes_of,
  widened,
)


class CountTest(parameterized.TestCase):
  def test_lenet_with_one_logit_has_the_paper_experiments_params(self):
    convs = (25 * 1 * 16 + 16) + (25 * 16 * 32 + 32) + (25 * 32 * 64 + 64)
    dense = (4 * 4 * 64 * 100 + 100) + (100 + 1)  # 28 -> 14 -> 7 -> 4
    variables = shapes_of(models.LeNet(num_classes=1), 2, 28, 28, 1)
    self.assertEqual(count(variables["params"]), convs + dense)
    self.assertEqual(convs + dense, 167_113)

  # Rounded, those of the deeper ones are the 0.46, 0.66 and 0.85 million of the paper's table 6.
  @parameterized.parameters((8, 75_290), (20, 269_722))
  def test_resnet_params_are_those_of_the_hand_count(self, depth, expected):
    self._check_resnet(depth, expected)

  @parameterized.parameters((32, 464_154), (44, 658_586), (56, 853_018))
  @pytest.mark.long  # below: parameters copy the mark
  def test_deeper_resnets_too(self, depth, expected):
    self._check_resnet(depth, expected)

  def _check_resnet(self, depth, expected):
    blocks = (depth - 2) // 6
    norms = lambda maps: 2 * maps  # scale and bias
    total = 9 * 3 * 16 + norms(16)
    for maps, coming in ((16, 16), (32, 16), (64, 32)):
      total += 9 * coming * maps + (2 * blocks - 1) * 9 * maps * maps + 2 * blocks * norms(maps)
    total += 64 * 10 + 10
    variables = shapes_of(models.build(f"resnet{depth}", 10), 2, 32, 32, 3)
    self.assertEqual(count(variables["params"]), total)
    self.assertEqual(total, expected)
    # A mean and a variance stand beside every scale and bias.
    num_norms = 1 + 2 * blocks * 3
    self.assertLen(jax.tree.leaves(variables["batch_stats"]), 2 * num_norms)

  def test_mlp_params_are_those_of_the_hand_count(self):
    variables = shapes_of(models.MLP(num_classes=3, hidden=(5, 4), norm="batch"), 2, 2, 3)
    self.assertEqual(
      count(variables["params"]), (6 * 5 + 5) + 2 * 5 + (5 * 4 + 4) + 2 * 4 + (4 * 3 + 3)
    )


SHALLOW = ("mlp", "lenet", "resnet8", "conv1d", "transformer")


class BuildTest(parameterized.TestCase):
  @parameterized.parameters(*models.MODELS)
  def test_every_model_takes_small_images(self, name):
    self._check_shape(name, (1, 9, 7, 2))

  @parameterized.product(name=SHALLOW, shape=((2, 28, 28, 1), (3, 32, 32, 3), (2, 8, 8, 1)))
  @pytest.mark.long  # below: parameters copy the mark
  def test_shallow_models_take_images_of_every_data_set(self, name, shape):
    self._check_shape(name, shape)

  def _check_shape(self, name, shape):
    net = models.build(name, 7)
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.numpy_rank_promotion("raise"):
      logits, _ = jax.eval_shape(
        lambda x: net.init_with_output({"params": KEY, "dropout": KEY}, x, train=True), inputs
      )
    self.assertEqual((logits.shape, logits.dtype), ((shape[0], 7), jnp.float32))

  def test_norm_none_means_the_models_own(self):
    self.assertEqual(models.build("resnet8", 2).norm, "batch")
    self.assertEqual(models.build("mlp", 2).norm, "none")
    self.assertEqual(models.build("resnet8", 2, norm="none").norm, "none")
    self.assertEqual(models.build("wrn28_10", 2).norm, "batch")
    self.assertEqual(models.build("conv1d", 2, norm="group").norm, "group")
    self.assertIsInstance(models.build("lenet", 2, norm="none"), models.LeNet)
    self.assertIsInstance(models.build("transformer", 2), models.Transformer)

  def test_resnet_convolutions_have_biases_only_without_norm(self):
    with_norm = shapes_of(models.ResNet(depth=8, norm="group"), 1, 8, 8, 3)["params"]
    without = shapes_of(models.ResNet(depth=8, norm="none"), 1, 8, 8, 3)["params"]
    self.assertNotIn("bias", with_norm["Conv_0"])
    self.assertIn("bias", without["Conv_0"])

  @parameterized.parameters(
    (lambda: models.build("vgg", 2), "resnet20"),
    (lambda: models.build("mlp", 0), "at least 1"),
    (lambda: models.build("lenet", 2, norm="batch"), "lenet has no normalization"),
    (lambda: models.build("transformer", 2, norm="none"), "its own layer normalization"),
    (lambda: models.build("mlp", 2, norm="layer"), "group"),
    (lambda: models.build("resnet8", 2, norm="layer"), "group"),
    (lambda: models.Norm("layer"), "group"),
    (lambda: models.ResNet(depth=18), "6n [+] 2"),
    (lambda: models.ResNet(depth=2), "6n [+] 2"),
    (lambda: models.MLP(dropout_rate=1.0), "dropout_rate"),
  )
  def test_a_bad_choice_is_refused_in_one_line(self, make, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      make()
    self.assertNotIn("\n", str(caught.exception))


class BatchNormTest(parameterized.TestCase):
  def test_training_normalizes_by_the_batch(self):
    inputs = jnp.array([[1.0, 10.0], [3.0, 30.0]])  # means 2 and 20, variances 1 and 100
    norm = models.Norm("batch", epsilon=0.21)
    variables = {
      "params": {"scale": jnp.array([1.1, 2.0]), "bias": jnp.array([0.0, 5.0])},
      "batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
    }
    outputs = norm.apply(variables, inputs, train=True)
    far = 2 * 10 / np.sqrt(100.21)
    np.testing.assert_allclose(outputs, [[-1.0, 5 - far], [1.0, 5 + far]], rtol=1e-6)

  def test_images_share_statistics_over_their_pixels(self):
    inputs = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(2, 1, 2, 1)  # mean 3, variance 3.5
    outputs, new = models.Norm("batch", momentum=0.0).init_with_output(KEY, inputs, train=True)
    self.assertEqual(float(new["batch_stats"]["var"][0]), 1.0)  # making variables moves nothing
    outputs, new = models.Norm("batch", momentum=0.0).apply(
      new, inputs, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(outputs.ravel(), np.array([-2, -1, 0, 3]) / np.sqrt(3.5), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [3.0])
    np.testing.assert_allclose(new["batch_stats"]["var"], [3.5])

  def test_running_averages_move_by_a_tenth(self):
    inputs = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    apply_fn = compiled(models.Norm("batch"))
    params, state = drawn(models.Norm("batch"), 2, 2)
    _, state = apply_fn(params, state, inputs, None, True)
    np.testing.assert_allclose(state["batch_stats"]["mean"], [0.2, 2.0], rtol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], [1.0, 10.9], rtol=1e-6)
    _, state = apply_fn(params, state, inputs, None, True)
    np.testing.assert_allclose(state["batch_stats"]["mean"], [0.38, 3.8], rtol=1e-6)

  def test_evaluation_uses_the_running_averages(self):
    norm = models.Norm("batch", epsilon=0.0)
    variables = {
      "params": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])},
      "batch_stats": {"mean": jnp.array([1.0]), "var": jnp.array([4.0])},
    }
    outputs = norm.apply(variables, jnp.array([[5.0], [1.0]]), train=False)
    np.testing.assert_allclose(outputs, [[7.0], [1.0]])  # (5 - 1) / 2 * 3 + 1

  def test_training_without_mutation_is_pure_and_gives_the_same_outputs(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch")
    inputs = normal(5, 3)
    params, state = drawn(net, 5, 3)
    moved, new_state = compiled(net)(params, state, inputs, None, True)
    unmoved = jax.jit(lambda variables: net.apply(variables, inputs, train=True))
    np.testing.assert_allclose(unmoved({"params": params, **state}), moved, rtol=1e-5)
    np.testing.assert_allclose(unmoved({"params": params}), moved, rtol=1e-5)
    self.assertGreater(float(jnp.abs(new_state["batch_stats"]["Norm_0"]["mean"]).max()), 0)

  def test_a_large_offset_keeps_its_digits(self):
    noise = np.array([[-1.0], [1.0], [-1.0], [1.0]], np.float32)
    norm = models.Norm("batch")
    params, state = drawn(norm, 4, 1)
    outputs, _ = compiled(norm)(params, state, jnp.array(noise + 8192), None, True)
    np.testing.assert_allclose(outputs, noise, rtol=1e-4)

  def test_statistics_of_half_precision_inputs_are_taken_in_single_precision(self):
    # 4096 ones and one 3: in bfloat16 the running sum would stop at 256.
    inputs = jnp.ones((4097, 1), jnp.bfloat16).at[0].set(3)
    norm = models.Norm("batch", momentum=0.0, dtype=jnp.bfloat16)
    params, state = drawn(norm, 1, 1)
    outputs, state = compiled(norm)(params, state, inputs, None, True)
    self.assertEqual((outputs.dtype, params["scale"].dtype), (jnp.bfloat16, jnp.float32))
    self.assertEqual(state["batch_stats"]["mean"].dtype, jnp.float32)
    np.testing.assert_allclose(state["batch_stats"]["mean"], [4099 / 4097], rtol=1e-6)

  def test_shifting_the_batch_changes_nothing_so_gradients_sum_to_zero(self):
    with jax.enable_x64(True):
      inputs = normal(6, 2, dtype=np.float64)
      params = {"scale": jnp.array([2.0, 1.0]), "bias": jnp.zeros(2)}
      norm = models.Norm("batch")
      grads = jax.grad(lambda x: jnp.sum(norm.apply({"params": params}, x, train=True)[0] ** 3))
      gradient = jax.jit(grads)(inputs)
      self.assertGreater(float(jnp.abs(gradient).min()), 1e-4)  # every example feels it
      np.testing.assert_allclose(gradient.sum(0), [0.0, 0.0], atol=1e-12)

  def test_gradient_through_batch_statistics_is_the_central_difference(self):
    with jax.enable_x64(True):
      net = models.MLP(num_classes=3, hidden=(4,), norm="batch")
      inputs = normal(5, 3, dtype=np.float64)
      params, state = drawn(net, 5, 3)
      params = widened(params)
      direction = jax.tree.map(jnp.cos, params)

      @jax.jit
      def loss(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        logits, _ = models.linen_apply(net)(moved, state, inputs, None, True)
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])

      central = (loss(1e-5) - loss(-1e-5)) / 2e-5
      np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), central, rtol=1e-7)
      np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(0.0), central, rtol=1e-7)


class OtherNormsTest(parameterized.TestCase):
  def test_none_is_the_identity(self):
    inputs = jnp.arange(6.0).reshape(2, 3)
    outputs, variables = models.Norm("none").init_with_output(KEY, inputs, train=True)
    np.testing.assert_array_equal(outputs, inputs)
    self.assertEmpty(variables)

  @parameterized.parameters((1, 1), (5, 1), (8, 2), (12, 3), (16, 4), (24, 6), (36, 6), (128, 8))
  def test_groups_divide_the_channels_and_keep_four_each(self, channels, expected):
    self.assertEqual(models.num_groups(channels), expected)

  def test_group_normalizes_each_example_by_groups_of_channels(self):
    # Two groups of four channels: mean 2.5 and variance 1.25, then ten times that.
    row = np.array([1.0, 2.0, 3.0, 4.0])
    inputs = jnp.array([np.concatenate([row, 10 * row]), np.full(8, 7.0)])
    norm = models.Norm("group")
    params, _ = drawn(norm, 2, 8)
    outputs, _ = compiled(norm)(params, {}, inputs, None, True)
    expected = np.tile((row - 2.5) / np.sqrt(1.25), 2)
    np.testing.assert_allclose(outputs, [expected, np.zeros(8)], rtol=1e-5)

  @parameterized.parameters("group", "none")
  def test_examples_are_independent(self, norm):
    net = resnet.Block(maps=8, stride=2, norm=norm)
    inputs = normal(3, 4, 4, 8)
    params, state = drawn(net, 1, 4, 4, 8)
    self.assertEqual(state, {})
    apply_fn = compiled(net)
    before, _ = apply_fn(params, state, inputs, None, True)
    after, _ = apply_fn(params, state, inputs.at[1].set(inputs[1, ::-1] ** 2), None, True)
    np.testing.assert_allclose(after[::2], before[::2], rtol=1e-6)
    self.assertGreater(float(jnp.abs(after[1] - before[1]).max()), 1e-3)

  def test_examples_depend_on_each_other_under_batch(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch")
    inputs = normal(3, 4)
    params, state = drawn(net, 3, 4)
    apply_fn = compiled(net)
    before, _ = apply_fn(params, state, inputs, None, True)
    after, _ = apply_fn(params, state, inputs.at[1].add(1.0), None, True)
    self.assertGreater(float(jnp.abs(after - before)[0].max()), 1e-3)


class DtypeTest(parameterized.TestCase):
  @parameterized.parameters(
    ("mlp", "batch"),
    ("mlp", "group"),
    ("mlp", "none"),
    ("lenet", None),
    ("resnet8", "batch"),
    ("resnet18", "group"),
    ("preact_resnet32", "batch"),
    ("conv1d", "batch"),
    ("transformer", None),
  )
  def test_float64_in_gives_float64_out_and_params_stay_float32(self, name, norm):
    with jax.enable_x64(True):
      net = models.build(name, 3, norm=norm)
      inputs = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float64)
      logits, variables = jax.eval_shape(lambda x: net.init_with_output(KEY, x, train=True), inputs)
      self.assertEqual(logits.dtype, jnp.float64)
      self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(variables)}, {np.dtype("float32")})

  @parameterized.product(norm=models.NORMS)
  def test_bfloat16_computation_is_finite_and_close(self, norm):
    inputs = normal(4, 8, 8, 1)
    net = models.MLP(num_classes=3, hidden=(16,), norm=norm, dtype=jnp.bfloat16)
    params, state = drawn(net, 4, 8, 8, 1)
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(params)}, {np.dtype("float32")})
    logits, new_state = compiled(net)(params, state, inputs, None, True)
    exact, _ = compiled(net.clone(dtype=None))(params, state, inputs, None, True)
    self.assertEqual(logits.dtype, jnp.float32)  # the logit layer is never below float32
    np.testing.assert_allclose(logits, exact, atol=0.1)
    self.assertEqual({x.dtype for x in jax.tree.leaves(new_state)} - {np.dtype("float32")}, set())

  @parameterized.parameters(models.LeNet(num_classes=3), resnet.Block(8, 2))
  def test_bfloat16_images_are_finite(self, net):
    net = net.clone(dtype=jnp.bfloat16)
    params, state = drawn(net, 4, 8, 8, 1)
    outputs, state = compiled(net)(params, state, 30 * normal(4, 8, 8, 1), None, True)
    self.assertTrue(bool(jnp.isfinite(outputs).all()))
    float32 = {leaf.dtype for leaf in jax.tree.leaves((params, state))}
    self.assertEqual(float32, {np.dtype("float32")})


class ResNetTest(absltest.TestCase):
  def test_shortcut_keeps_every_second_pixel_and_adds_zero_channels(self):
    inputs = jnp.arange(32.0).reshape(1, 4, 4, 2)
    outputs = resnet.shortcut(inputs, 3, 2)
    np.testing.assert_array_equal(outputs[0, :, :, 0], [[0, 4], [16, 20]])
    np.testing.assert_array_equal(outputs[0, :, :, 1], [[1, 5], [17, 21]])
    np.testing.assert_array_equal(outputs[0, :, :, 2], np.zeros((2, 2)))
    np.testing.assert_array_equal(resnet.shortcut(inputs, 2, 1), inputs)

  def test_a_block_with_zero_kernels_is_relu_of_its_shortcut(self):
    inputs = normal(2, 5, 5, 4)
    block = resnet.Block(maps=8, stride=2, norm="none")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes_of(block, *inputs.shape))
    np.testing.assert_array_equal(
      jax.jit(lambda x: block.apply(params, x, train=True))(inputs),
      nn.relu(resnet.shortcut(inputs, 8, 2)),
    )

  def test_strided_windows_are_centered_on_the_pixels_that_the_shortcut_keeps(self):
    inputs = jnp.abs(normal(1, 6, 6, 1))
    block = resnet.Block(maps=1, stride=2, norm="none")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes_of(block, *inputs.shape))
    for name in ("Conv_0", "Conv_1"):
      params["params"][name]["kernel"] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    outputs = jax.jit(lambda x: block.apply(params, x, train=True))(inputs)
    np.testing.assert_allclose(outputs, 2 * inputs[:, ::2, ::2])


class MaxPoolTest(parameterized.TestCase):
  @parameterized.parameters((7, 3, 2), (8, 2, 2), (5, 3, 1), (7, 2, 3), (1, 3, 2))
  def test_values_are_those_of_flax(self, height, window, stride):
    inputs = normal(2, height, 8, 3)
    expected = nn.max_pool(inputs, (window, window), (stride, stride), "SAME")
    actual = jax.jit(models.max_pool, static_argnums=(1, 2))(inputs, window, stride)
    np.testing.assert_array_equal(actual, expected)

  def test_gradient_away_from_ties_is_that_of_flax(self):
    inputs = normal(2, 7, 8, 3)
    cotangent = normal(2, 4, 4, 3)
    flax_pool = lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME")
    expected, gradient = (
      jax.jit(lambda x, pool=pool: jax.vjp(pool, x)[1](cotangent)[0])(inputs)
      for pool in (flax_pool, models.max_pool)
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)

  def test_ties_share_one_gradient(self):
    gradient = jax.jit(jax.grad(lambda x: models.max_pool(x).sum()))(jnp.zeros((1, 4, 4, 1)))
    self.assertAlmostEqual(float(gradient.sum()), 4.0)  # four windows
    self.assertGreaterEqual(float(gradient.min()), 0.0)

  def test_second_derivatives_are_finite(self):
    inputs = normal(1, 3, 3, 1)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(models.max_pool(x) ** 2)))(inputs)
    self.assertTrue(bool(jnp.isfinite(hessian).all()))


if __name__ == "__main__":
  absltest.main()
