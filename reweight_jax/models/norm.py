"""One normalization layer of three kinds, differentiable, and free to run without mutation."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from reweight_jax.types import Array

NORMS = ("batch", "group", "none")
"""The kinds of `Norm`: over the batch, over channel groups of one example, not at all."""


class Norm(nn.Module):
  r"""Normalizes the last axis' channels by batch statistics, by group statistics, or not at all.

  "batch" subtracts the mean and divides by :math:`\sqrt{\text{var} + \text{epsilon}}` over every
  axis but the last, then scales and shifts. In training the statistics are those of the batch and
  derivatives pass through them; the running averages in the collection "batch_stats" are written
  only where the caller made that collection mutable. So a pass of the meta batch, or a derivative
  of the losses, is the same call without mutation, where `flax.linen.BatchNorm` raises. With
  ``train=False`` the running averages take the statistics' place.

  "group" is `flax.linen.GroupNorm` with `num_groups(channels)` groups: each example by itself.

  Guarantees: statistics are at least float32, whatever the inputs; float64 inputs stay float64;
  running averages keep their own dtype. No mutation happens outside of "batch_stats".
  Edge cases: under "batch" the examples of a batch depend on each other, padding included: fill the
  last batch, or drop it, or use "group". The running variance is the biased one of the batch.

  Attributes:
    kind: one of `NORMS`.
    momentum: the share of the old running average kept at each step, in [0, 1].
    epsilon: added to the variance, > 0.
    use_scale: False leaves out the scale, and with it a param, under "batch" and "group".
    dtype: of the outputs; None infers it from inputs and params. The params stay float32.

  Raises:
    ValueError: if ``kind`` is not one of `NORMS`.

  Source: Ioffe, Szegedy, "Batch Normalization", 2015, algorithms 1 and 2 (running averages instead
  of the population statistics of algorithm 2); Wu, He, "Group Normalization", 2018, section 3.

  Example:
    >>> inputs = jnp.array([[1.0], [3.0]])
    >>> norm = Norm("batch", epsilon=1e-12)
    >>> variables = norm.init(jax.random.key(0), inputs, train=True)
    >>> print(norm.apply(variables, inputs, train=True))
    [[-1.]
     [ 1.]]
  """

  kind: str = "batch"
  momentum: float = 0.9
  epsilon: float = 1e-5
  use_scale: bool = True
  dtype: Any = None

  def __post_init__(self) -> None:
    if self.kind not in NORMS:
      raise ValueError(f"Norm expects kind in {NORMS}, got {self.kind!r}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the normalized inputs `[batch, ..., channels]`, of the same shape."""
    if self.kind == "none":
      return inputs
    channels = inputs.shape[-1]
    if self.kind == "group":
      return nn.GroupNorm(
        num_groups(channels),
        epsilon=self.epsilon,
        use_scale=self.use_scale,
        dtype=self.dtype,
        use_fast_variance=False,
      )(inputs)
    scale = jnp.ones((channels,), jnp.float32)
    if self.use_scale:
      scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    writes = self.is_mutable_collection("batch_stats")
    if writes or not train:
      running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
      running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
    if train:
      axes = tuple(range(inputs.ndim - 1))
      mean = jnp.mean(wide, axes)
      # Two passes: E[x^2] - E[x]^2 loses every digit for inputs such as 1e4 + noise.
      var = jnp.mean(jnp.square(wide - _row(mean, inputs.ndim)), axes)
      if writes and not self.is_initializing():
        running_mean.value = self._moved(running_mean.value, mean)
        running_var.value = self._moved(running_var.value, var)
    else:
      mean, var = running_mean.value, running_var.value
    gain = scale / jnp.sqrt(var + self.epsilon)
    outputs = (wide - _row(mean, inputs.ndim)) * _row(gain, inputs.ndim) + _row(bias, inputs.ndim)
    return outputs.astype(self.dtype or jnp.result_type(inputs.dtype, scale.dtype))

  def _moved(self, old: Array, new: Array) -> Array:
    return (self.momentum * old + (1 - self.momentum) * new).astype(old.dtype)


def num_groups(channels: int) -> int:
  """Returns how many groups "group" makes of some channels.

  The largest divisor of ``channels`` that is at most 8 and leaves at least 4 channels a group, else
  1: normalizing a handful of numbers, as an MLP's vectors would be, erases what they say.

  Args:
    channels: size of the last axis, at least 1.

  Returns:
    The number of groups.

  Example:
    >>> [num_groups(channels) for channels in (5, 16, 32, 64, 100)]
    [1, 4, 8, 8, 5]
  """
  fitting = [n for n in range(1, 9) if channels % n == 0 and channels // n >= 4]
  return max(fitting, default=1)


def _row(vector: Array, ndim: int) -> Array:
  """Per-channel numbers shaped to meet `[batch, ..., channels]` without rank promotion."""
  return vector.reshape((1,) * (ndim - 1) + (-1,))
