"""Rules that shape weights whatever these were made from: signs, scale, bounds, shares, subsets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import bias_corrected, moving_average, num_real
from reweight_jax._validate import check_choice, check_decay, check_number
from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, Params, ScalarLike, WeightingRule


def rectify() -> WeightingRule:
  r"""Sets negative weights to zero: :math:`\max(w_i, 0)`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: all weights may become 0; the step's gradient is then 0 (momentum and weight decay
  still act). NaN stays NaN.

  Returns:
    A rule that needs no evidence.

  Source: Ren et al. 2018, arXiv 1803.09050, eq. (8).

  Example:
    >>> print(rectify().update(jnp.array([-1.0, 2.0]), ())[0])
    [0. 2.]
  """
  return weighting_rule(lambda weights, **unused: jnp.maximum(weights, 0))


class NormalizeState(NamedTuple):
  """State of `normalize` with an average over steps."""

  scale: Array  # [] running average of the batch mean of the weights, not yet bias-corrected
  num_batches: Array  # [] int32, batches seen


def normalize(to: str = "mean", *, decay: ScalarLike | None = None) -> WeightingRule:
  r"""Divides the weights by their scale, so that an ordinary example weighs 1.

  Without `decay`: :math:`w_i \leftarrow w_i\, n / \sum_j w_j`, :math:`n` the number of real
  examples of the batch, so that the weights of the real examples average exactly 1. The step
  divides by :math:`n`, which makes this the paper's weights that sum to 1.
  With `decay`: divides by an exponential moving average of the batch mean instead, bias-corrected
  from the first step on, so that batches keep their weight relative to one another.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; finite for any
  finite non-negative weights, and without `decay` right however small or large they are.
  Edge cases: a batch whose weights are all 0 stays all 0. With `decay`, it counts into the average
  with mean 0; while the average itself is 0, or below the smallest normal number, the weights stay
  as they are.

  Args:
    to: "mean", the only scale there is.
    decay: share of the old average kept at each step, in [0, 1); None normalizes each batch alone.

  Returns:
    A rule needing evidence ``mask`` [batch] bool, and expecting non-negative weights.

  Raises:
    ValueError: if `to` is not "mean", or `decay` a Python number outside [0, 1).

  Source: Ren et al. 2018, arXiv 1803.09050, eq. (9). # Departs from eq. (9): relative to 1 instead
    of summing to 1; the guard also takes sums below the smallest normal number for 0.

  Example:
    >>> rule, mask = normalize("mean"), jnp.array([True, True, True, False])
    >>> print(rule.update(jnp.array([4.0, 2.0, 0.0, 0.0]), (), mask=mask)[0])
    [2. 1. 0. 0.]
  """
  check_choice("normalize: to", to, ("mean",))
  if decay is None:
    return weighting_rule(_normalize_batch)
  check_decay("normalize: decay", decay)

  def init(weights: Array) -> NormalizeState:
    return NormalizeState(jnp.zeros((), weights.dtype), jnp.zeros((), jnp.int32))

  def update(
    updates: Array, state: NormalizeState, params: Params = None, *, mask: Array, **unused: Any
  ) -> tuple[Array, NormalizeState]:
    del params, unused
    # Divided first, so that the sum of huge weights does not overflow.
    mean = jnp.sum(updates / num_real(mask, updates.dtype))
    # A batch without examples has no mean: the average waits.
    scale, count = moving_average(state.scale, state.num_batches, mean, decay, moves=jnp.any(mask))
    corrected = bias_corrected(scale, count, decay)
    weights = _over(updates, jnp.where(corrected < jnp.finfo(updates.dtype).tiny, 1, corrected))
    return weights, NormalizeState(scale.astype(state.scale.dtype), count)

  return optax.GradientTransformationExtraArgs(init, update)


def _normalize_batch(weights: Array, *, mask: Array, **unused: Any) -> Array:
  # Dividing by the largest weight first survives sums that would overflow or underflow. It cancels,
  # so gradients need not pass through it, where the square of a tiny one would be 0.
  tiny = jnp.finfo(weights.dtype).tiny
  largest = jax.lax.stop_gradient(jnp.max(weights, initial=0))
  # Nor do they where it is so small that its reciprocal times a gradient overflows.
  weights = jnp.where(largest < tiny**0.8, jax.lax.stop_gradient(weights), weights)
  shares = jnp.where(largest < tiny, 0, _over(weights, jnp.where(largest < tiny, 1, largest)))
  total = jnp.sum(shares)
  return shares / jnp.where(total == 0, 1, total) * num_real(mask, weights.dtype)


def _over(weights: Array, scale: Array) -> Array:
  """Weights divided by one positive normal number, however large."""
  # XLA multiplies by the reciprocal, and flushes that of 1e38 in float32 to 0.
  by = jnp.where(scale > 1, 1 / 16, 1).astype(scale.dtype)
  return weights * by / (scale * by)


def clip_weights(max_weight: ScalarLike, min_weight: ScalarLike = 0.0) -> WeightingRule:
  r"""Bounds the weight of every real example: :math:`\min(\max(w_i, w_{min}), w_{max})`.

  Guarantees: padding stays at weight 0 even with a positive `min_weight`.
  Edge cases: a positive `min_weight` also raises real examples that an earlier rule set to 0.

  Args:
    max_weight: largest weight, > 0; 1 is an ordinary example.
    min_weight: smallest weight, in [0, `max_weight`].

  Returns:
    A rule needing evidence ``mask`` [batch] bool.

  Raises:
    ValueError: if the bounds are Python numbers out of range or in the wrong order.

  Source: weight truncation as in Ionides, "Truncated Importance Sampling", 2008, definition of the
    truncated weights (upper bound); the lower bound is the same from the other side.

  Example:
    >>> rule, mask = clip_weights(2.0, 0.5), jnp.array([True, True, False])
    >>> print(rule.update(jnp.array([3.0, 0.0, 0.0]), (), mask=mask)[0])
    [2.  0.5 0. ]
  """
  check_number("clip_weights: max_weight", max_weight, above=0)
  ceiling = max_weight if isinstance(max_weight, (int, float)) else float("inf")
  check_number("clip_weights: min_weight", min_weight, at_least=0, at_most=ceiling)

  def weigh(weights: Array, *, mask: Array, **unused: Any) -> Array:
    return jnp.where(mask, jnp.clip(weights, min_weight, max_weight), 0)

  return weighting_rule(weigh)


def mix_with_uniform(share: ScalarLike) -> WeightingRule:
  r"""Mixes the weights with weight 1 for everyone: :math:`(1-s)\, w_i + s` on real examples.

  Guarantees: padding stays at weight 0; a batch whose weights average 1 still does.
  Edge cases: share 0 changes nothing; share 1 is plain training; an all-zero batch gets weight
  `share` everywhere.

  Args:
    share: share of the uniform weight, in [0, 1].

  Returns:
    A rule needing evidence ``mask`` [batch] bool.

  Raises:
    ValueError: if `share` is a Python number outside [0, 1].

  Source: a convex combination of the weighted and the plain objective.

  Example:
    >>> print(mix_with_uniform(0.5).update(jnp.array([0.0, 3.0]), (), mask=jnp.ones(2, bool))[0])
    [0.5 2. ]
  """
  check_number("mix_with_uniform: share", share, at_least=0, at_most=1)

  def weigh(weights: Array, *, mask: Array, **unused: Any) -> Array:
    return jnp.where(mask, (1 - share) * weights + share, 0)

  return weighting_rule(weigh)


def where_examples(predicate: Callable[..., Array], rule: WeightingRule) -> WeightingRule:
  """Applies a rule to some examples only; the others keep their weights.

  To the inner rule the other examples are padding: their mask is False and their weight 0, so that
  a `normalize` inside averages over the chosen examples alone.

  Guarantees: padding is never chosen; unchosen weights pass through bit for bit.
  Edge cases: with no example chosen the inner rule sees a batch of padding.

  Args:
    predicate: `predicate(**evidence) -> [batch]` bool; names the evidence it needs and ends with
      `**unused`.
    rule: the inner rule.

  Returns:
    A rule needing evidence ``mask`` [batch] bool and whatever predicate and inner rule need. Its
    state is the inner rule's.

  Source: conditional application as in `optax.masked`, over examples instead of parameters.

  Example:
    >>> small = lambda *, losses, **unused: losses < 1.0
    >>> rule = where_examples(small, clip_weights(0.5))
    >>> evidence = dict(losses=jnp.array([0.1, 2.0]), mask=jnp.ones(2, bool))
    >>> print(rule.update(jnp.ones(2), rule.init(jnp.ones(2)), **evidence)[0])
    [0.5 1. ]
  """
  rule = optax.with_extra_args_support(rule)

  def update(
    updates: Array, state: Any, params: Params = None, *, mask: Array, **evidence: Any
  ) -> tuple[Array, Any]:
    chosen = predicate(mask=mask, **evidence) & mask
    inner = jnp.where(chosen, updates, 0)
    weights, state = rule.update(inner, state, params, mask=chosen, **evidence)
    return jnp.where(chosen, weights, updates), state

  return optax.GradientTransformationExtraArgs(rule.init, update)


def after_burn_in(rule: WeightingRule, num_steps: int) -> WeightingRule:
  """Leaves the weights alone for a number of steps and applies a rule from then on.

  Guarantees: until then the weights pass through bit for bit and the rule's state does not move.
  Edge cases: with 0 steps it is the rule.

  Args:
    rule: the rule to be deferred.
    num_steps: how many steps it waits, whole, >= 0.

  Returns:
    A rule needing the rule's evidence; a meta rule's alignment is computed during burn-in too.

  Raises:
    ValueError: if `num_steps` is a Python number that is negative or not whole.

  Source: deferred re-weighting, Cao et al., "Learning Imbalanced Datasets with Label-Distribution-
    Aware Margin Loss", 2019, arXiv 1906.07413, algorithm 1; by `optax.conditionally_transform`.

  Example:
    >>> rule = after_burn_in(clip_weights(0.5), num_steps=1)
    >>> weights, state, evidence = jnp.ones(1), rule.init(jnp.ones(1)), {"mask": jnp.ones(1, bool)}
    >>> for _ in range(2):
    ...   out, state = rule.update(weights, state, **evidence)
    ...   print(out)
    [1.]
    [0.5]
  """
  check_number("after_burn_in: num_steps", num_steps, at_least=0, whole=True)
  return optax.conditionally_transform(rule, lambda step: step >= num_steps)
