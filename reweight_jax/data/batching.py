"""Batches of fixed size: an order resumable at any step, and a loop over NumPy pytrees."""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> np.ndarray:
  """Positions of the examples of one training step.

  Each epoch is a permutation of all positions, drawn from the seed and the number of the epoch
  alone, and is cut into `num_examples // batch_size` batches; the ragged rest of it sits the epoch
  out. So a run resumed at step 1000 sees what an unbroken run sees, with nothing to store.

  Guarantees: a pure function of its arguments; no position comes twice in an epoch.
  Edge cases: a batch as large as the set is a reshuffle of all of it at every step. For a small
  meta set pass `min(batch_size, num_examples)`.

  Args:
    num_examples: size of the set drawn from.
    batch_size: at least 1 and at most `num_examples`.
    step: number of the step, at least 0.
    seed: at least 0. Training and meta batches should not share one.

  Returns:
    `[batch_size]` int32, each below `num_examples`.

  Raises:
    ValueError: if an argument is outside its range.

  Example:
    >>> epoch = [batch_indices(6, 2, step, seed=0) for step in range(3)]
    >>> print(np.sort(np.concatenate(epoch)))
    [0 1 2 3 4 5]
  """
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      f"batch_size must lie from 1 to the {num_examples} examples there are, got {batch_size}."
    )
  if step < 0 or seed < 0:
    raise ValueError(f"step and seed must be at least 0, got step={step} and seed={seed}.")
  epoch, position = divmod(operator.index(step), num_examples // batch_size)
  order = _epoch_order(operator.index(num_examples), operator.index(seed), epoch)
  return order[position * batch_size : (position + 1) * batch_size].copy()


def balanced_batch_indices(labels: np.ndarray, batch_size: int, step: int, seed: int) -> np.ndarray:
  """Positions of the examples of one training step, all classes alike.

  Every place of the batch draws a class, each with the same chance, and then one of its examples,
  with replacement: re-sampling, in the words of the literature on rare classes.

  Guarantees: a pure function of its arguments, so that a run can be resumed at any step.
  Edge cases: a class without examples is never drawn; the same position may come twice in a batch.

  Args:
    labels: `[examples]` integers of at least 0, the (noisy) labels that training sees.
    batch_size: at least 1.
    step: number of the step, at least 0.
    seed: at least 0.

  Returns:
    `[batch_size]` int32, each a position in `labels`.

  Raises:
    ValueError: if there are no labels, or a number is outside its range.

  Source: the Resample baseline of Ren et al. 2018, arXiv 1803.09050, section 4.1.

  Example:
    >>> labels = np.array([0] * 999 + [1])
    >>> drawn = labels[balanced_batch_indices(labels, 1000, step=0, seed=0)]
    >>> print(400 < drawn.sum() < 600)
    True
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or not labels.size:
    raise ValueError(f"expected a vector of at least one label, got shape {labels.shape}.")
  if batch_size < 1 or step < 0 or seed < 0:
    raise ValueError(
      "batch_size must be at least 1, step and seed at least 0, "
      f"got batch_size={batch_size}, step={step} and seed={seed}."
    )
  order = np.argsort(labels, kind="stable")
  _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
  rng = np.random.default_rng([seed, step])
  drawn = rng.integers(len(counts), size=batch_size)
  return order[starts[drawn] + rng.integers(counts[drawn])].astype(np.int32)


def batches(
  inputs: Any,
  labels: Any,
  batch_size: int,
  *,
  seed: int | None = 0,
  num_epochs: int = 1,
  drop_remainder: bool = False,
) -> Iterator[tuple[Any, Any, np.ndarray, np.ndarray]]:
  """Iterates over arrays, or dicts, tuples and lists of arrays, in shuffled batches of one shape.

  Guarantees: every example comes once per epoch (unless `drop_remainder`); every batch has the same
  shapes, so a jitted step compiles once; the epochs' orders are those of `batch_indices`.
  Edge cases: the last batch of an epoch is filled up with copies of example 0, whose index is 0 and
  whose mask is False.

  Args:
    inputs: `[examples, ...]` arrays.
    labels: `[examples, ...]` arrays.
    batch_size: at least 1; more than there are examples only without `drop_remainder`.
    seed: at least 0; None keeps the given order, for evaluation.
    num_epochs: at least 0.
    drop_remainder: leave out the last batch of an epoch where it is not full.

  Returns:
    An iterator of `(inputs, labels, indices, mask)`: the arrays' rows, the rows' numbers as
    `[batch]` int32, and `[batch]` bool, False for padding.

  Raises:
    ValueError: at the call, if an argument is outside its range or arrays differ in length, naming
      the array.

  Example:
    >>> for inputs, labels, indices, mask in batches(np.ones((3, 8)), np.arange(3), 2, seed=None):
    ...   print(labels, indices, mask)
    [0 1] [0 1] [ True  True]
    [2 0] [2 0] [ True False]
  """
  num_examples = _num_examples({"inputs": inputs, "labels": labels})
  if batch_size < 1 or num_epochs < 0 or (seed is not None and seed < 0):
    raise ValueError(
      "batches expects batch_size at least 1, num_epochs and seed at least 0, "
      f"got batch_size={batch_size}, num_epochs={num_epochs}, seed={seed}."
    )
  if drop_remainder and batch_size > num_examples:
    raise ValueError(
      f"with drop_remainder batch_size may be at most the {num_examples} examples there are, "
      f"got {batch_size}, which would give no batch."
    )
  inputs, labels = _map(np.asarray, (inputs, labels))

  def generate() -> Iterator[tuple[Any, Any, np.ndarray, np.ndarray]]:
    for epoch in range(num_epochs):
      if seed is None:
        order = np.arange(num_examples, dtype=np.int32)
      else:
        order = _epoch_order(num_examples, operator.index(seed), epoch)
      end = num_examples - num_examples % batch_size if drop_remainder else num_examples
      for start in range(0, end, batch_size):
        real = order[start : min(start + batch_size, end)]
        indices = np.zeros(batch_size, np.int32)
        indices[: len(real)] = real
        mask = np.arange(batch_size) < len(real)
        rows = functools.partial(np.take, indices=indices, axis=0)
        yield _map(rows, inputs), _map(rows, labels), indices, mask

  return generate()


@functools.lru_cache(maxsize=8)  # training and meta sets of a few runs side by side
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  order = np.random.default_rng([seed, epoch]).permutation(num_examples).astype(np.int32)
  order.setflags(write=False)
  return order


def _map(fn: Callable[[Any], Any], tree: Any) -> Any:
  """Applies a function to every array of nested dicts, tuples and lists."""
  if isinstance(tree, dict):
    return {name: _map(fn, child) for name, child in tree.items()}
  if isinstance(tree, tuple) and hasattr(tree, "_fields"):
    return type(tree)(*(_map(fn, child) for child in tree))
  if isinstance(tree, tuple | list):
    return type(tree)(_map(fn, child) for child in tree)
  return fn(tree)


def _paths(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """The arrays of a tree with their names, such as `inputs.image` or `inputs.0`."""
  if isinstance(tree, tuple) and hasattr(tree, "_fields"):
    tree = dict(zip(tree._fields, tree, strict=True))
  if isinstance(tree, tuple | list):
    tree = dict(enumerate(tree))
  if isinstance(tree, dict):
    for name, child in tree.items():
      yield from _paths(child, f"{path}.{name}" if path else str(name))
  else:
    yield path, np.asarray(tree)


def _num_examples(tree: Any) -> int:
  """The length that all arrays share, or a ValueError naming the one that differs."""
  arrays = list(_paths(tree))
  if not arrays:
    raise ValueError("batches expects at least one array, got empty inputs and labels.")
  for path, array in arrays:
    if array.ndim == 0:
      raise ValueError(f"batches expects arrays of examples, but {path} is a single value.")
  first, size = arrays[0][0], arrays[0][1].shape[0]
  for path, array in arrays:
    if array.shape[0] != size:
      raise ValueError(
        f"batches expects arrays of one length; {first} has {size} examples, "
        f"{path} has {array.shape[0]}."
      )
  if not size:
    raise ValueError(f"batches expects at least one example, but {first} has none.")
  return size
