"""Confident learning: label issues by probabilities of models that have not seen the example.

Any such probabilities `[examples, classes]` will do, of `held_out_probabilities` or from elsewhere.
A row of NaN is an example without any: its scores are NaN, and it is no candidate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax._arrays import at_least_float32
from reweight_jax.types import Array


def low_self_confidence(probabilities: Array, labels: Array) -> Array:
  """How little the given label is believed: 1 minus its probability.

  Args:
    probabilities: `[examples, classes]`, out of sample.
    labels: `[examples]` integers, the given labels.

  Returns:
    `[examples]` in [0, 1].

  Raises:
    ValueError: if a number is no probability or a label no class, naming its example, or shapes do
      not fit.

  Source: Kuan and Mueller, "Model-Agnostic Label Quality Scoring to Detect Real-World Label
    Errors", 2022, section 2 (self-confidence, turned so that larger is harder).

  Example:
    >>> print(low_self_confidence(jnp.array([[0.75, 0.25, 0.0]]), jnp.array([1])))
    [0.75]
  """
  probabilities, labels = _checked(probabilities, labels)
  return 1 - _at(probabilities, labels)


def low_normalized_margin(probabilities: Array, labels: Array) -> Array:
  """How far the given label is behind the best other one: (1 - (p - largest other p)) / 2.

  Against the self-confidence it tells a label that another one beats from one that many share.

  Args:
    probabilities: `[examples, classes]`, out of sample.
    labels: `[examples]` integers.

  Returns:
    `[examples]` in [0, 1]; above one half where another label is likelier.

  Raises:
    ValueError: as `low_self_confidence`.

  Source: as `low_self_confidence` (normalized margin, turned).

  Example:
    >>> print(low_normalized_margin(jnp.array([[0.75, 0.25, 0.0]]), jnp.array([1])))
    [0.75]
  """
  probabilities, labels = _checked(probabilities, labels)
  is_label = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=bool)
  others = jnp.max(jnp.where(is_label, -jnp.inf, probabilities), axis=-1)
  # The row's NaN reaches `others` by its other classes; a maximum keeps NaN.
  return (1 - (_at(probabilities, labels) - others)) / 2


def confident_classes(probabilities: Array, labels: Array) -> Array:
  r"""The class that each example is counted to with confidence, -1 if there is none.

  The threshold of class j is the mean probability of j among the examples labeled j. Of the classes
  whose threshold an example reaches it is counted to the likeliest.

  Guarantees: shifting what a model thinks of a class in general moves its threshold along.
  Edge cases: no example is counted to a class that no label gives. Of equal probabilities the first
  class wins.

  Args:
    probabilities: `[examples, classes]`, out of sample.
    labels: `[examples]` integers.

  Returns:
    `[examples]` int32.

  Raises:
    ValueError: as `low_self_confidence`.

  Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    2021, arXiv 1911.00068, eqs. (1) and (2).

  Example:
    >>> probabilities = jnp.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.8, 0.2]])
    >>> print(confident_classes(probabilities, jnp.array([0, 0, 1, 1])))
    [0 1 1 0]
  """
  probabilities, labels = _checked(probabilities, labels)
  return _confident_classes(probabilities, labels)


@jax.jit
def _confident_classes(probabilities: Array, labels: Array) -> Array:
  known = ~jnp.isnan(probabilities)
  is_label = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=bool)
  thresholds = jnp.mean(probabilities, axis=0, where=is_label & known)  # NaN without a label
  reached = probabilities >= thresholds[None]
  best = jnp.argmax(jnp.where(reached, probabilities, -1), axis=-1).astype(jnp.int32)
  return jnp.where(jnp.any(reached, axis=-1), best, -1)


def label_issues(probabilities: Array, labels: Array) -> Array:
  """The candidates for a wrong label: examples counted with confidence to another class.

  Rank them by `low_normalized_margin` or `low_self_confidence`. Arguments, edge cases, errors and
  source as in `confident_classes`.

  Returns:
    `[examples]` bool.

  Example:
    >>> probabilities = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]])
    >>> print(label_issues(probabilities, jnp.array([0, 0, 1, 1])))
    [False False False  True]
  """
  found = confident_classes(probabilities, labels)
  return (found >= 0) & (found != jnp.asarray(labels))


def confident_joint(probabilities: Array, labels: Array) -> Array:
  """How many examples of each given label are counted to each class with confidence.

  Arguments, edge cases, errors and source as in `confident_classes`.

  Returns:
    `[given classes, counted classes]` int32 counts, not calibrated to the number of labels.

  Example:
    >>> probabilities = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]])
    >>> print(confident_joint(probabilities, jnp.array([0, 0, 1, 1])))
    [[1 0]
     [1 1]]
  """
  found = confident_classes(probabilities, labels)
  classes = jnp.shape(probabilities)[1]
  rows = jnp.where(found < 0, classes, jnp.asarray(labels))  # outside: dropped
  return jnp.zeros((classes, classes), jnp.int32).at[rows, found].add(1, mode="drop")


def check_labels(labels: Any, num_classes: int) -> None:
  """Raises ValueError unless labels, where they can be read, are classes."""
  if labels is None or isinstance(labels, jax.core.Tracer):
    return
  table = np.asarray(labels)
  if not np.issubdtype(table.dtype, np.integer):
    raise ValueError(f"labels [examples] of integers are expected, got {table.dtype}.")
  bad = (table < 0) | (table >= num_classes)
  if bad.any():
    first = int(np.argmax(bad))
    raise ValueError(
      f"labels in [0, {num_classes}) are expected, got {table[first]} for example {first}."
    )


def _checked(probabilities: Any, labels: Any) -> tuple[Array, Array]:
  probabilities = at_least_float32(jnp.asarray(probabilities))
  if probabilities.ndim != 2 or jnp.shape(labels) != probabilities.shape[:1]:
    raise ValueError(
      "confident learning expects probabilities [examples, classes] and labels [examples], got "
      f"shapes {probabilities.shape} and {jnp.shape(labels)}."
    )
  if not isinstance(probabilities, jax.core.Tracer):
    table = np.asarray(probabilities)
    bad = ((table < 0) | (table > 1 + 1e-4)).any(axis=1)
    if bad.any():
      raise ValueError(
        "confident learning expects probabilities in [0, 1], got others for example "
        f"{int(np.argmax(bad))}. Of logits take softmax, of log-probabilities exp."
      )
  check_labels(labels, probabilities.shape[1])
  return probabilities, jnp.asarray(labels)


def _at(probabilities: Array, labels: Array) -> Array:
  return jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
