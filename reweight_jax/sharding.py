"""Data parallelism: one mesh over the batch axis, and arrays put where they belong.

A step jitted over arrays placed like this computes global sums: "the sum of the weights" is the sum
over all devices, which a per-device program would silently get wrong.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def batch_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-dimensional mesh named "batch".

  Args:
    devices: the devices to use; None for all.

  Returns:
    The mesh, its axis of type Auto, so that `jit` decides how to communicate.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def place(mesh: Mesh, state: Any, *batches: Any) -> tuple[Any, ...]:
  """Copies the state to every device and cuts batches along their first axis.

  Args:
    mesh: from `batch_mesh`.
    state: any pytree, replicated.
    *batches: pytrees of `[batch, ...]` arrays; a None stays None.

  Returns:
    `(state, *batches)`, ready for a jitted step.

  Raises:
    ValueError: if a batch size is not divisible by the number of devices.

  Example:
    >>> mesh = batch_mesh(jax.devices()[:1])
    >>> state, batch = place(mesh, jnp.zeros(3), jnp.ones((4, 2)))
    >>> print(batch.sharding.spec == jax.sharding.PartitionSpec("batch"))
    True
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
    if not leaf.shape or leaf.shape[0] % mesh.size:
      raise ValueError(
        f"place expects batch sizes divisible by the {mesh.size} devices of the mesh; "
        f"batches{jax.tree_util.keystr(path)} has shape {leaf.shape}. Pad the batch (mask False)."
      )
  replicated = NamedSharding(mesh, PartitionSpec())
  cut = NamedSharding(mesh, PartitionSpec("batch"))
  return jax.device_put(state, replicated), *(jax.device_put(batch, cut) for batch in batches)
