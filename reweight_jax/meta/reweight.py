"""Learning to reweight: the weights of a batch from one look at a small clean set."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from reweight_jax import per_example
from reweight_jax._arrays import num_real
from reweight_jax._validate import check_choice
from reweight_jax.meta.routes import (
  ROUTES,
  Virtual,
  linearizing_route,
  make_alignment,
  make_meta_objective,
)
from reweight_jax.rules import normalize, rectify, weighting_rule
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  MetaAlignment,
  ModelState,
  Params,
  PerExampleLoss,
  WeightingRule,
)


def align() -> WeightingRule:
  r"""Multiplies by the alignment: how much the meta loss falls when an example weighs more.

  :math:`w_i \leftarrow w_i \langle \nabla \ell_i, \nabla L^{meta} \rangle` at the current
  parameters: minus the derivative of the meta loss after one virtual SGD step, taken at virtual
  weights 0.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights.
  Edge cases: alignments may be negative, and of any scale; chain `rectify` and `normalize` after.

  Returns:
    A rule needing evidence ``meta_alignment``, and so a step that is given a meta batch.

  Source: Ren et al. 2018, arXiv 1803.09050, eq. (7) before scaling by the meta step size.

  Example:
    >>> alignment = lambda at=None: jnp.array([0.5, -2.0])
    >>> print(align().update(jnp.ones(2), (), meta_alignment=alignment)[0])
    [ 0.5 -2. ]
  """

  def weigh(weights: Array, *, meta_alignment: MetaAlignment, **unused: Any) -> Array:
    return weights * meta_alignment()

  return weighting_rule(weigh)


def learning_to_reweight() -> WeightingRule:
  """The rule of the paper: align with the meta batch, drop the negative, normalize to mean 1.

  Guarantees: non-negative weights that average 1 over the real examples or are all 0; padding has
  weight 0. The virtual learning rate has no effect.
  Edge cases: an all-zero batch is legal: no example of it helps the meta batch. Momentum and weight
  decay still move the parameters; the step's metrics count it.

  Returns:
    A rule needing evidence ``meta_alignment`` and ``mask``. Chain it after other rules to let it
    choose among what they weigh.

  Source: Ren et al. 2018, arXiv 1803.09050, algorithm 1 and eq. (7) to (9).

  Example:
    >>> rule = optax.chain(rw.rules.class_balanced([90, 10]), learning_to_reweight())
  """
  return optax.chain(align(), rectify(), normalize("mean"))


def example_weights(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  meta_batch: Batch,
  *,
  key: Key | None = None,
  route: str = "forward",
  meta_loss_fn: PerExampleLoss | None = None,
  virtual_optimizer: optax.GradientTransformation | None = None,
  virtual_state: Any = None,
  meta_params: Callable[[str], bool] | None = None,
) -> Array:
  r"""The weights that learning to reweight gives to a batch, for use in a loop of one's own.

  :math:`w_i = \max(a_i, 0) / \sum_j \max(a_j, 0)` with the alignment :math:`a_i`. Train on
  :math:`\sum_i w_i \ell_i`, the weights constant.

  Guarantees: pure; sums to 1 or is all zero; padding has weight 0; both routes agree to rounding.
  With BatchNorm, batch and meta batch are normalized by their own statistics, which are
  differentiated; updates of running averages are dropped here.
  Edge cases: with a `key`, batch and meta batch draw from two keys split from it.

  Args:
    loss_fn: per-example loss, in training mode.
    params: pytree of floating arrays.
    model_state: the model's state.
    batch: the examples to weigh.
    meta_batch: trusted examples, disjoint from the training set.
    key: JAX key for dropout and the like.
    route: "forward"; "ghost", the same from recorded layers for less work; "auto", the one of them
      that `per_example.pick_route` picks; "nested", the definition by a `jax.grad` through the
      virtual step.
    meta_loss_fn: loss of the meta batch; None for `loss_fn`.
    virtual_optimizer: None for SGD, whose learning rate cancels. An optax transformation is a
      different method: the step that it would take, whose direction it transforms.
    virtual_state: the optimizer's state, such as training's own; None for a fresh one.
    meta_params: (name of a parameter, as in "Dense_0/kernel") -> whether the meta gradient is taken
      with respect to it. An approximation, for less work; None for all of them.

  Returns:
    `[batch]` weights in the losses' dtype.

  Raises:
    ValueError: if `route` is unknown, `meta_params` chooses nothing, or the optimizer's update does
      not follow the gradient (it takes its sign, or skips steps).

  Source: Ren et al. 2018, arXiv 1803.09050, algorithm 1.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> loss_fn = rw.losses.from_apply(linear, rw.losses.squared_error)
    >>> batch = rw.types.make_batch(jnp.ones((3, 1)), jnp.array([1.0, 3.0, -9.0]))
    >>> trusted = rw.types.make_batch(jnp.ones((1, 1)), jnp.array([1.0]))
    >>> print(example_weights(loss_fn, jnp.zeros((1, 1)), (), batch, trusted))
    [0.25 0.75 0.  ]
  """
  check_choice("route", route, ROUTES)
  batch_key, meta_key = (None, None) if key is None else jax.random.split(key)
  linearized = per_example.linearize(
    loss_fn, params, model_state, batch, key=batch_key, route=linearizing_route(route)
  )
  objective = make_meta_objective(meta_loss_fn or loss_fn, model_state, meta_batch, meta_key)
  alignment = make_alignment(
    loss_fn,
    linearized,
    objective,
    params,
    model_state,
    batch,
    key=batch_key,
    route=route,
    virtual=Virtual(virtual_optimizer, virtual_state, moves=meta_params),
  )
  rule = learning_to_reweight()
  weights = batch.mask.astype(linearized.outputs.losses.dtype)
  weights, _ = rule.update(weights, rule.init(weights), mask=batch.mask, meta_alignment=alignment)
  return weights / num_real(batch.mask, weights.dtype)
