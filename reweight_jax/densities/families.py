"""Families of densities that were made for choosing: a mode to place and a variance to set."""

import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.densities._density import Density, multiple, numbered
from reweight_jax.types import Array, ScalarLike


def exponential_of_beta(beta: ScalarLike, lam: ScalarLike) -> Density:
  r"""The density of derivative manipulation, :math:`\exp(\beta p^\lambda (1-p))`.

  `lam` places the mode at :math:`\lambda/(\lambda+1)`, `beta` sharpens it: the peak's logarithm is
  :math:`\beta \lambda^\lambda / (\lambda+1)^{\lambda+1}`, so beta must grow with lam.

  Edge cases: `beta=0` is uniform; a negative one, legal, avoids the mode; for lam > 0 examples of
  probability 0 and 1 have weight 1. float32 holds weights up to an exponent of 88; beyond it only
  `normalization="batch"` is safe.

  Args:
    beta: any finite number.
    lam: :math:`\lambda`, >= 0.

  Raises:
    ValueError: if a Python number is out of range.

  Source: arXiv 1905.11233, eq. (12).

  Example:
    >>> print(exponential_of_beta(8.0, 1.0)(jnp.array([0.0, 1.0])))
    [1. 1.]
  """
  check_number("exponential_of_beta: beta", beta)
  check_number("exponential_of_beta: lam", lam, at_least=0)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return beta * jnp.exp(multiple(lam, log_p) + log_q)  # p^0 is 1 even where log p is -inf

  return Density(numbered("exponential of beta", beta, lam), log_weight)


def exponential(beta: ScalarLike) -> Density:
  r"""The exponential density :math:`\exp(\beta (1-p))`: the harder, the more.

  Edge cases: `beta=0` is uniform; a negative one emphasizes easy examples.

  Args:
    beta: any finite number.

  Raises:
    ValueError: if `beta` is a Python number that is not finite.

  Source: arXiv 1905.11233, eq. (10).

  Example:
    >>> print(exponential(0.0)(jnp.array([0.1, 0.9])))
    [1. 1.]
  """
  check_number("exponential: beta", beta)
  return Density(numbered("exponential", beta), lambda log_p, log_q: beta * jnp.exp(log_q))


def normal(beta: ScalarLike, mode: ScalarLike) -> Density:
  r"""The normal density :math:`\exp(-\beta p (p - 2\psi))`: variance :math:`1/(2\beta)` around psi.

  Edge cases: `beta=0` is uniform; `mode=1/2` is `improved_mean_absolute_error(beta)`.

  Args:
    beta: any finite number; positive for a peak.
    mode: :math:`\psi`, >= 0; above 1 the weight of a positive beta rises all the way.

  Raises:
    ValueError: if a Python number is out of range.

  Source: arXiv 1905.11233, eq. (9).

  Example:
    >>> print(f"{normal(8.0, 0.5)(0.5):.3f}")
    7.389
  """
  check_number("normal: beta", beta)
  check_number("normal: mode", mode, at_least=0)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    p = jnp.exp(log_p)
    return -beta * p * (p - 2 * mode)

  return Density(numbered("normal", beta, mode), log_weight)


def beta(alpha: ScalarLike, eta: ScalarLike) -> Density:
  r"""The beta density :math:`p^{\alpha-1} (1-p)^{\eta-1}`, which holds the common losses.

  (1, 2) is cross-entropy, (2, 2) the absolute and (2, 3) the squared error, (q + 1, 2) generalized
  cross-entropy and (1, 1) uniform, each up to a constant.

  Edge cases: a parameter below 1 makes the weight unbounded at one end.

  Args:
    alpha: > 0.
    eta: > 0.

  Raises:
    ValueError: if a Python number is not positive.

  Source: arXiv 1905.11233, eq. (11). # Departs from eq. (11), which allows 0: the area is infinite
    then.

  Example:
    >>> print(beta(2.0, 2.0)(jnp.array([0.5])))
    [0.25]
  """
  check_number("beta: alpha", alpha, above=0)
  check_number("beta: eta", eta, above=0)
  return Density(
    numbered("beta", alpha, eta),
    lambda log_p, log_q: multiple(alpha - 1, log_p) + multiple(eta - 1, log_q),
  )


def uniform() -> Density:
  """Every example alike: L1 length 1. The papers' baseline without emphasis; not cross-entropy."""
  return Density("uniform", lambda log_p, log_q: jnp.zeros_like(log_p))


def improved_mean_absolute_error(temperature: ScalarLike = 8.0) -> Density:
  """IMAE, :math:`exp(T p (1-p))`, which is `exponential_of_beta(T, 1)`.

  Args:
    temperature: :math:`T`, any finite number; 0 is uniform.

  Raises:
    ValueError: if `temperature` is a Python number that is not finite.

  Source: Wang et al., "IMAE for Noise-Robust Learning", 2019, arXiv 1903.12141.
  """
  check_number("improved_mean_absolute_error: temperature", temperature)
  return exponential_of_beta(temperature, 1.0)._replace(name=numbered("IMAE", temperature))
