"""Pre-activation residual networks, thin and wide, with shortcuts that have no params."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reweight_jax.models.norm import NORMS, Norm
from reweight_jax.types import Array


class PreActResNet(nn.Module):
  """The residual networks of the CIFAR experiments of learning to reweight.

  A 3x3 convolution with 16 maps, three stages of n units each with 16, 32 and 64 maps times
  ``widen``, norm, ReLU, the average over the image, and the logits. The second and third stage
  halve the image. A unit is norm, ReLU, dropout, 3x3 convolution, norm, ReLU, 3x3 convolution, plus
  the shortcut. The very first unit has no dropout. Shortcuts average 2x2 pixels where the image is
  halved and get zero channels on both sides where maps are added. On CIFAR-10, with norm "batch",
  depth 32 has 463,018 params, and depth 28 widened 10 times 36,211,658.

  The norms shift and do not scale, and move their running averages slowly. Convolutions start from
  a normal distribution of deviation sqrt(2 / (9 maps)), cut off at two deviations; they have biases
  only under norm "none". The logits' kernel starts uniform with variance 1 / fan-in (LeCun), biases
  at 0.

  Three details of the original experiments are not known, and chosen here: the first norm and ReLU
  of the very first unit stand before its shortcut branches off, as in the paper on identity
  mappings, in other units after; strided convolutions are padded as "SAME"; images of odd size are
  averaged over the pixels that are there.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; under "group" and
  "none" examples are independent of each other.
  Edge cases: in evaluation after few steps the running averages still are mostly their start, 0 and
  1: after t steps with share 0.999^t. With ``dropout_rate`` above 0, training without a "dropout"
  key raises flax's ``InvalidRngError``.

  Attributes:
    depth: 6n + 2, or 6n + 4 as wide residual networks count: 28 and 26 both have n = 4.
    widen: factor of the maps of the stages, at least 1.
    dropout_rate: probability that an activation is dropped in training, in [0, 1).
    num_classes: number of logits.
    norm: one of `NORMS`.
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.
    norm_momentum: the share of the old running average kept at each step, in [0, 1].
    norm_epsilon: added to the variance, > 0.
    norm_scale: True gives the norms a scale, as is usual elsewhere.

  Raises:
    ValueError: if an attribute is outside its range.

  Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", 2018
  (ResNet-32, WRN-28-10); He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016
  (arXiv:1603.05027); Zagoruyko, Komodakis, "Wide Residual Networks", 2016 (arXiv:1605.07146).

  Example:
    >>> net = PreActResNet(depth=32)
    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> init = lambda x: net.init(jax.random.key(0), x, train=False)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, images)))
    463018
  """

  depth: int = 32
  widen: int = 1
  dropout_rate: float = 0.0
  num_classes: int = 10
  norm: str = "batch"
  dtype: Any = None
  norm_momentum: float = 0.999
  norm_epsilon: float = 1e-3
  norm_scale: bool = False

  def __post_init__(self) -> None:
    if self.depth < 8 or self.depth % 6 not in (2, 4):
      raise ValueError(f"PreActResNet expects depth 6n + 2 or 6n + 4, got {self.depth}.")
    if self.widen < 1:
      raise ValueError(f"PreActResNet expects widen of at least 1, got {self.widen}.")
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"PreActResNet expects dropout_rate in [0, 1), got {self.dropout_rate}.")
    if self.norm not in NORMS:
      raise ValueError(f"PreActResNet expects norm in {NORMS}, got {self.norm!r}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]` of images `[batch, height, width, channels]`."""
    make_norm = functools.partial(
      Norm, self.norm, self.norm_momentum, self.norm_epsilon, self.norm_scale, self.dtype
    )
    make_conv = functools.partial(_conv, has_bias=self.norm == "none", dtype=self.dtype)
    features = make_conv(16)(inputs)
    for stage in range(3):
      maps = 16 * self.widen * 2**stage
      for unit in range((self.depth - 2) // 6):
        stride = 2 if unit == 0 and stage > 0 else 1
        is_first = stage == unit == 0
        before = features
        features = nn.relu(make_norm()(features, train=train))
        beside = features if is_first else before
        if not is_first:
          features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
        features = make_conv(maps, stride)(features)
        features = make_conv(maps)(nn.relu(make_norm()(features, train=train)))
        features = features + shortcut(beside, maps, stride).astype(features.dtype)
    features = nn.relu(make_norm()(features, train=train))
    uniform = nn.initializers.lecun_uniform()
    return nn.Dense(self.num_classes, kernel_init=uniform)(jnp.mean(features, (1, 2)))


def shortcut(inputs: Array, maps: int, stride: int) -> Array:
  """Averages squares of `stride` pixels, and adds zero channels on both sides up to `maps`.

  Args:
    inputs: `[batch, height, width, channels]`.
    maps: the number of channels to reach, at least ``channels``.
    stride: side of the squares; squares over the far border average the pixels that are there.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), maps]`.
  """
  batch, height, width, channels = inputs.shape
  if stride > 1:
    # As a reshape: on CPU the derivative of a window sum is slow. A repeated border pixel does not
    # move the mean of a pair.
    sides = [(0, -size % stride) for size in (height, width)]
    inputs = jnp.pad(inputs, ((0, 0), *sides, (0, 0)), mode="edge")
    height, width = (-(-size // stride) for size in (height, width))
    inputs = jnp.mean(inputs.reshape(batch, height, stride, width, stride, channels), (2, 4))
  low = (maps - channels) // 2
  pads = [(0, 0, 0)] * 3 + [(low, maps - channels - low, 0)]
  return jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), pads)


def _conv(maps: int, stride: int = 1, *, has_bias: bool, dtype: Any) -> nn.Conv:
  return nn.Conv(
    maps,
    (3, 3),
    strides=(stride, stride),
    use_bias=has_bias,
    kernel_init=nn.initializers.truncated_normal(math.sqrt(2 / (9 * maps))),
    dtype=dtype,
  )
