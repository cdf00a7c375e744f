"""What is said of a density in numbers: area, variance, mode."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax.densities._density import Density

_NODES, _SHARES = np.polynomial.legendre.leggauss(20)
_REACH = 30.0  # margins up to sinh(30) = 5e12
_SIZE = 4001  # of every call of a density: jax compiles its operations once


def area(density: Density) -> float:
  r"""The integral :math:`\int_0^1 w(p)\,dp`, by which the papers normalize.

  Edge cases: infinite if the integral is, or does not fit a float; a weight that is infinite at an
  end may have an area. Of several peaks, those narrower than 0.01 may be overlooked.

  Returns:
    A number, to nine digits.

  Raises:
    ValueError: if the integral is 0 or does not settle, or a parameter is traced (injected, under
      jit), naming the density.

  Example:
    >>> print(f"{area(rw.densities.cross_entropy()):.9f}")
    1.000000000
  """
  return _exp(_log_area("area", density))


def variance(density: Density, *, relative: bool = False) -> float:
  r"""The emphasis variance :math:`\int w^2 - (\int w)^2` over p uniform on [0, 1].

  Edge cases: as `area`; of a weight that is infinite at an end it may be infinite where the area is
  not. Below 1e-20 of the squared area it is rounding.

  Args:
    density: whose.
    relative: divide by :math:`(\int w)^2`, to compare densities whatever their scale.

  Raises:
    ValueError: as `area`.

  Source: arXiv 1905.11233, definition 2; the form for uniform p is arXiv 1903.12141's.

  Example:
    >>> print(f"{variance(rw.densities.cross_entropy()):.6f}")
    0.333333
  """
  log_area = _log_area("variance", density)

  def log_squares(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    # Of the distances from the mean: the difference of two integrals would lose its digits.
    ratio = _log_weights("variance", density, log_p, log_q) - log_area
    distance = np.log(np.abs(np.expm1(np.minimum(ratio, 40))))
    return 2 * np.where(ratio < 40, distance, ratio)  # beyond it the mean is nothing

  result = _log_integral("variance", density, log_squares, negligible=1e-25)
  return _exp(result if relative else result + 2 * log_area)


def mode(density: Density) -> float:
  """The emphasis mode: the probability at which the weight is largest, to six digits.

  Returns:
    A number in [0, 1]; the smallest of several; NaN if all weights are equal.

  Raises:
    ValueError: if a parameter is traced, naming the density.

  Source: arXiv 1905.11233, definition 1.

  Example:
    >>> print(f"{mode(rw.densities.mean_squared_error()):.4f}")
    0.3333
  """
  return _mode("mode", density)


def _mode(caller: str, density: Density) -> float:
  low, high = 0.0, 1.0
  for _ in range(3):
    grid = np.linspace(low, high, _SIZE)
    # Logarithms tell weights apart that overflow, and one infinite weight from all being equal.
    with np.errstate(divide="ignore"):
      values = _log_weights(caller, density, np.log(grid), np.log1p(-grid))
    if low == 0 and high == 1 and values.max() <= values.min() + 1e-12:
      return math.nan
    best, width = grid[int(np.argmax(values))], (high - low) / 2000
    low, high = max(best - width, 0.0), min(best + width, 1.0)
  return float(best)


def _log_area(caller: str, density: Density) -> float:
  log_area = _log_integral(
    caller, density, lambda log_p, log_q: _log_weights(caller, density, log_p, log_q)
  )
  if log_area == -math.inf:
    raise ValueError(f"{caller} expects a weight above 0 somewhere, got 0 from {density.name!r}.")
  return log_area


def _log_integral(
  caller: str,
  density: Density,
  log_values: Callable[[np.ndarray, np.ndarray], np.ndarray],
  negligible: float = 0.0,
) -> float:
  """The logarithm of an integral over p, from that of its values at (log p, log(1 - p))."""

  # With the margin as sinh(t), all that is integrable falls off doubly exponentially in t.
  def log_integrand(t: np.ndarray) -> np.ndarray:
    log_p, log_q = -np.logaddexp(0, -np.sinh(t)), -np.logaddexp(0, np.sinh(t))
    with np.errstate(divide="ignore"):
      return log_values(log_p, log_q) + log_p + log_q + np.log(np.cosh(t))

  # Finer and finer around the mode, so that no peak there falls between two nodes.
  peak = np.clip(np.nan_to_num(_mode(caller, density), nan=0.5), 1e-15, 1 - 1e-15)
  center, near = np.arcsinh(np.log(peak / (1 - peak))), 0.5 ** np.arange(30)
  even = np.linspace(-_REACH, _REACH, 121)
  edges = np.unique(np.concatenate([even, center - near, [center], center + near]))
  logarithms = log_integrand(edges)
  largest = max(logarithms[np.isfinite(logarithms)], default=-math.inf)
  if largest == -math.inf:
    return -math.inf
  if max(logarithms[0], logarithms[-1]) > largest - 40:
    return math.inf

  def integrals(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    half = (high - low) / 2
    values = log_integrand((low + half)[:, None] + half[:, None] * _NODES)
    with np.errstate(over="ignore"):
      return np.exp(values - largest) @ _SHARES * half

  low, high, total = edges[:-1], edges[1:], 0.0
  whole = integrals(low, high)
  while 0 < len(low) < 4000:
    middle = (low + high) / 2
    low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    parts = integrals(low, high)
    limit = max(1e-10 * (total + parts.sum()), negligible * math.exp(min(-largest, 700)))
    is_rough = np.tile(np.abs(parts.reshape(2, -1).sum(0) - whole) > limit, 2)
    total += parts[~is_rough].sum()
    low, high, whole = low[is_rough], high[is_rough], parts[is_rough]
  if len(low) or not math.isfinite(total):
    raise ValueError(
      f"{caller} expects a density whose integral settles to ten digits, got {density.name!r}, "
      "whose does not. Take a smoother one."
    )
  return largest + math.log(total) if total else -math.inf


def _log_weights(caller: str, density: Density, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
  """The logarithms of the weights in float64, of any shape, also while something is traced."""
  length = -(-log_p.size // _SIZE) * _SIZE
  results = []
  with jax.enable_x64(True), jax.ensure_compile_time_eval():
    for pair in zip(
      *(np.resize(x, length).reshape(-1, _SIZE) for x in (log_p, log_q)), strict=True
    ):
      result = density.log_weight(*map(jnp.asarray, pair))
      if isinstance(result, jax.core.Tracer):
        raise ValueError(
          f"{caller} expects a density of plain numbers, got {density.name!r} with a traced one. "
          "Make it outside of jit and of inject_hyperparams, or normalize by the batch."
        )
      results.append(np.asarray(result))
  return np.concatenate(results)[: log_p.size].reshape(log_p.shape)


def _exp(logarithm: float) -> float:
  return math.exp(logarithm) if logarithm < 709 else math.inf
