"""Small nets for sequences, of tokens or of vectors: a convolutional one and a transformer."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from reweight_jax.models.norm import NORMS, Norm
from reweight_jax.types import Array

PADDING_ID = 0
"""The token that only fills up a sequence: it is never read."""


class SequenceConvNet(nn.Module):
  """Convolutions of several widths over a sequence, each map's maximum over time, Dense.

  A ReLU follows each convolution; norm, if any, and dropout act on the maxima. Token ids are
  embedded. Images are read as sequences of their rows. Kernels that feed a ReLU start He normal,
  the logits' kernel as flax's default (LeCun normal), biases at 0.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; under "group" and
  "none" examples are independent of each other; tokens of id 0 are padding: how many of them follow
  a sequence changes nothing.
  Edge cases: a sequence of padding alone is legal, its maxima are 0. Padding between tokens keeps
  its place as a gap. Floating inputs have no padding: each position counts. Ids beyond the
  vocabulary give NaN.

  Attributes:
    num_classes: number of logits.
    vocabulary_size: number of token ids, padding included; floating inputs ignore it.
    width: of the embedding.
    windows: how many positions each group of convolutions sees.
    maps: of each window's convolution.
    norm: one of `NORMS`.
    dropout_rate: probability that a maximum is dropped in training, in [0, 1).
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.

  Raises:
    ValueError: if ``norm`` is unknown or ``dropout_rate`` is outside [0, 1); when called, if the
      inputs are of no kind that it reads.

  Source: Kim, "Convolutional Neural Networks for Sentence Classification", 2014 (arXiv:1408.5882),
  section 2, whose sizes are windows of 3, 4 and 5 with 100 maps each and dropout of 0.5. There the
  windows lie inside the padded sentence; here they may stick out of it.

  Example:
    >>> net = SequenceConvNet(num_classes=2, vocabulary_size=100)
    >>> tokens = jnp.array([[5, 17, 9], [8, 0, 0]])
    >>> run = lambda tokens: net.init_with_output(jax.random.key(0), tokens, train=False)
    >>> print(jax.eval_shape(run, tokens)[0].shape)
    (2, 2)
  """

  num_classes: int = 10
  vocabulary_size: int = 10_000
  width: int = 64
  windows: Sequence[int] = (3, 4, 5)
  maps: int = 64
  norm: str = "none"
  dropout_rate: float = 0.0
  dtype: Any = None

  def __post_init__(self) -> None:
    if self.norm not in NORMS:
      raise ValueError(f"SequenceConvNet expects norm in {NORMS}, got {self.norm!r}.")
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"SequenceConvNet expects dropout_rate in [0, 1), got {self.dropout_rate}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]`.

    Args:
      inputs: integers `[batch, length]`, or floats `[batch, length, features]` or
        `[batch, height, width, channels]`.
      train: whether dropout and batch statistics are active.
    """
    _check_sequence("SequenceConvNet", inputs)
    is_real = None
    if inputs.ndim == 2:
      is_real = (inputs != PADDING_ID)[:, :, None]
      inputs = nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype)(inputs) * is_real
    elif inputs.ndim == 4:
      inputs = inputs.reshape((*inputs.shape[:2], -1))
    he = nn.initializers.he_normal()
    maxima = []
    for window in self.windows:
      features = nn.Conv(self.maps, (window,), kernel_init=he, dtype=self.dtype)(inputs)
      features = nn.relu(features)
      # After the ReLU a padding position, at 0, is never above a real one.
      maxima.append(jnp.max(features if is_real is None else features * is_real, axis=1))
    features = jnp.concatenate(maxima, axis=-1)
    features = Norm(self.norm, dtype=self.dtype)(features, train=train)
    features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
    return nn.Dense(self.num_classes)(features)


