r"""Emphasis densities: how long an example's gradient may be, by the probability of its label.

Derivative manipulation keeps the direction of each example's logit gradient and chooses its L1
length, :math:`w(p)`, with :math:`p` the softmax probability of the given label. A loss of
:math:`p` alone *is* such a choice, so the losses of the field stand here beside the families that
were made for it. `rules.emphasis` weighs by a density, `losses.emphasized_margin` trains on one.

| density | :math:`w(p)` | emphasis mode |
| --- | --- | --- |
| `exponential_of_beta(beta, lam)` | :math:`\exp(\beta p^\lambda (1-p))` | lam / (lam + 1) |
| `exponential(beta)` | :math:`\exp(\beta (1-p))` | 0 |
| `normal(beta, mode)` | :math:`\exp(-\beta p (p - 2 \psi))` | min(mode, 1) |
| `beta(alpha, eta)` | :math:`p^{\alpha-1} (1-p)^{\eta-1}` | (alpha - 1) / (alpha + eta - 2) |
| `cross_entropy()` | :math:`2 (1-p)` | 0 |
| `mean_absolute_error()` | :math:`2 p (1-p)` | 1/2 |
| `mean_squared_error()` | :math:`4 p (1-p)^2` | 1/3 |
| `generalized_cross_entropy(q)` | :math:`2 p^q (1-p)` | q / (q + 1) |
| `symmetric_cross_entropy(mu, nu)` | :math:`2 (1-p) (\mu - A \nu p)` | |
| `taylor_cross_entropy(order)` | :math:`2 (1-p) (1 - (1-p)^t)` | 1 - 1 / (t + 1)^(1/t) |
| `improved_mean_absolute_error(temperature)` | :math:`\exp(T p (1-p))` | 1/2 |
| `uniform()` | 1 | none |

The modes of the exponential families are those of a positive beta. Source of families, words and
table: Wang, Kodirov, Hua, Robertson, "Derivative Manipulation for General Example Weighting", 2019,
arXiv 1905.11233, section 3, eqs. (7)-(12) and appendix B; IMAE: the same, arXiv 1903.12141.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_number
from reweight_jax.types import Array, ScalarLike


class Density(NamedTuple):
  """A density of emphasis over the probability of the label, not normalized.

  Attributes:
    name: for legends.
    log_weight: `(log p, log(1 - p)) -> log w(p)`, elementwise. Both logarithms, so that it stays
      exact where p rounds to 0 or 1.
  """

  name: str
  log_weight: Callable[[Array, Array], Array]

  def __call__(self, p: Array) -> Array:
    """The weight of probabilities in [0, 1], for looking at the density; of any shape."""
    p = jnp.asarray(p)
    return jnp.exp(self.log_weight(jnp.log(p), jnp.log1p(-p)))


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
  check_number("exponential_of_beta: beta", beta, above=-math.inf, below=math.inf)
  check_number("exponential_of_beta: lam", lam, at_least=0, below=math.inf)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    # p^0 is 1 even where log p is -inf.
    power = jnp.where(jnp.asarray(lam) == 0, 0, lam * log_p)
    return beta * jnp.exp(power + log_q)

  return Density(_name("exponential of beta", beta, lam), log_weight)


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
  check_number("exponential: beta", beta, above=-math.inf, below=math.inf)
  return Density(_name("exponential", beta), lambda log_p, log_q: beta * jnp.exp(log_q))


def normal(beta: ScalarLike, mode: ScalarLike) -> Density:
  r"""The normal density :math:`\exp(-\beta p (p - 2\psi))`: variance :math:`1/(2\beta)` around psi.

  Edge cases: `beta=0` is uniform; `mode=1/2` is `improved_mean_absolute_error(beta)`.

  Args:
    beta: any finite number; positive for a peak.
    mode: :math:`\psi`, >= 0; above 1 the weight rises all the way.

  Raises:
    ValueError: if a Python number is out of range.

  Source: arXiv 1905.11233, eq. (9).

  Example:
    >>> print(f"{normal(8.0, 0.5)(0.5):.3f}")
    7.389
  """
  check_number("normal: beta", beta, above=-math.inf, below=math.inf)
  check_number("normal: mode", mode, at_least=0, below=math.inf)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    p = jnp.exp(log_p)
    return -beta * p * (p - 2 * mode)

  return Density(_name("normal", beta, mode), log_weight)


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
  check_number("beta: alpha", alpha, above=0, below=math.inf)
  check_number("beta: eta", eta, above=0, below=math.inf)
  return Density(
    _name("beta", alpha, eta),
    lambda log_p, log_q: _times(alpha - 1, log_p) + _times(eta - 1, log_q),
  )


def uniform() -> Density:
  """Every example alike: L1 length 1. The papers' baseline without emphasis; not cross-entropy."""
  return Density("uniform", lambda log_p, log_q: jnp.zeros_like(log_p))


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
  check_number("mean_absolute_error: scale", scale, above=0, below=math.inf)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return jnp.log(jnp.asarray(2 * scale, log_p.dtype)) + log_p + log_q

  return Density("mean absolute error", log_weight)


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
    _name("generalized cross-entropy", q),
    lambda log_p, log_q: math.log(2) + _times(q, log_p) + log_q,
  )


