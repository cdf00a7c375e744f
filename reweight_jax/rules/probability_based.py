"""Rules that read the probability which the model gives to the label."""

import jax.numpy as jnp

from reweight_jax._validate import check_choice, check_number
from reweight_jax.losses import log_error_probability, softmax_cross_entropy
from reweight_jax.rules._rule import of_the_label
from reweight_jax.types import Array, ScalarLike, WeightingRule


def generalized_cross_entropy(
  q: ScalarLike = 0.7, *, truncate_at: ScalarLike = 0.0
) -> WeightingRule:
  r"""Trains on generalized cross-entropy: multiplies by :math:`p^q`, 0 where p is at most a bound.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1]; the
  gradient of the step is that of `losses.generalized_cross_entropy`, unless truncated.
  Edge cases: `q=0` is cross-entropy, `q=1` the absolute error. Truncated, examples that the model
  finds improbable are pruned: with a bound above 1/classes that is all of them at the start, so
  burn in first.

  Args:
    q: in [0, 1].
    truncate_at: the bound :math:`k`, in [0, 1).

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if a Python number is out of range.

  Source: Zhang and Sabuncu 2018, arXiv 1805.07836, eqs. (6) and (9), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
    >>> print(generalized_cross_entropy(0.5).update(jnp.ones(1), (), **evidence)[0])
    [0.5]
  """
  check_number("generalized_cross_entropy: q", q, at_least=0, at_most=1)
  check_number("generalized_cross_entropy: truncate_at", truncate_at, at_least=0, below=1)

  def factor(logits: Array, label: Array) -> Array:
    log_p = -softmax_cross_entropy(logits, label)
    keeps = (jnp.asarray(truncate_at) == 0) | (jnp.exp(log_p) > truncate_at)
    return jnp.where(keeps, jnp.exp(q * log_p), 0)

  return of_the_label(factor)


def symmetric_cross_entropy(
  mu: ScalarLike = 0.1, nu: ScalarLike = 1.0, log_zero: float = -4.0
) -> WeightingRule:
  r"""Trains on symmetric cross-entropy: multiplies by :math:`\mu - A \nu p`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; the gradient of
  the step is that of `losses.symmetric_cross_entropy`.
  Edge cases: `nu=0` is cross-entropy times mu.

  Args:
    mu: share of cross-entropy, >= 0.
    nu: share of reverse cross-entropy, >= 0.
    log_zero: :math:`A`, < 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if a Python number is out of range.

  Source: Wang et al. 2019, arXiv 1908.06112, eqs. (6)-(8), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
    >>> print(symmetric_cross_entropy(0.5, 1.0, -4.0).update(jnp.ones(1), (), **evidence)[0])
    [1.5]
  """
  check_number("symmetric_cross_entropy: mu", mu, at_least=0)
  check_number("symmetric_cross_entropy: nu", nu, at_least=0)
  check_number("symmetric_cross_entropy: log_zero", log_zero, below=0)
  return of_the_label(
    lambda logits, label: mu - log_zero * nu * jnp.exp(-softmax_cross_entropy(logits, label))
  )


def taylor_cross_entropy(order: int = 2) -> WeightingRule:
  r"""Trains on the Taylor series of cross-entropy: multiplies by :math:`1 - (1-p)^t`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1]; the
  gradient of the step is that of `losses.taylor_cross_entropy`.
  Edge cases: order 1 is the absolute error; a growing order tends to cross-entropy.

  Args:
    order: :math:`t`, at least 1.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `order` is below 1 or not whole.

  Source: Feng et al. 2020 (IJCAI), eq. (5), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
    >>> print(taylor_cross_entropy(2).update(jnp.ones(1), (), **evidence)[0])
    [0.4375]
  """
  check_number("taylor_cross_entropy: order", order, at_least=1, whole=True)
  return of_the_label(
    lambda logits, label: -jnp.expm1(order * log_error_probability(logits, label))
  )


def bootstrapped_confidence(share: ScalarLike = 0.8, kind: str = "hard") -> WeightingRule:
  r"""Trusts a label as far as the model agrees with it: multiplies by :math:`s + (1-s) a_i`.

  :math:`a_i` is whether the label is the model's most probable class ("hard"), or its probability
  ("soft"). It is what bootstrapping leaves to the given label; the rest, a pull to the model's own
  prediction, is no weight and is left out.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [share, 1].
  Edge cases: share 1 changes nothing; of equal logits the first counts as most probable.

  Args:
    share: weight of a label that the model contradicts, in [0, 1].
    kind: "hard" or "soft".

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `share` is a Python number outside [0, 1], or the kind is unknown.

  Source: Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2014,
    arXiv 1412.6596, eqs. (6) and (7). # Departs from them: the part of the given label alone.

  Example:
    >>> evidence = dict(logits=jnp.array([[1.0, 0.0], [1.0, 0.0]]), labels=jnp.array([0, 1]))
    >>> print(bootstrapped_confidence(0.75).update(jnp.ones(2), (), **evidence)[0])
    [1.   0.75]
  """
  check_number("bootstrapped_confidence: share", share, at_least=0, at_most=1)
  check_choice("bootstrapped_confidence: kind", kind, ("hard", "soft"))

  def factor(logits: Array, label: Array) -> Array:
    if kind == "soft":
      agreement = jnp.exp(-softmax_cross_entropy(logits, label))
    else:
      agreement = (jnp.argmax(logits).astype(label.dtype) == label).astype(logits.dtype)
    return share + (1 - share) * agreement

  return of_the_label(factor)
