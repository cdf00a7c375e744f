r"""Derivative manipulation: losses whose logit gradients have the lengths of a density.

The loss of an example is its `unit_margin`, whose logit gradient has L1 length 1, times the density
at the label's probability, held constant: the length of the gradient then is the density's value.
The *value* of such a loss says nothing; it is negative where an example is fitted, and training
need not lower it. Select models by accuracy.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from reweight_jax import densities
from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._validate import check_choice
from reweight_jax.densities import Density
from reweight_jax.densities._density import as_density
from reweight_jax.losses.one_example import unit_margin
from reweight_jax.types import Array

NORMALIZATIONS = ("none", "area", "batch")
"""What weights are divided by: nothing, the density's area (as written), the batch (as run)."""

ARITHMETICS = ("exact", "release_2020", "release_2021")
"""Exact, or with the small constants of the authors' programs of those years."""

_EPSILON = {"release_2020": 1e-6, "release_2021": 1e-8}
_SUM_EPSILON = {"release_2020": 1e-8}


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
    >>> print(jax.jit(jax.grad(loss))(jnp.zeros(4), 0))  # p is 1/4, so the length is 1.5
    [-0.75  0.25  0.25  0.25]
  """
  chosen = as_density("emphasized_margin", density)

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

  `rules.emphasis` on `unit_margin` is the same thing in the step of this package, where all weights
  that come in are 1.

  Edge cases: with "batch" S is the sum over the examples of one call, so that by microbatches
  (`training.make_accumulating_train_step`), by device or by example (`per_example.grads`) it is
  another loss, of another gradient: use the rule there. Infinite weights, as those of an unbounded
  density where a release rounds p to 1, share the batch among themselves.

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
    >>> slope = jax.jit(jax.grad(lambda z: loss(z, jnp.array([0, 1])).mean()))
    >>> print(jnp.abs(slope(jnp.zeros((2, 3)))).sum())
    1.0
  """
  check_choice("derivative_manipulation: normalization", normalization, NORMALIZATIONS)
  check_choice("derivative_manipulation: arithmetic", arithmetic, ARITHMETICS)
  chosen = as_density("derivative_manipulation", density)
  area = densities.area(chosen) if normalization == "area" else 1.0

  def losses(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    logits = at_least_float32(logits)
    if arithmetic == "exact":
      base = jax.vmap(unit_margin)(logits, labels)
      weights = emphasis_weights(chosen, -2 * base, mask, normalization)
    else:
      base, logarithms = _released(chosen, logits, labels, arithmetic)
      weights = _normalized(logarithms, mask, normalization, arithmetic).astype(base.dtype)
    return jax.lax.stop_gradient(weights / area) * base

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
  weights = _normalized(density.log_weight(log_p, log_q), mask, normalization, arithmetic)
  if arithmetic == "exact":
    return weights
  return weights / (1 + _EPSILON[arithmetic] / 2 * jnp.exp(-log_q))


def _normalized(logarithms: Array, mask: Array, normalization: str, arithmetic: str) -> Array:
  """The weights of these logarithms, by their mean over the batch if that is asked for."""
  logarithms = jnp.where(mask, logarithms, -jnp.inf)
  if normalization != "batch":
    return jnp.exp(logarithms)
  # Relative to the largest weight nothing overflows, and that all are tiny does not matter.
  largest = jnp.max(logarithms, initial=-jnp.inf)
  shift = jnp.where(jnp.isfinite(largest), largest, 0)
  is_infinite = (logarithms == jnp.inf).astype(logarithms.dtype)
  weights = jnp.where(largest == jnp.inf, is_infinite, jnp.exp(logarithms - shift))
  total = jnp.sum(weights)
  if arithmetic in _SUM_EPSILON:
    total = total + jnp.exp(math.log(_SUM_EPSILON[arithmetic]) - shift)
  return weights * (num_real(mask, weights.dtype) / jnp.where(total == 0, 1, total))


def _released(
  density: Density, logits: Array, labels: Array, arithmetic: str
) -> tuple[Array, Array]:
  """Losses whose gradients are the releases' directions, and log w, with p rounded as there."""
  epsilon = _EPSILON[arithmetic]
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  given = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
  inside = given + epsilon if arithmetic == "release_2021" else given
  # A rounded p of 1 has log(1 - p) = -inf, which the densities take.
  logarithms = density.log_weight(jnp.log(inside), jnp.log1p(-given))
  is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=probabilities.dtype)
  directions = (probabilities - is_label) / (2 * (1 - given) + epsilon)[:, None]
  directions = jax.lax.stop_gradient(directions).astype(logits.dtype)
  return jnp.sum(directions * logits, axis=1), logarithms
