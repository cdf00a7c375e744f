"""Rules that read how many examples each class has."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_number
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
  sizes = np.asarray(counts)
  if sizes.ndim != 1 or sizes.size == 0:
    raise ValueError(f"class_balanced expects one count per class, got shape {sizes.shape}.")
  if not np.all(sizes > 0):
    empty = int(np.argmin(sizes > 0))
    raise ValueError(
      f"class_balanced expects positive counts, got {sizes[empty]} for class {empty}. "
      "Leave classes without examples out, or give them the count 1."
    )
  check_number("class_balanced: beta", beta, at_least=0, below=1)

  def weigh(weights: Array, *, labels: Array, **unused: Any) -> Array:
    n = jnp.asarray(sizes, weights.dtype)
    # expm1 because beta^n rounds to 1 when beta is close to 1; beta = 0 gives log -inf, rarity 1.
    rarity = 1 / -jnp.expm1(n * jnp.log(jnp.asarray(beta, weights.dtype)))
    factors = rarity * jnp.sum(n) / jnp.sum(n * rarity)
    return weights * factors[jnp.clip(labels, 0, sizes.size - 1)]

  return weighting_rule(weigh)
