"""Architectures drawn at random: all routes to push, pull, alignment and norms agree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import per_example
from reweight_jax.meta import routes

SIZE, CLASSES = 4, 3
NUM_ARCHITECTURES = 1  # here; the long checks draw thirty

IMAGE_LAYERS = {
  "conv": lambda rng: nn.Conv(4, (3, 3), strides=int(rng.integers(1, 3))),
  "valid": lambda rng: nn.Conv(4, (2, 3), padding="VALID", use_bias=False),
  "dilated": lambda rng: nn.Conv(4, 3 * np.ones(2, int), kernel_dilation=2),
  "grouped": lambda rng: nn.Conv(4, (3, 3), feature_group_count=2),
  "padded": lambda rng: nn.Conv(4, (3, 3), padding=((2, 1), (0, 2))),
  "transposed": lambda rng: nn.ConvTranspose(4, (2, 2)),
  "group_norm": lambda rng: nn.GroupNorm(2),
  "layer_norm": lambda rng: nn.LayerNorm(),
}
SEQUENCE_LAYERS = {
  "dense": lambda rng: nn.Dense(4, use_bias=bool(rng.integers(2))),
  "general": lambda rng: nn.DenseGeneral((2, 2), axis=-1),
  "attention": lambda rng: nn.MultiHeadDotProductAttention(2),
  "rms_norm": lambda rng: nn.RMSNorm(),
  "layer_norm": lambda rng: nn.LayerNorm(),
  "conv": lambda rng: nn.Conv(4, 3),
  "dropout": lambda rng: nn.Dropout(0.3, deterministic=False),
}


class Drawn(nn.Module):
  """Three layers on images, flattened to a sequence; three there, one of them twice; a head."""

  seed: int

  @nn.compact
  def __call__(self, x, train):
    rng = np.random.default_rng(self.seed)
    if x.dtype == jnp.int32:
      x = nn.Embed(5, 4)(x)
    else:
      for name in rng.choice(list(IMAGE_LAYERS), 3, replace=False):
        x = jnp.tanh(IMAGE_LAYERS[name](rng)(x))
      x = x.reshape(x.shape[0], -1, x.shape[-1])
    drawn = rng.choice(list(SEQUENCE_LAYERS), 3, replace=False)
    layers = [SEQUENCE_LAYERS[name](rng) for name in drawn]
    for layer in [*layers, layers[0]]:
      x = x + jnp.sin(layer(x)).reshape(x.shape)
    return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


def check_architecture(test, seed):
  rng = np.random.default_rng(seed)
  if seed % 2:
    inputs = jnp.asarray(rng.integers(0, 5, size=(SIZE, 3)), jnp.int32)
  else:
    inputs = jnp.asarray(rng.normal(size=(SIZE, 5, 5, 2)))
  net = Drawn(seed)
  mask = jnp.array([True, True, True, False])
  batch = rw.types.make_batch(inputs, jnp.arange(SIZE) % CLASSES, mask=mask)
  shapes, _ = jax.eval_shape(lambda x: rw.models.init_linen(net, x, jax.random.key(0)), inputs)
  draw = lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape))
  params, direction = jax.tree.map(draw, shapes), jax.tree.map(draw, shapes)
  weights = jnp.asarray(rng.normal(size=SIZE))
  loss_fn, key = rw.losses.from_apply(rw.models.linen_apply(net)), jax.random.key(1)
  losses_of = lambda p: loss_fn(p, {}, batch, key).losses * mask
  trusted = batch._replace(labels=batch.labels[::-1])
  objective = routes.make_meta_objective(loss_fn, {}, trusted, key)

  @jax.jit
  def run(params):
    rows = jax.jacrev(losses_of)(params)
    results = {}
    for route in ("ghost", "forward"):
      linearized = per_example.linearize(loss_fn, params, {}, batch, key=key, route=route)
      alignment = routes.forward_alignment(linearized, objective, params, None)
      results[route] = linearized.push(direction), linearized.pull(weights), alignment
    nested = routes.nested_alignment(losses_of, objective, params, jnp.zeros(SIZE))
    norms = per_example.grad_norms(loss_fn, params, {}, batch, key=key, route="ghost")
    return rows, jax.grad(objective)(params), results, nested, norms

  rows, meta_gradient, results, nested, norms = jax.tree.map(np.asarray, run(params))
  flat = np.concatenate([row.reshape(SIZE, -1) for row in jax.tree.leaves(rows)], 1)
  ravel = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
  close = lambda got, expected: np.testing.assert_allclose(
    got, expected, rtol=0, atol=1e-12 * np.abs(expected).max()
  )
  for pushed, pulled, alignment in results.values():
    close(pushed, flat @ ravel(direction))
    close(ravel(pulled), np.asarray(weights) @ flat)
    close(alignment, flat @ ravel(meta_gradient))
  close(nested, flat @ ravel(meta_gradient))
  close(norms, np.linalg.norm(flat, axis=1))
  test.assertGreater(np.min(norms[:3]), 1e-6)


class RandomArchitectureTest(parameterized.TestCase):
  @parameterized.parameters(*((seed,) for seed in range(NUM_ARCHITECTURES)))
  @pytest.mark.long  # below: parameters copy the mark
  def test_every_route_agrees_with_brute_force(self, seed):
    with jax.enable_x64(True):
      check_architecture(self, seed)


if __name__ == "__main__":
  absltest.main()
