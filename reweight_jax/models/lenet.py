"""The small convolutional net of the MNIST experiment in the learning-to-reweight paper."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reweight_jax.types import Array


class LeNet(nn.Module):
  """Three times 5x5 convolution, 3x3 max pooling of stride 2 and ReLU; Dense 100, ReLU, Dense.

  The convolutions have 16, 32 and 64 maps and biases. No normalization, no dropout. A binary
  classifier with a single logit on 28x28x1 images has 167,113 params.

  Kernels before a ReLU start He normal, the logits' kernel as flax's default (LeCun normal), biases
  at 0. ``kernel_init=nn.initializers.truncated_normal(0.1)`` starts every kernel as the original
  experiment did.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; examples are
  independent of each other; training and evaluation are the same function.

  Attributes:
    num_classes: number of logits; 1 for a binary head.
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.
    kernel_init: initializer of every kernel; None is what is said above.

  Source: the net of the MNIST data imbalance experiment of Ren, Zeng, Yang, Urtasun, "Learning to
  Reweight Examples for Robust Deep Learning", 2018. The paper calls it LeNet; the sizes are those
  that its experiments used.

  Example:
    >>> net = LeNet(num_classes=1)
    >>> init = lambda key: net.init(key, jnp.ones((1, 28, 28, 1)), train=False)
    >>> shapes = jax.eval_shape(init, jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
    167113
  """

  num_classes: int = 10
  dtype: Any = None
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]` of images `[batch, height, width, channels]`."""
    del train
    he = self.kernel_init or nn.initializers.he_normal()
    features = inputs
    for maps in (16, 32, 64):
      features = nn.Conv(maps, (5, 5), kernel_init=he, dtype=self.dtype)(features)
      features = nn.relu(max_pool(features))
    features = features.reshape((features.shape[0], -1))
    features = nn.relu(nn.Dense(100, kernel_init=he, dtype=self.dtype)(features))
    last = self.kernel_init or nn.initializers.lecun_normal()
    return nn.Dense(self.num_classes, kernel_init=last)(features)


def max_pool(inputs: Array, window: int = 3, stride: int = 2) -> Array:
  """Takes the maximum over square windows of an image, padded as "SAME".

  The value of ``flax.linen.max_pool``, as a maximum of strided slices along one axis and then the
  other: on CPU the backward pass of `jax.lax.reduce_window` is many times slower than that of
  slices.

  Guarantees: equal to ``flax.linen.max_pool(..., padding="SAME")``; differentiable any number of
  times, forward and backward.
  Edge cases: where several places tie for the maximum they share its gradient (flax gives all of it
  to the first); the gradient of a window still sums to 1.

  Args:
    inputs: `[batch, height, width, channels]`, floating.
    window: height and width of a window, at least 1.
    stride: step between windows, at least 1.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), channels]`.

  Example:
    >>> image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> print(max_pool(image)[0, :, :, 0])
    [[10. 11.]
     [14. 15.]]
  """
  for axis in (1, 2):
    size = inputs.shape[axis]
    out = -(-size // stride)
    low, extra = divmod(max((out - 1) * stride + window - size, 0), 2)
    pads = [(0, 0, 0)] * inputs.ndim
    pads[axis] = (low, low + extra, 0)
    padded = jax.lax.pad(inputs, jnp.array(-jnp.inf, inputs.dtype), pads)
    last = (out - 1) * stride + 1
    pooled = jax.lax.slice_in_dim(padded, 0, last, stride, axis)
    for start in range(1, window):
      pooled = jnp.maximum(pooled, jax.lax.slice_in_dim(padded, start, start + last, stride, axis))
    inputs = pooled
  return inputs
