r"""Difficulty from an ensemble: what members that have not seen an example make of it.

All of it is made of the members' log-probabilities `[members, examples, classes]`, of the masks
`[members, examples]` that say what each was trained on, and of the labels; for each example by
itself, so that large ensembles can be scored slice by slice. Larger is harder; NaN is an example
that no member held out.

The error of an example, expected over training sets that do not hold it, is bias plus variance. For
cross-entropy that is exact with the normalized geometric mean
:math:`\bar f \propto \exp(E \log f)` as the center: the bias is its loss, and the variance,
:math:`E\,KL(\bar f \| f) = -\log \sum_c \exp(E \log f_c)`, does not know the label. Around the
arithmetic mean of the probabilities the cross-entropy does not split so; the Brier score does.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_number
from reweight_jax.difficulty import confident
from reweight_jax.types import Array

CLIP = 1e-7
"""The least probability that counts in a logarithm: a loss of 16.1 nats is the largest."""


class BiasVariance(NamedTuple):
  """The held-out error of each example and its two parts. All `[examples]`."""

  error: Array
  bias: Array
  variance: Array


def bias_variance(
  log_probs: Array, trained_on: Array, labels: Array, *, clip: float = CLIP
) -> BiasVariance:
  """The held-out cross-entropy, split around the normalized geometric mean.

  Guarantees: error is bias plus variance to rounding (each is computed by itself), with any clip
  and any number of members; the variance does not depend on the labels; with one held-out member it
  is 0.
  Edge cases: the error of a member that is sure and wrong is what the clip makes it, so compare
  errors of one clip. Clipped probabilities add up to a little more than 1, so the variance may fall
  below 0 by the clip times the number of classes. An example never held out is NaN.

  Args:
    log_probs: `[members, examples, classes]`, of `predict_members`.
    trained_on: `[members, examples]` bool, the masks.
    labels: `[examples]` integers, the given labels.
    clip: the least probability that counts, in (0, 1).

  Returns:
    A `BiasVariance` in nats.

  Raises:
    ValueError: if a log-probability is NaN or above 0, naming its place, or shapes do not fit.

  Source: Heskes, "Bias/Variance Decompositions for Likelihood-Based Estimators", 1998, section 3.
    The error as a measure of difficulty: Zhou, Wu, Zhu, Liang, 2022, arXiv 2301.04850, abstract.

  Example:
    >>> probs = jnp.array([[[0.8, 0.2]], [[0.2, 0.8]], [[1.0, 0.0]]])
    >>> trained_on = jnp.array([[False], [False], [True]])
    >>> error, bias, variance = bias_variance(jnp.log(probs), trained_on, jnp.array([0]))
    >>> print(f"{error[0]:.3f} = {bias[0]:.3f} + {variance[0]:.3f}")
    0.916 = 0.693 + 0.223
  """
  check_number("bias_variance: clip", clip, above=0, below=1)
  log_probs, held_out = _checked(log_probs, trained_on, labels)
  return _split_cross_entropy(log_probs, held_out, jnp.asarray(labels), math.log(clip))


@jax.jit
def _split_cross_entropy(
  log_probs: Array, held_out: Array, labels: Array, least: Array
) -> BiasVariance:
  clipped = jnp.maximum(log_probs, jnp.asarray(least, log_probs.dtype))
  of_members = _at(clipped, labels)
  center = jnp.mean(clipped, axis=0, where=held_out[:, :, None])
  log_total = jax.nn.logsumexp(center, axis=-1)
  return BiasVariance(
    -jnp.mean(of_members, axis=0, where=held_out), log_total - _at(center, labels), -log_total
  )


def brier_bias_variance(log_probs: Array, trained_on: Array, labels: Array) -> BiasVariance:
  """The held-out Brier score, split around the mean of the probabilities.

  Guarantees: as `bias_variance`; the error is at most 2, whatever a member is sure of, so nothing
  is clipped.

  Args:
    log_probs: `[members, examples, classes]`.
    trained_on: `[members, examples]` bool.
    labels: `[examples]` integers.

  Returns:
    A `BiasVariance`: squared distances from the one-hot label, summed over the classes.

  Raises:
    ValueError: as `bias_variance`.

  Source: Geman, Bienenstock, Doursat, "Neural Networks and the Bias/Variance Dilemma", 1992,
    section 2.3.

  Example:
    >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2]], [[0.2, 0.8]]]))
    >>> split = brier_bias_variance(log_probs, jnp.zeros((2, 1), bool), jnp.array([0]))
    >>> print(f"{split.error[0]:.2f} = {split.bias[0]:.2f} + {split.variance[0]:.2f}")
    0.68 = 0.50 + 0.18
  """
  log_probs, held_out = _checked(log_probs, trained_on, labels)
  return _split_brier(log_probs, held_out, jnp.asarray(labels))


@jax.jit
def _split_brier(log_probs: Array, held_out: Array, labels: Array) -> BiasVariance:
  probs, where = jnp.exp(log_probs), held_out[:, :, None]
  truth = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
  center = jnp.mean(probs, axis=0, where=where)
  distance = lambda to: jnp.sum(jnp.mean(jnp.square(probs - to), axis=0, where=where), axis=-1)
  return BiasVariance(
    distance(truth[None]), jnp.sum(jnp.square(center - truth), axis=-1), distance(center[None])
  )


def held_out_error(
  log_probs: Array, trained_on: Array, labels: Array, *, clip: float = CLIP
) -> Array:
  """The mean cross-entropy of the members that were not trained on an example.

  Wrong labels, rare classes, a small margin and uncertainty all raise it; it does not say which.
  Arguments and errors as in `bias_variance`, whose `error` it is: `[examples]`, nats.

  It is also the irreducible loss of RHO-LOSS, by several models in place of one: the reference of
  `rules.reducible_loss`, which *lowers* the weight of what is hard by it.
  """
  return bias_variance(log_probs, trained_on, labels, clip=clip).error


def held_out_probabilities(log_probs: Array, trained_on: Array) -> Array:
  """The mean probabilities of the members that were not trained on an example.

  Args:
    log_probs: `[members, examples, classes]`.
    trained_on: `[members, examples]` bool.

  Returns:
    `[examples, classes]`, what `difficulty.confident` starts from; NaN if never held out.

  Raises:
    ValueError: as `bias_variance`.

  Example:
    >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]]]))
    >>> print(held_out_probabilities(log_probs, jnp.zeros((2, 1), bool)))
    [[0.6 0.4]]
  """
  log_probs, held_out = _checked(log_probs, trained_on, None)
  return _mean_probabilities(log_probs, held_out)


@jax.jit
def _mean_probabilities(log_probs: Array, held_out: Array) -> Array:
  return jnp.mean(jnp.exp(log_probs), axis=0, where=held_out[:, :, None])


def inconsistency(log_probs: Array, trained_on: Array, labels: Array) -> Array:
  """The share of the members not trained on an example that get it wrong: 1 minus the C-score.

  Guarantees: in [0, 1]. Edge cases: of equal probabilities the first class is the answer; an
  example never held out is NaN. The published C-score averages over several sizes of subset, so for
  it take the mean of this over ensembles of several `keep`.

  Args:
    log_probs: `[members, examples, classes]`.
    trained_on: `[members, examples]` bool.
    labels: `[examples]` integers.

  Returns:
    `[examples]`.

  Raises:
    ValueError: as `bias_variance`.

  Source: Jiang, Zhang, Talwar, Mozer, "Characterizing Structural Regularities of Labeled Data in
    Overparameterized Models", 2021, arXiv 2002.03206, section 2.

  Example:
    >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]], [[0.1, 0.9]]]))
    >>> print(inconsistency(log_probs, jnp.array([[False], [False], [True]]), jnp.array([0])))
    [0.5]
  """
  log_probs, held_out = _checked(log_probs, trained_on, labels)
  return 1 - _accuracy(log_probs, held_out, jnp.asarray(labels))


def memorization(log_probs: Array, trained_on: Array, labels: Array) -> Array:
  """How much more often an example is right where it was trained on: accuracy in minus out.

  Guarantees: in [-1, 1]. Edge cases: NaN for an example that every member, or none, was trained on;
  the estimate is as coarse as one over the number of held-out members.

  Args:
    log_probs: `[members, examples, classes]`.
    trained_on: `[members, examples]` bool.
    labels: `[examples]` integers.

  Returns:
    `[examples]`; near 1 for rare and for mislabeled examples that a model learns by heart.

  Raises:
    ValueError: as `bias_variance`.

  Source: Feldman and Zhang, "What Neural Networks Memorize and Why", 2020, arXiv 2008.03703,
    eq. (1), by the estimator of subsets of section 2.

  Example:
    >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]], [[0.9, 0.1]]]))
    >>> print(memorization(log_probs, jnp.array([[True], [False], [True]]), jnp.array([0])))
    [1.]
  """
  log_probs, held_out = _checked(log_probs, trained_on, labels)
  labels = jnp.asarray(labels)
  return _accuracy(log_probs, ~held_out, labels) - _accuracy(log_probs, held_out, labels)


@jax.jit
def _accuracy(log_probs: Array, counted: Array, labels: Array) -> Array:
  correct = (jnp.argmax(log_probs, axis=-1) == labels[None]).astype(log_probs.dtype)
  return jnp.mean(correct, axis=0, where=counted)


def _of_probabilities(measure: Callable[[Array, Array], Array]) -> Callable[..., Array]:
  return lambda log_probs, trained_on, labels: measure(
    held_out_probabilities(log_probs, trained_on), labels
  )


OF_ENSEMBLE: dict[str, Callable[[Array, Array, Array], Array]] = {
  "held_out_error": held_out_error,
  "held_out_bias": lambda *ensemble: bias_variance(*ensemble).bias,
  "held_out_variance": lambda *ensemble: bias_variance(*ensemble).variance,
  "held_out_brier": lambda *ensemble: brier_bias_variance(*ensemble).error,
  "inconsistency": inconsistency,
  "memorization": memorization,
  "low_self_confidence": _of_probabilities(confident.low_self_confidence),
  "low_normalized_margin": _of_probabilities(confident.low_normalized_margin),
}
"""Every measure of an ensemble, `(log_probs, trained_on, labels) -> [examples]`."""


def _at(logs: Array, labels: Array) -> Array:
  """The entries at the labels, of `[..., examples, classes]`."""
  places = jnp.broadcast_to(labels, logs.shape[:-1])[..., None]
  return jnp.take_along_axis(logs, places, axis=-1)[..., 0]


def _checked(log_probs: Any, trained_on: Any, labels: Any) -> tuple[Array, Array]:
  """The log-probabilities, and which members did not see which example; concrete ones are read."""
  log_probs, trained_on = at_least_float32(jnp.asarray(log_probs)), jnp.asarray(trained_on)
  if (
    log_probs.ndim != 3
    or trained_on.shape != log_probs.shape[:2]
    or trained_on.dtype != bool
    or (labels is not None and jnp.shape(labels) != log_probs.shape[1:2])
  ):
    raise ValueError(
      "held-out measures expect log_probs [members, examples, classes], trained_on [members, "
      f"examples] of bools and labels [examples]; got shapes {log_probs.shape}, {trained_on.shape} "
      f"({trained_on.dtype}) and {None if labels is None else jnp.shape(labels)}."
    )
  if not isinstance(log_probs, jax.core.Tracer):
    bad = ~np.asarray(jnp.max(log_probs, axis=-1) <= 1e-4)  # NaN fails too
    if bad.any():
      member, example = (int(place) for place in np.argwhere(bad)[0])
      raise ValueError(
        "held-out measures expect log-probabilities, at most 0, got "
        f"{np.max(log_probs[member, example])} of member {member} for example {example}. Of logits "
        "take log_softmax; NaN is a training that diverged: lower the learning rate."
      )
  confident.check_labels(labels, log_probs.shape[-1])
  return log_probs, ~trained_on
