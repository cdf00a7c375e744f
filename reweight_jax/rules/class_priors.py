"""Rules that read how many examples each class has."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_number, check_table
from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, ScalarLike, WeightingRule


def class_balanced(counts: Sequence[int], beta: ScalarLike = 0.999) -> WeightingRule:
  r"""Weights a class by the inverse of its effective number of examples.

  Multiplies by :math:`c\,(1-\beta)/(1-\beta^{n_y})`, with :math:`c` such that the average over the
  training set is 1.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; equal counts, and
  `beta=0`, give weight 1 to all.
  Edge cases: `beta` towards 1 is inverse frequency. A label outside [0, classes) is clamped to the
  nearest class.

  Args:
    counts: number of training examples of each class, all positive.
    beta: in [0, 1); the larger, the more the rare classes weigh.

  Returns:
    A rule needing evidence ``labels`` [batch] int.

  Raises:
    ValueError: if a count is not positive, naming the class, or `beta` a Python number outside
      [0, 1).

  Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019,
    arXiv 1901.05555, proposition 1 and section 4. # Departs from section 4: there the factors of
    the classes average 1, here those of the examples do, so that the step size stays what it was.

  Example:
    >>> rule = class_balanced([30, 10], beta=0.99999)
    >>> weights, _ = rule.update(jnp.ones(2), (), labels=jnp.array([0, 1]))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.67', '2.00']
  """
  sizes = _check_counts("class_balanced", counts)
  check_number("class_balanced: beta", beta, at_least=0, below=1)

  def rarity(n: Array) -> Array:
    # expm1 because beta^n rounds to 1 when beta is close to 1, and a plain number's logarithm in
    # double because beta itself does; beta = 0 gives log -inf, rarity 1. An array that has rounded
    # to 1, as an injected number near it does, has the limit: inverse frequency.
    if isinstance(beta, (int, float)) and beta > 0:
      log_beta = jnp.asarray(math.log(beta), n.dtype)
    else:
      log_beta = jnp.log(jnp.asarray(beta, n.dtype))
    safe = jnp.where(log_beta == 0, -1, log_beta)
    return jnp.where(log_beta == 0, 1 / n, 1 / -jnp.expm1(n * safe))

  return _by_rarity(sizes, rarity)


def inverse_frequency(counts: Sequence[int], power: ScalarLike = 1.0) -> WeightingRule:
  r"""Weights a class by a power of its inverse frequency.

  Multiplies by :math:`c\,n_y^{-\alpha}`, with :math:`c` such that the average over the training set
  is 1. Power 1 gives every class the same total weight, 1/2 is the usual compromise.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; equal counts, and
  `power=0`, give weight 1 to all.
  Edge cases: a negative power favors the frequent classes. A label outside [0, classes) is clamped
  to the nearest class.

  Args:
    counts: number of training examples of each class, all positive.
    power: :math:`\alpha`, any finite number.

  Returns:
    A rule needing evidence ``labels`` [batch] int.

  Raises:
    ValueError: if a count is not positive, naming the class, or `power` is a Python number that is
      not finite.

  Source: inverse class frequency, the Proportion baseline of Ren et al. 2018, arXiv 1803.09050,
    section 4.1; powers as in Mikolov et al. 2013, arXiv 1310.4546, section 2.3 (there of sampling).

  Example:
    >>> rule = inverse_frequency([30, 10])
    >>> weights, _ = rule.update(jnp.ones(2), (), labels=jnp.array([0, 1]))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.67', '2.00']
  """
  sizes = _check_counts("inverse_frequency", counts)
  check_number("inverse_frequency: power", power)

  def rarity(n: Array) -> Array:
    # Relative to the class that weighs most, a large power underflows where it would overflow.
    exponent = jnp.asarray(power, n.dtype)
    return (n / jnp.where(exponent > 0, jnp.min(n), jnp.max(n))) ** -exponent

  return _by_rarity(sizes, rarity)


def class_weights(factors: Sequence[float]) -> WeightingRule:
  r"""Multiplies by a given number for each class.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: a label outside [0, classes) is clamped to the nearest class. The factors are taken as
  they are: chain `normalize` where they do not average 1 over the training set.

  Args:
    factors: one finite number >= 0 for each class.

  Returns:
    A rule needing evidence ``labels`` [batch] int.

  Raises:
    ValueError: if a factor is negative or not finite, naming the class.

  Source: cost-sensitive learning, Elkan, "The Foundations of Cost-Sensitive Learning", 2001,
    section 3.

  Example:
    >>> rule = class_weights([1.0, 2.5])
    >>> print(rule.update(jnp.ones(3), (), labels=jnp.array([0, 1, 1]))[0])
    [1.  2.5 2.5]
  """
  table = check_table("class_weights", factors, "class")

  def weigh(weights: Array, *, labels: Array, **unused: Any) -> Array:
    return weights * jnp.asarray(table, weights.dtype)[jnp.clip(labels, 0, table.size - 1)]

  return weighting_rule(weigh)


def _by_rarity(sizes: np.ndarray, rarity: Callable[[Array], Array]) -> WeightingRule:
  """Weights a class by a function of its count, scaled to average 1 over the training set."""

  def weigh(weights: Array, *, labels: Array, **unused: Any) -> Array:
    n = jnp.asarray(sizes, weights.dtype)
    factors = rarity(n)
    factors = factors * (jnp.sum(n) / jnp.sum(n * factors))
    return weights * factors[jnp.clip(labels, 0, sizes.size - 1)]

  return weighting_rule(weigh)


def _check_counts(name: str, counts: Sequence[int]) -> np.ndarray:
  sizes = np.asarray(counts)
  if sizes.ndim != 1 or sizes.size == 0 or not np.issubdtype(sizes.dtype, np.number):
    raise ValueError(
      f"{name} expects one count per class, got shape {sizes.shape} of {sizes.dtype}."
    )
  good = (sizes > 0) & np.isfinite(sizes)
  if not good.all():
    empty = int(np.argmin(good))
    raise ValueError(
      f"{name} expects positive counts, got {sizes[empty]} for class {empty}. "
      "Leave classes without examples out, or give them the count 1."
    )
  return sizes