def symmetric_cross_entropy(
  mu: ScalarLike = 0.1, nu: ScalarLike = 1.0, log_zero: float = -4.0
) -> Density:
  r"""The lengths of `losses.symmetric_cross_entropy`, :math:`2 (1-p)(\mu - A \nu p)`.

  Args:
    mu: share of cross-entropy, > 0.
    nu: share of reverse cross-entropy, >= 0.
    log_zero: :math:`A`, what stands for log 0, < 0.

  Raises:
    ValueError: if a Python number is out of range.

  Source: arXiv 1905.11233's rebuttal has this loss as a member. # Departs from it: the coefficient
    of p is :math:`A \nu / \mu`, where half of it is printed.
  """
  check_number("symmetric_cross_entropy: mu", mu, above=0, below=math.inf)
  check_number("symmetric_cross_entropy: nu", nu, at_least=0, below=math.inf)
  check_number("symmetric_cross_entropy: log_zero", log_zero, above=-math.inf, below=0)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return math.log(2) + log_q + jnp.log(mu - log_zero * nu * jnp.exp(log_p))

  return Density(_name("symmetric cross-entropy", mu, nu), log_weight)


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

  return Density(_name("Taylor cross-entropy", order), log_weight)


def improved_mean_absolute_error(temperature: ScalarLike = 8.0) -> Density:
  """IMAE, :math:`exp(T p (1-p))`, which is `exponential_of_beta(T, 1)`.

  Args:
    temperature: :math:`T`, any finite number; 0 is uniform.

  Raises:
    ValueError: if `temperature` is a Python number that is not finite.

  Source: Wang et al., "IMAE for Noise-Robust Learning", 2019, arXiv 1903.12141.
  """
  check_number("improved_mean_absolute_error: temperature", temperature, below=math.inf)
  return exponential_of_beta(temperature, 1.0)._replace(name=_name("IMAE", temperature))


def from_function(weight: Callable[[Array], Array], name: str = "user") -> Density:
  """A density of one's own.

  Edge cases: where p rounds to 1 the function sees 1, so a weight that falls to 0 there does so
  from margin 17 in float32; the named densities know better.

  Args:
    weight: elementwise function of probabilities in [0, 1], written with `jax.numpy`; finite and
      not negative.
    name: for legends.

  Raises:
    TypeError: if `weight` is not callable.
    ValueError: if it is negative, not finite, zero everywhere or not elementwise, naming the place.

  Example:
    >>> print(from_function(lambda p: 1 - p)(jnp.array([0.25])))
    [0.75]
  """
  if not callable(weight):
    raise TypeError(f"from_function expects a function of the probability, got {weight!r}.")
  grid = np.linspace(0, 1, 1001)
  with jax.ensure_compile_time_eval():  # also where the density is made under jit
    values = np.asarray(weight(jnp.asarray(grid, jnp.float32)))
  if values.shape not in (grid.shape, ()):
    raise ValueError(
      "from_function expects an elementwise function: of 1001 probabilities it returned shape "
      f"{values.shape}. Write it with jax.numpy."
    )
  values = np.broadcast_to(values, grid.shape)
  good = np.isfinite(values) & (values >= 0)
  if not good.all():
    first = int(np.argmin(good))
    raise ValueError(
      "from_function expects a weight that is finite and not negative on [0, 1], "
      f"got {values[first]:g} at p = {grid[first]:g}."
    )
  if not values.any():
    raise ValueError(
      "from_function expects a weight above 0 somewhere on [0, 1], got 0 everywhere."
    )

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return jnp.broadcast_to(jnp.log(weight(jnp.exp(log_p))), log_p.shape).astype(log_p.dtype)

  return Density(name, log_weight)


def area(density: Density) -> float:
  r"""The integral :math:`\int_0^1 w(p)\,dp`, by which the papers normalize.

  Returns:
    To ten digits for the densities of this room; infinite weights at the ends may be integrable.

  Example:
    >>> print(f"{area(cross_entropy()):.9f}")
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
    >>> print(f"{variance(cross_entropy()):.6f}")
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
    >>> print(f"{mode(mean_squared_error()):.4f}")
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


def log_probabilities(margin: Array) -> tuple[Array, Array]:
  """The logarithms of p and 1 - p of the margin log(p / (1 - p)), exact at any margin."""
  return jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)


def _moment(density: Density, power: int) -> float:
  # In the margin the integrand decays exponentially on both sides, and the trapezoid rule converges
  # exponentially, whatever the slope at p = 0.
  margins, width = np.linspace(-200, 200, 8001, retstep=True)
  with jax.enable_x64(True), jax.ensure_compile_time_eval():
    log_p, log_q = log_probabilities(jnp.asarray(margins))
    integrand = jnp.exp(power * density.log_weight(log_p, log_q) + log_p + log_q)
    return float(width * jnp.sum(integrand))


def _times(factor: ScalarLike, logarithm: Array) -> Array:
  """A multiple of a logarithm, 0 where the factor is 0 even if the logarithm is -inf."""
  return jnp.where(jnp.asarray(factor) == 0, 0, factor * logarithm)


def _name(family: str, *numbers: ScalarLike) -> str:
  plain = [f"{number:g}" for number in numbers if isinstance(number, (int, float))]
  return f"{family} ({', '.join(plain)})" if plain else family
