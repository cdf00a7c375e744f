"""Difficulty from an embedding alone: what the neighbors of an example say about it.

These read whole arrays on the host, look for NaNs in them, and so do not run under `jit`. Memory
is that of one chunk of rows, `[chunk, examples]`; nothing of size `[examples, examples]` is made.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reweight_jax._validate import check_choice, check_number
from reweight_jax.types import Array

METRICS = ("euclidean", "cosine")


class Neighbors(NamedTuple):
  """The other examples nearest to each one, the nearest first.

  Attributes:
    indices: `[examples, k]` int32, never the example's own.
    distances: `[examples, k]`.
  """

  indices: Array
  distances: Array


def nearest_neighbors(
  embedding: Any, k: int = 10, *, metric: str = "euclidean", chunk: int = 512
) -> Neighbors:
  r"""The k nearest other examples of each example, exactly, by one matrix product a chunk.

  With metric "cosine" the distance is :math:`1 - \cos`, and 1 from and to a row of zeros. Several
  scores of one search: `mean(labels[found.indices] != labels[:, None], axis=1)` is
  `neighbor_disagreement` and `mean(found.distances, axis=1)` is `neighbor_distance`.

  Guarantees: an example is not its own neighbor, its copies are; adding a constant to a euclidean
  embedding or scaling any changes no neighbor but for rounding; `chunk` changes nothing.
  Edge cases: of equal distances the lower index is nearer. Neighbors are chosen by squared
  distances in the embedding's precision: in float32 two of which both are closer than about 1/1000
  of the embedding's radius may be taken for equally far. The distances themselves are computed
  anew, from differences.

  Args:
    embedding: `[examples, features]`, finite; float64 is kept where JAX has it enabled.
    k: number of neighbors, from 1 to one less than there are examples.
    metric: "euclidean" or "cosine".
    chunk: rows compared with all others at once; bounds the memory.

  Returns:
    `Neighbors(indices, distances)`.

  Raises:
    ValueError: if the embedding is no such matrix or not finite, naming the first example; if `k`,
      `metric` or `chunk` is not as above.

  Example:
    >>> found = nearest_neighbors(jnp.array([[0.0], [1.0], [3.0]]), k=1)
    >>> print(found.indices[:, 0], found.distances[:, 0])
    [1 0 1] [1. 1. 2.]
  """
  return _nearest("nearest_neighbors", embedding, k, metric, chunk)


def neighbor_disagreement(
  embedding: Any, labels: Any, k: int = 10, *, metric: str = "euclidean", chunk: int = 512
) -> Array:
  """Share of an example's k nearest neighbors that have another label.

  High for wrong labels, and for examples close to a boundary; nothing has to be trained but what
  made the embedding, which should not have seen these labels for long enough to memorize them.

  Guarantees: a multiple of 1/k in [0, 1]; the example itself is not asked; renaming the classes
    changes nothing.
  Edge cases: of equally far neighbors those with lower indices are asked first, so among many
    copies of one input the score depends on their order. An example of a class with fewer than
    k + 1 examples cannot reach 0.

  Args:
    embedding: as in `nearest_neighbors`.
    labels: `[examples]` integers.
    k: as in `nearest_neighbors`.
    metric: as in `nearest_neighbors`.
    chunk: as in `nearest_neighbors`.

  Returns:
    `[examples]`, larger is harder.

  Raises:
    ValueError: as `nearest_neighbors`; if the labels are not one integer an example.

  Source: Smith, Martinez, Giraud-Carrier, "An instance level analysis of data complexity", 2014:
    k-disagreeing neighbors (kDN).

  Example:
    >>> embedding = jnp.array([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]])
    >>> print(neighbor_disagreement(embedding, jnp.array([0, 0, 1, 1, 1, 1]), k=2))
    [0.5 0.5 1.  0.  0.  0. ]
  """
  name = "neighbor_disagreement"
  rows = _checked_embedding(name, embedding)
  labels = _checked_labels(name, labels, len(rows))
  found = _nearest(name, rows, k, metric, chunk)
  others = labels[np.asarray(found.indices)] != labels[:, None]
  return jnp.asarray(others.mean(axis=1), found.distances.dtype)


def neighbor_distance(
  embedding: Any, k: int = 10, *, metric: str = "euclidean", chunk: int = 512
) -> Array:
  """Mean distance to the k nearest neighbors: large where the data is sparse.

  High for rare examples and outliers, whatever their label says: beside a score that knows the
  label it tells rare examples from wrong labels.

  Edge cases: an example with k exact copies has 0.

  Args:
    embedding: as in `nearest_neighbors`.
    k: as in `nearest_neighbors`.
    metric: as in `nearest_neighbors`.
    chunk: as in `nearest_neighbors`.

  Returns:
    `[examples]`, larger is harder, in the units of the embedding.

  Raises:
    ValueError: as `nearest_neighbors`.

  Source: Angiulli, Pizzuti, "Fast outlier detection in high dimensional spaces", 2002: the weight
    of a point, over k.

  Example:
    >>> print(neighbor_distance(jnp.array([[0.0], [1.0], [2.0], [9.0]]), k=2))
    [1.5 1.  1.5 7.5]
  """
  return jnp.mean(_nearest("neighbor_distance", embedding, k, metric, chunk).distances, axis=1)


def nonprototypicality(embedding: Any, labels: Any, *, metric: str = "euclidean") -> Array:
  """Distance to the mean of the other examples of the same label.

  The example itself is left out of the mean; with it, those of a small class would look typical of
  their class because they are most of it.

  Guarantees: renaming the classes changes nothing.
  Edge cases: NaN for the only example of a class. With metric "cosine" rows are first scaled to
    length 1; the distance is 1 from a row of zeros, and from a mean that cancels out to 0.

  Args:
    embedding: `[examples, features]`, finite.
    labels: `[examples]` integers.
    metric: "euclidean", or "cosine" for one minus the cosine.

  Returns:
    `[examples]`, larger is harder.

  Raises:
    ValueError: if the embedding is no such matrix or not finite, naming the first example; if the
      labels are not one integer an example; if `metric` is unknown.

  Source: Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning",
    2022, arXiv 2206.14486: the self-supervised prototypes metric.

  Example:
    >>> embedding = jnp.array([[0.0], [2.0], [10.0], [5.0]])
    >>> print(nonprototypicality(embedding, jnp.array([0, 0, 0, 1])))
    [ 6.  3.  9. nan]
  """
  # Departs from Sorscher et al.: the classes take the place of clusters, and the mean leaves out i.
  name = "nonprototypicality"
  check_choice(f"{name}: metric", metric, METRICS)
  given = _checked_embedding(name, embedding)
  labels = _checked_labels(name, labels, len(given))
  rows, scale = _prepared(given, metric)
  _, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
  in_order, ends = np.argsort(own, kind="stable"), np.cumsum(counts)
  sums = np.add.reduceat(rows[in_order], ends - counts)
  num_others = counts[own] - 1
  means = (sums[own] - rows) / np.maximum(num_others, 1)[:, None]
  if metric == "cosine":
    lengths = np.linalg.norm(means, axis=1)
    has_direction = lengths > 1e-12  # what a sum of opposite rows leaves is rounding
    products = np.sum(rows * means, axis=1) / np.where(has_direction, lengths, 1)
    distances = np.clip(1 - np.where(has_direction, products, 0), 0, 2)
  else:
    distances = scale * np.linalg.norm(rows - means, axis=1)
  return jnp.asarray(np.where(num_others > 0, distances, np.nan).astype(_dtype_of(given)))


def _nearest(name: str, embedding: Any, k: int, metric: str, chunk: int) -> Neighbors:
  """`nearest_neighbors`, its complaints in the name of the function that was called."""
  given = _checked_embedding(name, embedding)
  num_examples = len(given)
  check_choice(f"{name}: metric", metric, METRICS)
  check_number(f"{name}: k", k, at_least=1, whole=True)
  check_number(f"{name}: chunk", chunk, at_least=1, whole=True)
  if k >= num_examples:
    raise ValueError(
      f"{name}: k expects fewer than the number of examples, {num_examples}, got {k}. Lower k."
    )
  rows, scale = _prepared(given, metric)
  on_device = jnp.asarray(rows.astype(_dtype_of(given)))
  size, parts = min(int(chunk), num_examples), []
  for start in range(0, num_examples, size):
    # The last chunk starts earlier rather than being smaller: one program for all.
    first = min(start, num_examples - size)
    found = _nearest_of(on_device, first, size=size, k=int(k), metric=metric)
    parts.append(jax.tree.map(lambda leaf, skip=start - first: leaf[skip:], jax.device_get(found)))
  indices, distances = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
  return Neighbors(jnp.asarray(indices), jnp.asarray(distances * distances.dtype.type(scale)))


@functools.partial(jax.jit, static_argnames=("size", "k", "metric"))
def _nearest_of(
  rows: Array, first: Array | int, *, size: int, k: int, metric: str
) -> tuple[Array, Array]:
  """Neighbors of `size` rows from `first` on among all prepared rows."""
  chosen = jax.lax.dynamic_slice_in_dim(rows, first, size)
  # Full precision: with TF32 or bfloat16 products the nearest would be drawn by rounding.
  products = jnp.matmul(chosen, rows.T, precision="highest")
  if metric == "cosine":
    closeness = products
  else:  # minus the squared distance, but for a constant of each chosen row
    closeness = 2 * products - jnp.sum(jnp.square(rows), axis=1)[None, :]
  positions = jnp.arange(size)
  closeness = closeness.at[positions, first + positions].set(-jnp.inf)
  _, indices = jax.lax.top_k(closeness, k)
  if metric == "cosine":
    products = jnp.sum(rows[indices] * chosen[:, None, :], axis=-1)
    distances = jnp.clip(1 - products, 0, 2)
  else:  # from differences, that copies have 0 and near ones all their digits
    distances = jnp.sqrt(jnp.sum(jnp.square(rows[indices] - chosen[:, None, :]), axis=-1))
  distances, indices = jax.lax.sort((distances, indices), num_keys=2)
  return indices, distances


def _prepared(embedding: np.ndarray, metric: str) -> tuple[np.ndarray, float]:
  """Float64 rows of length 1 or 0; or centered and at most 1, with the scale to undo that."""
  rows = embedding.astype(np.float64)
  if metric == "cosine":
    rows /= _or_one(np.abs(rows).max(axis=1, keepdims=True))  # squares of tiny rows underflow
    return rows / _or_one(np.linalg.norm(rows, axis=1, keepdims=True)), 1.0
  # Squared distances from a product of far-off rows would be differences of huge numbers.
  rows -= rows.mean(axis=0)
  scale = float(np.exp2(np.ceil(np.log2(_or_one(np.abs(rows).max())))))  # division is exact
  return rows / scale, scale


def _or_one(lengths: np.ndarray) -> np.ndarray:
  return np.where(lengths == 0, 1, lengths)


def _dtype_of(embedding: np.ndarray) -> Any:
  return jnp.result_type(float) if embedding.dtype == np.float64 else np.float32


def _checked_embedding(name: str, embedding: Any) -> np.ndarray:
  rows = np.asarray(embedding)
  if rows.ndim != 2 or rows.size == 0:
    raise ValueError(
      f"{name} expects an embedding [examples, features], got shape {rows.shape}. "
      "Flatten what an example has with x.reshape(len(x), -1)."
    )
  good = np.isfinite(rows).all(axis=1)
  if not good.all():
    first = int(np.argmin(good))
    raise ValueError(
      f"{name} expects a finite embedding, got NaN or infinity for example {first} "
      f"({np.sum(~good)} such examples). Leave them out, or see what made them."
    )
  return rows


def _checked_labels(name: str, labels: Any, num_examples: int) -> np.ndarray:
  table = np.asarray(labels)
  if table.shape != (num_examples,) or not np.issubdtype(table.dtype, np.integer):
    raise ValueError(
      f"{name} expects one integer label for each of {num_examples} examples, got {table.dtype} of "
      f"shape {table.shape}. Give labels and embedding of the same examples."
    )
  return table
