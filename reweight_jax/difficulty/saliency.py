"""Difficulty from saliency maps: how what a network looks at in an example changes in training."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32
from reweight_jax._coupling import examples_are_coupled
from reweight_jax._validate import check_number
from reweight_jax.difficulty.gradients import for_each_network
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss


def input_gradients(
  loss_fn: PerExampleLoss,
  networks: Iterable[tuple[Params, ModelState]],
  batch: Batch,
  *,
  key: Key | None = None,
) -> Any:
  r"""Gradient of the given label's logit by the input, for several networks: their saliency maps.

  :math:`\partial z_{y_i} / \partial x_i` of every example by one backward pass a network.

  Guarantees: networks are taken one at a time, so a generator may read them from disk.
  Edge cases: padding has NaN.

  Args:
    loss_fn: per-example loss that gives logits `[batch, classes]`, of a model whose examples do not
      see each other, such as ``losses.from_apply(apply_fn, train=False)``.
    networks: `(params, model_state)` pairs of one architecture, at least one.
    batch: the batch; inputs floating, labels `[batch]` integers.
    key: JAX key for dropout and the like, split over the networks; None for a model that draws
      nothing.

  Returns:
    `[networks, batch, ...]`, like the inputs (a tree of arrays if they are one), at least float32.

  Raises:
    ValueError: if there is no network, if the loss gives no such logits, or if the examples are
      coupled (BatchNorm in training mode).
    TypeError: if an input is not floating (embed tokens first), or a network is no such pair.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> batch = rw.types.make_batch(jnp.ones((2, 2)), jnp.array([0, 1]))
    >>> networks = [(jnp.array([[1.0, 2.0], [3.0, 4.0]]), ())]
    >>> print(input_gradients(rw.losses.from_apply(linear), networks, batch))
    [[[1. 3.]
      [2. 4.]]]
  """
  for leaf in jax.tree.leaves(batch.inputs):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"input_gradients expects floating inputs, got {leaf.dtype}. Embed tokens first and give "
        "their embeddings as inputs; cast images to float32."
      )

  def of_one(params: Params, model_state: ModelState, key: Key | None) -> Any:
    if batch.mask.shape[0] > 1 and examples_are_coupled(loss_fn, params, model_state, batch, key):
      raise ValueError(
        "input_gradients expects a model whose examples do not see each other; here one depends on "
        "another (BatchNorm in training mode does that). Build the loss with train=False."
      )
    return _input_gradients(loss_fn, params, model_state, batch, key)

  return for_each_network("input_gradients", of_one, networks, key)


def variance_of_gradients(input_gradients: Any) -> Array:
  """VoG: how much an example's saliency map changes from snapshot to snapshot of a training run.

  The standard deviation over snapshots of every entry of the map, averaged over the entries. The
  published score is relative to the example's class: give this one to `standardize_by_class`.

  Guarantees: adding one map to all snapshots of an example changes nothing; 0 for constant maps.
  Edge cases: NaN where a map has NaN, as that of padding. Some implementations sum the squared
  differences without taking the root of each entry's; their ranking differs.

  Args:
    input_gradients: `[snapshots, examples, ...]`, or a tree of such arrays, at least two snapshots.

  Returns:
    `[examples]`, larger is harder.

  Raises:
    ValueError: if there are fewer than two snapshots, or arrays disagree about the two axes.

  Source: Agarwal, D'souza, Hooker, "Estimating Example Difficulty using Variance of Gradients",
    2022, arXiv 2008.11600, section 2.

  Example:
    >>> first, second = jnp.array([[1.0, 5.0], [2.0, 2.0]]), jnp.array([[3.0, 5.0], [2.0, 2.0]])
    >>> print(variance_of_gradients(jnp.stack([first, second])))
    [0.5 0. ]
  """
  maps = [at_least_float32(jnp.asarray(leaf)) for leaf in jax.tree.leaves(input_gradients)]
  axes = {leaf.shape[:2] for leaf in maps}
  if len(axes) != 1 or len(min(axes)) < 2 or min(axes)[0] < 2:
    raise ValueError(
      "variance_of_gradients expects gradients [snapshots, examples, ...] of at least 2 snapshots, "
      f"got shapes {[leaf.shape for leaf in maps]}. Keep more snapshots of the run."
    )
  spreads = [jnp.std(leaf, axis=0).reshape(leaf.shape[1], -1) for leaf in maps]
  return jnp.mean(jnp.concatenate(spreads, axis=1), axis=1)


def standardize_by_class(scores: Array, labels: Array, num_classes: int) -> Array:
  """How many standard deviations of its class an example's score is above the mean of its class.

  For scores whose level differs between classes, such as `variance_of_gradients`. What makes a
  whole class hard is lost: do not expect rare classes to stand out.

  Guarantees: mean 0 in every class, and variance 1 where its scores differ.
  Edge cases: NaN scores (never seen) stay NaN and do not count; infinite ones stay infinite and do
  not count either. A class without spread, as one of a single example, has 0. NaN where the label
  is outside [0, num_classes).

  Args:
    scores: `[examples]`.
    labels: `[examples]` integers.
    num_classes: number of classes.

  Returns:
    `[examples]`, larger is harder if it was so before.

  Raises:
    ValueError: if the two are not vectors of one length, or `num_classes` is below 1 or not whole.

  Source: Agarwal, D'souza, Hooker, "Estimating Example Difficulty using Variance of Gradients",
    2022, arXiv 2008.11600, section 2.

  Example:
    >>> print(standardize_by_class(jnp.array([1.0, 3.0, 9.0]), jnp.array([0, 0, 1]), 2))
    [-1.  1.  0.]
  """
  check_number("standardize_by_class: num_classes", num_classes, at_least=1, whole=True)
  scores, labels = at_least_float32(jnp.asarray(scores)), jnp.asarray(labels)
  if scores.ndim != 1 or labels.shape != scores.shape:
    raise ValueError(
      "standardize_by_class expects a score and a label for each example, got shapes "
      f"{scores.shape} and {labels.shape}."
    )
  is_class = (labels >= 0) & (labels < num_classes)
  counted = is_class & jnp.isfinite(scores)
  own = jnp.where(is_class, labels, 0)

  def class_mean(values: Array) -> Array:
    total = lambda terms: jnp.zeros(num_classes, scores.dtype).at[own].add(terms)
    counts = total(counted.astype(scores.dtype))
    return (total(jnp.where(counted, values, 0)) / jnp.maximum(counts, 1))[own]

  centered = scores - class_mean(scores)
  deviation = jnp.sqrt(class_mean(jnp.square(centered)))
  return jnp.where(is_class, centered / jnp.where(deviation == 0, 1, deviation), jnp.nan)


@functools.partial(jax.jit, static_argnums=0)
def _input_gradients(
  loss_fn: PerExampleLoss, params: Params, model_state: ModelState, batch: Batch, key: Key | None
) -> Any:
  """One network's gradients of the labels' logits; right for examples that are not coupled."""

  def total(inputs: Any) -> Array:
    logits = loss_fn(params, model_state, batch._replace(inputs=inputs), key).logits
    if logits is None or jnp.ndim(logits) != 2 or jnp.shape(batch.labels) != logits.shape[:1]:
      raise ValueError(
        "input_gradients expects a loss that gives logits [batch, classes], and labels [batch]; "
        f"got {'no logits' if logits is None else f'logits {logits.shape}'} and labels "
        f"{batch.labels.shape}. Build the loss with losses.from_apply."
      )
    at_label = jnp.take_along_axis(at_least_float32(logits), batch.labels[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(batch.mask, at_label, 0))

  def marked(gradient: Array) -> Array:
    mask = batch.mask.reshape(-1, *[1] * (gradient.ndim - 1))
    return jnp.where(mask, at_least_float32(gradient), jnp.nan)

  return jax.tree.map(marked, jax.grad(total)(batch.inputs))
