"""What a density is, and what the files of densities share."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


def from_function(weight: Callable[[Array], Array], name: str = "user") -> Density:
  """A density of one's own.

  Edge cases: where p rounds to 1 the function sees 1, so a weight that falls to 0 there does so
  from margin 17 in float32; the named densities know better.

  Args:
    weight: elementwise function of probabilities in [0, 1], written with `jax.numpy`; finite and
      not negative.
    name: for legends.

  Raises:
    TypeError: if `weight` is not callable, a factory of densities or not written with `jax.numpy`.
    ValueError: if it is negative, not finite, zero everywhere or not elementwise, naming the place.

  Example:
    >>> print(from_function(lambda p: 1 - p)(jnp.array([0.25])))
    [0.75]
  """
  return as_density("from_function", weight)._replace(name=name)


def as_density(caller: str, weight: Density | Callable[[Array], Array]) -> Density:
  """The density itself, or that of a function; errors begin with the caller's name."""
  if isinstance(weight, Density):
    return weight
  _check_function(caller, weight)

  def log_weight(log_p: Array, log_q: Array) -> Array:
    return jnp.broadcast_to(jnp.log(weight(jnp.exp(log_p))), log_p.shape).astype(log_p.dtype)

  return Density("user", log_weight)


def _check_function(caller: str, weight: Callable[[Array], Array]) -> None:
  """Tries a function on a grid; TypeError or ValueError if it is no weight."""
  if not callable(weight):
    raise TypeError(f"{caller} expects a function of the probability, got {weight!r}.")
  grid = np.linspace(0, 1, 1001)
  values = _values(caller, weight, grid)
  if values.shape not in (grid.shape, ()):
    raise ValueError(
      f"{caller} expects an elementwise function: of 1001 probabilities it returned shape "
      f"{values.shape}. Write it with jax.numpy."
    )
  values = np.broadcast_to(values, grid.shape)
  good = np.isfinite(values) & (values >= 0)
  if not good.all():
    first = int(np.argmin(good))
    raise ValueError(
      f"{caller} expects a weight that is finite and not negative on [0, 1], "
      f"got {values[first]:g} at p = {grid[first]:g}."
    )
  if not values.any():
    raise ValueError(f"{caller} expects a weight above 0 somewhere on [0, 1], got 0 everywhere.")


def _values(caller: str, weight: Callable[[Array], Array], grid: np.ndarray) -> np.ndarray:
  """What a function returns, or TypeError if jax cannot trace it or it makes densities instead."""
  called = getattr(weight, "__name__", repr(weight))
  uncalled = f"{caller} expects a density, got the factory {called}. Call it: {called}(...)."
  if vars(sys.modules[__package__]).get(called) is weight:
    raise TypeError(uncalled)
  try:
    with jax.ensure_compile_time_eval():  # also where the density is made under jit
      points = jnp.asarray(grid, jnp.float32)
      values = weight(points)
    if isinstance(values, Density):
      raise TypeError(uncalled)
    jax.eval_shape(lambda p: weight(p), points)  # NumPy's functions only fail here
    return np.asarray(values)
  except jax.errors.JAXTypeError as error:
    raise TypeError(
      f"{caller} expects a function of the probability that jax can trace, got {called}. Write it "
      "with jax.numpy, without branches on values, and its parameters as plain numbers."
    ) from error


def log_probabilities(margin: Array) -> tuple[Array, Array]:
  """The logarithms of p and 1 - p of the margin log(p / (1 - p)), exact at any margin."""
  return jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)


def multiple(factor: ScalarLike, logarithm: Array) -> Array:
  """A multiple of a logarithm, 0 where the factor is 0 even if the logarithm is -inf."""
  return jnp.where(jnp.asarray(factor) == 0, 0, factor * logarithm)


def numbered(family: str, *numbers: ScalarLike) -> str:
  """A name for legends, with its numbers if all of them are plain."""
  if not all(isinstance(number, (int, float, np.number)) for number in numbers):
    return family
  return f"{family} ({', '.join(f'{number:g}' for number in numbers)})"
