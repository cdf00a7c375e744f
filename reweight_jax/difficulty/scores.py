"""Difficulty from one forward pass: what a model's outputs say about each example.

Functions of a batch, of which larger is harder, not below float32. They know of no padding: mask
what they return. Logits are `[batch, classes]` floats of at least two classes, labels `[batch]`
integers in [0, classes).
"""

import jax
import jax.numpy as jnp

from reweight_jax import losses, margins
from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_number
from reweight_jax.types import Array, ScalarLike


def cross_entropy(logits: Array, labels: Array) -> Array:
  r"""The loss :math:`-\log p_y`, nats.

  Guarantees: keeps its digits where :math:`p_y` rounds to 0 or to 1.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]`.

  Returns:
    `[batch]`, in [0, inf).

  Raises:
    ValueError: if there is not one row of at least two classes for each label.

  Source: the negative logarithm of the likelihood.

  Example:
    >>> print(cross_entropy(jnp.array([[0.0, 30.0]]), jnp.array([0])))
    [30.]
  """
  return -log_probabilities_of_label(logits, labels)[0]


def el2n(logits: Array, labels: Array) -> Array:
  r"""The length of the error, :math:`\lVert p - e_y \rVert_2`.

  Not its square, and of one network: the published score is the mean over several networks early in
  training.

  Guarantees: keeps its digits where :math:`p_y` rounds to 1.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]`.

  Returns:
    `[batch]`, in [0, sqrt(2)].

  Raises:
    ValueError: as `cross_entropy`.

  Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", 2021, arXiv 2107.07075,
    section 2, definition of the EL2N score.

  Example:
    >>> print(el2n(jnp.zeros((1, 2)), jnp.array([0])) == jnp.sqrt(0.5))
    [ True]
  """
  _, log_error = log_probabilities_of_label(logits, labels)
  # The error is 1 - p_y times (-1 at the label, the softmax of the others elsewhere).
  others = jax.nn.softmax(_others(logits, labels), axis=-1)
  return jnp.exp(log_error) * jnp.sqrt(1 + jnp.sum(jnp.square(others), axis=-1))


def negative_margin(logits: Array, labels: Array) -> Array:
  r"""Minus the margin: :math:`\max_{c \ne y} z_c - z_y`, positive where the model is wrong.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]`.

  Returns:
    `[batch]`, any real number.

  Raises:
    ValueError: as `cross_entropy`.

  Source: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking",
    2020, arXiv 2001.10528, eq. (1).

  Example:
    >>> print(negative_margin(jnp.array([[3.0, 1.0, 2.5]]), jnp.array([0])))
    [-0.5]
  """
  check_rows(logits, labels)
  return -margins.output_margins(logits, labels)


def negative_normalized_margin(
  logits: Array, labels: Array, params_norm: ScalarLike, depth: ScalarLike
) -> Array:
  r"""Minus the margin over :math:`\lVert\theta\rVert^L`, what scaling the parameters does to it.

  The order within one network is that of `negative_margin`; the division makes networks, and the
  steps of one run, comparable.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]`.
    params_norm: Euclidean norm of all parameters together, > 0, as by ``optax.global_norm``.
    depth: :math:`L`, the degree in which the logits grow with the parameters, > 0: the number of
      layers of a network of ReLUs without biases.

  Returns:
    `[batch]`, any real number.

  Raises:
    ValueError: as `cross_entropy`, or if a Python number is not positive.

  Source: Lyu and Li, "Gradient Descent Maximizes the Margin of Homogeneous Neural Networks", 2020,
    arXiv 1906.05890, the normalized margin of an example.

  Example:
    >>> logits, labels = jnp.array([[3.0, 1.0]]), jnp.array([0])
    >>> print(negative_normalized_margin(logits, labels, params_norm=2.0, depth=2))
    [-0.5]
  """
  check_number("negative_normalized_margin: params_norm", params_norm, above=0)
  check_number("negative_normalized_margin: depth", depth, above=0)
  margins = negative_margin(logits, labels)
  return margins / jnp.asarray(params_norm, margins.dtype) ** jnp.asarray(depth, margins.dtype)


