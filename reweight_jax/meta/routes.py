r"""The routes to the meta-gradient of the virtual weights.

One virtual step moves the parameters from :math:`\theta` along the weighted gradient of the batch,
:math:`\hat\theta(v) = \theta + u(\sum_i v_i \nabla \ell_i(\theta))`, with :math:`u` the
update of the virtual optimizer; plain SGD is :math:`u(g) = -g`. The *alignment* of example i is
:math:`-\partial L^{meta}(\hat\theta(v)) / \partial v_i`: how much the meta loss falls when
example i weighs more.

`nested_alignment` is the definition, a `jax.grad` through a `jax.grad`, and may unroll more than
one virtual step. `forward_alignment` is the same number, for one step, without second derivatives:
by the chain rule it is minus the inner product of each example's gradient with
:math:`(\partial u / \partial g)^\top \nabla L^{meta}(\hat\theta)`, one *push*. For plain SGD
that direction is the meta gradient itself, its sign turned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax import _dataflow
from reweight_jax._arrays import at_least_float32, num_real, zeros_for_none
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


class Virtual(NamedTuple):
  """How the virtual step moves the parameters.

  Attributes:
    optimizer: an optax transformation; None for SGD at rate 1.
    state: its state before the step; None for a fresh one.
    num_steps: virtual steps on the same batch, at least 1. More than one needs route "nested".
    moves: (name of a parameter, as in "Dense_0/kernel") -> whether the meta gradient is taken with
      respect to it; None for all. An approximation, for less work.
  """

  optimizer: optax.GradientTransformation | None = None
  state: Any = None
  num_steps: int = 1
  moves: Callable[[str], bool] | None = None

  def start(self, params: Params) -> Any:
    """The optimizer's state before the first virtual step."""
    if self.optimizer is None or self.state is not None:
      return self.state
    return self.optimizer.init(params)

  def step(self, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
    """The parameters after one virtual step, and the optimizer's state."""
    if self.optimizer is None:
      return jax.tree.map(jnp.subtract, params, grads), state
    updates, state = self.optimizer.update(jax.tree.map(_beside_0, grads), state, params)
    return optax.apply_updates(params, updates), state


SGD = Virtual()


def _beside_0(grad: Array) -> Array:
  """The gradient, moved off 0 by less than the epsilon of any optimizer.

  At exactly 0 (a dead unit; everything, at virtual weights 0) the derivatives of norms and square
  roots are not numbers, also where that of the update is one: Adam's is 1 / eps there. Updates that
  do not depend on the gradient's length (LARS, Muon's first) have no derivative at 0 at all; rules
  that look at other virtual weights than 0 can use them.
  """
  least = jnp.asarray(1e-20 if grad.dtype == jnp.float64 else 1e-12, grad.dtype)
  move = jnp.where(jnp.abs(grad) < least, least - grad, jnp.zeros_like(grad))
  return grad + jax.lax.stop_gradient(move)


def check_virtual(virtual: Virtual, route: str, params: Params) -> None:
  """Refuses what would give weights that mean nothing, before anything is compiled.

  Raises:
    ValueError: if more than one step is asked of a route that has one, or the derivative of the
      optimizer's update with respect to the gradient is 0 everywhere or in skipped steps.
  """
  if virtual.num_steps > 1 and route != "nested":
    raise ValueError(
      f'{virtual.num_steps} virtual steps expect route "nested"; got {route!r}, which has one.'
    )
  if virtual.optimizer is None:
    return
  state = jax.eval_shape(virtual.optimizer.init, params)
  is_skipping = lambda node: isinstance(node, optax.MultiStepsState)
  if any(map(is_skipping, jax.tree.leaves(state, is_leaf=is_skipping))):
    raise ValueError(
      "virtual_optimizer expects an update that follows the gradient; optax.MultiSteps skips steps "
      "in which every weight would be 0: use make_accumulating_train_step, or its inner optimizer."
    )

  def pulled_back(grads: Params, state: Any, params: Params, cotangents: Params) -> Params:
    move = lambda grads: virtual._replace(state=state).step(grads, state, params)[0]
    return jax.vjp(move, grads)[1](cotangents)[0]

  jaxpr = jax.make_jaxpr(pulled_back)(params, state, params, params).jaxpr
  num_cotangents = len(jax.tree.leaves(params))
  if not _dataflow.leaves_that_reach(jaxpr, range(len(jaxpr.invars))[-num_cotangents:]):
    raise ValueError(
      "virtual_optimizer expects an update that follows the gradient; this one takes its sign "
      "alone or drops it, so that every weight would be 0: use None (SGD), momentum or Adam."
    )


def nested_alignment(
  losses_of: Callable[[Params], Array],
  meta_objective: Objective,
  params: Params,
  at: Array,
  virtual: Virtual = SGD,
) -> Array:
  """The definition: differentiates the meta objective through the virtual steps.

  Args:
    losses_of: params -> `[batch]` losses, padding masked to 0.
    meta_objective: params -> scalar.
    params: where the virtual step starts.
    at: `[batch]` virtual weights at which to differentiate.
    virtual: how the virtual step moves. Several steps are rematerialized: the memory of one step's
      activations, and one more forward and backward pass each.

  Returns:
    `[batch]` alignments, minus the derivative.
  """

  def meta_loss_after_virtual_steps(virtual_weights: Array) -> Array:
    def step(params: Params, state: Any) -> tuple[Params, Any]:
      weighted_loss = lambda params: jnp.vdot(virtual_weights, losses_of(params))
      return virtual.step(jax.grad(weighted_loss)(params), state, params)

    step = step if virtual.num_steps == 1 else jax.checkpoint(step)
    moved, state = params, virtual.start(params)
    for _ in range(virtual.num_steps):
      moved, state = step(moved, state)
    return meta_objective(_constant_where_still(moved, virtual.moves))

  return -jax.grad(meta_loss_after_virtual_steps)(at)


def meta_direction(
  meta_objective: Objective,
  params: Params,
  grads: Params | None = None,
  virtual: Virtual = SGD,
) -> Params:
  """The parameter direction whose push is the alignment.

  Args:
    meta_objective: params -> scalar.
    params: where the virtual step starts.
    grads: the weighted gradient that the virtual step follows; None for virtual weights 0, whose
      gradient is 0.
    virtual: how the virtual step moves.

  Returns:
    A tree like `params`; None in place of a parameter that `virtual.moves` leaves out.
  """
  if virtual.optimizer is None:
    moved = params if grads is None else jax.tree.map(jnp.subtract, params, grads)
    return _gradient(meta_objective, moved, virtual.moves)
  grads = optax.tree.zeros_like(params) if grads is None else grads
  state = virtual.start(params)
  moved, transpose = jax.vjp(lambda grads: virtual.step(grads, state, params)[0], grads)
  meta_gradient = _gradient(meta_objective, moved, virtual.moves)
  filled = zeros_for_none(meta_gradient, params)
  return jax.tree.map(jnp.negative, transpose(filled)[0])


def forward_alignment(
  linearized: Linearized,
  meta_objective: Objective,
  params: Params,
  at: Array | None,
  virtual: Virtual = SGD,
) -> Array:
  """The same `[batch]` alignments by one gradient of the meta objective and one push."""
  grads = None if at is None else linearized.pull(at)
  return linearized.push(meta_direction(meta_objective, params, grads, virtual))


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
  virtual: Virtual,
) -> Callable[[Array | None], Array]:
  """The evidence `meta_alignment` of a batch, by the chosen route."""

  def losses_of(params: Params) -> Array:
    outputs: Outputs = loss_fn(params, model_state, batch, key)
    return jnp.where(batch.mask, at_least_float32(outputs.losses), 0)

  def meta_alignment(at: Array | None = None) -> Array:
    check_virtual(virtual, route, params)
    if at is not None and virtual.optimizer is None:
      raise ValueError(
        "this weighting rule looks at a virtual step of some size, and virtual_optimizer=None has "
        "none: give the step virtual_optimizer=tx, the optimizer of training, or optax.sgd(rate)."
      )
    if route != "nested":
      return forward_alignment(linearized, meta_objective, params, at, virtual)
    at = jnp.zeros_like(linearized.outputs.losses) if at is None else at
    return nested_alignment(losses_of, meta_objective, params, at, virtual)

  return meta_alignment


