"""The choice of layers: that it finds the right ones in cases made by hand, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax.meta import subset
from tests import zoo


def _apply(params, state, inputs, key, train):
  """Each layer has one number, and one column of the inputs."""
  del key, train
  return sum(inputs[:, i] * layer["w"] for i, layer in enumerate(params.values())), state


LOSS_FN = rw.losses.from_apply(_apply, lambda output, label: -output * label)


def _problem(parts):
  """Batch and meta batch of a model whose layers add these rows to the alignment.

  The loss is minus the output, so every gradient is minus the inputs; the meta example's are 1.
  """
  parts = np.asarray(parts, np.float32)
  params = {f"layer{i}": {"w": jnp.zeros(())} for i in range(len(parts))}
  batch = rw.types.make_batch(parts.T, jnp.ones(parts.shape[1]))
  meta_batch = rw.types.make_batch(jnp.ones((1, len(parts))), jnp.ones(1))
  return params, (batch, meta_batch)


@functools.cache
def _choice(parts, num_layers):
  params, pair = _problem(parts)
  return subset.choose_layers(LOSS_FN, params, (), [pair], num_layers)


class ChooseLayersTest(parameterized.TestCase):
  def test_a_layer_that_points_right_is_preferred_to_longer_ones_that_cancel(self):
    chosen = _choice(((4, -4), (2, 1), (-4, 4)), 1)
    self.assertEqual(chosen.names, ("layer1",))
    np.testing.assert_allclose(chosen.cosines, [1], rtol=1e-6)

  def test_the_next_layer_is_the_one_that_helps_most_beside_those_chosen(self):
    # The whole is (3, 2.5), of length sqrt(15.25). Cosines of the layers alone: 3, 2.5 and 11 /
    # sqrt(8) over that length; beside (2, 2) the first makes (3, 2), the second (2, 2.5).
    chosen = _choice(((1, 0), (0, 0.5), (2, 2)), 3)
    self.assertEqual(chosen.names, ("layer2", "layer0", "layer1"))
    first, second = 11 / np.sqrt(8 * 15.25), 14 / np.sqrt(13 * 15.25)
    np.testing.assert_allclose(chosen.cosines, [first, second, 1], rtol=1e-6)

  def test_the_choice_is_the_best_on_average_over_the_batches(self):
    # In the first batch layer0 is the whole alignment and in the two others layer1.
    rows = [((1, 2), (0, 0)), ((0, 0), (3, 1)), ((0, 0), (1, -1))]
    params = _problem(rows[0])[0]
    pairs = [_problem(parts)[1] for parts in rows]
    for count, name, cosine in ((1, "layer0", 1), (3, "layer1", 2 / 3)):
      chosen = subset.choose_layers(LOSS_FN, params, (), pairs[:count], 1)
      self.assertEqual(chosen.names, (name,))
      np.testing.assert_allclose(chosen.cosines, [cosine], rtol=1e-6)

  def test_as_meta_params_it_restricts_the_alignment_to_the_chosen_layers(self):
    parts = ((1, 0), (0, 0.5), (2, 2))
    params, (batch, meta_batch) = _problem(parts)
    chosen = _choice(parts, 2)
    weigh = functools.partial(rw.meta.example_weights, LOSS_FN, meta_params=chosen)
    weights = jax.jit(weigh)(params, (), batch, meta_batch)
    np.testing.assert_allclose(weights, [3 / 5, 2 / 5], rtol=1e-6)  # (1, 0) + (2, 2)

  def test_no_alignment_counts_as_no_agreement(self):
    chosen = _choice(((0, 0), (0, 0)), 1)
    self.assertEqual(chosen, subset.ChosenLayers(("layer0",), (0.0,)))

  def test_parameters_of_a_layer_go_together_and_recorded_layers_serve_too(self):
    loss_fn, params, state = zoo.make("mlp", jnp.float32)
    pair = zoo.random_batch(1, 6, jnp.float32), zoo.random_batch(2, 4, jnp.float32)
    chosen = subset.choose_layers(loss_fn, params, state, [pair], 3, route="ghost")
    self.assertCountEqual(chosen.names, ["Dense_0", "Dense_1", "Dense_2"])
    self.assertAlmostEqual(chosen.cosines[-1], 1, places=6)
    self.assertTrue(chosen("Dense_0/kernel") and chosen("Dense_0/bias"))
    self.assertFalse(subset.ChosenLayers(("Dense_1",), (1.0,))("Dense_0/kernel"))

  @parameterized.parameters(
    (0, 1, "route .* got 'nested'", "nested"),
    (1, 0, "num_layers between 1 and 2, the number of layers; got 0", "forward"),
    (1, 3, "num_layers between 1 and 2, the number of layers; got 3", "forward"),
    (0, 1, "a pair .batch, meta_batch. or more, got none", "forward"),
  )
  def test_refuses(self, num_batches, num_layers, message, route):
    params, pair = _problem(((1, 0), (0, 1)))
    batches = [pair] * num_batches
    with self.assertRaisesRegex(ValueError, message):
      subset.choose_layers(LOSS_FN, params, (), batches, num_layers, route=route)


if __name__ == "__main__":
  absltest.main()
