"""The rule that reads how crowded each gradient length is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32, bias_corrected, moving_average, num_real
from reweight_jax._validate import check_decay, check_number
from reweight_jax.losses import log_error_probability
from reweight_jax.types import Array, Params, ScalarLike, WeightingRule


class GradientHarmonizingState(NamedTuple):
  """State of `gradient_harmonizing`."""

  counts: Array  # [bins] moving average of the batch's histogram, not yet bias-corrected
  num_batches: Array  # [] int32, batches seen


def gradient_harmonizing(num_bins: int = 30, decay: ScalarLike = 0.75) -> WeightingRule:
  r"""Gradient harmonizing: weighs down the lengths of gradient that many examples share.

  The length is :math:`g = 1 - p`, that of cross-entropy's gradient halved. With :math:`n` real
  examples, :math:`S` the moving histogram of the lengths in bins of equal width, and :math:`m` the
  number of bins that the batch hits, multiplies by :math:`n / (m\,S_{b(i)})`: each hit bin has the
  same total weight. Both the many well-fitted examples and outliers that share a length lose.

  Guarantees: padding stays at weight 0 and does not count; permuting the batch permutes weights;
  without decay the factors of the real examples average 1.
  Edge cases: a single example in its bin may weigh much: chain `clip_weights` or `normalize`. The
  average is bias-corrected from the first batch on.

  Args:
    num_bins: at least 1; 1 changes nothing while all batches have one size.
    decay: share of the old histogram kept at each step, in [0, 1).

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float, ``labels`` [batch] int and ``mask``
    [batch] bool.

  Raises:
    ValueError: if a Python number is out of range, or `num_bins` not whole.

  Source: Li, Liu, Wang, "Gradient Harmonized Single-stage Detector", 2019, arXiv 1811.05181, eqs.
    (9) and (12), GHM-C; there with sigmoids. # Departs from eq. (12): bias-corrected.

  Example:
    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]))
    >>> evidence = dict(logits=logits, labels=jnp.zeros(4, jnp.int32), mask=jnp.ones(4, bool))
    >>> rule = gradient_harmonizing(10, decay=0.0)
    >>> weights, _ = rule.update(jnp.ones(4), rule.init(jnp.ones(4)), **evidence)
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.67', '0.67', '0.67', '2.00']
  """
  check_number("gradient_harmonizing: num_bins", num_bins, at_least=1, whole=True)
  check_decay("gradient_harmonizing: decay", decay)

  def init(weights: Array) -> GradientHarmonizingState:
    return GradientHarmonizingState(jnp.zeros(num_bins, weights.dtype), jnp.zeros((), jnp.int32))

  def update(
    updates: Array,
    state: GradientHarmonizingState,
    params: Params = None,
    *,
    logits: Array,
    labels: Array,
    mask: Array,
    **unused: Any,
  ) -> tuple[Array, GradientHarmonizingState]:
    del params, unused
    lengths = jnp.exp(jax.vmap(log_error_probability)(at_least_float32(logits), labels))
    bins = jnp.clip((lengths * num_bins).astype(jnp.int32), 0, num_bins - 1)
    in_bin = (bins[:, None] == jnp.arange(num_bins, dtype=bins.dtype)[None, :]) & mask[:, None]
    histogram = jnp.sum(in_bin, axis=0).astype(updates.dtype)
    counts, seen = moving_average(
      state.counts, state.num_batches, histogram, decay, moves=jnp.any(mask)
    )
    share = jnp.where(mask, bias_corrected(counts, seen, decay)[bins], 1)
    num_hit = jnp.maximum(jnp.sum(histogram > 0), 1).astype(updates.dtype)
    factors = num_real(mask, updates.dtype) / (num_hit * share)
    return updates * factors, GradientHarmonizingState(counts.astype(state.counts.dtype), seen)

  return optax.GradientTransformationExtraArgs(init, update)