def last_layer_grand(
  logits: Array, labels: Array, features: Array, *, has_bias: bool = True
) -> Array:
  r"""The length of the cross-entropy's gradient in the last layer: GraNd of that layer alone.

  With :math:`h` what goes into the layer, the gradient of its kernel is
  :math:`h (p - e_y)^\top` and that of its bias :math:`p - e_y`, so the length is
  :math:`\lVert p - e_y \rVert \sqrt{\lVert h \rVert^2 + 1}`. Exact, at no extra pass.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]`.
    features: `[batch, features]` input of the last layer.
    has_bias: whether the layer has a bias; without one the 1 is left out.

  Returns:
    `[batch]`, at least 0.

  Raises:
    ValueError: as `cross_entropy`, or if there is not one row of features for each label.

  Source: GraNd of Paul et al. 2021 (as `el2n`), section 2, of the last layer's parameters.

  Example:
    >>> logits, labels = jnp.zeros((1, 2)), jnp.array([0])
    >>> print(f"{last_layer_grand(logits, labels, jnp.ones((1, 7)))[0]:.5f}")  # sqrt(1/2) sqrt(8)
    2.00000
  """
  if jnp.ndim(features) != 2 or features.shape[0] != jnp.shape(labels)[0]:
    raise ValueError(
      "last_layer_grand expects features [batch, features], one row for each label, got shapes "
      f"{jnp.shape(features)} and {jnp.shape(labels)}. Flatten the other axes."
    )
  squares = jnp.sum(jnp.square(at_least_float32(features)), axis=-1)
  lengths = el2n(logits, labels)
  return lengths * jnp.sqrt(squares + float(has_bias)).astype(lengths.dtype)


def class_rarity(labels: Array, num_classes: int) -> Array:
  r"""How rare an example's class is in the data set, :math:`-\log(n_y / n)`, nats.

  Args:
    labels: `[examples]` integers, of the whole data set.
    num_classes: number of classes, at least 1.

  Returns:
    `[examples]` float, at least 0; NaN for a label outside [0, num_classes).

  Raises:
    ValueError: if `labels` is not a vector, or `num_classes` below 1 or not whole.

  Source: Shannon, "A Mathematical Theory of Communication", 1948: the information in the class.

  Example:
    >>> print(class_rarity(jnp.array([0, 1, 0, 0]), 2)[1] == jnp.log(4.0))
    True
  """
  check_number("class_rarity: num_classes", num_classes, at_least=1, whole=True)
  if jnp.ndim(labels) != 1:
    raise ValueError(f"class_rarity expects labels [examples], got shape {jnp.shape(labels)}.")
  is_known = (labels >= 0) & (labels < num_classes)
  rows = jnp.where(is_known, labels, num_classes)
  counts = jnp.zeros(int(num_classes) + 1, jnp.int32).at[rows].add(1)[rows]
  known = jnp.sum(is_known, dtype=jnp.int32)
  shares = counts.astype(jnp.result_type(float)) / known.astype(jnp.result_type(float))
  return jnp.where(is_known, -jnp.log(shares), jnp.nan)


def log_probabilities_of_label(logits: Array, labels: Array) -> tuple[Array, Array]:
  """The logarithms of p and of 1 - p, both `[batch]`, p the softmax probability of the label."""
  check_rows(logits, labels)
  # Through the margin: both keep their digits where p rounds to 0 or to 1.
  half = jax.vmap(losses.unit_margin)(logits, labels)
  return jax.nn.log_sigmoid(-2 * half), jax.nn.log_sigmoid(2 * half)


def check_rows(logits: Array, labels: Array | None = None) -> None:
  """Raises ValueError unless these are rows of logits, one for each label."""
  shape = jnp.shape(logits)
  if len(shape) != 2 or shape[1] < 2:
    raise ValueError(
      f"difficulty expects logits [batch, classes] of at least two classes, got shape {shape}."
    )
  if labels is not None and jnp.shape(labels) != shape[:1]:
    raise ValueError(
      f"difficulty expects labels [batch], one for each of {shape[0]} rows of logits, got shape "
      f"{jnp.shape(labels)}. Scores take integer labels, not one-hot rows."
    )


def _others(logits: Array, labels: Array) -> Array:
  """The logits with minus infinity in place of the label's."""
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return jnp.where(is_label, -jnp.inf, at_least_float32(logits))
