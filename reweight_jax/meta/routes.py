r"""The routes to the meta-gradient of the virtual weights.

One virtual step moves the parameters from :math:`\theta` along the weighted gradient of the batch,
:math:`\hat\theta(v) = \theta + u(\sum_i v_i \nabla \ell_i(\theta))`, with :math:`u` the
update of the virtual optimizer; plain SGD is :math:`u(g) = -g`. The *alignment* of example i is
:math:`-\partial L^{meta}(\hat\theta(v)) / \partial v_i`: how much the meta loss falls when
example i weighs more.

`nested_alignment` is the definition, a `jax.grad` through a `jax.grad`. `forward_alignment` is the
same number without second derivatives: by the chain rule it is minus the inner product of each
example's gradient with :math:`(\partial u / \partial g)^\top \nabla L^{meta}(\hat\theta)`,
one *push*. For plain SGD that direction is the meta gradient itself, its sign turned.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  Linearized,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
)

ROUTES = ("nested", "forward", "ghost", "auto")

Objective = Callable[[Params], Array]


def linearizing_route(route: str) -> str:
  """How the train pass is linearized; the definition needs it for the final pull alone."""
  return "forward" if route == "nested" else route


def make_meta_objective(
  loss_fn: PerExampleLoss, model_state: ModelState, batch: Batch, key: Key | None
) -> Objective:
  """The mean loss of the real meta examples as a function of params; state updates are dropped."""

  def objective(params: Params) -> Array:
    losses = at_least_float32(loss_fn(params, model_state, batch, key).losses)
    return jnp.sum(jnp.where(batch.mask, losses, 0)) / num_real(batch.mask, losses.dtype)

  return objective


def virtual_update(
  grads: Params, params: Params, virtual_optimizer: optax.GradientTransformation | None
) -> Params:
  """The update of one virtual step from a fresh optimizer state; None is SGD at rate 1."""
  if virtual_optimizer is None:
    return jax.tree.map(jnp.negative, grads)
  return virtual_optimizer.update(grads, virtual_optimizer.init(params), params)[0]


def nested_alignment(
  losses_of: Callable[[Params], Array],
  meta_objective: Objective,
  params: Params,
  at: Array,
  virtual_optimizer: optax.GradientTransformation | None = None,
) -> Array:
  """The definition: differentiates the meta objective through the virtual step.

  Args:
    losses_of: params -> `[batch]` losses, padding masked to 0.
    meta_objective: params -> scalar.
    params: where the virtual step starts.
    at: `[batch]` virtual weights at which to differentiate.
    virtual_optimizer: None for SGD.

  Returns:
    `[batch]` alignments, minus the derivative.
  """

  def meta_loss_after_virtual_step(virtual_weights: Array) -> Array:
    weighted_loss = lambda params: jnp.vdot(virtual_weights, losses_of(params))
    grads = jax.grad(weighted_loss)(params)
    return meta_objective(
      optax.apply_updates(params, virtual_update(grads, params, virtual_optimizer))
    )

  return -jax.grad(meta_loss_after_virtual_step)(at)


def meta_direction(
  meta_objective: Objective,
  params: Params,
  grads: Params | None = None,
  virtual_optimizer: optax.GradientTransformation | None = None,
) -> Params:
  """The parameter direction whose push is the alignment.

  Args:
    meta_objective: params -> scalar.
    params: where the virtual step starts.
    grads: the weighted gradient that the virtual step follows; None for virtual weights 0, whose
      gradient is 0.
    virtual_optimizer: None for SGD.

  Returns:
    A tree like `params`.
  """
  if virtual_optimizer is None:
    moved = params if grads is None else jax.tree.map(jnp.subtract, params, grads)
    return jax.grad(meta_objective)(moved)
  grads = optax.tree.zeros_like(params) if grads is None else grads

  def move(grads: Params) -> Params:
    return optax.apply_updates(params, virtual_update(grads, params, virtual_optimizer))

  moved, transpose = jax.vjp(move, grads)
  meta_gradient = jax.grad(meta_objective)(moved)
  return jax.tree.map(jnp.negative, transpose(meta_gradient)[0])


def forward_alignment(
  linearized: Linearized,
  meta_objective: Objective,
  params: Params,
  at: Array | None,
  virtual_optimizer: optax.GradientTransformation | None = None,
) -> Array:
  """The same `[batch]` alignments by one gradient of the meta objective and one push."""
  grads = None if at is None else linearized.pull(at)
  return linearized.push(meta_direction(meta_objective, params, grads, virtual_optimizer))


def make_alignment(
  loss_fn: PerExampleLoss,
  linearized: Linearized,
  meta_objective: Objective,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None,
  route: str,
  virtual_optimizer: optax.GradientTransformation | None,
) -> Callable[[Array | None], Array]:
  """The evidence `meta_alignment` of a batch, by the chosen route."""

  def losses_of(params: Params) -> Array:
    outputs: Outputs = loss_fn(params, model_state, batch, key)
    return jnp.where(batch.mask, at_least_float32(outputs.losses), 0)

  def meta_alignment(at: Array | None = None) -> Array:
    if route != "nested":
      return forward_alignment(linearized, meta_objective, params, at, virtual_optimizer)
    at = jnp.zeros_like(linearized.outputs.losses) if at is None else at
    return nested_alignment(losses_of, meta_objective, params, at, virtual_optimizer)

  return meta_alignment
