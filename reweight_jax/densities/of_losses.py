"""The densities of losses of the label's probability: the lengths of their logit gradients."""

import math

import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.densities._density import Density, multiple, numbered
from reweight_jax.types import Array, ScalarLike


def cross_entropy() -> Density:
  """The lengths of cross-entropy, :math:`2 (1-p)`."""
  return Density("cross-entropy", lambda log_p, log_q: math.log(2) + log_q)


def mean_absolute_error(scale: ScalarLike = 1.0) -> Density:
  """The lengths of `losses.absolute_error`, :math:`2 s p (1-p)`.

  Args:
    scale: the loss is `scale * (1 - p)`; the papers use 1 (derivative manipulation) and 2 (IMAE).

  Raises:
    ValueError: if `scale` is a Python number and not positive.
  """
  check_number("mean_absolute_error: scale", scale, above=0)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return jnp.log(jnp.asarray(2 * scale, log_p.dtype)) + log_p + log_q

  return Density(numbered("mean absolute error", scale).removesuffix(" (1)"), log_weight)


def mean_squared_error() -> Density:
  """The lengths of `losses.squared_probability_error`, :math:`4 p (1-p)^2`."""
  return Density("mean squared error", lambda log_p, log_q: math.log(4) + log_p + 2 * log_q)


def generalized_cross_entropy(q: ScalarLike = 0.7) -> Density:
  """The lengths of `losses.generalized_cross_entropy`, :math:`2 p^q (1-p)`.

  Args:
    q: in [0, 1]; 0 is cross-entropy, 1 the absolute error.

  Raises:
    ValueError: if `q` is a Python number outside [0, 1].
  """
  check_number("generalized_cross_entropy: q", q, at_least=0, at_most=1)
  return Density(
    numbered("generalized cross-entropy", q),
    lambda log_p, log_q: math.log(2) + multiple(q, log_p) + log_q,
  )


def symmetric_cross_entropy(
  mu: ScalarLike = 0.1, nu: ScalarLike = 1.0, log_zero: float = -4.0
) -> Density:
  r"""The lengths of `losses.symmetric_cross_entropy`, :math:`2 (1-p)(\mu - A \nu p)`.

  Args:
    mu: share of cross-entropy, >= 0.
    nu: share of reverse cross-entropy, >= 0.
    log_zero: :math:`A`, what stands for log 0, < 0.

  Raises:
    ValueError: if a Python number is out of range.

  Source: the loss is that of Wang et al. 2019, arXiv 1908.06112, eqs. (6)-(8); as a member of
    derivative manipulation it stands in the authors' answers to the reviews of arXiv 1905.11233.
    # Departs from those: the coefficient of p is :math:`A \nu / \mu`, where half of it is printed.
  """
  check_number("symmetric_cross_entropy: mu", mu, at_least=0)
  check_number("symmetric_cross_entropy: nu", nu, at_least=0)
  check_number("symmetric_cross_entropy: log_zero", log_zero, below=0)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    log_mu, log_slope = (jnp.log(jnp.asarray(x, log_p.dtype)) for x in (mu, -log_zero * nu))
    return math.log(2) + log_q + jnp.logaddexp(log_mu, log_slope + log_p)

  return Density(numbered("symmetric cross-entropy", mu, nu, log_zero), log_weight)


def taylor_cross_entropy(order: int = 2) -> Density:
  """The lengths of `losses.taylor_cross_entropy`, :math:`2 (1-p) (1 - (1-p)^t)`.

  Args:
    order: :math:`t`, at least 1; 1 is the absolute error.

  Raises:
    ValueError: if `order` is below 1 or not whole.
  """
  check_number("taylor_cross_entropy: order", order, at_least=1, whole=True)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    # expm1 keeps what 1 - (1 - p)^t would lose where p is small, and t p stays where it underflows.
    small = log_p < -40
    factor = -jnp.expm1(order * jnp.where(small, -1, log_q))
    slope = jnp.log(jnp.asarray(order, log_p.dtype))
    return math.log(2) + log_q + jnp.where(small, slope + log_p, jnp.log(factor))

  return Density(numbered("Taylor cross-entropy", order), log_weight)
