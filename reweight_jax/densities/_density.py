"""What a density is, and what the files of densities share."""

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


def log_probabilities(margin: Array) -> tuple[Array, Array]:
  """The logarithms of p and 1 - p of the margin log(p / (1 - p)), exact at any margin."""
  return jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)


def multiple(factor: ScalarLike, logarithm: Array) -> Array:
  """A multiple of a logarithm, 0 where the factor is 0 even if the logarithm is -inf."""
  return jnp.where(jnp.asarray(factor) == 0, 0, factor * logarithm)


def numbered(family: str, *numbers: ScalarLike) -> str:
  plain = [f"{number:g}" for number in numbers if isinstance(number, (int, float))]
  return f"{family} ({', '.join(plain)})" if plain else family
