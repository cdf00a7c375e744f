"""Small nets and batches that several tests share."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import reweight_jax as rw
from reweight_jax.models import Norm, linen_apply


class DropoutMLP(nn.Module):
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, inputs: Any, train: bool) -> Any:
    hidden = nn.tanh(nn.Dense(7)(inputs.reshape(inputs.shape[0], -1)))
    hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(hidden)
    return nn.Dense(3)(nn.tanh(nn.Dense(5)(hidden)))


class ConvNet(nn.Module):
  norm: str

  @nn.compact
  def __call__(self, inputs: Any, train: bool) -> Any:
    x = nn.Conv(4, (3, 3), strides=2, use_bias=False)(inputs)
    x = nn.tanh(Norm(self.norm)(x, train=train))
    x = nn.softplus(nn.Conv(6, (3, 3))(x))
    return nn.Dense(3)(x.mean((1, 2)))


NETS = {
  "mlp": DropoutMLP(),
  "dropout": DropoutMLP(dropout_rate=0.5),
  "group_norm": ConvNet("group"),
  "batch_norm": ConvNet("batch"),
}


def random_batch(
  seed: int, size: int, dtype: Any = jnp.float32, num_padding: int = 0
) -> rw.types.Batch:
  """Images 6x6x2, labels 0, 1, 2, 0, ..., the last `num_padding` examples padding."""
  inputs = jnp.asarray(np.random.default_rng(seed).normal(size=(size, 6, 6, 2)), dtype)
  index = np.arange(size, dtype=np.int32)
  mask = jnp.asarray(index < size - num_padding)
  return rw.types.make_batch(inputs, jnp.asarray(index % 3), mask=mask)


def random_like(tree: Any, seed: int, scale: float = 1.0) -> Any:
  """Normal arrays of the shapes and dtypes of a tree, by NumPy: nothing to compile."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)
  return jax.tree.map(draw, tree)


def numpy_map(function: Any, *trees: Any) -> Any:
  """`jax.tree.map` over NumPy arrays, whose arithmetic is not compiled for each shape."""
  return jax.tree.map(lambda *leaves: function(*map(np.asarray, leaves)), *trees)


@functools.cache
def make(name: str, dtype: Any = jnp.float32) -> tuple[Any, Any, Any]:
  """`(loss_fn, params, model_state)` of a net of `NETS`, its params random."""
  net = NETS[name]
  params, state = init_shapes(net, jax.ShapeDtypeStruct((2, 6, 6, 2), dtype))
  given = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)
  params = random_like(jax.tree.map(given, params), seed=0, scale=0.5)
  state = jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape), dtype), state)
  return rw.losses.from_apply(linen_apply(net)), params, state


def init_shapes(net: nn.Module, inputs: Any) -> tuple[Any, Any]:
  """Shapes of params and state without compiling the initializers."""
  init = lambda inputs: net.init(jax.random.key(0), inputs, train=False)
  variables = dict(jax.eval_shape(init, inputs))
  return variables.pop("params"), variables