class Transformer(nn.Module):
  """An encoder of pre-norm self-attention blocks, the mean over positions, Dense.

  Token ids are embedded, vectors projected, images cut into square patches and projected; then
  fixed sines and cosines of the position are added. A block adds self-attention of the layer-norm
  of its input, then a two-layer perceptron (GELU, four times as wide) of the layer-norm of that. A
  last layer-norm, the mean over the positions that are no padding, and the logits. Every kernel
  starts as flax's default (LeCun normal); token embeddings have unit deviation.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits; examples are
  independent of each other; tokens of id 0 are padding: how many of them follow a sequence changes
  nothing but rounding. Attention's softmax is never below float32.
  Edge cases: a sequence of padding alone is legal, and its logits are the bias. Floating inputs
  have no padding. Patches over the far border of an image are filled with zeros. Ids beyond the
  vocabulary give NaN.

  Attributes:
    num_classes: number of logits.
    vocabulary_size: number of token ids, padding included; floating inputs ignore it.
    width: of each position's vector, an even multiple of ``num_heads``.
    num_heads: heads of each self-attention.
    num_blocks: number of blocks.
    patch_size: side of an image's patches, in pixels.
    dropout_rate: probability that a number that a block would add is dropped in training, in
      [0, 1).
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.

  Raises:
    ValueError: if ``width`` is odd or no multiple of ``num_heads``, or ``dropout_rate`` is outside
      [0, 1); when called, if the inputs are of no kind that it reads.

  Source: Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762), section 3 (3.5 for
  the positions); Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020
  (arXiv:2002.04745), for the place of the norms; Dosovitskiy et al., "An Image is Worth 16x16
  Words", 2020 (arXiv:2010.11929), for patches. Both of the latter learn their positions.

  Example:
    >>> net = Transformer(num_classes=2, vocabulary_size=100, width=8, num_heads=2)
    >>> tokens = jnp.array([[5, 17, 9], [8, 0, 0]])
    >>> run = lambda tokens: net.init_with_output(jax.random.key(0), tokens, train=False)
    >>> print(jax.eval_shape(run, tokens)[0].shape)
    (2, 2)
  """

  num_classes: int = 10
  vocabulary_size: int = 10_000
  width: int = 64
  num_heads: int = 4
  num_blocks: int = 2
  patch_size: int = 4
  dropout_rate: float = 0.0
  dtype: Any = None

  def __post_init__(self) -> None:
    if self.width % 2 or self.width % self.num_heads:
      raise ValueError(
        f"Transformer expects an even width that num_heads divides, got width {self.width} and "
        f"num_heads {self.num_heads}."
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"Transformer expects dropout_rate in [0, 1), got {self.dropout_rate}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]`.

    Args:
      inputs: integers `[batch, length]`, or floats `[batch, length, features]` or
        `[batch, height, width, channels]`.
      train: whether dropout is active.
    """
    _check_sequence("Transformer", inputs)
    is_real = None
    if inputs.ndim == 2:
      is_real = inputs != PADDING_ID
      unit = nn.initializers.normal(1.0)
      embed = nn.Embed(self.vocabulary_size, self.width, embedding_init=unit, dtype=self.dtype)
      features = embed(inputs)
    elif inputs.ndim == 3:
      features = nn.Dense(self.width, dtype=self.dtype)(inputs)
    else:
      patch = (self.patch_size, self.patch_size)
      filling = [(0, -size % self.patch_size) for size in inputs.shape[1:3]]
      features = nn.Conv(self.width, patch, patch, filling, dtype=self.dtype)(inputs)
      features = features.reshape((features.shape[0], -1, self.width))
    features = features + _positions(features.shape[1], self.width, features.dtype)
    for _ in range(self.num_blocks):
      features = EncoderBlock(self.num_heads, self.dropout_rate, self.dtype)(
        features, is_real, train=train
      )
    features = nn.LayerNorm(dtype=self.dtype)(features)
    # The mean is taken in float32 at least: bfloat16 cannot add up many positions.
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return nn.Dense(self.num_classes)(_mean_over_time(wide, is_real))


class EncoderBlock(nn.Module):
  """Self-attention and a perceptron, each of the layer-norm of its input, each added to it."""

  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs: Array, is_real: Array | None, *, train: bool) -> Array:
    """Returns `[batch, length, width]`; nobody attends to a position that is not real."""
    width = inputs.shape[-1]
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    attention = nn.MultiHeadDotProductAttention(
      self.num_heads,
      dtype=self.dtype,
      deterministic=True,
      # The flag would cast float64 down.
      force_fp32_for_softmax=self.dtype is not None and jnp.finfo(self.dtype).bits < 32,
    )
    normalized = nn.LayerNorm(dtype=self.dtype)(inputs)
    mask = None if is_real is None else is_real[:, None, None, :]
    features = inputs + drop(attention(normalized, mask=mask))
    hidden = nn.Dense(4 * width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(features))
    return features + drop(nn.Dense(width, dtype=self.dtype)(nn.gelu(hidden)))


def _positions(length: int, width: int, dtype: Any) -> Array:
  """Sines, then cosines, of the positions at geometric wavelengths: `[1, length, width]`."""
  rates = 10_000.0 ** (-np.arange(0, width, 2) / width)
  angles = np.arange(length)[:, None] * rates[None, :]
  return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None], dtype)


def _mean_over_time(features: Array, is_real: Array | None) -> Array:
  """Mean over the real positions of each example; 0 where there is none."""
  if is_real is None:
    return jnp.mean(features, axis=1)
  counts = jnp.maximum(jnp.sum(is_real, axis=1, keepdims=True), 1)
  return jnp.sum(features * is_real[:, :, None], axis=1) / counts.astype(features.dtype)


def _check_sequence(name: str, inputs: Array) -> None:
  is_integer = jnp.issubdtype(inputs.dtype, jnp.integer)
  if inputs.ndim in ((2,) if is_integer else (3, 4)):
    return
  raise ValueError(
    f"{name} expects token ids [batch, length], or floats [batch, length, features] or [batch, "
    f"height, width, channels]; got {inputs.dtype} of shape {inputs.shape}. Scale images of bytes "
    "first (models.scale_uint8)."
  )
