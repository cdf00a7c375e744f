r"""Losses of one example for class weights and for what is left of them once a net fits its data.

Gradient descent on cross-entropy that separates its training examples forgets any bounded weights:
:math:`w e^{-m} = e^{-(m - \log w)}`, and a constant is nothing beside a margin that grows. What
stays is what does more than shift margins:

| loss | what it does to the margin | once the examples are separated |
| --- | --- | --- |
| `polynomial_tail` | nothing; it decays slower than any exponential | weights of rules stay |
| `vector_scaling` with scales | multiplies logits, by class | from three classes on, stay |
| `logit_adjustment`, `vector_scaling` with shifts alone | shifts, by class | fades, as weights do |
| `ldam` | shifts, by class | fades, unless the model bounds its logits |

As rules, which weigh the gradient of another loss: `rules.polynomial_tail` on `unit_margin` and, at
scale 1, `rules.ldam` on cross-entropy are exact, as these two losses are functions of the margin
:math:`m = z_y - \log \sum_{c \ne y} e^{z_c}` and so leave the direction of the logit gradient what
it is. The others are no rules: they move the logits of the other classes against each other, so
another softmax shares the gradient out among them, and no factor does that. With two classes there
is nothing to share out, and logit adjustment is a weight :math:`2 \sigma(\tau \log (n_{other} /
n_y) - m)` on `unit_margin`; scales that differ turn the gradient even then.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_number, check_table
from reweight_jax.losses.one_example import softmax_cross_entropy, unit_margin
from reweight_jax.types import Array, ScalarLike

Loss: TypeAlias = Callable[[Array, Array], Array]

# softplus(-1), by which the part below margin 1 is divided so that both are 1 there.
_AT_ONE = math.log1p(math.exp(-1))


def polynomial_tail(power: ScalarLike = 1.0) -> Loss:
  r"""Logistic up to margin 1, beyond it the power law :math:`m^{-k}`, under which weights persist.

  With :math:`m` the logarithm of the label's odds the loss is :math:`\log(1 + e^{-m}) /
  \log(1 + e^{-1})` for :math:`m \le 1` and :math:`m^{-k}` for :math:`m > 1`. A sum :math:`\sum_i
  w_i m_i^{-k}` scales as a whole when the margins do, so no growth of the logits cancels the
  weights: the direction that training tends to depends on them.

  Guarantees: continuous; value and gradient finite and exact at any margin, where cross-entropy's
  underflow from 88 in float32.
  Edge cases: at :math:`m = 1` the slope jumps from -0.8585 to :math:`-k`, and is -0.8585 there; for
  :math:`k` above that the loss is not convex, the slope being steeper just beyond 1 than before.
  Fitted examples keep pulling, so margins grow as a power of time, not as its logarithm. It is not
  a proper score: do not read the softmax as probabilities, and do not compare its value with nats.

  Args:
    power: :math:`k`, > 0; published 1 and 2. The smaller, the more a weight moves the boundary.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, for `from_apply`.

  Raises:
    ValueError: if `power` is a Python number and not positive.

  Source: Wang, Chatterji, Haque, Hashimoto, "Is Importance Weighting Incompatible with
    Interpolating Classifiers?", 2021, arXiv 2112.12986: the polynomially-tailed loss with a
    logistic part, changed over at margin 1. # Departs from it: for many classes the margin is that
    of the label against all the rest.

  Example:
    >>> loss = polynomial_tail(power=2.0)
    >>> print(loss(jnp.array([0.0, 4.0]), 1))
    0.0625
  """
  check_number("polynomial_tail: power", power, above=0)

  def loss(logits: Array, label: Array) -> Array:
    margin = -2 * unit_margin(logits, label)
    is_tail = margin > 1
    # 1 stands in where the power law does not hold: a negative margin to a power is NaN.
    tail = jnp.where(is_tail, margin, 1) ** -jnp.asarray(power, margin.dtype)
    return jnp.where(is_tail, tail, jax.nn.softplus(-jnp.where(is_tail, 1, margin)) / _AT_ONE)

  return loss


def polynomial_tail_slope(margin: Array, power: ScalarLike) -> Array:
  """Minus the derivative of `polynomial_tail` in the margin, elementwise."""
  power = jnp.asarray(power, margin.dtype)
  tail = power * jnp.where(margin > 1, margin, 1) ** (-power - 1)
  return jnp.where(margin > 1, tail, jax.nn.sigmoid(-margin) / _AT_ONE)


def vector_scaling(scales: Sequence[float], shifts: Sequence[float] | None = None) -> Loss:
  r"""Cross-entropy of logits that are scaled and shifted by class, :math:`\Delta_c z_c + \iota_c`.

  For training alone: predict by the largest of the plain logits.

  Guarantees: scales of 1 without shifts are cross-entropy.
  Edge cases: scales are what persists; a rare class wants a smaller one, so that its logit must
  grow larger. Early in training such a scale slows its class down, and shifts make up for it. With
  two classes, each with a logit of its own, both margins are scaled alike and the boundary is that
  of cross-entropy in the limit; the more classes, the more the rare one gains. What persists with
  two is a scale of the label's class on both logits, :math:`\log(1 + e^{-s_y m})`: the loss
  ``lambda logits, label: softmax_cross_entropy(scales[label] * logits, label)``, `scales` an array.

  Args:
    scales: :math:`\Delta_c`, one number > 0 for each class.
    shifts: :math:`\iota_c`, one finite number for each class, smaller for rare ones; None for none.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, in nats, for `from_apply`.

  Raises:
    ValueError: if a number is out of range, naming the class, or the tables differ in size; when
      the loss is used, if there are not as many logits.

  Source: Kini, Paraskevas, Oymak, Thrampoulidis, "Label-Imbalanced and Group-Sensitive
    Classification under Overparameterization", 2021, arXiv 2103.01550, the VS-loss; its factors
    :math:`\omega_y` are class weights, which here are a rule's business.

  Example:
    >>> loss = vector_scaling([1.0, 0.5])
    >>> print(loss(jnp.array([1.0, 2.0]), 1) == jnp.log(2.0))
    True
  """
  sizes = check_table("vector_scaling: scales", scales, "class")
  if not sizes.all():
    first = int(np.argmin(sizes))
    raise ValueError(f"vector_scaling: scales expects numbers > 0, got 0 for class {first}.")
  given = np.zeros(sizes.size) if shifts is None else shifts
  moves = check_table("vector_scaling: shifts", given, "class", at_least=-math.inf)
  if moves.size != sizes.size:
    raise ValueError(
      f"vector_scaling: shifts expects {sizes.size} numbers, one for each scale, got {moves.size}."
    )

  def loss(logits: Array, label: Array) -> Array:
    logits = _of_classes("vector_scaling", logits, sizes.size)
    scaled = jnp.asarray(sizes, logits.dtype) * logits + jnp.asarray(moves, logits.dtype)
    return softmax_cross_entropy(scaled, label)

  return loss


def vector_scaling_for(counts: Sequence[int], gamma: float, tau: float) -> Loss:
  r"""Vector scaling by class counts, with two numbers for all classes.

  :math:`\Delta_c = (n_c / n_{max})^\gamma` and :math:`\iota_c = \tau \log (n_c / n)`.

  Edge cases: `gamma=0` is `logit_adjustment`; both 0 is cross-entropy.

  Args:
    counts: number of training examples of each class, at least 1.
    gamma: :math:`\gamma`, >= 0; at 0 nothing persists.
    tau: :math:`\tau`, any finite number.

  Returns:
    A loss of one example, as `vector_scaling`.

  Raises:
    ValueError: if a number is out of range; for a count it names the class.

  Source: after Kini et al. 2021, arXiv 2103.01550, the VS-loss, with its two numbers from memory.

  Example:
    >>> loss = vector_scaling_for([30, 10], gamma=0.0, tau=0.0)
    >>> print(loss(jnp.zeros(2), 1) == jnp.log(2.0))
    True
  """
  sizes = check_table("vector_scaling_for: counts", counts, "class", at_least=1)
  check_number("vector_scaling_for: gamma", gamma, at_least=0)
  check_number("vector_scaling_for: tau", tau)
  shifts = tau * np.log(sizes / sizes.sum())
  return vector_scaling(((sizes / sizes.max()) ** gamma).tolist(), shifts.tolist())


def logit_adjustment(counts: Sequence[int], tau: ScalarLike = 1.0) -> Loss:
  r"""Cross-entropy of logits with the class priors added, :math:`z_c + \tau \log (n_c / n)`.

  With :math:`\tau = 1` the plain logits learn what they would on balanced classes: predict by the
  largest of them. Also called balanced softmax.

  Edge cases: `tau=0`, and equal counts, are cross-entropy. A shift fades as weights do.

  Args:
    counts: number of training examples of each class, at least 1.
    tau: :math:`\tau`, any finite number.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, in nats, for `from_apply`.

  Raises:
    ValueError: if a count is below 1, naming the class, or `tau` is a Python number and not finite;
      when the loss is used, if there are not as many logits as counts.

  Source: Menon et al., "Long-tail learning via logit adjustment", 2021, arXiv 2007.07314, eq. (10).

  Example:
    >>> loss = logit_adjustment([30, 10])
    >>> print(loss(jnp.zeros(2), 1) == jnp.log(4.0))
    True
  """
  sizes = check_table("logit_adjustment: counts", counts, "class", at_least=1)
  check_number("logit_adjustment: tau", tau)
  log_priors = np.log(sizes / sizes.sum())

  def loss(logits: Array, label: Array) -> Array:
    logits = _of_classes("logit_adjustment", logits, sizes.size)
    shifts = jnp.asarray(tau, logits.dtype) * jnp.asarray(log_priors, logits.dtype)
    return softmax_cross_entropy(logits + shifts, label)

  return loss


def ldam(counts: Sequence[int], max_margin: ScalarLike = 0.5, scale: ScalarLike = 30.0) -> Loss:
  r"""Asks for a margin, the larger the rarer the class (label-distribution-aware margin).

  Takes :math:`\Delta_y = C / n_y^{1/4}` from the label's logit, then the cross-entropy of the
  logits times `scale`. :math:`C` is such that the rarest class has `max_margin`.

  Edge cases: made for logits in [-1, 1], cosines between normalized features and normalized rows of
  the last layer; their bound keeps the margin from fading. For plain logits take `scale=1` and a
  margin in nats: a scale of 30 would also make the gradients 30 times as long.

  Args:
    counts: number of training examples of each class, at least 1.
    max_margin: margin of the rarest class, >= 0, in units of the logits.
    scale: what logits and margins are multiplied by, > 0.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, in nats, for `from_apply`.

  Raises:
    ValueError: if a number is out of range, for a count naming the class; when the loss is used, if
      there are not as many logits as counts.

  Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    2019, arXiv 1906.07413, eqs. (12) and (13); 0.5 and 30 are what its program runs with.

  Example:
    >>> loss = ldam([16, 1], max_margin=1.0, scale=1.0)
    >>> print(loss(jnp.array([0.5, 0.0]), 0) == jnp.log(2.0))
    True
  """
  check_number("ldam: scale", scale, above=0)
  margins = ldam_margins("ldam", counts, max_margin)

  def loss(logits: Array, label: Array) -> Array:
    logits = _of_classes("ldam", logits, len(counts))
    is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    moved = logits - is_label * margins(label, logits.dtype)
    return softmax_cross_entropy(jnp.asarray(scale, logits.dtype) * moved, label)

  return loss


def ldam_margins(
  name: str, counts: Sequence[int], max_margin: ScalarLike
) -> Callable[[Array, jnp.dtype], Array]:
  """Returns `(label, dtype) -> margin` of the label's class, the nearest for a label out of range,
  or raises ValueError that begins with the name.
  """
  sizes = check_table(f"{name}: counts", counts, "class", at_least=1)
  check_number(f"{name}: max_margin", max_margin, at_least=0)
  shares = (sizes.min() / sizes) ** 0.25

  def margin_of(label: Array, dtype: jnp.dtype) -> Array:
    of_class = jnp.asarray(shares, dtype)[jnp.clip(label, 0, sizes.size - 1)]
    return jnp.asarray(max_margin, dtype) * of_class

  return margin_of


def _of_classes(name: str, logits: Array, num_classes: int) -> Array:
  """The logits in float32 at least; ValueError unless they are of one example and those classes."""
  if logits.shape != (num_classes,):
    raise ValueError(
      f"{name} expects the {num_classes} logits of one example, a class for each number it was "
      f"given, got shape {logits.shape}."
    )
  return at_least_float32(logits)
