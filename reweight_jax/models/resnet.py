"""The CIFAR residual networks of depth 6n + 2."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reweight_jax.models.norm import NORMS, Norm
from reweight_jax.types import Array


class ResNet(nn.Module):
  """A residual network for small images: a stem, three stages of n blocks each, one Dense layer.

  The stages have 16, 32 and 64 maps and the second and third halve the image. Blocks are
  post-activation: convolution, norm, ReLU, convolution, norm, plus the shortcut, ReLU. Shortcuts
  have no params (option A): every second pixel, and zeros for the new channels. Then the average
  over the image and the logits. With norm "batch", 10 classes and 3 input channels depth 20 has
  269,722 params.

  Convolutions start He normal and have biases only under norm "none"; the logits' kernel starts as
  flax's default (LeCun normal).

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; under "group" and
  "none" examples are independent of each other.
  Edge cases: images of odd size and of any number of channels work; under "none" activations grow
  with depth, which a small learning rate must make up for.

  Attributes:
    depth: 6n + 2 for a whole n of at least 1: 8, 14, 20, 32, ...
    num_classes: number of logits.
    norm: one of `NORMS`.
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.

  Raises:
    ValueError: if ``depth`` is not of that form or ``norm`` is unknown.

  Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015
  (arXiv:1512.03385), section 4.2.

  Example:
    >>> net = ResNet(depth=8, num_classes=2)
    >>> images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    >>> logits, _ = jax.eval_shape(
    ...     lambda x: net.init_with_output(jax.random.key(0), x, train=False), images)
    >>> print(logits.shape)
    (4, 2)
  """

  depth: int = 20
  num_classes: int = 10
  norm: str = "batch"
  dtype: Any = None

  def __post_init__(self) -> None:
    if self.depth < 8 or self.depth % 6 != 2:
      raise ValueError(f"ResNet expects depth 6n + 2 (8, 14, 20, 32, ...), got {self.depth}.")
    if self.norm not in NORMS:
      raise ValueError(f"ResNet expects norm in {NORMS}, got {self.norm!r}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]` of images `[batch, height, width, channels]`."""
    features = _conv(16, 1, self.norm, self.dtype)(inputs)
    features = nn.relu(Norm(self.norm, dtype=self.dtype)(features, train=train))
    for maps in (16, 32, 64):
      for block in range((self.depth - 2) // 6):
        stride = 2 if block == 0 and maps > 16 else 1
        features = Block(maps, stride, self.norm, self.dtype)(features, train=train)
    return nn.Dense(self.num_classes)(jnp.mean(features, (1, 2)))


class Block(nn.Module):
  """Two 3x3 convolutions beside a shortcut without params; the first one takes the stride."""

  maps: int
  stride: int = 1
  norm: str = "batch"
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns `[batch, ceil(height / stride), ceil(width / stride), maps]`."""
    features = _conv(self.maps, self.stride, self.norm, self.dtype)(inputs)
    features = nn.relu(Norm(self.norm, dtype=self.dtype)(features, train=train))
    features = _conv(self.maps, 1, self.norm, self.dtype)(features)
    features = Norm(self.norm, dtype=self.dtype)(features, train=train)
    return nn.relu(features + shortcut(inputs, self.maps, self.stride).astype(features.dtype))


def shortcut(inputs: Array, maps: int, stride: int) -> Array:
  """Returns every `stride`-th pixel of each row and column, with zero channels up to `maps`."""
  pixels = inputs[:, ::stride, ::stride]
  zero = jnp.zeros((), pixels.dtype)
  return jax.lax.pad(pixels, zero, [(0, 0, 0)] * 3 + [(0, maps - pixels.shape[-1], 0)])


def _conv(maps: int, stride: int, norm: str, dtype: Any) -> nn.Conv:
  # One pixel of padding on each side, not "SAME": at stride 2 "SAME" pads the far side alone, and
  # the windows would be centered one pixel off the pixels that the shortcut keeps.
  return nn.Conv(
    maps,
    (3, 3),
    strides=(stride, stride),
    padding=((1, 1), (1, 1)),
    use_bias=norm == "none",
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
  )
