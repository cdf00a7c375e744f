r"""Losses of one example that are functions of the label's probability alone.

Each is also a weighting: its logit gradient is that of cross-entropy times a factor. `rules` has
the factors, `densities` the L1 lengths of the gradients, both under the same names.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_number, check_table
from reweight_jax.densities import log_probabilities
from reweight_jax.losses.one_example import (
  log_error_probability,
  softmax_cross_entropy,
  unit_margin,
)
from reweight_jax.types import Array, ScalarLike

Loss: TypeAlias = Callable[[Array, Array], Array]


def absolute_error(logits: Array, label: Array, *, scale: ScalarLike = 1.0) -> Array:
  r"""The absolute error of the label's probability, :math:`s (1-p)`.

  With scale 2 it is the mean absolute error between the softmax and the one-hot label.

  Guarantees: in [0, scale]; the gradient is exact where p rounds to 0 or 1.

  Args:
    logits: `[classes]` floats.
    label: integer in [0, classes).
    scale: 1 in derivative manipulation, 2 in IMAE and Ghosh et al.

  Returns:
    A scalar.

  Source: Ghosh, Kumar, Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks",
    2017, arXiv 1712.09482, section 3.

  Example:
    >>> print(absolute_error(jnp.zeros(4), 0))
    0.75
  """
  return scale * jnp.exp(log_error_probability(logits, label))


def squared_probability_error(logits: Array, label: Array) -> Array:
  r"""The squared error of the label's probability, :math:`(1-p)^2`; other classes do not enter.

  Args:
    logits: `[classes]` floats.
    label: integer in [0, classes).

  Returns:
    A scalar in [0, 1].

  Source: arXiv 1905.11233, section 3.1; the Brier score has the other classes too.

  Example:
    >>> print(squared_probability_error(jnp.zeros(4), 0))
    0.5625
  """
  return jnp.exp(2 * log_error_probability(logits, label))


def generalized_cross_entropy(q: ScalarLike = 0.7) -> Loss:
  r"""Between cross-entropy and absolute error: :math:`(1 - p^q) / q`.

  Edge cases: `q=0` is cross-entropy, its limit; `q=1` is `absolute_error`. An example of p near 0
  has hardly a gradient: from even logits over many classes training starts slowly.

  Args:
    q: in [0, 1].

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`.

  Raises:
    ValueError: if `q` is a Python number outside [0, 1].

  Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
    Noisy Labels", 2018, arXiv 1805.07836, eq. (6).

  Example:
    >>> print(generalized_cross_entropy(1.0)(jnp.zeros(4), 0))
    0.75
  """
  check_number("generalized_cross_entropy: q", q, at_least=0, at_most=1)

  def loss(logits: Array, label: Array) -> Array:
    log_p = -softmax_cross_entropy(logits, label)
    safe = jnp.where(jnp.asarray(q) == 0, 1, q)
    return jnp.where(jnp.asarray(q) == 0, -log_p, -jnp.expm1(safe * log_p) / safe)

  return loss


def symmetric_cross_entropy(
  mu: ScalarLike = 0.1, nu: ScalarLike = 1.0, log_zero: float = -4.0
) -> Loss:
  r"""Cross-entropy and reverse cross-entropy: :math:`-\mu \log p - \nu A (1-p)`.

  The reverse one takes the logarithm of the one-hot label, where log 0 is set to :math:`A`.

  Args:
    mu: share of cross-entropy, >= 0.
    nu: share of reverse cross-entropy, >= 0.
    log_zero: :math:`A`, < 0.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`.

  Raises:
    ValueError: if a Python number is out of range.

  Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019,
    arXiv 1908.06112, eqs. (6)-(8); 0.1, 1 and -4 are its CIFAR-10 setting.

  Example:
    >>> print(symmetric_cross_entropy(0.0, 1.0, -4.0)(jnp.zeros(4), 0))
    3.0
  """
  check_number("symmetric_cross_entropy: mu", mu, at_least=0)
  check_number("symmetric_cross_entropy: nu", nu, at_least=0)
  check_number("symmetric_cross_entropy: log_zero", log_zero, below=0)

  def loss(logits: Array, label: Array) -> Array:
    reverse = -log_zero * absolute_error(logits, label)
    return mu * softmax_cross_entropy(logits, label) + nu * reverse

  return loss


def taylor_cross_entropy(order: int = 2) -> Loss:
  r"""The Taylor series of :math:`-\log p` around 1, cut off: :math:`\sum_{k=1}^t (1-p)^k / k`.

  Edge cases: order 1 is `absolute_error`; a growing order tends to cross-entropy.

  Args:
    order: :math:`t`, at least 1.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`.

  Raises:
    ValueError: if `order` is below 1 or not whole.

  Source: Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", 2020 (IJCAI), eq. (5).

  Example:
    >>> print(taylor_cross_entropy(2)(jnp.zeros(4), 0))
    1.03125
  """
  check_number("taylor_cross_entropy: order", order, at_least=1, whole=True)
  powers = np.arange(1, order + 1)

  def loss(logits: Array, label: Array) -> Array:
    log_error = log_error_probability(logits, label)
    k = jnp.asarray(powers, log_error.dtype)
    return jnp.sum(jnp.exp(k * log_error) / k)

  return loss


def asymmetric_focal_loss(gammas: Sequence[float], shifts: Sequence[float] | None = None) -> Loss:
  r"""Focal loss with an exponent for each class, and easy examples of some classes left out.

  With :math:`r = \max(1 - p - m_y, 0)` the loss is :math:`-r^{\gamma_y} \log(1 - r)`. Two classes
  with `gammas=(g_negative, g_positive)` and `shifts=(m, 0)` are the binary original.

  Guarantees: without a shift value and gradient keep their digits where p rounds to 1.
  Edge cases: equal exponents without shifts are `focal_loss`. Where 1 - p is within the shift the
  loss and its gradient are 0.

  Args:
    gammas: one exponent >= 0 for each class.
    shifts: one :math:`m` in [0, 1) for each class; None for no shifts.

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`.

  Raises:
    ValueError: if a number is out of range, naming the class.

  Source: Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", 2020,
    arXiv 2009.14119, eqs. (4)-(7), for binary labels.

  Example:
    >>> loss = asymmetric_focal_loss((0.0, 2.0))
    >>> print(loss(jnp.zeros(2), 0) == 4 * loss(jnp.zeros(2), 1))
    True
  """
  of_class = exponents_and_shifts("asymmetric_focal_loss", gammas, shifts)

  def loss(logits: Array, label: Array) -> Array:
    log_p, log_q = log_probabilities(-2 * unit_margin(logits, label))
    gamma, shift = of_class(label, log_p.dtype)
    rest = jnp.exp(log_q) - shift
    counts = rest > 0
    # What stands in where the example does not count keeps the other branch's gradient finite.
    power = jnp.where(counts, rest, 1) ** gamma
    # log(1 - r), from r where r is small, and from p where 1 - r is.
    small = jnp.log1p(-jnp.clip(rest, 0, 0.5))
    log_kept = jnp.where(rest < 0.5, small, jnp.logaddexp(log_p, jnp.log(shift)))
    return jnp.where(counts, -power * log_kept, 0)

  return loss


def exponents_and_shifts(
  name: str, gammas: Sequence[float], shifts: Sequence[float] | None
) -> Callable[[Array, jnp.dtype], tuple[Array, Array]]:
  """Returns `(label, dtype) -> (exponent, shift)` of the label's class, the nearest for a label out
  of range, or raises ValueError that begins with the name.
  """
  gamma_of = check_table(f"{name}: gammas", gammas, "class")
  given = np.zeros(gamma_of.size) if shifts is None else shifts
  shift_of = check_table(f"{name}: shifts", given, "class")
  if shift_of.size != gamma_of.size or shift_of.max() >= 1:
    raise ValueError(
      f"{name}: shifts expects {gamma_of.size} numbers in [0, 1), one for each exponent, "
      f"got {shift_of.tolist()}."
    )

  def of_class(label: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    place = jnp.clip(label, 0, gamma_of.size - 1)
    return jnp.asarray(gamma_of, dtype)[place], jnp.asarray(shift_of, dtype)[place]

  return of_class
