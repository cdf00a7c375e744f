"""Rules that keep some examples of a batch and drop the rest, by the order of their losses."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from reweight_jax._arrays import num_real
from reweight_jax._validate import check_choice, check_number
from reweight_jax.rules._rule import weighting_rule
from reweight_jax.types import Array, ScalarLike, WeightingRule


def small_loss(keep: ScalarLike, of: str = "batch") -> WeightingRule:
  r"""Keeps the examples of smallest loss, the likely right labels: weight 1, the others 0.

  Of :math:`n` real examples the :math:`\lceil s n \rceil` of smallest loss stay: trimmed loss, the
  selection of co-teaching. `of="class"` does so within the examples of each label, so that rare
  classes do not vanish.

  Guarantees: padding stays at weight 0 and does not count; permuting the batch permutes weights.
  Edge cases: at least one example stays of a batch (or class) that has any; all of a tie at the
  border stay; a loss of NaN goes first. The kept weigh 1 each, so that the step shrinks by the
  share: chain `normalize` for the mean over the kept. Usual: ``after_burn_in``, or a keep that
  falls from 1 by a schedule through ``optax.inject_hyperparams``.

  Args:
    keep: the share :math:`s` that stays, in (0, 1].
    of: "batch" or "class".

  Returns:
    A rule needing evidence ``losses`` [batch] float and ``mask`` [batch] bool, and ``labels``
    [batch] int by class.

  Raises:
    ValueError: if `keep` is a Python number outside (0, 1], or `of` is unknown.

  Source: Han et al., "Co-teaching", 2018, arXiv 1804.06872, algorithm 1, step 4 (there two networks
    choose for each other); Shen and Sanghavi, "Learning with Bad Training Data via Iterative
    Trimmed Loss Minimization", 2019, arXiv 1810.11874, algorithm 1 (there over the whole data set).

  Example:
    >>> rule, losses = small_loss(0.5), jnp.array([3.0, 0.1, 2.0, 0.5])
    >>> print(rule.update(jnp.ones(4), (), losses=losses, mask=jnp.ones(4, bool))[0])
    [0. 1. 0. 1.]
  """
  check_number("small_loss: keep", keep, above=0, at_most=1)
  check_choice("small_loss: of", of, ("batch", "class"))
  return _by_rank(lambda rank, size: rank < _num_kept(keep, size), of)


def large_loss(keep: ScalarLike, of: str = "batch") -> WeightingRule:
  r"""Keeps the examples of largest loss: online hard example mining.

  Guarantees, edge cases and errors as for `small_loss`.

  Args:
    keep: the share that stays, in (0, 1].
    of: "batch" or "class".

  Returns:
    A rule needing evidence ``losses`` [batch] float and ``mask`` [batch] bool, and ``labels``
    [batch] int by class.

  Source: Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard
    Example Mining", 2016, arXiv 1604.03540, section 4.

  Example:
    >>> rule, losses = large_loss(0.5), jnp.array([3.0, 0.1, 2.0, 0.5])
    >>> print(rule.update(jnp.ones(4), (), losses=losses, mask=jnp.ones(4, bool))[0])
    [1. 0. 1. 0.]
  """
  check_number("large_loss: keep", keep, above=0, at_most=1)
  check_choice("large_loss: of", of, ("batch", "class"))
  return _by_rank(lambda rank, size: rank < _num_kept(keep, size), of, sign=-1)


def loss_quantiles(low: ScalarLike, high: ScalarLike, of: str = "batch") -> WeightingRule:
  r"""Keeps the examples between two quantiles of the loss, trimming both ends.

  Example :math:`i` stays if the share of real examples with a smaller loss is in [low, high).

  Guarantees: padding stays at weight 0 and does not count; permuting the batch permutes weights;
  a tie stays or goes as a whole.
  Edge cases: a narrow band may hold no example of a small batch; all weights are then 0. A loss of
  NaN counts as the largest.

  Args:
    low: in [0, 1); 0 keeps the easiest.
    high: in (low, 1]; 1 keeps the hardest.
    of: "batch" or "class".

  Returns:
    A rule needing evidence ``losses`` [batch] float and ``mask`` [batch] bool, and ``labels``
    [batch] int by class.

  Raises:
    ValueError: if the bounds are Python numbers out of range or in the wrong order, or `of` is
      unknown.

  Source: the trimmed mean, Huber, "Robust Statistics", 1981, section 3.3.

  Example:
    >>> rule, losses = loss_quantiles(0.25, 0.75), jnp.array([3.0, 0.1, 2.0, 0.5])
    >>> print(rule.update(jnp.ones(4), (), losses=losses, mask=jnp.ones(4, bool))[0])
    [0. 0. 1. 1.]
  """
  check_number("loss_quantiles: low", low, at_least=0, below=1)
  floor = low if isinstance(low, (int, float)) else 0.0
  check_number("loss_quantiles: high", high, above=floor, at_most=1)
  check_choice("loss_quantiles: of", of, ("batch", "class"))

  def stays(rank: Array, size: Array) -> Array:
    return (rank >= _border(low, size)) & (rank < _border(high, size))

  return _by_rank(stays, of)


def hard_mining(num_classes: int, at_least: int = 1) -> WeightingRule:
  r"""Balances the batch by dropping easy examples of the frequent classes.

  Of each class the :math:`m` examples of largest loss stay, :math:`m` the number of real examples
  of the rarest class in the batch, or `at_least` if that is less.

  Guarantees: padding stays at weight 0 and does not count; permuting the batch permutes weights.
  Edge cases: all of a tie at the border stay; a loss of NaN goes first. A label outside
  [0, classes) is a class of its own, of which as many stay, but never the rarest. Few examples
  stay, so chain `normalize` for their mean.

  Args:
    num_classes: how many classes there are, at least 1.
    at_least: how many of a class stay even if another class is absent, at least 1.

  Returns:
    A rule needing evidence ``losses`` [batch] float, ``labels`` [batch] int and ``mask`` [batch]
    bool.

  Raises:
    ValueError: if a number is below 1 or not whole.

  Source: the Hard Mining baseline of Ren et al. 2018, arXiv 1803.09050, section 4.1, in words; how
    many stay is not told there.

  Example:
    >>> rule, mask = hard_mining(2), jnp.ones(4, bool)
    >>> evidence = dict(losses=jnp.array([3.0, 0.1, 2.0, 0.5]), labels=jnp.array([0, 0, 0, 1]))
    >>> print(rule.update(jnp.ones(4), (), mask=mask, **evidence)[0])
    [1. 0. 0. 1.]
  """
  check_number("hard_mining: num_classes", num_classes, at_least=1, whole=True)
  check_number("hard_mining: at_least", at_least, at_least=1, whole=True)

  def weigh(weights: Array, *, losses: Array, labels: Array, mask: Array, **unused: Any) -> Array:
    of_class = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None, :]) & mask[
      :, None
    ]
    rarest = jnp.min(jnp.sum(of_class, axis=0)).astype(losses.dtype)
    rank, _ = _ranks(-losses, labels, mask)
    return jnp.where(rank < jnp.maximum(rarest, at_least), weights, 0)

  return weighting_rule(weigh)


def _num_kept(keep: ScalarLike, size: Array) -> Array:
  """A share of so many examples, rounded up, at least 1 however small the share."""
  return jnp.maximum(jnp.ceil(_border(keep, size)), 1)


def _border(share: ScalarLike, size: Array) -> Array:
  """A share of so many, with room for rounding: 0.3 of 10 is 3, whatever 0.3 is in binary."""
  return share * size - (1e-4 + 1e-6 * size)


def _by_rank(stays: Callable[[Array, Array], Array], of: str, sign: int = 1) -> WeightingRule:
  """Keeps the weights of examples whose rank among so many of their kind is right."""

  def of_class(
    weights: Array, *, losses: Array, labels: Array | None, mask: Array, **unused: Any
  ) -> Array:
    rank, size = _ranks(sign * losses, labels, mask)
    return jnp.where(stays(rank, size), weights, 0)

  def of_batch(weights: Array, **evidence: Any) -> Array:
    return of_class(weights, **{**evidence, "labels": None})

  return weighting_rule(of_class if of == "class" else of_batch)


def _ranks(losses: Array, labels: Array | None, mask: Array) -> tuple[Array, Array]:
  """How many real examples (of its class) are below each one, and how many there are, `[batch]`.

  Equal losses have equal ranks, so that order within the batch does not matter. NaN is last.
  """
  counts = mask[None, :]
  if labels is not None:
    counts = counts & (labels[:, None] == labels[None, :])
  unknown = jnp.isnan(losses)
  is_below = (losses[None, :] < losses[:, None]) | (unknown[:, None] & ~unknown[None, :])
  size = jnp.sum(counts, axis=1) if labels is not None else num_real(mask, losses.dtype)
  rank = jnp.sum(is_below & counts, axis=1)
  return rank.astype(losses.dtype), size.astype(losses.dtype)
