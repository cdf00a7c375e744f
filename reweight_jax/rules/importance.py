"""Rules that carry a training set over to another distribution."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_number, check_table
from reweight_jax.rules._rule import times, weighting_rule
from reweight_jax.rules.class_priors import class_weights
from reweight_jax.types import Array, ScalarLike, WeightingRule


def importance_ratio(
  target: Sequence[float], source: Sequence[float] | None = None, *, power: ScalarLike = 1.0
) -> WeightingRule:
  r"""Weights each example by how much more likely it is where the model will be used.

  Multiplies by :math:`(p_{target}(x_i) / p_{source}(x_i))^\alpha`. Also the way to use any weights
  that one has per example.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: power 0 changes nothing, between 0 and 1 the weights are flattened (less variance,
  some bias). Indices outside the table are clamped to it, in silence as all that is compiled: check
  its length. The ratios are taken as they are: chain `clip_weights` against single large ones,
  `normalize` where they do not average 1.

  Args:
    target: one number >= 0 for each example of the data set: its density under the target
      distribution, or the ratio itself if `source` is None.
    source: one density > 0 for each example, under the distribution that training draws from.
    power: :math:`\alpha`, >= 0.

  Returns:
    A rule needing evidence ``indices`` [batch] int32.

  Raises:
    ValueError: if a number is negative or not finite, a source density 0, a ratio beyond float32,
      naming the example, or the two differ in length.

  Source: Shimodaira, "Improving predictive inference under covariate shift by weighting the
    log-likelihood function", 2000, eqs. (2.1) and (4.1) (powers).

  Example:
    >>> rule = importance_ratio([0.3, 0.1], source=[0.1, 0.2])
    >>> print(rule.update(jnp.ones(2), (), indices=jnp.array([1, 0]))[0])
    [0.5 3. ]
  """
  ratios = check_table("importance_ratio: target", target, "example").astype(np.float64)
  check_number("importance_ratio: power", power, at_least=0)
  if source is not None:
    densities = check_table("importance_ratio: source", source, "example")
    if densities.size != ratios.size:
      raise ValueError(
        f"importance_ratio expects two densities for each example, got {ratios.size} of target and "
        f"{densities.size} of source. Give both for the whole data set, in its order."
      )
    if not densities.all():
      raise ValueError(
        "importance_ratio expects source densities > 0, got 0 for example "
        f"{int(np.argmin(densities != 0))}: training never draws it."
      )
    with np.errstate(over="ignore"):
      ratios = ratios / densities
  with np.errstate(over="ignore"):
    raised = ratios ** max(power, 1) if isinstance(power, (int, float)) else ratios
  if raised.max() > np.finfo(np.float32).max:
    first = int(np.argmax(raised))
    raise ValueError(
      f"importance_ratio expects ratios that float32 can hold, got {raised[first]:g} for example "
      f"{first}. Clip them, or lower the power."
    )

  def weigh(weights: Array, *, indices: Array, **unused: Any) -> Array:
    drawn = jnp.asarray(ratios, weights.dtype)[jnp.clip(indices, 0, ratios.size - 1)]
    return times(weights, drawn ** jnp.asarray(power, weights.dtype))

  return weighting_rule(weigh)


def label_shift(confusion: Any, target_predictions: Sequence[float]) -> WeightingRule:
  r"""Weights classes for a place with other class shares, known from predictions there alone.

  A model's confusion matrix on labeled data of the source, and how often it predicts each class on
  unlabeled data of the target, give the ratio of class shares: `label_shift_ratios`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: a label outside [0, classes) is clamped to the nearest class.

  Args:
    confusion: `[classes, classes]`, numbers >= 0: how often class j (column) was predicted as class
      i (row); counts or shares.
    target_predictions: one number >= 0 for each class, how often it is predicted on the target.

  Returns:
    A rule needing evidence ``labels`` [batch] int.

  Raises:
    ValueError: as `label_shift_ratios`.

  Source: Lipton, Wang, Smola, "Detecting and Correcting for Label Shift with Black Box Predictors",
    2018, arXiv 1802.03916, section 3 and algorithm 1.

  Example:
    >>> rule = label_shift([[40, 10], [10, 40]], [0.35, 0.65])
    >>> weights, _ = rule.update(jnp.ones(2), (), labels=jnp.array([0, 1]))
    >>> print([f"{weight:.2f}" for weight in weights])
    ['0.50', '1.50']
  """
  return class_weights(_solve("label_shift", confusion, target_predictions).tolist())


def label_shift_ratios(confusion: Any, target_predictions: Sequence[float]) -> np.ndarray:
  r"""The ratio of class shares :math:`q(y)/p(y)` that solves :math:`C w = \mu`.

  :math:`C_{ij}` is the share of source examples of class j that were predicted as i, :math:`\mu`
  the shares of predictions on the target.

  Edge cases: negative solutions, which sampling noise makes, become 0.

  Args:
    confusion: as in `label_shift`.
    target_predictions: as in `label_shift`.

  Returns:
    `[classes]` float64, at least 0; 1 where nothing shifted.

  Raises:
    ValueError: if shapes do not fit, a number is negative or not finite, all are 0, or the matrix
      cannot be inverted, saying why: a class without examples or never predicted, or two not told
      apart.

  Source: as `label_shift`.

  Example:
    >>> print(label_shift_ratios([[50, 0], [0, 50]], [30, 70]))
    [0.6 1.4]
  """
  return _solve("label_shift_ratios", confusion, target_predictions)


def _solve(name: str, confusion: Any, target_predictions: Sequence[float]) -> np.ndarray:
  matrix = np.asarray(confusion, np.float64)
  shares = check_table(f"{name}: target_predictions", target_predictions, "class")
  if matrix.shape != (shares.size, shares.size):
    raise ValueError(
      f"{name} expects a {shares.size} x {shares.size} confusion matrix, one row for each "
      f"predicted share, got shape {matrix.shape}."
    )
  good = np.isfinite(matrix) & (matrix >= 0)
  if not good.all():
    row, column = np.argwhere(~good)[0]
    raise ValueError(
      f"{name} expects a confusion matrix of finite numbers >= 0, got "
      f"{matrix[row, column]:g} at row {row}, column {column}."
    )
  if not matrix.any() or not shares.any():
    raise ValueError(f"{name} expects a confusion matrix and predictions that are not all 0.")
  condition = np.linalg.cond(matrix / matrix.sum())
  if condition > 1e8:
    absent, never = (np.flatnonzero(matrix.sum(axis) == 0) for axis in (0, 1))
    cause = "some classes are not told apart"
    if absent.size:
      cause = f"class {absent[0]} has no examples"
    elif never.size:
      cause = f"class {never[0]} is never predicted"
    raise ValueError(
      f"{name} expects a confusion matrix that can be inverted, got condition number "
      f"{condition:.1e}: {cause}. Count more examples, or take a better model."
    )
  return np.maximum(np.linalg.solve(matrix / matrix.sum(), shares / shares.sum()), 0)
