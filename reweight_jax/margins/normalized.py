"""Margins of a model's outputs, beside the size of its parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_choice, check_number
from reweight_jax.types import Array, Params, ScalarLike

TAILS = ("logistic", "exponential")


def output_margins(logits: Array, labels: Array) -> Array:
  """By how much the label's logit exceeds the largest of the others.

  Guarantees: positive exactly where the example is classified right, 0 for a tie.

  Args:
    logits: `[batch, classes]` floats, at least two classes.
    labels: `[batch]` integers in [0, classes).

  Returns:
    `[batch]`, at least float32; larger is safer.

  Source: the multiclass margin, Crammer and Singer, "On the Algorithmic Implementation of
    Multiclass Kernel-based Vector Machines", 2001.

  Example:
    >>> print(output_margins(jnp.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]]), jnp.array([0, 1])))
    [ 2. -3.]
  """
  logits = at_least_float32(logits)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  other = jnp.max(jnp.where(is_label, -jnp.inf, logits), -1)
  return jnp.sum(jnp.where(is_label, logits, 0), -1) - other


def normalized_margins(margins: Array, params: Params, degree: ScalarLike) -> Array:
  r"""Margins over the size of the parameters, :math:`m_i / \lVert\theta\rVert^L`.

  For a net that is homogeneous of degree L this is the margin of the parameters' direction: it does
  not change when they are scaled, and is what training without end makes large.

  Edge cases: parameters that are all 0 give NaN or infinity.

  Args:
    margins: `[batch]`, as from `output_margins`.
    params: pytree, all parameters of the net.
    degree: :math:`L`; 1 for a linear model, 2 for two layers; see `homogeneity_degree`.

  Returns:
    `[batch]`.

  Source: after Lyu and Li, "Gradient Descent Maximizes the Margin of Homogeneous Neural Networks",
    2020, arXiv 1906.05890, from memory.

  Example:
    >>> print(normalized_margins(jnp.array([10.0, 5.0]), {"kernel": jnp.array([3.0, 4.0])}, 1))
    [2. 1.]
  """
  check_number("normalized_margins: degree", degree, above=0)
  return margins / optax.tree.norm(jax.tree.map(at_least_float32, params)) ** degree


def log_objective(margins: Array, weights: Array, *, tail: str = "logistic") -> Array:
  r"""The logarithm of a weighted mean loss, :math:`\log \sum_i w_i \ell(m_i) / \sum_i w_i`.

  Its gradient is that of the objective divided by the objective: *loss-normalized* descent, which
  goes on at full length when the loss itself has vanished. The only practical way to see where
  training ends, which plain descent nears like 1 / log t.

  Guarantees: value and gradient finite at margins of thousands, where the losses underflow.
  Edge cases: examples of weight 0 do not count; without any weight NaN.

  Args:
    margins: `[batch]` of the label's logit over the other, two classes.
    weights: `[batch]`, at least 0.
    tail: "logistic", :math:`\ell(m) = \log(1 + e^{-m})`; or "exponential", :math:`e^{-m}`.

  Returns:
    A scalar.

  Raises:
    ValueError: if `tail` is none of the two.

  Source: the definition, its logarithm taken term by term; loss-normalized steps after Lyu and Li
    2020, arXiv 1906.05890, from memory.

  Example:
    >>> print(log_objective(jnp.array([2000.0, 2000.0]), jnp.array([1.0, 3.0])))
    -2000.0
  """
  log_losses = _log_losses(margins, tail)
  total = jnp.log(jnp.sum(weights))
  # jax.nn.logsumexp is exact for b = 0: such an example has no share in value or gradient.
  return jax.nn.logsumexp(log_losses, b=weights) - total


def smoothed_margin(margins: Array, weights: Array, *, tail: str = "logistic") -> Array:
  r"""The margin that, had one example of weight 1 it alone, would give the summed loss.

  :math:`\ell^{-1}(\sum_i w_i \ell(m_i))`: a smooth lower bound of the smallest margin for weights
  of at least 1, and near it where margins are large. Divide by :math:`\lVert\theta\rVert^L` for the
  smoothed normalized margin, which descent in small enough steps is said not to lower once the data
  are separated (steps that are not small do: the study `homogeneous_mlp`).

  Args:
    margins: as in `log_objective`.
    weights: `[batch]`, at least 0.
    tail: as in `log_objective`.

  Returns:
    A scalar, at most the smallest margin among the examples of weight at least 1.

  Raises:
    ValueError: if `tail` is none of the two.

  Source: after Lyu and Li 2020, arXiv 1906.05890, from memory.

  Example:
    >>> print(smoothed_margin(jnp.array([3.0]), jnp.ones(1)).round(4))
    3.0
  """
  log_sum = log_objective(margins, weights, tail=tail) + jnp.log(jnp.sum(weights))
  if tail == "exponential":
    return -log_sum
  # -log(expm1(s)) with s = exp(log_sum), which may underflow (then expm1(s) = s) or be large.
  small = log_sum < -10
  s = jnp.exp(jnp.where(small, -10.0, log_sum))
  return jnp.where(small, -log_sum - jnp.exp(log_sum) / 2, -s - jnp.log(-jnp.expm1(-s)))


def homogeneity_degree(
  function: Callable[[Params], Array], params: Params, *, tolerance: float = 1e-3
) -> float:
  r"""The L with :math:`f(c\,\theta) = c^L f(\theta)`, found by scaling the parameters.

  Layers of ReLU without biases add one each. Biases after the first layer, normalization layers
  and other activations break it, and with it the theory of `normalized_margins`.

  Edge cases: biases and shifts that are exactly 0, as most layers start with, are not seen. So look
  at trained parameters.

  Args:
    function: from parameters to an array, such as a net's logits at some inputs.
    params: pytree, where to look; trained, not all 0.
    tolerance: by how much L may differ between the entries of the result.

  Returns:
    L, a Python float; rounded to a whole number where that is within the tolerance.

  Raises:
    ValueError: if there is no such L at `params`.

  Source: the definition.

  Example:
    >>> print(homogeneity_degree(lambda p: jax.nn.relu(p["a"]) * p["b"], {"a": 2.0, "b": 3.0}))
    2.0
  """
  scaled = [function(jax.tree.map(lambda leaf, c=c: c * leaf, params)) for c in (1.0, 2.0, 4.0)]
  one, two, four = (jnp.ravel(at_least_float32(array)) for array in scaled)
  counts = jnp.abs(one) > 1e-6 * jnp.max(jnp.abs(one))  # zeros have every degree
  degrees = jnp.concatenate([jnp.log2(two / one)[counts], jnp.log2(four / two)[counts]])
  low, high = (float(bound(degrees)) if degrees.size else jnp.nan for bound in (jnp.min, jnp.max))
  if not high - low <= 2 * tolerance:
    raise ValueError(
      "homogeneity_degree expects f(c * params) = c^L f(params) for one L, got L from "
      f"{low:.4g} to {high:.4g}. Biases, normalization layers and activations other than ReLU or "
      "the identity break it: leave them out, or feed a constant input in place of biases."
    )
  degree = (low + high) / 2
  return float(round(degree)) if abs(degree - round(degree)) <= tolerance else degree


def _log_losses(margins: Array, tail: str) -> Array:
  check_choice("tail", tail, TAILS)
  margins = at_least_float32(margins)
  if tail == "exponential":
    return -margins
  far = margins > 15  # there log(1 + exp(-m)) = exp(-m) in float32, and its logarithm underflows
  near = jnp.log(jax.nn.softplus(-jnp.where(far, 0.0, margins)))
  return jnp.where(far, -margins, near)
