"""Tests of the models: sizes and numbers by hand, purity, dtypes, and both ways out of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import errors, nnx

from reweight_jax import models
from reweight_jax.models import resnet

if hasattr(jax, "enable_x64"):
  enable_x64 = jax.enable_x64
else:
  from jax.experimental import enable_x64

KEY = jax.random.key(0)


def shapes_of(net, *shape):
  """The variables that `net` would have, without computing them."""
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.eval_shape(lambda x: net.init(KEY, x, train=False), inputs)


def normal(*shape, dtype=np.float32):
  """The same numbers at each call, without the compilation that a jax.random call costs."""
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def drawn(net, *shape):
  """Params and state as `init_linen` makes them, the kernels drawn by NumPy: no compilation."""
  rng = np.random.default_rng(1)
  starts = {"bias": np.zeros, "scale": np.ones, "mean": np.zeros, "var": np.ones}

  def start(path, leaf):
    if path[-1].key in starts:
      return jnp.asarray(starts[path[-1].key](leaf.shape, leaf.dtype))
    deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(start, shapes_of(net, *shape))
  return variables.pop("params"), variables


def compiled(net):
  return jax.jit(models.linen_apply(net), static_argnums=4)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def widened(tree):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def assert_trees_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


class CountTest(parameterized.TestCase):
  def test_lenet_with_one_logit_has_the_paper_experiments_params(self):
    convs = (25 * 1 * 16 + 16) + (25 * 16 * 32 + 32) + (25 * 32 * 64 + 64)
    dense = (4 * 4 * 64 * 100 + 100) + (100 + 1)  # 28 -> 14 -> 7 -> 4
    variables = shapes_of(models.LeNet(num_classes=1), 2, 28, 28, 1)
    self.assertEqual(count(variables["params"]), convs + dense)
    self.assertEqual(convs + dense, 167_113)

  @parameterized.parameters((8, 75_290), (20, 269_722))
  def test_resnet_params_are_those_of_the_hand_count(self, depth, expected):
    blocks = (depth - 2) // 6
    norms = lambda maps: 2 * maps  # scale and bias
    total = 9 * 3 * 16 + norms(16)
    for maps, coming in ((16, 16), (32, 16), (64, 32)):
      total += 9 * coming * maps + (2 * blocks - 1) * 9 * maps * maps + 2 * blocks * norms(maps)
    total += 64 * 10 + 10
    variables = shapes_of(models.ResNet(depth=depth), 2, 32, 32, 3)
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


class BuildTest(parameterized.TestCase):
  @parameterized.product(
    name=models.MODELS, shape=[(2, 28, 28, 1), (3, 32, 32, 3), (2, 8, 8, 1), (1, 9, 7, 2)]
  )
  def test_every_model_takes_small_images(self, name, shape):
    net = models.build(name, 7)
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.numpy_rank_promotion("raise"):
      logits, _ = jax.eval_shape(lambda x: net.init_with_output(KEY, x, train=True), inputs)
    self.assertEqual((logits.shape, logits.dtype), ((shape[0], 7), jnp.float32))

  def test_norm_none_means_the_models_own(self):
    self.assertEqual(models.build("resnet8", 2).norm, "batch")
    self.assertEqual(models.build("mlp", 2).norm, "none")
    self.assertEqual(models.build("resnet8", 2, norm="none").norm, "none")
    self.assertIsInstance(models.build("lenet", 2, norm="none"), models.LeNet)

  def test_resnet_convolutions_have_biases_only_without_norm(self):
    with_norm = shapes_of(models.ResNet(depth=8, norm="group"), 1, 8, 8, 3)["params"]
    without = shapes_of(models.ResNet(depth=8, norm="none"), 1, 8, 8, 3)["params"]
    self.assertNotIn("bias", with_norm["Conv_0"])
    self.assertIn("bias", without["Conv_0"])

  @parameterized.parameters(
    (lambda: models.build("vgg", 2), "resnet20"),
    (lambda: models.build("mlp", 0), "at least 1"),
    (lambda: models.build("lenet", 2, norm="batch"), "lenet has no normalization"),
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
    with enable_x64(True):
      inputs = normal(6, 2, dtype=np.float64)
      params = {"scale": jnp.array([2.0, 1.0]), "bias": jnp.zeros(2)}
      norm = models.Norm("batch")
      grads = jax.grad(lambda x: jnp.sum(norm.apply({"params": params}, x, train=True)[0] ** 3))
      gradient = jax.jit(grads)(inputs)
      self.assertGreater(float(jnp.abs(gradient).min()), 1e-4)  # every example feels it
      np.testing.assert_allclose(gradient.sum(0), [0.0, 0.0], atol=1e-12)

  def test_gradient_through_batch_statistics_is_the_central_difference(self):
    with enable_x64(True):
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
    ("mlp", "batch"), ("mlp", "group"), ("mlp", "none"), ("lenet", None), ("resnet8", "batch")
  )
  def test_float64_in_gives_float64_out_and_params_stay_float32(self, name, norm):
    with enable_x64(True):
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


class LinenApplyTest(absltest.TestCase):
  def test_init_draws_kernels_of_he_deviation_and_plain_norms(self):
    net = models.MLP(num_classes=2, hidden=(400,), norm="batch")
    params, state = models.init_linen(net, jnp.ones((1, 50)), KEY)
    # 20,000 draws: the standard error of their deviation is 0.2 / sqrt(40,000) = 0.001.
    self.assertAlmostEqual(float(params["Dense_0"]["kernel"].std()), np.sqrt(2 / 50), delta=0.004)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], np.zeros(400))
    np.testing.assert_array_equal(params["Norm_0"]["scale"], np.ones(400))
    np.testing.assert_array_equal(state["batch_stats"]["Norm_0"]["mean"], np.zeros(400))
    np.testing.assert_array_equal(state["batch_stats"]["Norm_0"]["var"], np.ones(400))

  def test_evaluation_returns_the_state_as_it_was(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch", dropout_rate=0.5)
    inputs = normal(3, 4)
    params, state = drawn(net, 3, 4)
    logits, same = models.linen_apply(net)(params, state, inputs, None, False)
    self.assertIs(same, state)
    np.testing.assert_array_equal(
      logits, net.apply({"params": params, **state}, inputs, train=False)
    )

  def test_training_keeps_the_structure_of_the_state_and_the_old_values(self):
    net = models.MLP(num_classes=2, hidden=(4,), norm="batch")
    inputs = normal(3, 4)
    params, state = drawn(net, 3, 4)
    old = jax.tree.map(np.array, state)
    _, new = compiled(net)(params, state, inputs, None, True)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))
    assert_trees_equal(state, old)

  def test_an_empty_tuple_is_a_state(self):
    net = models.MLP(num_classes=2, hidden=(4,))
    params, state = drawn(net, 1, 4)
    self.assertEqual(state, {})
    _, new = models.linen_apply(net)(params, (), jnp.ones((3, 4)), None, True)
    self.assertEqual(new, ())

  def test_dropout_needs_a_key_and_the_key_decides(self):
    net = models.MLP(num_classes=2, hidden=(64,), dropout_rate=0.5)
    inputs = jnp.ones((3, 4))
    params, state = drawn(net, 3, 4)
    apply_fn = compiled(net)
    with self.assertRaises(errors.InvalidRngError):
      apply_fn(params, state, inputs, None, True)
    first, again, other = (
      apply_fn(params, state, inputs, jax.random.key(seed), True)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    self.assertGreater(float(jnp.abs(first - other).max()), 0)

  def test_a_module_without_train_is_refused(self):
    with self.assertRaisesRegex(TypeError, "Dense takes"):
      models.linen_apply(nn.Dense(3))
    with self.assertRaisesRegex(TypeError, "nnx_apply"):
      models.linen_apply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


class Net(nnx.Module):
  """A net with params, running averages and two dropout layers."""

  def __init__(self, rate, rngs):
    self.linear = nnx.Linear(3, 64, rngs=rngs)
    self.norm = nnx.BatchNorm(64, rngs=rngs)
    self.first = nnx.Dropout(rate, rngs=rngs)
    self.second = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, inputs):
    return self.second(self.first(self.norm(self.linear(inputs))))


class TwoDropouts(nnx.Module):
  """The two masks of one pass."""

  def __init__(self, rngs):
    self.first = nnx.Dropout(0.5, rngs=rngs)
    self.second = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, inputs):
    return self.first(inputs), self.second(inputs)


class NnxApplyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.inputs = normal(5, 3)

  @parameterized.parameters(True, False)
  def test_calling_the_function_is_calling_the_module(self, jitted):
    model = Net(0.0, nnx.Rngs(0))
    apply_fn, params, state = models.nnx_apply(model)
    if jitted:
      apply_fn = jax.jit(apply_fn, static_argnums=4)
    logits, new_state = apply_fn(params, state, self.inputs, KEY, True)
    evaluated, same = apply_fn(params, new_state, self.inputs, None, False)
    model.train()
    np.testing.assert_allclose(logits, model(self.inputs), rtol=1e-5, atol=1e-6)
    assert_trees_equal(same, new_state)
    expected = nnx.state(model, nnx.BatchStat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new_state, expected)
    model.eval()
    np.testing.assert_allclose(evaluated, model(self.inputs), rtol=1e-5, atol=1e-6)

  def test_arguments_and_module_are_not_written_to(self):
    model = Net(0.5, nnx.Rngs(0))
    model.eval()
    before = jax.tree.map(np.array, nnx.state(model, nnx.Not(nnx.RngState)))
    apply_fn, params, state = models.nnx_apply(model)
    old = jax.tree.map(np.array, state)
    first, _ = apply_fn(params, state, self.inputs, KEY, True)
    again, _ = apply_fn(params, state, self.inputs, KEY, True)
    np.testing.assert_array_equal(first, again)
    assert_trees_equal(state, old)
    assert_trees_equal(nnx.state(model, nnx.Not(nnx.RngState)), before)
    self.assertTrue(model.first.deterministic)

  def test_dropout_needs_a_key_and_the_key_decides(self):
    apply_fn, params, state = models.nnx_apply(Net(0.5, nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, "Net has random streams"):
      apply_fn(params, state, self.inputs, None, True)
    first, again, other, raw = (
      apply_fn(params, state, self.inputs, key, True)[0]
      for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2), jax.random.PRNGKey(1))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, raw)
    self.assertGreater(float(jnp.abs(first - other).max()), 0)

  def test_two_dropout_layers_do_not_share_their_mask(self):
    apply_fn, params, state = models.nnx_apply(TwoDropouts(nnx.Rngs(dropout=0)))
    (first, second), _ = apply_fn(params, state, jnp.ones(1000), KEY, True)
    agreement = float(jnp.mean((first > 0) == (second > 0)))
    self.assertBetween(agreement, 0.4, 0.6)  # half by chance; standard deviation 0.016

  def test_derivatives_pass_through_and_the_state_rides_along(self):
    apply_fn, params, state = models.nnx_apply(Net(0.0, nnx.Rngs(0)))

    def loss(params):
      logits, new_state = apply_fn(params, state, self.inputs, KEY, True)
      return jnp.mean(logits**3), new_state

    @jax.jit
    def both_ways(params):
      value, push, new_state = jax.linearize(loss, params, has_aux=True)
      gradient, _ = jax.grad(loss, has_aux=True)(params)
      return value, gradient, push(gradient), new_state

    value, gradient, pushed, new_state = both_ways(params)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    self.assertTrue(bool(jnp.isfinite(value)))
    np.testing.assert_allclose(pushed, squares, rtol=1e-4)
    self.assertEqual(jax.tree.structure(new_state), jax.tree.structure(state))

  def test_trained_values_go_back_into_the_module(self):
    model = Net(0.0, nnx.Rngs(0))
    apply_fn, params, state = models.nnx_apply(model)
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    expected, _ = apply_fn(params, state, self.inputs, None, False)
    nnx.update(model, params, state)
    model.eval()
    np.testing.assert_allclose(model(self.inputs), expected, rtol=1e-6)

  def test_a_linen_module_is_refused(self):
    with self.assertRaisesRegex(TypeError, "linen_apply"):
      models.nnx_apply(models.MLP())


class ScaleTest(absltest.TestCase):
  def test_bytes_go_to_the_interval(self):
    scaled = models.scale_uint8(np.array([[0, 51, 255]], np.uint8))
    self.assertEqual(scaled.dtype, jnp.float32)
    np.testing.assert_allclose(scaled, [[-1.0, -0.6, 1.0]], rtol=1e-6)

  def test_floats_pass_unchanged(self):
    for dtype in (jnp.float32, jnp.bfloat16):
      inputs = jnp.array([0.0, 51.0], dtype)
      np.testing.assert_array_equal(models.scale_uint8(inputs), inputs)
      self.assertEqual(models.scale_uint8(inputs).dtype, dtype)

  def test_other_integers_are_refused(self):
    with self.assertRaisesRegex(TypeError, "int32"):
      models.scale_uint8(jnp.arange(3))


if __name__ == "__main__":
  absltest.main()
