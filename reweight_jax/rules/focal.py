"""Focal factors: rules that turn attention to examples whose label is not yet probable."""

from collections.abc import Sequence

import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.losses import log_error_probability, softmax_cross_entropy
from reweight_jax.losses.robust import exponents_and_shifts
from reweight_jax.rules._rule import of_the_label
from reweight_jax.types import Array, ScalarLike, WeightingRule


def focal(gamma: ScalarLike = 2.0) -> WeightingRule:
  r"""Turns attention to examples that are not yet fitted: multiplies by :math:`(1-p_i)^\gamma`.

  :math:`p_i` is the softmax probability of the label, treated as a constant. This is not training
  on the focal loss, whose gradient has one more term: `losses.focal_loss` is that.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1] for any
  finite logits.
  Edge cases: `gamma=0` changes nothing; where p rounds to 1 the weight is computed from the other
  logits and only underflows to 0 from margins of about 88/gamma in float32.

  Args:
    gamma: focusing exponent, >= 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `gamma` is a negative Python number.

  Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv 1708.02002, section 3.2,
    the modulating factor of eq. (4). # Departs from eq. (4): the factor is not differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
    >>> print(focal(gamma=2.0).update(jnp.ones(1), (), **evidence)[0])
    [0.5625]
  """
  check_number("focal: gamma", gamma, at_least=0)

  def factor(logits: Array, label: Array) -> Array:
    return jnp.exp(gamma * log_error_probability(logits, label))

  return of_the_label(factor)


def focal_transform(gamma: ScalarLike = 2.0) -> WeightingRule:
  r"""Trains on the focal loss, exactly: cross-entropy's gradient times that of its transform.

  With :math:`\ell` the cross-entropy the focal loss is :math:`\varphi(\ell) =
  (1-e^{-\ell})^\gamma \ell`, and the weight :math:`\varphi'(\ell) = (1-p)^\gamma - \gamma p
  (1-p)^{\gamma-1} \log p`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; the gradient of
  the step is that of `losses.focal_loss`. In [0, 1 + gamma]: the weight may exceed 1.
  Edge cases: `gamma=0` changes nothing.

  Args:
    gamma: focusing exponent, >= 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `gamma` is a negative Python number.

  Source: Lin et al. 2017, arXiv 1708.02002, eq. (4), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 2)), labels=jnp.array([0]))
    >>> weight = focal_transform(1.0).update(jnp.ones(1), (), **evidence)[0]
    >>> print(weight == 0.5 + 0.5 * jnp.log(2.0))
    [ True]
  """
  check_number("focal_transform: gamma", gamma, at_least=0)

  def factor(logits: Array, label: Array) -> Array:
    loss, log_error = softmax_cross_entropy(logits, label), log_error_probability(logits, label)
    ratio = _log_ratio(jnp.exp(log_error), loss)
    return jnp.exp(gamma * log_error) * (1 + gamma * jnp.exp(-loss) * ratio)

  return of_the_label(factor)


def asymmetric_focal(
  gammas: Sequence[float], shifts: Sequence[float] | None = None
) -> WeightingRule:
  r"""The focal factor with an exponent and a shift for each class, as a constant weight.

  Multiplies by :math:`\max(1 - p - m_y, 0)^{\gamma_y}`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1].
  Edge cases: equal exponents without shifts are `focal`; a label outside [0, classes) is clamped to
  the nearest class.

  Args:
    gammas: one exponent >= 0 for each class.
    shifts: one :math:`m` in [0, 1) for each class; None for no shifts.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if a number is out of range, naming the class.

  Source: Ben-Baruch et al. 2020, arXiv 2009.14119, eqs. (4)-(7). # Departs from eq. (7): the factor
    is not differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((2, 2)), labels=jnp.array([0, 1]))
    >>> update = jax.jit(asymmetric_focal((0.0, 2.0)).update)
    >>> print(update(jnp.ones(2), (), **evidence)[0])
    [1.   0.25]
  """
  of_class = exponents_and_shifts("asymmetric_focal", gammas, shifts)

  def factor(logits: Array, label: Array) -> Array:
    gamma, shift = of_class(label, logits.dtype)
    rest = jnp.exp(log_error_probability(logits, label)) - shift
    return jnp.where(rest >= 0, jnp.maximum(rest, 0) ** gamma, 0)

  return of_the_label(factor)


def asymmetric_focal_transform(
  gammas: Sequence[float], shifts: Sequence[float] | None = None
) -> WeightingRule:
  r"""Trains on the asymmetric focal loss, exactly.

  With :math:`r = \max(1 - p - m, 0)` multiplies by :math:`r^\gamma p \left(\frac{1}{1-r} -
  \gamma \frac{\log(1-r)}{r}\right)`, 0 where r is.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; the gradient of
  the step is that of `losses.asymmetric_focal_loss`.
  Edge cases: equal exponents without shifts are `focal_transform`.

  Args:
    gammas: one exponent >= 0 for each class.
    shifts: one :math:`m` in [0, 1) for each class; None for no shifts.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if a number is out of range, naming the class.

  Source: Ben-Baruch et al. 2020, arXiv 2009.14119, eqs. (4)-(7), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 2)), labels=jnp.array([0]))
    >>> update = jax.jit(asymmetric_focal_transform((0.0, 2.0)).update)
    >>> print(update(jnp.ones(1), (), **evidence)[0])
    [1.]
  """
  of_class = exponents_and_shifts("asymmetric_focal_transform", gammas, shifts)

  def factor(logits: Array, label: Array) -> Array:
    gamma, shift = of_class(label, logits.dtype)
    loss = softmax_cross_entropy(logits, label)
    rest = jnp.exp(log_error_probability(logits, label)) - shift
    log_kept = jnp.logaddexp(-loss, jnp.log(shift))  # log(1 - r), exact without a shift
    slope = jnp.exp(-loss - log_kept) + gamma * jnp.exp(-loss) * _log_ratio(rest, -log_kept)
    counts = (rest > 0) | ((gamma == 0) & (shift == 0))
    return jnp.where(counts, jnp.maximum(rest, 0) ** gamma * slope, 0)

  return of_the_label(factor)


def _log_ratio(error: Array, loss: Array) -> Array:
  """-log(1 - r) / r, given both; from r alone where the loss has lost its digits, 1 at 0."""
  small = jnp.clip(error, 1e-30, 0.5)
  return jnp.where(error < 0.5, -jnp.log1p(-small) / small, loss / jnp.maximum(error, 0.5))
