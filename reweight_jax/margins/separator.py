"""The limit of linear models: the separator of largest margin, exactly, on the host in float64."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import ArrayLike

from reweight_jax._validate import check_number
from reweight_jax.types import Array


class Separator(NamedTuple):
  """The hyperplane through the origin that keeps the examples as far away as can be."""

  direction: np.ndarray  # [features], of length 1
  margin: float  # distance of the nearest example
  dual: np.ndarray  # [examples], at least 0, sums to 1: direction = rows' mean by it, scaled


def signed_rows(inputs: ArrayLike, labels: ArrayLike, *, bias: bool = True) -> np.ndarray:
  """The rows :math:`y_i x_i`, so that an example is right where its row times the params is > 0.

  Args:
    inputs: `[examples, features]` numbers.
    labels: `[examples]`, 0 or 1, or -1 or 1; 1 is the positive class.
    bias: whether a column of ones is appended to the inputs first.

  Returns:
    `[examples, features (+ 1)]` float64.

  Raises:
    ValueError: if shapes do not fit, a number is not finite, or a label is another.

  Example:
    >>> print(signed_rows([[2.0], [3.0]], [1, 0]))
    [[ 2.  1.]
     [-3. -1.]]
  """
  rows, classes = np.asarray(inputs, np.float64), np.asarray(labels)
  if rows.ndim != 2 or classes.shape != rows.shape[:1]:
    raise ValueError(
      "signed_rows expects inputs [examples, features] and one label for each, got shapes "
      f"{rows.shape} and {classes.shape}."
    )
  found = set(np.unique(classes).tolist())
  if not (found <= {0, 1} or found <= {-1, 1}):
    raise ValueError(f"signed_rows expects labels 0 and 1, or -1 and 1; got {sorted(found)}.")
  if bias:
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
  return _checked(np.where(classes > 0, 1.0, -1.0)[:, None] * rows, "signed_rows")


def max_margin(rows: ArrayLike) -> Separator:
  r"""Solves :math:`\min \lVert\theta\rVert` with :math:`z_i \cdot \theta \ge 1` for all rows.

  What logistic regression without regularization tends to, whatever its (bounded) example weights.
  The dual says which examples carry it: those of the smallest margin alone.

  Guarantees: every row is at least the margin away, and the dual is 0 for rows further than it, up
  to a relative 1e-6.

  Args:
    rows: `[examples, features]`, as `signed_rows` gives; some hundreds to thousands of examples.

  Returns:
    A `Separator`; its margin is in units of the inputs.

  Raises:
    ValueError: if the rows are not separable by a hyperplane through the origin, or by too small a
      margin, or not finite.

  Source: as a least-distance problem by nonnegative least squares, Lawson and Hanson, "Solving
    Least Squares Problems", 1974, chapter 23.

  Example:
    >>> found = max_margin([[2.0, 0.0], [2.0, 3.0]])
    >>> print(found.direction, found.margin, found.dual)
    [1. 0.] 2.0 [1. 0.]
  """
  examples = _checked(np.asarray(rows, np.float64), "max_margin")
  scale = np.linalg.norm(examples, axis=1).max() or 1.0
  unit = examples / scale
  matrix = np.concatenate([unit.T, np.ones((1, len(unit)))])
  target = np.append(np.zeros(unit.shape[1]), 1.0)
  shares, _ = scipy.optimize.nnls(matrix, target, maxiter=30 * matrix.shape[1])
  # A convex sum of rows is no shorter than the margin, and as short at the optimum.
  most = float(np.linalg.norm(unit.T @ shares) / shares.sum())
  # From the equations of the rows that carry it: the sum loses digits where rows nearly cancel.
  carriers = unit[shares > 0]
  theta = np.linalg.lstsq(carriers, np.ones(len(carriers)))[0]
  direction = theta / (np.linalg.norm(theta) or 1.0)
  margin = float((unit @ direction).min())
  if most < 1e-13:  # rounding leaves 1e-16 where it is 0
    raise ValueError(
      "max_margin expects rows that a hyperplane through the origin separates, got the smallest "
      f"margin {scale * margin:.3g}. Append a column of ones for a bias, or take the rows of "
      "`separable_part`."
    )
  if margin < (1 - 1e-6) * most:
    raise ValueError(
      "max_margin expects rows with a margin of at least 1e-8 of the longest row, got rows that "
      f"have one of at most {most:.1g} of it, which float64 does not resolve. Scale the inputs "
      "alike, or leave out examples that differ from others in little more than the label."
    )
  return Separator(direction, scale * margin, shares / shares.sum())


def separable_part(rows: ArrayLike) -> np.ndarray:
  r"""Which examples some direction gets right while it leaves all others undecided.

  The largest set with a :math:`\theta` for which :math:`z_i\cdot\theta > 0` on it and = 0 on the
  rest. Training without regularization pushes these apart for ever, in a direction that the weights
  do not change; on the span of the others it ends at a finite point, which depends on the weights.

  Edge cases: values below about 1e-8 of a row's length are within the solver's tolerances.

  Args:
    rows: `[examples, features]`, as `signed_rows` gives; at 20,000 examples it takes seconds.

  Returns:
    `[examples]` bool; all True if the data are separable.

  Raises:
    ValueError: if a number is not finite.
    RuntimeError: if the solver of the linear program gives up, as it may on such values.

  Source: derived here, as a linear program; after Ji and Telgarsky, "The implicit bias of gradient
    descent on nonseparable data", 2019, arXiv 1803.07300, from memory.

  Example:
    >>> print(separable_part([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
    [False False  True]
  """
  examples = _checked(np.asarray(rows, np.float64), "separable_part")
  size, width = examples.shape
  unit = examples / np.maximum(np.linalg.norm(examples, axis=1, keepdims=True), 1e-300)
  # Maximize sum(s) with s <= unit @ theta, 0 <= s <= 1: theta can be scaled, so s ends at 0 or 1.
  found = scipy.optimize.linprog(
    np.append(np.zeros(width), -np.ones(size)),
    A_ub=scipy.sparse.hstack([-unit, scipy.sparse.eye_array(size)], "csr"),
    b_ub=np.zeros(size),
    bounds=[(None, None)] * width + [(0, 1)] * size,
    method="highs",
  )
  if found.x is None:
    raise RuntimeError(
      f"separable_part: the linear program of {size} rows has no solution (status {found.status}: "
      f"{' '.join(found.message.split())}). Scale the inputs alike, or leave out examples that "
      "differ from others in little more than the label."
    )
  return np.asarray(found.x[width:] > 0.5)


def cosine(one: Any, other: Any) -> float:
  """The cosine of the angle between two vectors of any shape; NaN if one is 0.

  Example:
    >>> print(cosine([3.0, 4.0], [6.0, 8.0]))
    1.0
  """
  one, other = np.ravel(np.asarray(one, np.float64)), np.ravel(np.asarray(other, np.float64))
  lengths = np.linalg.norm(one) * np.linalg.norm(other)
  return float(np.clip(one @ other / lengths, -1, 1)) if lengths else float("nan")


def loss_normalized_descent(
  rows: Array, weights: Array, *, num_steps: int, step_size: float
) -> tuple[Array, Array]:
  r"""Descent of a linear model on the logarithm of the weighted exponential loss, from 0.

  :math:`\theta \leftarrow \theta + \eta Z^\top q` with
  :math:`q_i \propto w_i e^{-z_i\cdot\theta}`: exponentiated gradient on the dual
  :math:`\tfrac12\lVert Z^\top q\rVert^2`, started at the weights.

  Guarantees: for a step of at most :math:`1 / \max_{ij} |z_i \cdot z_j|`, any T and separable rows,
  :math:`\tfrac12\lVert Z^\top q_T\rVert^2 - \tfrac12\gamma^2 \le KL(p \Vert w) / (\eta T)`, with
  :math:`\gamma` the largest margin, p the dual of `max_margin` and w the weights over their sum.
  Finite at any number of steps.

  Args:
    rows: `[examples, features]` floats.
    weights: `[examples]`, > 0.
    num_steps: T, at least 1.
    step_size: :math:`\eta`, > 0.

  Returns:
    The parameters `[T + 1, features]`, the first 0, and the duals q of each, `[T + 1, examples]`.

  Raises:
    ValueError: if a number is out of range.

  Source: the inequality is mirror descent's for a smooth function and an entropy; derived in
    docs/importance_weighting.md.

  Example:
    >>> path, dual = loss_normalized_descent(jnp.eye(2), jnp.ones(2), num_steps=1, step_size=1.0)
    >>> print(path[-1], dual[-1])
    [0.5 0.5] [0.5 0.5]
  """
  check_number("loss_normalized_descent: num_steps", num_steps, at_least=1, whole=True)
  check_number("loss_normalized_descent: step_size", step_size, above=0)
  log_weights = jnp.log(weights)

  def dual(theta: Array) -> Array:
    return jax.nn.softmax(log_weights - rows @ theta)

  def step(theta: Array, _: None) -> tuple[Array, Array]:
    theta = theta + step_size * (rows.T @ dual(theta))
    return theta, theta

  start = jnp.zeros(rows.shape[1], rows.dtype)
  _, path = jax.lax.scan(step, start, None, length=num_steps)
  path = jnp.concatenate([start[None], path])
  return path, jax.vmap(dual)(path)


def _checked(rows: np.ndarray, name: str) -> np.ndarray:
  if rows.ndim != 2 or not rows.size:
    raise ValueError(f"{name} expects rows [examples, features], got shape {rows.shape}.")
  if not np.isfinite(rows).all():
    first = int(np.argmin(np.isfinite(rows).all(1)))
    raise ValueError(f"{name} expects finite numbers, got others in example {first}.")
  return rows
