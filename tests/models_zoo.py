"""Numbers and helpers that the tests of the models share."""

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax import models

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
