"""Numbers about predictions and about weights. Pure, jittable functions of arrays."""

import jax
import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32
from reweight_jax.types import Array


def accuracy(logits: Array, labels: Array, mask: Array | None = None) -> Array:
  """Share of examples whose largest logit is at the label.

  Args:
    logits: `[examples, classes]`; ties go to the lower class, and so do NaNs.
    labels: `[examples]` integers.
    mask: `[examples]` bool, False for examples not to count; None counts all.

  Returns:
    A scalar in [0, 1]; NaN if nothing counts.

  Example:
    >>> print(accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
    0.75
  """
  return _mean(_is_correct(logits, labels), mask)


def per_class_accuracy(
  logits: Array, labels: Array, num_classes: int, mask: Array | None = None
) -> Array:
  """Accuracy among the examples of each class (recall).

  Args:
    logits: `[examples, classes]`.
    labels: `[examples]` integers; those outside [0, num_classes) do not count.
    num_classes: number of classes.
    mask: `[examples]` bool, False for examples not to count; None counts all.

  Returns:
    `[num_classes]`; NaN for a class without examples.

  Example:
    >>> print(per_class_accuracy(jnp.eye(3), jnp.array([0, 1, 1]), 3))
    [1.  0.5 nan]
  """
  members = jax.nn.one_hot(labels, num_classes, dtype=bool)
  members = members if mask is None else members & mask[:, None]
  correct = jnp.broadcast_to(_is_correct(logits, labels)[:, None], members.shape)
  return jnp.mean(correct, axis=0, where=members)


def expected_calibration_error(
  logits: Array, labels: Array, num_bins: int = 15, mask: Array | None = None
) -> Array:
  r"""How far confidence is from accuracy: :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|`.

  Confidence is the largest softmax probability, cut into bins of equal width, open on the left.

  Args:
    logits: `[examples, classes]`.
    labels: `[examples]` integers.
    num_bins: number of bins.
    mask: `[examples]` bool, False for examples not to count; None counts all.

  Returns:
    A scalar in [0, 1]; NaN if nothing counts.

  Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599, eq. (3).

  Example:
    >>> print(expected_calibration_error(jnp.zeros((2, 2)), jnp.array([0, 1])))
    0.0
  """
  confidences = jnp.max(jax.nn.softmax(at_least_float32(logits)), axis=-1)
  counted = jnp.ones(labels.shape, bool) if mask is None else mask
  gaps = jnp.where(counted, _is_correct(logits, labels) - confidences, 0)
  bins = jnp.clip(jnp.ceil(confidences * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
  totals = jnp.bincount(bins, weights=gaps, length=num_bins)
  return jnp.sum(jnp.abs(totals)) / jnp.sum(counted, dtype=totals.dtype)


def effective_sample_size(weights: Array) -> Array:
  r"""Number of equally weighted examples with the same spread: :math:`(\sum w)^2 / \sum w^2`.

  Args:
    weights: `[batch]` non-negative; padding has weight 0.

  Returns:
    A scalar between 1 and the number of non-zero weights; 0 if all weights are 0.

  Source: Kish, "Survey Sampling", 1965, section 11.7.

  Example:
    >>> print(effective_sample_size(jnp.array([2.0, 2.0, 0.0])))
    2.0
  """
  weights = at_least_float32(weights)
  largest = jnp.max(jnp.abs(weights), initial=0)
  shares = weights / jnp.where(largest == 0, 1, largest)  # squares of tiny weights would underflow
  squares = jnp.sum(jnp.square(shares))
  return jnp.square(jnp.sum(shares)) / jnp.where(squares == 0, 1, squares)


def zero_weight_share(weights: Array, mask: Array | None = None) -> Array:
  """Share of real examples whose weight is exactly 0.

  Args:
    weights: `[batch]`.
    mask: `[batch]` bool, False for padding; None if there is none.

  Returns:
    A scalar in [0, 1]; NaN if no example is real.

  Example:
    >>> print(zero_weight_share(jnp.array([0.0, 2.0, 0.0]), jnp.array([True, True, False])))
    0.5
  """
  return _mean(jnp.asarray(weights == 0, jnp.result_type(float)), mask)


def auroc(scores: Array, positive: Array, mask: Array | None = None) -> Array:
  """Probability that a positive example has the larger score than a negative one; ties count half.

  With weights as scores and "the label is correct" as positive it says how well the weights tell
  correct labels from wrong ones.

  Args:
    scores: `[examples]`; NaN (never seen) does not count.
    positive: `[examples]` bool.
    mask: `[examples]` bool, False for examples not to count; None counts all.

  Returns:
    A scalar in [0, 1]; NaN unless both kinds are there.

  Source: the Mann-Whitney U statistic; Fawcett, "An introduction to ROC analysis", 2006, section 7.

  Example:
    >>> print(auroc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([False, False, True, True])))
    0.75
  """
  positive, scores, counted = _ranked(scores, positive, mask)
  ordered = jnp.sort(scores)
  below = jnp.searchsorted(ordered, scores, side="left") - jnp.sum(~counted)
  up_to = jnp.searchsorted(ordered, scores, side="right") - jnp.sum(~counted)
  ranks = (below + up_to + 1).astype(jnp.float32) / 2
  num_positive = jnp.sum(positive, dtype=jnp.float32)
  num_negative = jnp.sum(counted, dtype=jnp.float32) - num_positive
  # Average ranks keep the sum below float32's integers for a million examples.
  mean_rank = jnp.mean(ranks, where=positive)
  area = (mean_rank - (num_positive + 1) / 2) / num_negative
  return jnp.where(num_negative > 0, area, jnp.nan)


def average_precision(scores: Array, positive: Array, mask: Array | None = None) -> Array:
  """Precision averaged over the positive examples, each at its own score as threshold.

  Args:
    scores: `[examples]`; examples of equal score share a threshold; NaN (never seen) does not
      count.
    positive: `[examples]` bool.
    mask: `[examples]` bool, False for examples not to count; None counts all.

  Returns:
    A scalar in [0, 1]; NaN without positives. A constant score gives the share of positives.

  Source: scikit-learn's `average_precision_score`: the sum over thresholds of the recall gained
    times the precision.

  Example:
    >>> print(average_precision(jnp.array([3.0, 2.0, 1.0]), jnp.array([True, False, False])))
    1.0
  """
  positive, scores, _ = _ranked(scores, positive, mask)
  order = jnp.argsort(scores)
  ordered, hits = scores[order], jnp.cumsum(positive[order][::-1])[::-1]
  first = jnp.searchsorted(ordered, scores, side="left")  # all from here on score at least as much
  precision = hits[first].astype(jnp.float32) / (scores.shape[0] - first).astype(jnp.float32)
  return jnp.mean(precision, where=positive)


def _ranked(scores: Array, positive: Array, mask: Array | None) -> tuple[Array, Array, Array]:
  """Positives, scores and who counts; what does not count is negative and ranks below all."""
  counted = ~jnp.isnan(scores)
  counted = counted if mask is None else counted & mask
  return positive & counted, jnp.where(counted, scores, -jnp.inf), counted


def _is_correct(logits: Array, labels: Array) -> Array:
  # Never below float32, whose counts are exact up to 2^24.
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _mean(values: Array, mask: Array | None) -> Array:
  return jnp.mean(values, where=None if mask is None else mask)
