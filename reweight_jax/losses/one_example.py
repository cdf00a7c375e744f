"""Losses of one example: what optax does not have for one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._validate import check_number
from reweight_jax.densities import log_probabilities
from reweight_jax.types import Array, ScalarLike

softmax_cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def squared_error(prediction: Array, target: Array) -> Array:
  """Half the squared distance between a prediction and its target, summed over all axes.

  Args:
    prediction: array of any shape, one example's prediction.
    target: array of the same number of elements, floats or integers; a scalar target fits a
      prediction of shape `[1]`.

  Returns:
    A scalar: the negative log-likelihood in nats of a unit-variance Gaussian, up to a constant.

  Raises:
    ValueError: if the two have different numbers of elements.

  Source: Bishop, "Pattern Recognition and Machine Learning", 2006, eq. (3.12).

  Example:
    >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
  """
  if jnp.size(prediction) != jnp.size(target):
    raise ValueError(
      "squared_error expects prediction and target of one example to have the same number of "
      f"elements, got shapes {jnp.shape(prediction)} and {jnp.shape(target)}. Reshape one of them."
    )
  prediction, target = (at_least_float32(jnp.ravel(array)) for array in (prediction, target))
  if jnp.issubdtype(target.dtype, jnp.integer):
    target = target.astype(prediction.dtype)
  return 0.5 * jnp.sum(jnp.square(prediction - target))


def token_cross_entropy(logits: Array, labels: Array) -> Array:
  """Mean cross-entropy over the tokens of one sequence; negative labels are not counted.

  Args:
    logits: `[length, vocabulary]` floats.
    labels: `[length]` integers; a negative one marks a position without a target (padding, prompt).

  Returns:
    A scalar, nats per token. A sequence without any target has loss 0 and no gradient.

  Source: the average of -log p(label) over the counted positions.

  Example:
    >>> print(token_cross_entropy(jnp.zeros((3, 4)), jnp.array([2, 0, -1])) == jnp.log(4.0))
    True
  """
  counted = labels >= 0
  losses = softmax_cross_entropy(logits, jnp.where(counted, labels, 0))
  return jnp.sum(jnp.where(counted, losses, 0)) / num_real(counted, losses.dtype)


def unit_margin(logits: Array, label: Array) -> Array:
  r"""Minus half the margin: the loss whose logit gradient always has L1 length 1.

  With :math:`p` the probability of the label, :math:`\ell = -\tfrac12 \log\frac{p}{1-p}`. The
  gradient is -1/2 at the label and the softmax over the other classes, halved, elsewhere.

  Guarantees: exact at any margin, where weights relative to cross-entropy would overflow; at least
  float32 inside for logits in bfloat16.

  Args:
    logits: `[classes]` floats, at least two classes.
    label: integer in [0, classes).

  Returns:
    A scalar, nats; negative where the label is more probable than all the rest together.

  Source: the base loss of derivative manipulation, Wang et al. 2019, arXiv 1905.11233, section 3
    (there the logit gradient of each example is normalized to L1 length 1 and then scaled).

  Example:
    >>> print(unit_margin(jnp.array([0.0, 3.0]), 1))
    -1.5
  """
  logits = at_least_float32(logits)
  return 0.5 * (_logsumexp_of_others(logits, label) - logits[label])


def log_error_probability(logits: Array, label: Array) -> Array:
  """The logarithm of 1 - p, p being the softmax probability of the label.

  Guarantees: exact where p rounds to 1, that is from margin 17 in float32.

  Args:
    logits: `[classes]` floats, at least two classes.
    label: integer in [0, classes).

  Returns:
    A scalar, nats, at most 0.

  Source: the softmax, summed over the other classes.

  Example:
    >>> print(log_error_probability(jnp.array([30.0, 0.0]), 0))
    -30.0
  """
  return _logsumexp_of_others(logits, label) - jax.nn.logsumexp(logits)


def focal_loss(logits: Array, label: Array, *, gamma: ScalarLike = 2.0) -> Array:
  r"""The focal loss :math:`-(1-p)^\gamma \log p`, differentiated in full.

  Not the focal *rule*: `rules.focal` treats :math:`(1-p)^\gamma` as a constant weight, which drops
  one term of this loss's gradient.

  Guarantees: value and gradient keep their digits where p rounds to 1.
  Edge cases: `gamma=0` is cross-entropy.

  Args:
    logits: `[classes]` floats, at least two classes.
    label: integer in [0, classes).
    gamma: focusing exponent, >= 0.

  Returns:
    A scalar, nats.

  Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, arXiv 1708.02002, eq. (4).

  Example:
    >>> print(focal_loss(jnp.zeros(2), 0, gamma=1.0) == 0.5 * jnp.log(2.0))
    True
  """
  # Through the margin: log p as a difference of logits has lost its digits where p is near 1.
  log_p, log_q = log_probabilities(-2 * unit_margin(logits, label))
  return -jnp.exp(gamma * log_q) * log_p


def smoothed_cross_entropy(smoothing: ScalarLike) -> Callable[[Array, Array], Array]:
  r"""Cross-entropy with labels that leave a share to all classes alike.

  With :math:`K` classes the target is :math:`(1 - s) 1[k = y] + s / K`.

  Edge cases: `smoothing=0` is cross-entropy; at 1 the label no longer matters.

  Args:
    smoothing: the share :math:`s`, in [0, 1].

  Returns:
    A loss of one example, `(logits [classes], label) -> scalar`, in nats, for `from_apply`.

  Raises:
    ValueError: if `smoothing` is a plain number outside [0, 1].

  Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016,
    arXiv 1512.00567, section 7.

  Example:
    >>> loss = smoothed_cross_entropy(0.2)
    >>> print(loss(jnp.zeros(2), 0) == jnp.log(2.0))
    True
  """
  check_number("smoothed_cross_entropy: smoothing", smoothing, at_least=0, at_most=1)

  def loss(logits: Array, label: Array) -> Array:
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    target = optax.losses.smooth_labels(target, jnp.asarray(smoothing, logits.dtype))
    return optax.losses.softmax_cross_entropy(logits, target)

  return loss


def _logsumexp_of_others(logits: Array, label: Array) -> Array:
  is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  return jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits))
