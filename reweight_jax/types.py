"""The types that every room of the house speaks: batches, outputs, the linearized loss vector.

Axis words: `[batch]` is one number per example of a batch. Nothing here computes; `make_batch`
only fills in what a caller may leave out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

Array: TypeAlias = jax.Array
ScalarLike: TypeAlias = float | int | jax.Array
Key: TypeAlias = jax.Array
Params: TypeAlias = Any  # pytree of floating arrays
ModelState: TypeAlias = Any  # pytree; () or {} for models without state


class Batch(NamedTuple):
  """A fixed number of examples, some of which may be padding.

  Attributes:
    inputs: pytree of `[batch, ...]` arrays.
    labels: pytree of `[batch, ...]` arrays, often `[batch]` int32, possibly noisy. Never the clean
      labels of an audit.
    indices: `[batch]` int32, the stable position of each example in its data set.
    mask: `[batch]` bool, True for a real example, False for padding.
  """

  inputs: Any
  labels: Any
  indices: Array
  mask: Array


class Outputs(NamedTuple):
  """What a model says about a batch.

  Attributes:
    losses: `[batch]` floating, nats, never below float32.
    logits: the model's predictions, `[batch, classes]` for a classifier; None if not given.
    model_state: the model's state after the pass (running averages and the like).
  """

  losses: Array
  logits: Any = None
  model_state: ModelState = ()


class Linearized(NamedTuple):
  """The vector of per-example losses at some parameters, with its derivative as two linear maps.

  Attributes:
    outputs: the pass itself.
    push: parameter direction -> `[batch]`, the inner product of the direction with each example's
      gradient; None in place of a leaf of the direction is zeros.
    pull: `[batch]` weights -> parameter tree, `sum_i weights_i * gradient_i`.
  """

  outputs: Outputs
  push: Callable[[Params], Array]
  pull: Callable[[Array], Params]


PerExampleLoss: TypeAlias = Callable[[Params, ModelState, Batch, Key | None], Outputs]
"""`(params, model_state, batch, key) -> Outputs`; `losses.from_apply` builds one."""

WeightingRule: TypeAlias = optax.GradientTransformationExtraArgs
"""An optax gradient transformation whose updates are the `[batch]` weights of one batch."""


class ApplyFn(Protocol):
  """A model as a function: `(params, model_state, inputs, key, train) -> (logits, model_state)`."""

  def __call__(
    self, params: Params, model_state: ModelState, inputs: Any, key: Key | None, train: bool
  ) -> tuple[Any, ModelState]:
    """Returns the predictions `[batch, ...]` and the new state."""


class MetaAlignment(Protocol):
  """The evidence `meta_alignment`: a function that costs nothing unless a rule calls it."""

  def __call__(self, at: Array | None = None) -> Array:
    """Returns `[batch]`: minus d(meta loss)/d(virtual weights), taken at `at` (None: zeros)."""


def make_batch(
  inputs: Any, labels: Any, *, indices: Array | None = None, mask: Array | None = None
) -> Batch:
  """Makes a `Batch`, filling in positions 0, 1, ... and an all-True mask where not given.

  Args:
    inputs: pytree of `[batch, ...]` arrays.
    labels: pytree of `[batch, ...]` arrays.
    indices: `[batch]` integers, the examples' positions in the data set. Give them whenever a rule
      or a ledger keeps something per example.
    mask: `[batch]` bool, False for padding.

  Returns:
    The batch, its leaves as JAX arrays, integer indices as int32.

  Raises:
    ValueError: if leaves disagree about the batch size, naming the leaf that does.

  Example:
    >>> batch = make_batch(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))
    >>> print(batch.indices, batch.mask)
    [0 1 2] [ True  True  True]
  """
  inputs, labels = jax.tree.map(jnp.asarray, (inputs, labels))
  leaves = jax.tree_util.tree_leaves_with_path({"inputs": inputs, "labels": labels})
  if not leaves:
    raise ValueError("make_batch expects at least one array, got empty inputs and labels.")
  for path, leaf in leaves:
    if leaf.ndim == 0:
      raise ValueError(
        f"make_batch expects arrays with a leading batch axis; {_name(path)} is a scalar. "
        "Add the axis, for one example with x[None]."
      )
  size = leaves[0][1].shape[0]
  indices = jnp.arange(size, dtype=jnp.int32) if indices is None else jnp.asarray(indices)
  mask = jnp.ones(size, bool) if mask is None else jnp.asarray(mask, bool)
  leaves += [((), indices), ((), mask)]
  for path, leaf in leaves:
    if leaf.shape[:1] != (size,):
      raise ValueError(
        f"make_batch expects one batch size everywhere; {_name(leaves[0][0])} has {size} examples, "
        f"{_name(path) if path else 'indices or mask'} has shape {leaf.shape}."
      )
  return Batch(inputs, labels, indices.astype(jnp.int32), mask)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")
