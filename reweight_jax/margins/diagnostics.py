"""Whether weights still matter: numbers that are cheap enough to take throughout training."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from reweight_jax import metrics
from reweight_jax._arrays import num_real
from reweight_jax._validate import check_number
from reweight_jax.types import Array, Params, ScalarLike


class WeightDiagnostics(NamedTuple):
  """What a batch, or a training set, says of its weights. Scalars."""

  accuracy: Array  # share of the real examples with a positive margin
  normalized_margin: Array  # the smallest margin over the root mean square of all
  weight_ratio: Array  # largest over smallest weight of those that have one; 1 if none has
  effective_share: Array  # effective sample size over the number of real examples
  zero_share: Array  # share of the real examples of weight 0
  flippable_share: Array  # of the real examples: decisions that such a ratio can still turn


def weight_diagnostics(margins: Array, weights: Array, mask: Array) -> WeightDiagnostics:
  r"""Measures what weights can still do to a classifier with these margins.

  A bounded weight is a bounded shift of the margin: under an exponential or logistic loss
  :math:`w e^{-m} = e^{-(m - \log w)}`. So a ratio R between two classes turns hardly any decision
  beyond :math:`|m| < \tfrac12 \log R`, the band whose share is ``flippable_share``. In our studies
  it is within a factor of about two of what really turned.

  Guarantees: padding does not count; finite without real examples (shares 0, ratio 1).

  Args:
    margins: `[batch]`, as `output_margins` gives, of a model trained without the weights or with.
    weights: `[batch]`, at least 0.
    mask: `[batch]` bool.

  Returns:
    A `WeightDiagnostics`.

  Source: derived in docs/importance_weighting.md.

  Example:
    >>> found = weight_diagnostics(
    ...   jnp.array([0.5, 3.0, -2.0, 9.0]), jnp.array([4.0, 1.0, 4.0, 1.0]), jnp.ones(4, bool)
    ... )
    >>> print(found.accuracy, found.weight_ratio, found.flippable_share)
    0.75 4.0 0.25
  """
  size = num_real(mask, weights.dtype)
  share = lambda condition: jnp.sum(mask & condition) / size
  counted = mask & (weights > 0)
  largest = jnp.max(jnp.where(counted, weights, 0), initial=0)
  smallest = jnp.min(jnp.where(counted, weights, jnp.inf), initial=jnp.inf)
  ratio = jnp.where(jnp.any(counted), largest / jnp.where(jnp.any(counted), smallest, 1), 1)
  scale = jnp.sqrt(jnp.sum(jnp.where(mask, jnp.square(margins), 0)) / size)
  worst = jnp.min(jnp.where(mask, margins, jnp.inf), initial=jnp.inf)
  return WeightDiagnostics(
    share(margins > 0),
    jnp.where(scale > 0, worst / jnp.where(scale > 0, scale, 1), 0),
    ratio,
    metrics.effective_sample_size(jnp.where(mask, weights, 0)) / size,
    share(weights <= 0),
    share(jnp.abs(margins) < jnp.log(ratio) / 2),
  )


def gradient_cosine(pull: Callable[[Array], Params], weights: Array, mask: Array) -> Array:
  """The cosine of the weighted and the unweighted gradient of one batch: 1, and weights only scale.

  Args:
    pull: of `per_example.linearize`; it is called twice.
    weights: `[batch]`.
    mask: `[batch]` bool.

  Returns:
    A scalar; NaN if one of the gradients is 0.

  Source: the definition.

  Example:
    >>> pull = lambda weights: weights @ jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(gradient_cosine(pull, jnp.array([1.0, 0.0]), jnp.ones(2, bool)).round(4))
    0.7071
  """
  weighted, plain = pull(weights), pull(mask.astype(weights.dtype))
  return optax.tree.vdot(weighted, plain) / (optax.tree.norm(weighted) * optax.tree.norm(plain))


def advice(
  found: WeightDiagnostics,
  *,
  fitted_at: float = 0.99,
  idle_at: float = 0.01,
  even_at: float = 1.1,
) -> str | None:
  """One sentence if weights have stopped mattering, and what to do instead; None if they matter.

  They have where the model fits its training examples and the weights can turn hardly a decision.
  Weights of exactly 0 matter on: an example without weight has no say in where training ends.

  Edge cases: None too where weights are too even to matter before.

  Args:
    found: of the training examples, concrete numbers, under cross-entropy or another loss with an
      exponential tail.
    fitted_at: accuracy from which on the examples count as fitted, in (0, 1].
    idle_at: share of flippable decisions, or of weights of 0, from which on weights count, in
      [0, 1].
    even_at: ratio up to which weights count as even, at least 1.

  Returns:
    A sentence, or None.

  Raises:
    ValueError: if a number is out of range.

  Source: the regimes of docs/importance_weighting.md.

  Example:
    >>> print(advice(WeightDiagnostics(0.8, -0.6, 16.0, 0.5, 0.0, 0.3)))
    None
  """
  check_number("advice: fitted_at", fitted_at, above=0, at_most=1)
  check_number("advice: idle_at", idle_at, at_least=0, at_most=1)
  check_number("advice: even_at", even_at, at_least=1)
  if not (found.weight_ratio > even_at and found.accuracy >= fitted_at):
    return None
  if max(found.flippable_share, found.zero_share) >= idle_at:
    return None
  return (
    f"weights have stopped mattering: {100 * float(found.accuracy):.1f} % of the training examples "
    f"are fitted, and a ratio of {float(found.weight_ratio):.3g} can turn "
    f"{100 * float(found.flippable_share):.2g} % of the decisions; stop earlier, regularize until "
    "the examples are no longer all fitted, undersample, or take losses.polynomial_tail"
  )


class BoundTerms(NamedTuple):
  """The two terms of a bound on the error where the model will be used. Scalars."""

  margin_error: Array  # weighted share of examples with a margin below the one asked for
  divergence: Array  # Pearson's, of the target from what training weighs; 0 where they agree


def bound_terms(margins: Array, ratios: Array, mask: Array, margin: ScalarLike) -> BoundTerms:
  r"""The empirical terms of the bound on weighted training, as diagnostics and no certificate.

  With :math:`r_i = p_{target}(x_i) / \tilde p(x_i)` relative to what training weighs, the first is
  :math:`\tfrac1n \sum_i r_i 1[m_i < \gamma]`, and the second :math:`D = \tfrac1n\sum_i r_i^2 - 1`
  for ratios that average 1: the price of weighting, since :math:`n / (1 + D)` is the effective
  sample size. Weights that chase small margins lower the one and raise the other.

  Guarantees: ratios are scaled to average 1 over the real examples; padding does not count.

  Args:
    margins: `[batch]`, normalized ones (`normalized_margins`).
    ratios: `[batch]`, at least 0, not all 0.
    mask: `[batch]` bool.
    margin: :math:`\gamma`, at least 0.

  Returns:
    A `BoundTerms`. The bound adds the second under a root and terms of the net's size, by which it
    says nothing of nets as large as they are: compare runs by its terms, never read it as a number.

  Source: the form of the bound in Zhou et al. 2022, arXiv 2301.04850; its constants are left out.

  Example:
    >>> terms = bound_terms(jnp.array([0.1, 2.0]), jnp.array([3.0, 1.0]), jnp.ones(2, bool), 1.0)
    >>> print(terms.margin_error, terms.divergence)
    0.75 0.25
  """
  check_number("bound_terms: margin", margin, at_least=0)
  size = num_real(mask, ratios.dtype)
  known = jnp.where(mask, ratios, 0)
  scaled = known / (jnp.sum(known) / size)
  error = jnp.sum(jnp.where(margins < margin, scaled, 0)) / size
  return BoundTerms(error, jnp.sum(jnp.square(scaled)) / size - 1)