def _gradient(objective: Objective, params: Params, moves: Callable[[str], bool] | None) -> Params:
  if moves is None:
    return jax.grad(objective)(params)
  leaves, structure = jax.tree.flatten(params)
  moving = _is_moving(params, moves)

  def of_moving(chosen: list[Array]) -> Array:
    remaining = iter(chosen)
    filled = [next(remaining) if m else leaf for m, leaf in zip(moving, leaves, strict=True)]
    return objective(jax.tree.unflatten(structure, filled))

  chosen = [leaf for m, leaf in zip(moving, leaves, strict=True) if m]
  gradients = iter(jax.grad(of_moving)(chosen))
  return jax.tree.unflatten(structure, [next(gradients) if m else None for m in moving])


def none_where_still(tree: Params, moves: Callable[[str], bool] | None) -> Params:
  """A direction with None in place of the parameters that are left out."""
  if moves is None:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  pairs = zip(_is_moving(tree, moves), leaves, strict=True)
  return jax.tree.unflatten(structure, [leaf if m else None for m, leaf in pairs])


def _constant_where_still(params: Params, moves: Callable[[str], bool] | None) -> Params:
  if moves is None:
    return params
  leaves, structure = jax.tree.flatten(params)
  still = jax.lax.stop_gradient
  pairs = zip(_is_moving(params, moves), leaves, strict=True)
  return jax.tree.unflatten(structure, [leaf if m else still(leaf) for m, leaf in pairs])


def _is_moving(params: Params, moves: Callable[[str], bool]) -> list[bool]:
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  moving = [bool(moves(name)) for name in names]
  if not any(moving):
    raise ValueError(
      f"meta_params expects to choose one of the parameters at least; of {', '.join(names)} it "
      "chooses none."
    )
  return moving
