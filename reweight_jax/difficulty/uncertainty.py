"""Difficulty without labels: how unsure one network is, and how far several disagree.

Larger is harder, not below float32. Without labels no score can see that a label is wrong.
"""

import math

import jax
import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32
from reweight_jax.difficulty.scores import check_rows
from reweight_jax.types import Array


def uncertainty_margin(logits: Array) -> Array:
  """Minus the lead of the largest logit over the second largest; needs no labels.

  Args:
    logits: `[batch, classes]`.

  Returns:
    `[batch]`, in (-inf, 0]; `negative_margin` with the model's own answer for a label.

  Raises:
    ValueError: if logits are not rows of at least two classes.

  Source: Settles, "Active Learning Literature Survey", 2009, section 3.1, margin sampling.
    # Departs from it: there a difference of probabilities, here of logits, as all margins here.

  Example:
    >>> print(uncertainty_margin(jnp.array([[3.0, 1.0, 2.5]])))
    [-0.5]
  """
  check_rows(logits)
  first, second = jnp.unstack(jax.lax.top_k(at_least_float32(logits), 2)[0], axis=-1)
  return second - first


def entropy(logits: Array) -> Array:
  r"""The entropy of the answer, :math:`-\sum_c p_c \log p_c`, nats; needs no labels.

  Args:
    logits: `[batch, classes]`; minus infinity rules a class out.

  Returns:
    `[batch]`, in [0, log(classes)].

  Raises:
    ValueError: if logits are not rows of at least two classes.

  Source: Shannon, "A Mathematical Theory of Communication", 1948, section 6.

  Example:
    >>> print(entropy(jnp.array([[2.0, 2.0, -jnp.inf]])) == jnp.log(2.0))
    [ True]
  """
  check_rows(logits)
  return _entropy_of(jax.nn.log_softmax(at_least_float32(logits), axis=-1))


def predictive_entropy(log_probs: Array) -> Array:
  """The entropy of the mean prediction of several networks or draws of one, nats.

  Args:
    log_probs: `[draws, examples, classes]` log-probabilities, as of dropout, snapshots, members.

  Returns:
    `[examples]`, in [0, log(classes)].

  Raises:
    ValueError: if `log_probs` is not of three axes.

  Source: Gal, Islam, Ghahramani, "Deep Bayesian Active Learning with Image Data", 2017,
    arXiv 1703.02910, section 4, max entropy.

  Example:
    >>> draws = jnp.log(jnp.array([[[0.9, 0.1]], [[0.1, 0.9]]]))
    >>> print(predictive_entropy(draws) == jnp.log(2.0))
    [ True]
  """
  return _entropy_of(_log_mean("predictive_entropy", log_probs))


def bald(log_probs: Array) -> Array:
  """How far several networks, or draws of one, disagree: entropy of the mean less mean entropy.

  The information in the label about which network is right, nats; needs no labels. Computed as the
  mean divergence of a draw from the mean prediction, which does not cancel.

  Args:
    log_probs: `[draws, examples, classes]` log-probabilities.

  Returns:
    `[examples]`, in [0, log(draws)]; 0 if all agree.

  Raises:
    ValueError: if `log_probs` is not of three axes.

  Source: Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning",
    2011, arXiv 1112.5745, eq. (2).

  Example:
    >>> sure = jnp.array([[[0.0, -jnp.inf]], [[-jnp.inf, 0.0]]])
    >>> print(bald(sure) == jnp.log(2.0))
    [ True]
  """
  log_mean = _log_mean("bald", log_probs)
  log_probs = at_least_float32(log_probs)
  differences = jnp.where(jnp.isneginf(log_probs), 0, log_probs - log_mean[None])
  divergences = jnp.sum(jnp.exp(log_probs) * differences, axis=-1)
  return jnp.maximum(jnp.mean(divergences, axis=0), 0)


def _entropy_of(log_probs: Array) -> Array:
  # A class of probability 0 adds nothing, though its logarithm be minus infinity.
  terms = jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0, log_probs)
  return -jnp.sum(terms, axis=-1)


def _log_mean(name: str, log_probs: Array) -> Array:
  if jnp.ndim(log_probs) != 3:
    raise ValueError(
      f"{name} expects log-probabilities [draws, examples, classes], got shape "
      f"{jnp.shape(log_probs)}. One draw alone needs an axis: log_probs[None]."
    )
  return jax.nn.logsumexp(at_least_float32(log_probs), axis=0) - math.log(log_probs.shape[0])
