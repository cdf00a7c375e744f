r"""Derivative manipulation: losses whose logit gradients have the lengths of a density.

The loss of an example is its `unit_margin`, whose logit gradient has L1 length 1, times the density
at the label's probability, held constant: the length of the gradient then is the density's value.
The *value* of such a loss says nothing; it is negative where an example is fitted, and training
need not lower it. Select models by accuracy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from reweight_jax import densities
from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._validate import check_choice
from reweight_jax.densities import Density
from reweight_jax.losses.one_example import unit_margin
from reweight_jax.types import Array

NORMALIZATIONS = ("none", "area", "batch")
"""What weights are divided by: nothing, the density's area (as written), the batch (as run)."""

ARITHMETICS = ("exact", "release_2020", "release_2021")
"""Exact, or with the small constants of the authors' programs of those years."""

_EPSILON = {"release_2020": 1e-6, "release_2021": 1e-8}
_SUM_EPSILON = {"release_2020": 1e-8, "release_2021": 0.0}


def emphasized_margin(
  density: Density | Callable[[Array], Array],
) -> Callable[[Array, Array], Array]:
  r"""The loss of one example whose logit gradient has L1 length :math:`w(p)`.

  Guarantees: the gradient is :math:`\tfrac{w}{2}(r - e_y)`, :math:`r` the softmax over the other
  classes, at any margin; it sums to 0 over the classes.

  Args:
    density: :math:`w`, one of `densities`, or a function of p written with `jax.numpy`, which
      `densities.from_function` makes one.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, for `from_apply`.

  Raises:
    TypeError: if `density` is neither.
    ValueError: if a function of one's own gives a weight that is negative or not finite, naming the
      probability.

  Source: Wang et al. 2019, arXiv 1905.11233, eq. (7). # Departs from eq. (7): in the form of the
    margin, which divides by nothing.

  Example:
    >>> loss = emphasized_margin(densities.cross_entropy())
    >>> print(jax.grad(loss)(jnp.zeros(4), 0))  # p is 1/4, so the length is 1.5
    [-0.75  0.25  0.25  0.25]
  """
  chosen = density if isinstance(density, Density) else densities.from_function(density)

  def loss(logits: Array, label: Array) -> Array:
    base = unit_margin(logits, label)
    weight = jnp.exp(chosen.log_weight(*densities.log_probabilities(-2 * base)))
    return jax.lax.stop_gradient(weight) * base

  return loss


def derivative_manipulation(
  density: Density | Callable[[Array], Array],
  normalization: str = "batch",
  arithmetic: str = "exact",
) -> Callable[..., Array]:
  r"""Derivative manipulation as an ordinary loss of a batch, for who has no weighting rule.

  The *mean* of the losses over the batch has the logit gradient
  :math:`\frac{w_i}{S} \tfrac12 (r_i - e_{y_i})` with, by `normalization`,

  * "batch": :math:`S = \sum_k w_k`, so that the L1 lengths add up to 1 over the batch. This is what
    the authors' programs did.
  * "area": :math:`S = n \int_0^1 w\,dp`. This is what the paper writes.
  * "none": :math:`S = n`.

  `rules.emphasis` on `unit_margin` is the same thing in the step of this package.

  The arithmetic of the releases divides by :math:`2(1-p) + \epsilon` in float32 after rounding p,
  epsilon 1e-6 (2020) or 1e-8 (2021, with :math:`p + \epsilon` in the density): the first switches
  examples off from margins of about 14 on, the second makes their gradients up to 30 times too long
  around margin 15. For reproduction only.

  Args:
    density: :math:`w`, as in `emphasized_margin`.
    normalization: one of `NORMALIZATIONS`.
    arithmetic: one of `ARITHMETICS`.

  Returns:
    `(logits [batch, classes], labels [batch], mask=None) -> losses [batch]`; padding, where the
    mask is False, has loss 0 and does not count. To be averaged over the real examples.

  Raises:
    TypeError, ValueError: as `emphasized_margin`, or if a word is unknown.

  Source: arXiv 1905.11233, eqs. (7) and (8), definition of derivative normalization.

  Example:
    >>> loss = derivative_manipulation(densities.exponential_of_beta(8.0, 0.5))
    >>> lengths = jax.grad(lambda z: loss(z, jnp.array([0, 1])).mean())(jnp.zeros((2, 3)))
    >>> print(jnp.abs(lengths).sum())
    1.0
  """
  check_choice("derivative_manipulation: normalization", normalization, NORMALIZATIONS)
  check_choice("derivative_manipulation: arithmetic", arithmetic, ARITHMETICS)
  chosen = density if isinstance(density, Density) else densities.from_function(density)
  area = densities.area(chosen) if normalization == "area" else 1.0

  def losses(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    logits = at_least_float32(logits)
    if arithmetic == "exact":
      base = jax.vmap(unit_margin)(logits, labels)
      weights = emphasis_weights(chosen, -2 * base, mask, normalization)
    else:
      base, weights = _released(chosen, logits, labels, mask, normalization, arithmetic)
    return jax.lax.stop_gradient(jnp.where(mask, weights / area, 0)) * base

  return losses


def emphasis_weights(
  density: Density,
  margins: Array,
  mask: Array,
  normalization: str = "none",
  arithmetic: str = "exact",
) -> Array:
  """The weights `[batch]` that `unit_margin` takes, from margins `[batch]`; 0 at padding.

  Of the normalizations "area" is left to the caller, who knows the density before any step. The
  arithmetic of a release enters as its factor 2(1-p) / (2(1-p) + epsilon), without rounding.
  """
  log_p, log_q = densities.log_probabilities(margins)
  logarithms = density.log_weight(log_p, log_q)
  if normalization == "batch" and arithmetic == "exact":
    # Relative to the largest weight nothing overflows, and that all are tiny does not matter.
    largest = jnp.max(jnp.where(mask, logarithms, -jnp.inf), initial=-jnp.inf)
    logarithms = logarithms - jnp.where(jnp.isfinite(largest), largest, 0)
  weights = jnp.where(mask, jnp.exp(logarithms), 0)
  scale = _scale(weights, mask, normalization, _SUM_EPSILON.get(arithmetic, 0.0))
  if arithmetic != "exact":
    weights = weights / (1 + _EPSILON[arithmetic] / 2 * jnp.exp(-log_q))
  return weights * scale


def _scale(weights: Array, mask: Array, normalization: str, epsilon: float) -> Array:
  if normalization != "batch":
    return jnp.ones((), weights.dtype)
  total = jnp.sum(weights) + epsilon
  return num_real(mask, weights.dtype) / jnp.where(total == 0, 1, total)


def _released(
  density: Density,
  logits: Array,
  labels: Array,
  mask: Array,
  normalization: str,
  arithmetic: str,
) -> tuple[Array, Array]:
  """Losses whose gradients are the releases' directions, and weights, with p rounded as there."""
  epsilon = _EPSILON[arithmetic]
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  given = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
  inside = given + epsilon if arithmetic == "release_2021" else given
  # A rounded p of 1 has log(1 - p) = -inf, which the densities take.
  weights = jnp.exp(density.log_weight(jnp.log(inside), jnp.log1p(-given)))
  real = jnp.where(mask, weights, 0)
  scale = _scale(real, mask, normalization, _SUM_EPSILON[arithmetic])
  is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=probabilities.dtype)
  directions = (probabilities - is_label) / (2 * (1 - given) + epsilon)[:, None]
  directions = jax.lax.stop_gradient(directions).astype(logits.dtype)
  return jnp.sum(directions * logits, axis=1), (weights * scale).astype(logits.dtype)
