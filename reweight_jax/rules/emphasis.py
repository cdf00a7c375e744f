"""Derivative manipulation as rules: the length of an example's logit gradient, chosen directly."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from reweight_jax import densities
from reweight_jax._validate import check_choice
from reweight_jax.densities import Density
from reweight_jax.densities._density import as_density
from reweight_jax.losses import unit_margin
from reweight_jax.losses.emphasis import ARITHMETICS, NORMALIZATIONS, emphasis_weights
from reweight_jax.rules._rule import times, weighting_rule
from reweight_jax.rules.shaping import normalize
from reweight_jax.types import Array, ScalarLike, WeightingRule


def emphasis(
  density: Density | Callable[[Array], Array],
  normalization: str = "none",
  arithmetic: str = "exact",
) -> WeightingRule:
  r"""Gives each example's logit gradient the L1 length that a density says, on `unit_margin`.

  Made for the base loss `losses.unit_margin`, whose logit gradient has length 1: multiplies by
  :math:`w(p_i) / s`, with p the softmax probability of the label, a constant, and by
  `normalization`

  * "none": :math:`s = 1`: the lengths are the density's. `densities.cross_entropy()` is then plain
    training on cross-entropy, and so on for the named losses.
  * "area": :math:`s = \int_0^1 w\,dp`, as the paper writes; it rescales the learning rate.
  * "batch": :math:`s` is such that the weights of the batch's real examples average 1, as the
    authors' programs ran: the lengths add up to 1 over the batch in the step of this package. It is
    `normalize` after "none", whatever weights come in, but in logarithms, so that none overflows.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; exact and finite
  at any margin in float32, in bfloat16 up to its rounding of the logits; with "batch" a constant
  times the density gives the same weights, and examples that an earlier rule dropped do not count.
  Edge cases: "batch" expects non-negative weights, as `normalize` does. Its lengths do not fall as
  the batch is fitted, so late steps stay long: lower the learning rate. An example of p = 1 is
  pushed on as far as w(1) says. On another base loss than `unit_margin` this is another method. The
  arithmetic of a release enters as its factor :math:`2(1-p) / (2(1-p) + \epsilon)`;
  `losses.derivative_manipulation` has its rounding too.

  Args:
    density: one of `densities`, or a function of p written with `jax.numpy`.
    normalization: "none", "area" or "batch".
    arithmetic: "exact", "release_2020" (epsilon 1e-6) or "release_2021" (1e-8).

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float, ``labels`` [batch] int and ``mask``
    [batch] bool.

  Raises:
    TypeError: if `density` is neither.
    ValueError: if a word is unknown, or a function of one's own gives a weight that is negative or
      not finite, naming the probability.

  Source: Wang et al. 2019, arXiv 1905.11233, eqs. (7) and (8).

  Example:
    >>> rule = emphasis(densities.mean_absolute_error())
    >>> evidence = dict(logits=jnp.zeros((1, 4)), labels=jnp.array([2]), mask=jnp.ones(1, bool))
    >>> print(rule.update(jnp.ones(1), (), **evidence)[0])  # 2 p (1 - p)
    [0.375]
  """
  check_choice("emphasis: normalization", normalization, NORMALIZATIONS)
  check_choice("emphasis: arithmetic", arithmetic, ARITHMETICS)
  chosen = as_density("emphasis", density)
  area = densities.area(chosen) if normalization == "area" else 1.0
  mean_one = lambda weights, mask: normalize().update(weights, optax.EmptyState(), mask=mask)[0]

  def weigh(weights: Array, *, logits: Array, labels: Array, mask: Array, **unused: Any) -> Array:
    margins = -2 * jax.vmap(unit_margin)(logits, labels)
    if normalization != "batch":
      return times(weights, emphasis_weights(chosen, margins, mask, "none", arithmetic) / area)
    # What an earlier rule dropped is no part of the sum, nor the largest weight it is relative to.
    counted = mask & (weights != 0)
    exact = emphasis_weights(chosen, margins, counted, "batch")
    # First to mean 1, then the products do not overflow either.
    lengths = mean_one(times(mean_one(weights, mask), exact), mask)
    if arithmetic == "exact":
      return lengths
    return times(lengths, emphasis_weights(chosen, margins, counted, "batch", arithmetic) / exact)

  return weighting_rule(weigh)


def exponential_emphasis(
  beta: ScalarLike,
  lam: ScalarLike = 0.5,
  normalization: str = "batch",
  arithmetic: str = "exact",
) -> WeightingRule:
  r"""Derivative manipulation proper: `emphasis` by :math:`\exp(\beta p^\lambda (1-p))`.

  Guarantees, edge cases, evidence and base loss as for `emphasis`, but normalized by the batch, as
  the published results are. `lam=1` is IMAE, `lam=0` the exponential density, `beta=0` uniform.

  Args:
    beta: sharpness, any finite number; published 6 to 16 with lam 0.5 to 1, growing with lam.
    lam: places the emphasis mode at lam / (lam + 1), >= 0; the more noise, the larger.
    normalization: as in `emphasis`.
    arithmetic: as in `emphasis`.

  Raises:
    ValueError: if a Python number or a word is out of range.

  Source: Wang et al. 2019, arXiv 1905.11233, eq. (12).

  Example:
    >>> evidence = dict(logits=jnp.zeros((2, 2)), labels=jnp.array([0, 1]), mask=jnp.ones(2, bool))
    >>> print(exponential_emphasis(8.0).update(jnp.ones(2), (), **evidence)[0])
    [1. 1.]
  """
  if normalization == "area" and not all(isinstance(x, (int, float)) for x in (beta, lam)):
    raise ValueError(
      "exponential_emphasis expects plain numbers for normalization 'area', whose integral is "
      "taken beforehand; inject them with 'batch' or 'none'."
    )
  return emphasis(densities.exponential_of_beta(beta, lam), normalization, arithmetic)
