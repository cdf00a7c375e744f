"""Residual networks for small images: the thin ones of depth 6n + 2, and the wide ResNet-18."""

from collections.abc import Sequence
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


class ResNet18(nn.Module):
  """The 18 layers of the ImageNet residual network, with a stem for small images.

  A 3x3 convolution of stride 1 in place of the 7x7 one and its pooling, then four stages of two
  blocks each with 64, 128, 256 and 512 maps, which halve the image from the second on, the average
  over the image, and the logits. Blocks are post-activation, as in `ResNet`. Where the shape
  changes the shortcut is a 1x1 convolution with a norm (option B), else nothing (identity). With
  norm "batch", 10 classes and 3 input channels it has 11,173,962 params.

  Kernels and biases start as in `ResNet`.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; under "group" and
  "none" examples are independent of each other.
  Edge cases: images of any size and number of channels work; 8x8 ones reach the last stage as
  single pixels. The name counts convolutions before logits for ``blocks=(2, 2, 2, 2)`` alone.

  Attributes:
    num_classes: number of logits.
    norm: one of `NORMS`.
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.
    blocks: how many blocks each stage has; (3, 4, 6, 3) is ResNet-34.
    maps: of the first stage; each next one has twice as many.

  Raises:
    ValueError: if ``norm`` is unknown, or a stage has no block.

  Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015
  (arXiv:1512.03385), table 1 and section 4.1. The stem is no part of the paper: it is the common
  one of work on CIFAR.

  Example:
    >>> net = ResNet18(num_classes=10)
    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> init = lambda x: net.init(jax.random.key(0), x, train=False)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, images)))
    11173962
  """

  num_classes: int = 10
  norm: str = "batch"
  dtype: Any = None
  blocks: Sequence[int] = (2, 2, 2, 2)
  maps: int = 64

  def __post_init__(self) -> None:
    if self.norm not in NORMS:
      raise ValueError(f"ResNet18 expects norm in {NORMS}, got {self.norm!r}.")
    if not self.blocks or min(self.blocks) < 1:
      raise ValueError(f"ResNet18 expects a block or more in each stage, got {self.blocks}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]` of images `[batch, height, width, channels]`."""
    features = _conv(self.maps, 1, self.norm, self.dtype)(inputs)
    features = nn.relu(Norm(self.norm, dtype=self.dtype)(features, train=train))
    for stage, num_blocks in enumerate(self.blocks):
      for block in range(num_blocks):
        stride = 2 if block == 0 and stage > 0 else 1
        features = Block(self.maps * 2**stage, stride, self.norm, self.dtype, has_projection=True)(
          features, train=train
        )
    return nn.Dense(self.num_classes)(jnp.mean(features, (1, 2)))


class Block(nn.Module):
  """Two 3x3 convolutions beside a shortcut; the first one takes the stride.

  The shortcut has no params, unless ``has_projection`` and the shape changes.
  """

  maps: int
  stride: int = 1
  norm: str = "batch"
  dtype: Any = None
  has_projection: bool = False

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns `[batch, ceil(height / stride), ceil(width / stride), maps]`."""
    features = _conv(self.maps, self.stride, self.norm, self.dtype)(inputs)
    features = nn.relu(Norm(self.norm, dtype=self.dtype)(features, train=train))
    features = _conv(self.maps, 1, self.norm, self.dtype)(features)
    features = Norm(self.norm, dtype=self.dtype)(features, train=train)
    if self.has_projection and (self.stride, self.maps) != (1, inputs.shape[-1]):
      beside = _conv(self.maps, self.stride, self.norm, self.dtype, size=1)(inputs)
      beside = Norm(self.norm, dtype=self.dtype)(beside, train=train)
    else:
      beside = shortcut(inputs, self.maps, self.stride)
    return nn.relu(features + beside.astype(features.dtype))


def shortcut(inputs: Array, maps: int, stride: int) -> Array:
  """Returns every `stride`-th pixel of each row and column, with zero channels up to `maps`."""
  pixels = inputs[:, ::stride, ::stride]
  zero = jnp.zeros((), pixels.dtype)
  return jax.lax.pad(pixels, zero, [(0, 0, 0)] * 3 + [(0, maps - pixels.shape[-1], 0)])


def _conv(maps: int, stride: int, norm: str, dtype: Any, size: int = 3) -> nn.Conv:
  # Half a window of padding on each side, not "SAME": at stride 2 "SAME" pads the far side alone,
  # and the windows would be centered one pixel off the pixels that the shortcut keeps.
  return nn.Conv(
    maps,
    (size, size),
    strides=(stride, stride),
    padding=((size // 2, size // 2),) * 2,
    use_bias=norm == "none",
    kernel_init=nn.initializers.he_normal(),
    dtype=dtype,
  )
