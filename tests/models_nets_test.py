"""Tests of the pre-activation and projected residual networks and of the nets for sequences."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax import models
from reweight_jax.models import preact_resnet, resnet
from tests.models_zoo import KEY, compiled, count, drawn, normal, shapes_of


def zeroed(tree):
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def assert_example_one_stands_alone(case, net, inputs, changed):
  """Changing example 1 changes its logits, and no others."""
  params, state = drawn(net, *inputs.shape)
  case.assertEqual(state, {})
  apply_fn = compiled(net)
  before, _ = apply_fn(params, state, inputs, None, True)
  after, _ = apply_fn(params, state, changed, None, True)
  np.testing.assert_allclose(after[::2], before[::2], rtol=1e-5, atol=1e-6)
  case.assertGreater(float(jnp.abs(after[1] - before[1]).max()), 1e-3)


class PreActResNetTest(parameterized.TestCase):
  @parameterized.parameters(("preact_resnet32", 5, 1, 463_018), ("wrn28_10", 4, 10, 36_211_658))
  def test_params_are_those_of_the_hand_count(self, name, units, widen, expected):
    total, coming = 9 * 3 * 16, 16
    for maps in (16 * widen, 32 * widen, 64 * widen):
      total += 9 * coming * maps + (2 * units - 1) * 9 * maps * maps
      total += coming + (2 * units - 1) * maps  # shifts: no norm has a scale, no shortcut params
      coming = maps
    total += coming + 10 * coming + 10
    variables = shapes_of(models.build(name, 10), 2, 32, 32, 3)
    self.assertEqual(count(variables["params"]), total)
    self.assertEqual(total, expected)

  def test_layers_stand_in_the_order_of_the_published_experiments(self):
    net, order = models.PreActResNet(depth=8, dropout_rate=0.3), []

    def record(next_fun, args, kwargs, context):
      if context.method_name == "__call__":
        order.append(type(context.module).__name__)
      return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
      shapes_of(net, 1, 8, 8, 3)
    first = ["Norm", "Conv", "Norm", "Conv"]
    later = ["Norm", "Dropout", "Conv", "Norm", "Conv"]
    expected = ["PreActResNet", "Conv", *first, *later, *later, "Norm", "Dense"]
    self.assertEqual(order, expected)

  def test_norms_shift_slowly_and_do_not_scale_unless_asked_to(self):
    params, state = drawn(models.Norm("batch", 0.999, 1e-3, use_scale=False), 2, 1)
    self.assertEqual(sorted(params), ["bias"])
    net = models.PreActResNet(depth=8)
    for norm in ("batch", "group"):
      names = str(jax.tree.structure(shapes_of(net.clone(norm=norm), 1, 8, 8, 3)["params"]))
      self.assertNotIn("scale", names)
    names = str(jax.tree.structure(shapes_of(net.clone(norm_scale=True), 1, 8, 8, 3)["params"]))
    self.assertIn("scale", names)
    # The batch has mean 2 and variance 1.
    norm = models.Norm("batch", net.norm_momentum, net.norm_epsilon, net.norm_scale)
    outputs, state = compiled(norm)(params, state, jnp.array([[1.0], [3.0]]), None, True)
    np.testing.assert_allclose(outputs, [[-(1.001**-0.5)], [1.001**-0.5]], rtol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["mean"], [0.002], rtol=1e-4)

  def test_shortcut_averages_squares_and_adds_channels_on_both_sides(self):
    image = np.arange(15.0).reshape(1, 3, 5, 1)
    outputs = preact_resnet.shortcut(jnp.asarray(image), 4, 2)
    # Rows 0 1 | 2, columns 0 1 | 2 3 | 4.
    np.testing.assert_array_equal(outputs[0, :, :, 1], [[3, 5, 6.5], [10.5, 12.5, 14]])
    np.testing.assert_array_equal(outputs[..., [0, 2, 3]], np.zeros((1, 2, 3, 3)))
    np.testing.assert_array_equal(preact_resnet.shortcut(jnp.asarray(image), 1, 1), image)

  def test_the_first_activation_stands_before_the_first_shortcut(self):
    # All kernels but the stem's are zero, so that the shortcuts alone carry the image: channel 0 to
    # map 3, then 8 channels in front of it and 16 more. An average of what a ReLU has cut differs
    # from a cut average.
    net, images = models.PreActResNet(depth=8, norm="none"), normal(2, 8, 8, 1)
    params = zeroed(shapes_of(net, *images.shape)["params"])
    params["Conv_0"]["kernel"][1, 1, 0, 3] = 1
    params["Dense_0"]["kernel"][27, 4] = 1
    logits, _ = compiled(net)(params, {}, images, None, True)
    expected = np.maximum(np.asarray(images), 0).mean((1, 2, 3))
    np.testing.assert_allclose(logits[:, 4], expected, rtol=1e-5)
    self.assertEqual(float(jnp.abs(logits).sum()), float(jnp.abs(logits[:, 4]).sum()))

  def test_convolutions_start_truncated_at_two_deviations(self):
    conv = preact_resnet._conv(64, has_bias=False, dtype=None)
    kernel = conv.init(KEY, jnp.zeros((1, 3, 3, 64)))["params"]["kernel"]
    deviation = math.sqrt(2 / (9 * 64))
    self.assertLessEqual(float(jnp.abs(kernel).max()), 2 * deviation)
    # A normal variable cut off at two deviations keeps 0.8796 of them; standard error 0.003.
    self.assertAlmostEqual(float(kernel.std()) / deviation, 0.8796, delta=0.012)

  def test_examples_are_independent_under_group(self):
    net, images = models.PreActResNet(depth=8, num_classes=3, norm="group"), normal(3, 4, 4, 2)
    assert_example_one_stands_alone(self, net, images, images.at[1].multiply(-2.0))

  def test_bfloat16_logits_are_float32_and_close(self):
    net, images = models.PreActResNet(depth=8, num_classes=3, norm="group"), normal(3, 4, 4, 2)
    params, _ = drawn(net, *images.shape)
    exact, _ = compiled(net)(params, {}, images, None, False)
    logits, _ = compiled(net.clone(dtype=jnp.bfloat16))(params, {}, images, None, False)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))

  @parameterized.parameters(
    ({"depth": 30}, "6n [+] 2 or 6n [+] 4, got 30"),
    ({"depth": 4}, "6n [+] 2"),
    ({"widen": 0}, "widen"),
    ({"dropout_rate": -0.1}, "dropout_rate"),
    ({"norm": "layer"}, "layer"),
  )
  def test_a_bad_attribute_is_refused(self, attributes, message):
    with self.assertRaisesRegex(ValueError, message):
      models.PreActResNet(**attributes)


class ResNet18Test(parameterized.TestCase):
  def test_params_are_those_of_the_hand_count(self):
    total = 9 * 3 * 64 + 2 * 64
    for maps, coming in ((64, 64), (128, 64), (256, 128), (512, 256)):
      total += 9 * coming * maps + 3 * 9 * maps * maps + 4 * 2 * maps
      total += (coming * maps + 2 * maps) * (maps != coming)  # projection
    total += 512 * 10 + 10
    variables = shapes_of(models.build("resnet18", 10), 2, 32, 32, 3)
    self.assertEqual(count(variables["params"]), total)
    self.assertEqual(total, 11_173_962)

  def test_a_projected_shortcut_is_a_strided_matrix_product(self):
    block, inputs = resnet.Block(3, 2, norm="none", has_projection=True), normal(2, 5, 4, 2)
    params = zeroed(shapes_of(block, *inputs.shape)["params"])
    kernel = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
    params["Conv_2"]["kernel"][0, 0] = kernel
    outputs, _ = compiled(block)(params, {}, inputs, None, True)
    expected = np.maximum(np.asarray(inputs)[:, ::2, ::2] @ kernel, 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)

  def test_shortcuts_have_params_only_where_the_shape_changes(self):
    small = models.ResNet18(blocks=(2, 1), maps=4)
    params = shapes_of(small, 1, 8, 8, 3)["params"]
    self.assertEqual([len(params[f"Block_{i}"]) for i in range(3)], [4, 4, 6])

  def test_examples_are_independent_under_group(self):
    net = models.ResNet18(num_classes=3, norm="group", blocks=(1, 1), maps=8)
    images = normal(3, 4, 4, 2)
    assert_example_one_stands_alone(self, net, images, images.at[1].multiply(-2.0))

  @parameterized.parameters(({"norm": "layer"}, "layer"), ({"blocks": (2, 0)}, r"\(2, 0\)"))
  def test_a_bad_attribute_is_refused(self, attributes, message):
    with self.assertRaisesRegex(ValueError, message):
      models.ResNet18(**attributes)


TOKENS = np.array([[3, 1, 4, 1, 0, 0], [2, 0, 6, 5, 3, 5], [0, 0, 0, 0, 0, 0]])
SEQUENCE_NETS = {
  "conv1d": models.SequenceConvNet(
    3, vocabulary_size=7, width=4, windows=(2, 3), maps=5, norm="group"
  ),
  "transformer": models.Transformer(3, vocabulary_size=7, width=8, num_heads=2, num_blocks=1),
}


def params_of(net, inputs):
  """Params drawn without compilation, every bias away from 0."""
  inputs = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
  shapes = jax.eval_shape(lambda x: net.init(KEY, x, train=False), inputs)["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


class SequenceTest(parameterized.TestCase):
  @parameterized.parameters(*SEQUENCE_NETS)
  def test_padding_that_follows_changes_nothing_and_examples_are_independent(self, name):
    net = SEQUENCE_NETS[name]
    params, apply_fn = params_of(net, TOKENS), compiled(net)
    logits, _ = apply_fn(params, {}, TOKENS, None, True)
    self.assertTrue(bool(jnp.isfinite(logits).all()))  # also of padding alone
    longer = np.pad(TOKENS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(apply_fn(params, {}, longer, None, True)[0], logits, rtol=1e-4)
    changed = TOKENS.copy()
    changed[1, 2] = 1
    others, _ = apply_fn(params, {}, changed, None, True)
    np.testing.assert_allclose(others[::2], logits[::2], rtol=1e-5)
    self.assertGreater(float(jnp.abs(others - logits)[1].max()), 1e-3)
    changed[1, 2] = 7  # beyond the vocabulary
    others, _ = apply_fn(params, {}, changed, None, True)
    self.assertEqual(jnp.isnan(others).all(axis=1).tolist(), [False, True, False])

  @parameterized.parameters(*SEQUENCE_NETS)
  def test_the_order_of_the_tokens_matters(self, name):
    net = SEQUENCE_NETS[name]
    swapped = TOKENS[:, [1, 0, 2, 3, 4, 5]]
    params, apply_fn = params_of(net, TOKENS), compiled(net)
    before, after = (apply_fn(params, {}, tokens, None, True)[0] for tokens in (TOKENS, swapped))
    self.assertGreater(float(jnp.abs(before - after)[0].max()), 1e-3)

  @parameterized.parameters(*SEQUENCE_NETS)
  def test_bfloat16_logits_are_float32_and_close(self, name):
    net = SEQUENCE_NETS[name]
    params = params_of(net, TOKENS)
    exact, _ = compiled(net)(params, {}, TOKENS, None, True)
    logits, _ = compiled(net.clone(dtype=jnp.bfloat16))(params, {}, TOKENS, None, True)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))

  @parameterized.product(name=tuple(SEQUENCE_NETS), shape=[(2, 5, 3), (2, 5, 7, 3)])
  def test_vectors_and_images_are_sequences_too(self, name, shape):
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    net = SEQUENCE_NETS[name]
    logits, variables = jax.eval_shape(lambda x: net.init_with_output(KEY, x, train=True), inputs)
    self.assertEqual(logits.shape, (2, 3))
    self.assertNotIn("Embed_0", variables["params"])

  @parameterized.product(
    name=tuple(SEQUENCE_NETS), bad=[((2, 5), "float32"), ((2, 8, 8, 1), "uint8")]
  )
  def test_inputs_of_no_known_kind_are_refused(self, name, bad):
    with self.assertRaisesRegex(ValueError, f"got {bad[1]} of shape"):
      SEQUENCE_NETS[name].init(KEY, jnp.zeros(*bad), train=False)

  @parameterized.parameters(
    (lambda: models.Transformer(width=6, num_heads=4), "width 6 and num_heads 4"),
    (lambda: models.Transformer(dropout_rate=1.0), "dropout_rate"),
    (lambda: models.SequenceConvNet(dropout_rate=1.0), "dropout_rate"),
    (lambda: models.SequenceConvNet(norm="layer"), "layer"),
  )
  def test_a_bad_attribute_is_refused(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_convolutional_logits_are_those_of_loops_over_positions(self):
    net = SEQUENCE_NETS["conv1d"].clone(norm="none")
    params = params_of(net, TOKENS)
    logits, _ = compiled(net)(params, {}, TOKENS, None, True)
    embedding = params["Embed_0"]["embedding"]
    vectors = np.where((TOKENS != 0)[:, :, None], embedding[TOKENS], 0)
    for i, tokens in enumerate(TOKENS):
      maxima = []
      for name, low in (("Conv_0", 0), ("Conv_1", 1)):  # windows of 2 and 3, padded as "SAME"
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        padded = np.pad(vectors[i], ((low, len(kernel) - 1 - low), (0, 0)))
        sums = [
          np.einsum("wc,wcm->m", padded[t : t + len(kernel)], kernel) + bias
          for t in np.flatnonzero(tokens)
        ]
        maxima.append(np.max([np.zeros(5), *sums], axis=0))
      dense = params["Dense_0"]
      expected = np.concatenate(maxima) @ dense["kernel"] + dense["bias"]
      np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-5)

  def test_images_are_read_row_by_row(self):
    net, images = models.SequenceConvNet(2, windows=(3,), maps=2), normal(2, 4, 3, 2)
    params, _ = drawn(net, *images.shape)
    apply_fn = compiled(net)
    rows, _ = apply_fn(params, {}, images.reshape(2, 4, 6), None, False)
    np.testing.assert_array_equal(apply_fn(params, {}, images, None, False)[0], rows)

  def test_transformer_logits_are_those_of_the_written_out_formulas(self):
    net = SEQUENCE_NETS["transformer"]
    params = params_of(net, TOKENS)
    logits, _ = compiled(net)(params, {}, TOKENS, None, True)
    block = params["EncoderBlock_0"]
    attention = block["MultiHeadDotProductAttention_0"]
    for i, tokens in enumerate(TOKENS[:2]):
      x = np.stack(
        [
          params["Embed_0"]["embedding"][token]
          + [f(t / 10_000 ** (k / 4)) for f in (np.sin, np.cos) for k in range(4)]
          for t, token in enumerate(tokens)
        ]
      )
      q, k, v = (
        np.einsum("tc,chd->htd", layer_norm(x, block["LayerNorm_0"]), attention[n]["kernel"])
        + attention[n]["bias"][:, None]
        for n in ("query", "key", "value")
      )
      scores = np.exp(np.einsum("htd,hsd->hts", q, k) / 2) * (tokens != 0)  # 2 = sqrt(8 / 2 heads)
      mixed = np.einsum("hts,hsd->thd", scores / scores.sum(2, keepdims=True), v)
      out = attention["out"]
      x = x + np.einsum("thd,hdc->tc", mixed, out["kernel"]) + out["bias"]
      hidden = dense(layer_norm(x, block["LayerNorm_1"]), block["Dense_0"])
      gelu = hidden / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
      x = layer_norm(x + dense(gelu, block["Dense_1"]), params["LayerNorm_0"])
      expected = dense(x[tokens != 0].mean(0), params["Dense_0"])
      np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-4)

  def test_patches_are_squares_of_pixels_filled_with_zeros(self):
    # Without blocks the logits are a layer-norm's mean, so that each patch can be computed alone.
    net, image = models.Transformer(2, width=4, num_blocks=0, patch_size=2), normal(1, 2, 3, 1)
    params = params_of(net, image)
    logits, _ = compiled(net)(params, {}, image, None, True)
    padded = np.pad(np.asarray(image)[0, :, :, 0], ((0, 0), (0, 1)))
    patches = np.stack([padded[:, :2].ravel(), padded[:, 2:].ravel()])
    conv = params["Conv_0"]
    places = np.array([[0, 0, 1, 1], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)]])
    x = patches @ conv["kernel"].reshape(4, 4) + conv["bias"] + places
    expected = dense(layer_norm(x, params["LayerNorm_0"]).mean(0), params["Dense_0"])
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4)


def layer_norm(x, params):
  spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return (x - x.mean(-1, keepdims=True)) / spread * params["scale"] + params["bias"]


def dense(x, params):
  return x @ params["kernel"] + params["bias"]


if __name__ == "__main__":
  absltest.main()
