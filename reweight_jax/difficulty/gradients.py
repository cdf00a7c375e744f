"""Difficulty from gradients: how far an example moves the parameters.

Networks are given as `(params, model_state)` pairs: several runs, or snapshots of one. Of stacked
members of an ensemble number m is `(jax.tree.map(lambda leaf: leaf[m], params), model_state)`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reweight_jax import per_example
from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_table
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

# One program for all networks and batches of a shape.
_grad_norms = jax.jit(per_example.grad_norms, static_argnums=0, static_argnames="route")


def gradient_norms(
  loss_fn: PerExampleLoss,
  networks: Iterable[tuple[Params, ModelState]],
  batch: Batch,
  *,
  key: Key | None = None,
  route: str = "auto",
) -> Array:
  r"""Norm of the gradient of every example's loss over all parameters, for several networks.

  What `grand` averages and `self_influence` sums up. Exact: by recorded layers where that is
  (`per_example.grad_norms`, route "ghost"), else by differentiating every example.

  Guarantees: networks are taken one at a time, so a generator may read them from disk.
  Edge cases: padding has NaN. Without the ghost route the gradients of all examples of the batch
  are in memory at once: take batches for which there is room.

  Args:
    loss_fn: per-example loss of a model whose examples do not see each other, such as
      ``losses.from_apply(apply_fn, train=False)``.
    networks: `(params, model_state)` pairs of one architecture, at least one.
    batch: the batch.
    key: JAX key for dropout and the like, split over the networks; None for a model that draws
      nothing.
    route: "auto", "ghost" or "vmap", as in `per_example.grad_norms`.

  Returns:
    `[networks, batch]`, in the losses' dtype.

  Raises:
    ValueError: if there is no network, if the route is unknown or refused, or if the examples are
      coupled (BatchNorm in training mode).
    TypeError: if a network is no such pair.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params**2)
    >>> batch = rw.types.make_batch(jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.zeros(2))
    >>> print(gradient_norms(loss_fn, [(jnp.ones(2), ()), (2 * jnp.ones(2), ())], batch))
    [[10.  4.]
     [20.  8.]]
  """

  def of_one(params: Params, model_state: ModelState, key: Key | None) -> Array:
    norms = _grad_norms(loss_fn, params, model_state, batch, key=key, route=route)
    return jnp.where(batch.mask, norms, jnp.nan)

  return for_each_network("gradient_norms", of_one, networks, key)


def grand(
  loss_fn: PerExampleLoss,
  networks: Iterable[tuple[Params, ModelState]],
  batch: Batch,
  *,
  key: Key | None = None,
  route: str = "auto",
) -> Array:
  r"""GraNd: the norm of an example's gradient, averaged over networks.

  .. math:: \mathbb{E}_\theta \lVert \nabla_\theta \ell_i(\theta) \rVert_2

  Meant for several networks after a few epochs of training: by a single one, or at initialization,
  examples are ranked mostly by chance. `gradient_norms` has the guarantees, edge cases, arguments
  and errors; padding has NaN.

  Args:
    loss_fn: as in `gradient_norms`.
    networks: as in `gradient_norms`.
    batch: as in `gradient_norms`.
    key: as in `gradient_norms`.
    route: as in `gradient_norms`.

  Returns:
    `[batch]`, larger is harder.

  Source: Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
    2021, arXiv 2107.07075, definition 2.1.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params**2)
    >>> batch = rw.types.make_batch(jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.zeros(2))
    >>> print(grand(loss_fn, [(jnp.ones(2), ()), (2 * jnp.ones(2), ())], batch))
    [15.  6.]
  """
  return jnp.mean(gradient_norms(loss_fn, networks, batch, key=key, route=route), axis=0)


def self_influence(norms: Array, learning_rates: Sequence[float]) -> Array:
  r"""TracIn's self-influence: how far steps on an example alone lower its own loss.

  .. math:: \sum_t \eta_t \lVert \nabla_\theta \ell_i(\theta_t) \rVert_2^2

  To first order in :math:`\eta`, and over checkpoints :math:`t` that stand for the steps of plain
  stochastic gradient descent around them.

  Edge cases: an example with NaN at any checkpoint has NaN.

  Args:
    norms: `[checkpoints, examples]`, of `gradient_norms`.
    learning_rates: one number >= 0 for each checkpoint, such as its learning rate times the epochs
      that it stands for.

  Returns:
    `[examples]`, larger is harder, in nats.

  Raises:
    ValueError: if the two do not fit together, or a learning rate is negative or not finite.

  Source: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", 2020,
    arXiv 2002.08484: TracInCP of a training example on itself.

  Example:
    >>> print(self_influence(jnp.array([[3.0, 1.0], [1.0, 0.0]]), [0.5, 0.25]))
    [4.75 0.5 ]
  """
  norms = at_least_float32(jnp.asarray(norms))
  rates = check_table("self_influence: learning_rates", learning_rates, "checkpoint")
  if norms.ndim != 2 or norms.shape[0] != rates.size:
    raise ValueError(
      f"self_influence expects norms [checkpoints, examples] with a learning rate for each "
      f"checkpoint, got norms of shape {norms.shape} and {rates.size} learning rates."
    )
  return jnp.sum(jnp.asarray(rates, norms.dtype)[:, None] * jnp.square(norms), axis=0)


def for_each_network(
  name: str,
  of_one: Callable[[Params, ModelState, Key | None], Any],
  networks: Iterable[tuple[Params, ModelState]],
  key: Key | None,
) -> Any:
  """Stacks what `of_one` makes of every network, each with a key of its own."""
  rows = []
  for number, network in enumerate(networks):
    if not isinstance(network, (tuple, list)) or len(network) != 2:
      raise TypeError(
        f"{name} expects networks as a list of (params, model_state) pairs, got "
        f"{type(network).__name__} at {number}. Give one network as [(params, model_state)]."
      )
    rows.append(of_one(*network, None if key is None else jax.random.fold_in(key, number)))
  if not rows:
    raise ValueError(f"{name} expects at least one network, got none.")
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
