"""The fused step, the split step and the evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax import per_example
from reweight_jax._arrays import num_real, zeros_for_none
from reweight_jax._validate import check_choice, check_number
from reweight_jax.meta.routes import (
  ROUTES,
  Virtual,
  linearizing_route,
  make_alignment,
  make_meta_objective,
)
from reweight_jax.training import _parts
from reweight_jax.training.state import StepMetrics, TrainState
from reweight_jax.types import (
  Batch,
  Linearized,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
  WeightingRule,
)


def make_train_step(
  loss_fn: PerExampleLoss,
  rule: WeightingRule,
  tx: optax.GradientTransformation,
  *,
  meta_loss_fn: PerExampleLoss | None = None,
  route: str = "forward",
  virtual_optimizer: optax.GradientTransformation | None = None,
  virtual_steps: int = 1,
  meta_params: Callable[[str], bool] | None = None,
) -> _parts.Step:
  """Builds the fused step: a pure function to be jitted, scanned, exported or sharded.

  The gradient is `pull(weights) / num_real`, so that `optax.identity()` is training on the mean
  loss.
  One forward pass over the batch serves weighting and training, with one dropout mask and, in a
  model with BatchNorm, the batch's own statistics; its running averages are written once, from this
  pass, whatever the weights are. The meta batch is passed in training mode too and its state
  updates are dropped.

  A state from `init_train_state(..., keep_direction=True)` holds the direction of the last meta
  batch: a call without a meta batch then weighs by that one. So a meta batch every k-th call is a
  meta gradient refreshed every k steps, at the price of one push in between.

  Guarantees: weights are constants to the gradient; losses, alignments and weights are at least
  float32 for bfloat16 models, float64 stays float64.
  Edge cases: if all weights are 0 the gradient is 0, `metrics.all_zero` is True, and momentum and
  weight decay still move the parameters.

  Args:
    loss_fn: per-example loss, in training mode.
    rule: weighting rule.
    tx: optax optimizer.
    meta_loss_fn: loss of the meta batch; None for `loss_fn`.
    route: "forward"; "ghost", the same from recorded layers for less work, or "auto", where it is
      exact (`per_example.linearize`); "nested", which differentiates through the virtual step as
      the definition says. Same weights.
    virtual_optimizer: None for SGD, whose rate cancels. `tx` itself for the step that training
      would take, from training's own state; any other optax transformation starts from a fresh one.
    virtual_steps: virtual steps on the same batch before the meta loss is looked at; more than one
      by route "nested" alone, with the memory of one and the work of each.
    meta_params: as in `meta.example_weights`.

  Returns:
    `step(state, batch, meta_batch=None) -> (state, StepMetrics)`.

  Raises:
    ValueError: if `route` is unknown, or `virtual_steps` below 1; at the first call, before
      compilation, if the rule asks for the meta batch and none was given, for more than one virtual
      step by a route that has one, or if the update of `virtual_optimizer` does not follow the
      gradient (it takes its sign, or skips steps).

  Source: Ren et al. 2018, arXiv 1803.09050, algorithm 1, for `meta.learning_to_reweight()`.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> loss_fn = rw.losses.from_apply(linear, rw.losses.squared_error)
    >>> rule, tx = rw.meta.learning_to_reweight(), optax.sgd(0.1)
    >>> step = jax.jit(make_train_step(loss_fn, rule, tx))
    >>> key = jax.random.key(0)
    >>> state = rw.training.init_train_state(
    ...   jnp.zeros((1, 1)), (), rule, tx, key=key, batch_size=3
    ... )
    >>> batch = rw.types.make_batch(jnp.ones((3, 1)), jnp.array([1.0, 3.0, -9.0]))
    >>> trusted = rw.types.make_batch(jnp.ones((1, 1)), jnp.array([1.0]))
    >>> state, metrics = step(state, batch, trusted)
    >>> print(metrics.weights, state.params)
    [0.75 2.25 0.  ] [[0.25]]
  """
  check_choice("route", route, ROUTES)
  check_number("virtual_steps", virtual_steps, at_least=1)
  virtual = Virtual(virtual_optimizer, None, virtual_steps, meta_params)

  def step(
    state: TrainState, batch: Batch, meta_batch: Batch | None = None
  ) -> tuple[TrainState, StepMetrics]:
    key, meta_key = _parts.step_keys(state)
    linearized = per_example.linearize(
      loss_fn, state.params, state.model_state, batch, key=key, route=linearizing_route(route)
    )
    meta = _parts.meta_pass(meta_loss_fn or loss_fn, state, meta_batch, meta_key)
    now = _parts.from_state(virtual, tx, state)
    if _parts.keeps_direction(state):
      state = _parts.refreshed(meta_loss_fn or loss_fn, now, route, state, meta_batch)
      meta["meta_alignment"] = _parts.kept_alignment(linearized, now, state)
    elif meta_batch is not None:
      meta["meta_alignment"] = make_alignment(
        loss_fn,
        linearized,
        make_meta_objective(meta_loss_fn or loss_fn, state.model_state, meta_batch, meta_key),
        state.params,
        state.model_state,
        batch,
        key=key,
        route=route,
        virtual=now,
      )
    return _weighted_step(state, batch, linearized, meta, rule, tx)

  return step


def make_split_train_step(
  loss_fn: PerExampleLoss,
  rule: WeightingRule,
  tx: optax.GradientTransformation,
  *,
  meta_loss_fn: PerExampleLoss | None = None,
  route: str = "forward",
  virtual_optimizer: optax.GradientTransformation | None = None,
  meta_params: Callable[[str], bool] | None = None,
  donate_state: bool = False,
) -> _parts.Step:
  """Builds the step as two jitted calls, for less memory: first the meta gradient, then the rest.

  The activations of the meta pass are gone before those of the train pass exist. Arguments, results
  and errors as in `make_train_step`, but for route "nested"; with `donate_state` the memory of the
  state passed in is reused for the one returned, and the former must not be touched again.

  Raises:
    ValueError: at the first call, if the rule asks for the alignment at other virtual weights than
      0, which needs the batch and the meta batch in one call.
  """
  check_choice("route", route, tuple(name for name in ROUTES if name != "nested"))
  virtual = Virtual(virtual_optimizer, moves=meta_params)
  direct = _parts.jit_meta_direction(meta_loss_fn or loss_fn, virtual, tx)

  def finish(
    state: TrainState, batch: Batch, meta_batch: Batch | None, direction: Params | None
  ) -> tuple[TrainState, StepMetrics]:
    key, meta_key = _parts.step_keys(state)
    linearized = per_example.linearize(
      loss_fn, state.params, state.model_state, batch, key=key, route=route
    )
    meta = _parts.meta_pass(meta_loss_fn or loss_fn, state, meta_batch, meta_key)
    if _parts.keeps_direction(state):
      if direction is not None:
        state = state._replace(meta_direction=zeros_for_none(direction, state.params))
      meta["meta_alignment"] = _parts.kept_alignment(linearized, virtual, state)
    elif direction is not None:
      meta["meta_alignment"] = _parts.alignment_at_zero(lambda: linearized.push(direction))
    return _weighted_step(state, batch, linearized, meta, rule, tx)

  jitted_finish = jax.jit(finish, donate_argnums=0 if donate_state else ())

  def step(
    state: TrainState, batch: Batch, meta_batch: Batch | None = None
  ) -> tuple[TrainState, StepMetrics]:
    direction = None if meta_batch is None else direct(state, meta_batch)
    return jitted_finish(state, batch, meta_batch, direction)

  return step


def make_eval_step(loss_fn: PerExampleLoss) -> Callable[[Params, ModelState, Batch], Outputs]:
  """Builds a jitted pass without training: `(params, model_state, batch) -> Outputs`.

  Args:
    loss_fn: per-example loss in evaluation mode, `from_apply(..., train=False)`.

  Returns:
    A function whose outputs have loss 0 at padding.
  """

  @jax.jit
  def eval_step(params: Params, model_state: ModelState, batch: Batch) -> Outputs:
    outputs = loss_fn(params, model_state, batch, None)
    return outputs._replace(losses=jnp.where(batch.mask, outputs.losses, 0))

  return eval_step


def _weighted_step(
  state: TrainState,
  batch: Batch,
  linearized: Linearized,
  meta: dict[str, Callable[..., Any]],
  rule: WeightingRule,
  tx: optax.GradientTransformation,
) -> tuple[TrainState, StepMetrics]:
  outputs = linearized.outputs
  weights, rule_state = _parts.weigh(state, batch, outputs, meta, rule)
  grads = linearized.pull(weights / num_real(batch.mask, weights.dtype))
  state = _parts.apply_gradient(state, grads, outputs.model_state, rule_state, tx)
  return state, _parts.step_metrics(batch, outputs, weights)
