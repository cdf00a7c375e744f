"""Per-example losses and gradients: push, pull, and single rows of the Jacobian.

Everything that example weighting needs is two linear maps of the loss vector, `push` and `pull`,
which `linearize` gives from one forward pass and without a `[batch, params]` tensor. `grads` and
`grad_norms` make the rows themselves, for models whose examples do not see each other.
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax import ghost
from reweight_jax._arrays import at_least_float32, num_real, zeros_for_none
from reweight_jax._coupling import COUPLED, examples_are_coupled
from reweight_jax._validate import check_choice, check_floating
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  Linearized,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
  WeightingRule,
)


def linearize(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  route: str = "forward",
) -> Linearized:
  r"""Runs the model once and returns the loss vector's derivative as two linear maps.

  With :math:`J_{ij} = \partial \ell_i / \partial \theta_j`: `push(direction)` is :math:`J d`,
  `pull(weights)` is :math:`J^\top w`. Both reuse the one forward pass, so `push` then `pull` see
  the same dropout mask and the same batch statistics.

  None in place of a leaf of a direction is a leaf of zeros; route "ghost" then passes the layer by.

  Guarantees: right under BatchNorm; padding has loss 0 and push 0 and gives nothing to pull;
  nothing of size `[batch, params]` is made.
  Edge cases: padding's inputs must be finite (zeros, or a copy of a real example), and under
  BatchNorm they count into the batch's statistics. Models in float16 are not supported: gradients
  of a well-fitted meta batch underflow there; bfloat16 has float32's range.

  Args:
    loss_fn: per-example loss.
    params: pytree of floating arrays.
    model_state: the model's state, not differentiated.
    batch: the batch.
    key: JAX key for dropout and the like; None only for a model that draws nothing.
    route: "forward" (`jax.linearize` and its transpose); "ghost" (recorded layers, see `ghost`:
      half the work of a push or a pull, for models of linen layers whose examples do not see each
      other); "auto" for what `pick_route` picks.

  Returns:
    `Linearized(outputs, push, pull)`.

  Raises:
    TypeError: if a leaf of `params` is not floating, naming it.
    ValueError: if `route` is unknown; `ghost.RefusedError` if it is "ghost" and would not be exact.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params)
    >>> batch = rw.types.make_batch(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros(2))
    >>> linearized = linearize(loss_fn, jnp.ones(2), (), batch)
    >>> print(linearized.push(jnp.array([1.0, 0.0])), linearized.pull(jnp.array([1.0, 1.0])))
    [1. 3.] [4. 6.]
  """
  check_choice("route", route, ("forward", "ghost", "auto"))
  check_floating(params, "params")
  if route == "auto":
    route, _ = pick_route(loss_fn, params, model_state, batch, key=key)
  if route == "ghost":
    return ghost.linearize(loss_fn, params, model_state, batch, key=key)

  def losses_of(params: Params) -> tuple[Array, Outputs]:
    outputs = loss_fn(params, model_state, batch, key)
    losses = jnp.where(batch.mask, at_least_float32(outputs.losses), 0)
    return losses, outputs._replace(losses=losses)

  losses, product, outputs = jax.linearize(losses_of, params, has_aux=True)
  transpose = jax.linear_transpose(product, params)

  def push(direction: Params) -> Array:
    return product(zeros_for_none(direction, params))

  def pull(weights: Array) -> Params:
    return transpose(jnp.asarray(weights, losses.dtype))[0]

  return Linearized(outputs, push, pull)


def pick_route(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
) -> tuple[str, str]:
  """Picks "ghost" where it is exact, else "forward", and says why; also logs it, once.

  By shapes alone and a small run on made-up values, so it works while tracing too. Arguments as in
  `linearize`.

  Returns:
    The route, and the reason in words.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params)
    >>> batch = rw.types.make_batch(jnp.ones((2, 2)), jnp.zeros(2))
    >>> print(pick_route(loss_fn, jnp.ones(2), (), batch)[0])
    forward
  """
  try:
    ghost.check(loss_fn, params, model_state, batch, key=key)
  except ghost.RefusedError as refusal:
    picked = "forward", str(refusal)
  else:
    picked = "ghost", "every layer was seen, and the result is a backward pass's"
  _log_once(f"route auto: {picked[0]}, since {picked[1]}")
  return picked


@functools.cache
def _log_once(message: str) -> None:
  logging.getLogger("reweight_jax").info(message)


def grads(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  microbatch_size: int | None = None,
) -> Params:
  """The gradient of every single example, by `vmap` of `grad`.

  Guarantees: padding has gradient 0.
  Edge cases: with a `key`, every example draws from a key of its own, so dropout masks differ from
  those of a pass over the whole batch. A last microbatch may be smaller than the others.

  Args:
    loss_fn: per-example loss of a model whose examples do not see each other.
    params: pytree of floating arrays.
    model_state: the model's state, not differentiated.
    batch: the batch.
    key: JAX key, or None for a model that draws nothing.
    microbatch_size: examples differentiated at once; bounds the memory of activations. None: all.

  Returns:
    A tree like `params` whose leaves have a leading `[batch]` axis.

  Raises:
    ValueError: if the examples are coupled (BatchNorm in training mode), or the size is below 1.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params)
    >>> batch = rw.types.make_batch(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros(2))
    >>> print(grads(loss_fn, jnp.ones(2), (), batch))
    [[1. 2.]
     [3. 4.]]
  """
  microbatches = _microbatches(loss_fn, params, model_state, batch, key, microbatch_size)
  parts = [_vmap_grad(loss_fn, params, model_state, *part) for part in microbatches]
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def grad_norms(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  microbatch_size: int | None = None,
  route: str = "vmap",
) -> Array:
  """The Euclidean norm of every example's gradient over all parameters.

  The gradients of a microbatch are dropped once their norms are taken, so `microbatch_size` bounds
  the memory for gradients too. Other arguments and errors as in `grads`.

  Args:
    loss_fn: as in `grads`.
    params: as in `grads`.
    model_state: as in `grads`.
    batch: as in `grads`.
    key: as in `grads`.
    microbatch_size: as in `grads`, and so for route "vmap" alone.
    route: "vmap"; "ghost", from recorded layers (`ghost.grad_norms`), without per-example gradients
      of the whole model; "auto", that where it is exact. With a `key`, "ghost" has one draw for
      all examples, as a training step has.

  Returns:
    `[batch]` norms, in the losses' dtype; 0 for padding.

  Raises:
    ValueError: as `grads` does; if `route` is unknown, or not "vmap" with a microbatch size;
      `ghost.RefusedError` if it is "ghost" and would not be exact.

  Source: the GraNd score of one network, Paul et al. 2021, arXiv 2107.07075, definition 2.1.

  Example:
    >>> loss_fn = lambda params, state, batch, key: rw.types.Outputs(batch.inputs @ params)
    >>> batch = rw.types.make_batch(jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.zeros(2))
    >>> print(grad_norms(loss_fn, jnp.ones(2), (), batch))
    [5. 2.]
  """
  check_choice("route", route, ("vmap", "ghost", "auto"))
  if route != "vmap" and microbatch_size is not None:
    raise ValueError(f'microbatch_size expects route "vmap"; got {route!r}: leave one of them out.')
  if route != "vmap":
    try:
      return ghost.grad_norms(loss_fn, params, model_state, batch, key=key)
    except ghost.RefusedError as refusal:
      if route == "ghost":
        raise
      _log_once(f"norms, route auto: vmap, since {refusal}")
  microbatches = _microbatches(loss_fn, params, model_state, batch, key, microbatch_size)
  norm = jax.vmap(lambda tree: optax.tree.norm(jax.tree.map(at_least_float32, tree)))
  parts = [norm(_vmap_grad(loss_fn, params, model_state, *part)) for part in microbatches]
  return jnp.concatenate(parts)


def weighted_aggregate(
  rule: WeightingRule, batch_size: int
) -> optax.GradientTransformationExtraArgs:
  r"""Lifts a weighting rule to trees of per-example gradients, for those who already have them.

  Updates come in with a leading `[batch]` axis (as in differentially private training) and go out
  as :math:`\sum_i w_i g_i / n`, :math:`n` the number of real examples: exactly the weighted
  training step, because pull is linear. Chain it before any optimizer.

  Args:
    rule: a weighting rule; its evidence goes to `update` as keyword arguments.
    batch_size: the number of rows, padding included.

  Returns:
    An optax transformation; `update(gradients, state, params, *, mask, **evidence)`, mask `[batch]`
    bool. All rows padding gives zero updates.

  Raises:
    ValueError: when called, if a leaf's leading axis is not `batch_size`, naming the leaf.

  Example:
    >>> aggregate = weighted_aggregate(rw.rules.normalize(), batch_size=2)
    >>> state = aggregate.init(jnp.zeros(1))
    >>> rows, mask = jnp.array([[1.0], [3.0]]), jnp.array([True, True])
    >>> print(aggregate.update(rows, state, mask=mask)[0])
    [2.]
  """

  def init(params: Params) -> optax.OptState:
    del params
    return rule.init(jnp.ones(batch_size))

  def update(
    updates: Params, state: optax.OptState, params: Params = None, *, mask: Array, **evidence: Any
  ) -> tuple[Params, optax.OptState]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
      if leaf.shape[:1] != (batch_size,):
        raise ValueError(
          f"weighted_aggregate expects gradients with a leading axis of {batch_size} examples; "
          f"updates{jax.tree_util.keystr(path)} has shape {leaf.shape}. "
          "Give it per_example.grads, or build it for that batch size."
        )
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(updates))
    weights, state = rule.update(mask.astype(dtype), state, params, mask=mask, **evidence)
    factors = jnp.where(mask, weights, 0) / num_real(mask, dtype)
    total = lambda rows: jnp.tensordot(factors.astype(rows.dtype), rows, axes=1)
    return jax.tree.map(total, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _microbatches(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
  microbatch_size: int | None,
) -> list[tuple[Batch, Array | None]]:
  """Checks the arguments of the row functions and cuts batch and keys into microbatches."""
  check_floating(params, "params")
  size = batch.mask.shape[0]
  step = size if microbatch_size is None else microbatch_size
  if step < 1:
    raise ValueError(f"microbatch_size expects at least 1, got {microbatch_size}.")
  if size > 1 and examples_are_coupled(loss_fn, params, model_state, batch, key):
    raise ValueError(COUPLED)
  # A Python loop, not lax.map: XLA:CPU runs a convolution's backward pass far slower inside loops.
  keys = None if key is None else jax.random.split(key, size)
  cut = lambda tree, start: jax.tree.map(lambda leaf: leaf[start : start + step], tree)
  return [(cut(batch, start), cut(keys, start)) for start in range(0, size, step)]


def _vmap_grad(
  loss_fn: PerExampleLoss, params: Params, model_state: ModelState, batch: Batch, keys: Array | None
) -> Params:
  def loss_of(params: Params, example: Batch, key: Key | None) -> Array:
    single = jax.tree.map(lambda leaf: leaf[None], example)
    return jnp.where(example.mask, loss_fn(params, model_state, single, key).losses[0], 0)

  keys_axis = None if keys is None else 0
  return jax.vmap(jax.grad(loss_of), in_axes=(None, 0, keys_axis))(params, batch, keys)
