"""Rules that read the losses."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import bias_corrected, moving_average, num_real
from reweight_jax._validate import check_choice, check_decay, check_number
from reweight_jax.rules._rule import of_the_loss, times
from reweight_jax.types import Array, Params, ScalarLike, WeightingRule


def loss_transform(transform: Callable[[Array], Array]) -> WeightingRule:
  r"""Trains on a function of the loss: multiplies by :math:`\varphi'(\ell_i)`.

  Exact: the gradient of :math:`\sum_i \varphi(\ell_i)` is
  :math:`\sum_i \varphi'(\ell_i) \nabla \ell_i`, so training with this rule and training on the
  transformed losses are the same thing.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: where the transform falls with the loss the weight is negative, as the calculus says;
  chain `rectify` to ignore those examples. Finite wherever the transform's derivative is.

  Args:
    transform: differentiable scalar function of one loss in nats, written with `jax.numpy`.

  Returns:
    A rule needing evidence ``losses`` [batch] float.

  Raises:
    TypeError: if `transform` is not callable.

  Source: the chain rule.

  Example:
    >>> rule = loss_transform(lambda loss: loss**2 / 2)
    >>> print(rule.update(jnp.ones(2), (), losses=jnp.array([0.5, 3.0]))[0])
    [0.5 3. ]
  """
  if not callable(transform):
    raise TypeError(f"loss_transform expects a function of one loss, got {transform!r}.")

  return of_the_loss(jax.vmap(jax.grad(transform)))


def self_paced(threshold: ScalarLike, form: str = "hard") -> WeightingRule:
  r"""Starts with easy examples: a weight that falls with the loss and is 0 from a threshold on.

  With :math:`\lambda` the threshold, multiplies by

  * "hard": :math:`1[\ell < \lambda]`, which is also training on the loss cut off at the threshold
    (truncated loss).
  * "linear": :math:`\max(1 - \ell/\lambda, 0)`.
  * "logarithmic": :math:`\log(\ell + \zeta) / \log \zeta` with :math:`\zeta = 1 - \lambda` where
    :math:`\ell < \lambda`, else 0.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1].
  Edge cases: a negative loss, as of `losses.unit_margin`, counts as 0. If no example passes, all
  weights are 0 and so is the gradient. To let in more over training raise the threshold:
  ``optax.inject_hyperparams(self_paced)(threshold=schedule)``.

  Args:
    threshold: in nats, > 0; for "logarithmic" below 1.
    form: "hard", "linear" or "logarithmic".

  Returns:
    A rule needing evidence ``losses`` [batch] float.

  Raises:
    ValueError: if `threshold` is a Python number out of range, or the form is unknown.

  Source: hard: Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable Models", 2010,
    section 3; linear and logarithmic: Jiang et al., "Easy Samples First: Self-paced Reranking for
    Zero-Example Multimedia Search", 2014, section 3.2.

  Example:
    >>> rule = self_paced(2.0, "linear")
    >>> print(rule.update(jnp.ones(3), (), losses=jnp.array([0.5, 2.0, 3.0]))[0])
    [0.75 0.   0.  ]
  """
  check_choice("self_paced: form", form, ("hard", "linear", "logarithmic"))
  ceiling = 1.0 if form == "logarithmic" else math.inf
  check_number("self_paced: threshold", threshold, above=0, below=ceiling)

  def factor(losses: Array) -> Array:
    losses = jnp.maximum(losses, 0)
    passes = losses < threshold
    if form == "hard":
      return passes.astype(losses.dtype)
    if form == "linear":
      return jnp.where(passes, (threshold - losses) / threshold, 0)
    # log1p because 1 - threshold rounds to 1, and its logarithm to 0, where the threshold is tiny.
    limit = jnp.asarray(threshold, losses.dtype)
    return jnp.where(passes, jnp.log1p(jnp.where(passes, losses - limit, 0)) / jnp.log1p(-limit), 0)

  return of_the_loss(factor)


def self_paced_mixture(low: ScalarLike, high: ScalarLike) -> WeightingRule:
  r"""Self-paced with a soft end: weight 1 up to one threshold, falling to 0 at another.

  With :math:`\zeta = \lambda_1 \lambda_2 / (\lambda_1 - \lambda_2)`, :math:`\lambda_1` the high
  and :math:`\lambda_2` the low threshold, multiplies by :math:`\zeta/\ell - \zeta/\lambda_1`,
  limited to [0, 1].

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; in [0, 1];
  continuous in the loss.
  Edge cases: as for `self_paced`.

  Args:
    low: loss in nats up to which the weight is 1, > 0.
    high: loss from which it is 0, > `low`.

  Returns:
    A rule needing evidence ``losses`` [batch] float.

  Raises:
    ValueError: if the thresholds are Python numbers out of range or in the wrong order.

  Source: Jiang et al. 2014 (as `self_paced`), section 3.2, mixture weighting.

  Example:
    >>> rule = self_paced_mixture(1.0, 3.0)
    >>> print(rule.update(jnp.ones(3), (), losses=jnp.array([0.5, 1.5, 3.0]))[0])
    [1.  0.5 0. ]
  """
  check_number("self_paced_mixture: low", low, above=0)
  floor = low if isinstance(low, (int, float)) else 0.0
  check_number("self_paced_mixture: high", high, above=floor)

  def factor(losses: Array) -> Array:
    inside = jnp.clip(losses, low, high)
    share = jnp.clip(low * (high - inside) / (inside * (high - low)), 0, 1)
    # Thresholds that meet in floating point, as by a schedule, are one hard threshold, not 0 / 0.
    return jnp.where(losses <= low, 1, jnp.where(losses >= high, 0, share))

  return of_the_loss(factor)


class SuperLossState(NamedTuple):
  """State of `super_loss` with a running threshold."""

  mean: Array  # [] running average of the batch's mean loss, not yet bias-corrected
  num_batches: Array  # [] int32, batches seen


def super_loss(
  lam: ScalarLike = 1.0, *, threshold: ScalarLike | None = None, decay: ScalarLike = 0.9
) -> WeightingRule:
  r"""SuperLoss: more weight below a typical loss, less above, in closed form.

  Multiplies by :math:`\sigma^* = \exp(-W(\tfrac12 \max(-2/e, (\ell - \tau)/\lambda)))`, :math:`W`
  Lambert's function, which minimizes :math:`(\ell - \tau)\sigma + \lambda \log^2 \sigma`. The
  gradient of that minimum with respect to :math:`\ell` is :math:`\sigma^*`, so the weight is exact.

  Guarantees: padding stays at weight 0 and does not move the average; permuting the batch permutes
  the weights; in (0, e], and 1 at the threshold.
  Edge cases: a large `lam` is uniform. Close to the largest weight, e, float32 knows it to 4
  digits. A running average is bias-corrected from the first batch on.

  Args:
    lam: :math:`\lambda`, how slowly the weight moves with the loss, nats, > 0.
    threshold: :math:`\tau`, nats, such as log of the number of classes; None for the running mean
      loss.
    decay: share of the old mean kept at each step, in [0, 1).

  Returns:
    A rule needing evidence ``losses`` [batch] float, and ``mask`` [batch] bool without a threshold.

  Raises:
    ValueError: if a Python number is out of range.

  Source: Castells, Weinzaepfel, Revaud, "SuperLoss: A Generic Loss for Robust Curriculum Learning",
    2020 (NeurIPS), eqs. (1), (2) and section 3.2.

  Example:
    >>> rule = super_loss(threshold=1.0)
    >>> weights, _ = rule.update(jnp.ones(2), (), losses=jnp.array([1.0, 1.0 + 2 * jnp.e]))
    >>> print([f"{weight:.3f}" for weight in weights])  # W(e) = 1
    ['1.000', '0.368']
  """
  check_number("super_loss: lam", lam, above=0)
  check_decay("super_loss: decay", decay)

  def factor(losses: Array, tau: Array) -> Array:
    excess = (losses - tau) / (2 * lam)
    # The upper bound survives a huge loss over a small lam, which overflows.
    return jnp.exp(-_lambert_w(jnp.clip(excess, -1 / math.e, jnp.finfo(losses.dtype).max)))

  if threshold is not None:
    check_number("super_loss: threshold", threshold)
    return of_the_loss(lambda losses: factor(losses, jnp.asarray(threshold, losses.dtype)))

  def init(weights: Array) -> SuperLossState:
    return SuperLossState(jnp.zeros((), weights.dtype), jnp.zeros((), jnp.int32))

  def update(
    updates: Array,
    state: SuperLossState,
    params: Params = None,
    *,
    losses: Array,
    mask: Array,
    **unused: Any,
  ) -> tuple[Array, SuperLossState]:
    del params, unused
    # Divided first, so that the sum of huge losses does not overflow.
    batch_mean = jnp.sum(jnp.where(mask, losses / num_real(mask, losses.dtype), 0))
    # A batch without examples has no mean: the average waits.
    mean, count = moving_average(
      state.mean, state.num_batches, batch_mean, decay, moves=jnp.any(mask)
    )
    weights = times(updates, factor(losses, bias_corrected(mean, count, decay)))
    return weights, SuperLossState(mean.astype(state.mean.dtype), count)

  return optax.GradientTransformationExtraArgs(init, update)


def _lambert_w(x: Array) -> Array:
  """The upper branch of Lambert's W, the inverse of w exp(w), for x of at least -1/e."""
  # Near -1/e the series in the root, elsewhere a logarithm; Halley's steps then converge cubically.
  root = jnp.sqrt(jnp.maximum(2 * (math.e * jnp.minimum(x, 0) + 1), 0))
  w = jnp.where(x < 0, -1 + root - root**2 / 3, jnp.log1p(jnp.maximum(x, 0)))
  for _ in range(6):
    error = w - x * jnp.exp(-w)  # over exp(w), for w exp(w) itself may overflow
    # At the branch point w = -1 the step has no denominator and the series is exact.
    slope = w + 1
    safe = jnp.where(jnp.abs(slope) < 1e-4, 1, slope)
    step = error / (safe - (w + 2) * error / (2 * safe))
    w = jnp.where(jnp.abs(slope) < 1e-4, w, w - step)
  return w
