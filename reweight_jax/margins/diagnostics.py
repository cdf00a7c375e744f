"""Whether weights still matter: numbers that are cheap enough to take throughout training."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from reweight_jax import metrics
from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._validate import check_number
from reweight_jax.types import Array, Params, ScalarLike

FITTED = 0.99
"""The accuracy on training examples from which on `advice` takes them for fitted."""
IDLE = 0.02
"""The share of decisions that weights can turn, or of weights of 0, below which they hardly act."""
EVEN = 1.1
"""The ratio up to which weights are too even to matter at all."""


class WeightDiagnostics(NamedTuple):
  """What training examples say of their weights, beside decisions elsewhere. Scalars, float32."""

  accuracy: Array  # share of the real examples with a positive margin
  relative_margin: Array  # the smallest margin over the root mean square of all
  weight_ratio: Array  # largest over smallest weight of those that have one; 1 if none has
  effective_share: Array  # effective sample size over the number of real examples
  zero_share: Array  # share of the real examples of weight 0
  flippable_share: Array  # of the decisions: how many such a ratio can still turn


def weight_diagnostics(
  margins: Array, weights: Array, mask: Array, decisions: Array | None = None
) -> WeightDiagnostics:
  r"""Measures what weights can still do to a classifier with these margins.

  A bounded weight is a bounded shift of the margin: under an exponential or logistic loss
  :math:`w e^{-m} = e^{-(m - \log w)}`. While classes overlap, training with a ratio R between them
  moves the logit by up to :math:`\log R`, and less and less once they are fitted.
  ``flippable_share`` is the share of decisions closer than :math:`\tfrac12 \log R`: about *how
  many* turn between equal weights and a ratio R, not which ones. A heuristic; in our studies within
  a factor of about three of what really turned, in the domain.

  Training examples that are fitted lie far from the boundary by construction: give the outputs of
  held-out ones as `decisions` to learn what weights do where the model will be used.

  ``relative_margin`` is a normalized margin for any net: it takes no notice of the scale of the
  logits, as `normalized_margins` does for homogeneous nets; the ratio of the two then depends on
  the direction of the parameters alone. It is positive once all examples are right, and 1 where all
  are right alike.

  Guarantees: padding does not count; finite without real examples (shares and margin 0, ratio 1);
  counted in float32 whatever the dtype.

  Args:
    margins: `[batch]`, as `output_margins` gives, of training examples.
    weights: `[batch]`, at least 0.
    mask: `[batch]` bool.
    decisions: `[decisions]`, margins of other examples, or by how much the largest logit is above
      the second; None: the margins.

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
  margins, weights = at_least_float32(margins), at_least_float32(weights)
  size = num_real(mask, weights.dtype)
  share = lambda condition: jnp.sum(mask & condition) / size
  counted = mask & (weights > 0)
  has_any = jnp.any(counted)
  largest = jnp.max(jnp.where(counted, weights, 0), initial=0)
  smallest = jnp.min(jnp.where(counted, weights, jnp.inf), initial=jnp.inf)
  ratio = jnp.where(has_any, largest / jnp.where(has_any, smallest, 1), 1)
  band = jnp.log(ratio) / 2
  scale = jnp.sqrt(jnp.sum(jnp.where(mask, jnp.square(margins), 0)) / size)
  worst = jnp.min(jnp.where(mask, margins, jnp.inf), initial=jnp.inf)
  flippable = share(jnp.abs(margins) < band)
  if decisions is not None:
    flippable = jnp.mean(jnp.abs(decisions) < band, dtype=weights.dtype)
  return WeightDiagnostics(
    share(margins > 0),
    jnp.where(scale > 0, worst / jnp.where(scale > 0, scale, 1), 0),
    ratio,
    metrics.effective_sample_size(jnp.where(mask, weights, 0)) / size,
    share(weights <= 0),
    flippable,
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


def advice(found: WeightDiagnostics) -> str | None:
  """One sentence if weights hardly matter any more, and what to do; None if they do.

  They hardly do where the model fits its training examples (`FITTED`) and the ratio can turn hardly
  a decision (`IDLE`). Weights of exactly 0 matter on: an example without weight has no say in where
  training ends.

  Edge cases: None too where weights are too even to matter at all (`EVEN`), or a number is NaN.

  Args:
    found: concrete numbers, best with held-out decisions; under cross-entropy or another loss with
      an exponential tail, of weights that do not follow the loss: those are offsets of margins.

  Returns:
    A sentence, or None.

  Source: the regimes of docs/importance_weighting.md; the thresholds are ours.

  Example:
    >>> print(advice(WeightDiagnostics(0.8, -0.6, 16.0, 0.5, 0.0, 0.3)))
    None
  """
  is_fitted = found.weight_ratio > EVEN and found.accuracy >= FITTED
  is_idle = found.flippable_share < IDLE and found.zero_share < IDLE
  if not (is_fitted and is_idle and jnp.isfinite(found.effective_share)):
    return None
  return (
    f"weights hardly matter any more: {100 * float(found.accuracy):.1f} % of the training examples "
    f"are fitted, and a ratio of {float(found.weight_ratio):.3g} can turn about "
    f"{100 * float(found.flippable_share):.2g} % of the decisions; stop earlier, regularize until "
    "the examples are no longer all fitted, undersample, or train on a polynomial tail"
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
  Edge cases: without a real example of a ratio above 0 both are NaN.

  Args:
    margins: `[batch]`, normalized ones (`normalized_margins`).
    ratios: `[batch]`, at least 0.
    mask: `[batch]` bool.
    margin: :math:`\gamma`, at least 0.

  Returns:
    A `BoundTerms`. The bound adds the second under a root and terms of the net's size, by which it
    says nothing of nets as large as they are: compare runs by its terms, never read it as a number.

  Source: after the form of the bound in Zhou et al. 2022, arXiv 2301.04850, from memory and without
    its constants; the second term's identity with the effective sample size is arithmetic.

  Example:
    >>> terms = bound_terms(jnp.array([0.1, 2.0]), jnp.array([3.0, 1.0]), jnp.ones(2, bool), 1.0)
    >>> print(terms.margin_error, terms.divergence)
    0.75 0.25
  """
  check_number("bound_terms: margin", margin, at_least=0)
  ratios = at_least_float32(ratios)
  size = num_real(mask, ratios.dtype)
  known = jnp.where(mask, ratios, 0)
  scaled = known / (jnp.sum(known) / size)
  error = jnp.sum(jnp.where(at_least_float32(margins) < margin, scaled, 0)) / size
  return BoundTerms(
    jnp.where(jnp.any(known > 0), error, jnp.nan), jnp.sum(jnp.square(scaled)) / size - 1
  )
