"""What is said of a density in numbers: area, variance, mode."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax.densities._density import Density, log_probabilities


def area(density: Density) -> float:
  r"""The integral :math:`\int_0^1 w(p)\,dp`, by which the papers normalize.

  Returns:
    To ten digits for the densities of this room; infinite weights at the ends may be integrable.

  Example:
    >>> print(f"{area(rw.densities.cross_entropy()):.9f}")
    1.000000000
  """
  return _moment(density, 1)


def variance(density: Density, *, relative: bool = False) -> float:
  r"""The emphasis variance :math:`\int w^2 - (\int w)^2` over p uniform on [0, 1].

  Args:
    density: whose.
    relative: divide by :math:`(\int w)^2`, to compare densities whatever their scale.

  Source: arXiv 1905.11233, definition 2; the form for uniform p is arXiv 1903.12141's.

  Example:
    >>> print(f"{variance(rw.densities.cross_entropy()):.6f}")
    0.333333
  """
  mean = _moment(density, 1)
  absolute = _moment(density, 2) - mean**2
  return absolute / mean**2 if relative else absolute


def mode(density: Density) -> float:
  """The emphasis mode: the probability at which the weight is largest, to six digits.

  Returns:
    A number in [0, 1]; the smallest of several; NaN if all weights are equal.

  Source: arXiv 1905.11233, definition 1.

  Example:
    >>> print(f"{mode(rw.densities.mean_squared_error()):.4f}")
    0.3333
  """
  low, high = 0.0, 1.0
  for _ in range(4):
    grid = np.linspace(low, high, 1001)
    # Logarithms tell weights apart that overflow, and one infinite weight from all being equal.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
      p = jnp.asarray(grid)
      values = np.asarray(density.log_weight(jnp.log(p), jnp.log1p(-p)))
    if low == 0 and high == 1 and np.ptp(values) <= 1e-12:
      return math.nan
    best, width = grid[int(np.argmax(values))], (high - low) / 500
    low, high = max(best - width, 0.0), min(best + width, 1.0)
  return float(best)


def _moment(density: Density, power: int) -> float:
  # In the margin the integrand decays exponentially on both sides, and the trapezoid rule converges
  # exponentially, whatever the slope at p = 0.
  margins, width = np.linspace(-200, 200, 8001, retstep=True)
  with jax.enable_x64(True), jax.ensure_compile_time_eval():
    log_p, log_q = log_probabilities(jnp.asarray(margins))
    integrand = jnp.exp(power * density.log_weight(log_p, log_q) + log_p + log_q)
    return float(width * jnp.sum(integrand))
