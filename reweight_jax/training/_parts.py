"""The parts that the forms of the step share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax import metrics
from reweight_jax._arrays import num_real, zeros_for_none
from reweight_jax.meta.routes import (
  Virtual,
  check_virtual,
  make_meta_objective,
  meta_direction,
  none_where_still,
)
from reweight_jax.training.state import StepMetrics, TrainState
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

Step = Callable[..., tuple[TrainState, StepMetrics]]


def step_keys(state: TrainState) -> Array:
  """Two keys for this step: of the train pass and of the meta pass."""
  return jax.random.split(jax.random.fold_in(state.key, state.step))


def meta_pass(
  loss_fn: PerExampleLoss, state: TrainState, meta_batch: Batch | None, key: Key
) -> dict[str, Callable[..., Any]]:
  """The two functions of the meta batch, as evidence; without one they say what is missing."""
  if meta_batch is None:

    def refuse(at: Array | None = None) -> Array:
      raise ValueError(
        "this weighting rule needs a meta batch of trusted examples and the step was given none: "
        "call step(state, batch, meta_batch)."
      )

    return {"meta_alignment": refuse, "meta_outputs": refuse}

  def meta_outputs() -> tuple[Outputs, Any]:
    return loss_fn(state.params, state.model_state, meta_batch, key), meta_batch.labels

  return {"meta_outputs": meta_outputs}


def from_state(virtual: Virtual, tx: optax.GradientTransformation, state: TrainState) -> Virtual:
  """The virtual step from training's own optimizer state, if it is training's own optimizer."""
  return virtual._replace(state=state.opt_state) if virtual.optimizer is tx else virtual


def direction_of(
  loss_fn: PerExampleLoss, virtual: Virtual, state: TrainState, meta_batch: Batch
) -> Params:
  """The meta direction at virtual weights 0."""
  check_virtual(virtual, "forward", state.params)
  key = step_keys(state)[1]
  objective = make_meta_objective(loss_fn, state.model_state, meta_batch, key)
  return meta_direction(objective, state.params, virtual=virtual)


def jit_meta_direction(
  loss_fn: PerExampleLoss, virtual: Virtual, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], Params]:
  return jax.jit(
    lambda state, meta_batch: direction_of(
      loss_fn, from_state(virtual, tx, state), state, meta_batch
    )
  )


def keeps_direction(state: TrainState) -> bool:
  return bool(jax.tree.leaves(state.meta_direction))


def refreshed(
  loss_fn: PerExampleLoss,
  virtual: Virtual,
  route: str,
  state: TrainState,
  meta_batch: Batch | None,
) -> TrainState:
  """The state with the direction of this meta batch, or as it is without one."""
  if route == "nested":
    raise ValueError(
      'a state that keeps the meta direction expects route "forward", "ghost" or "auto"; got '
      '"nested", which has no direction: leave keep_direction out of init_train_state.'
    )
  if meta_batch is None:
    return state
  direction = direction_of(loss_fn, virtual, state, meta_batch)
  return state._replace(meta_direction=zeros_for_none(direction, state.params))


def kept_alignment(
  linearized: Linearized, virtual: Virtual, state: TrainState
) -> Callable[..., Array]:
  chosen = none_where_still(state.meta_direction, virtual.moves)
  return alignment_at_zero(lambda: linearized.push(chosen))


def alignment_at_zero(alignment: Callable[[], Array]) -> Callable[..., Array]:
  def meta_alignment(at: Array | None = None) -> Array:
    if at is not None:
      raise ValueError(
        "this weighting rule asks for the alignment at other virtual weights than 0, which needs "
        "batch and meta batch in one call: use make_train_step, without keep_direction."
      )
    return alignment()

  return meta_alignment


def weigh(
  state: TrainState,
  batch: Batch,
  outputs: Outputs,
  meta: dict[str, Callable[..., Any]],
  rule: WeightingRule,
) -> tuple[Array, Any]:
  """Weights of the batch, starting from the mask, and the rule's new state."""
  weights, rule_state = optax.with_extra_args_support(rule).update(
    batch.mask.astype(outputs.losses.dtype),
    state.rule_state,
    state.params,
    losses=jax.lax.stop_gradient(outputs.losses),
    logits=jax.lax.stop_gradient(outputs.logits),
    labels=batch.labels,
    indices=batch.indices,
    mask=batch.mask,
    **meta,
  )
  return jax.lax.stop_gradient(weights), rule_state


def apply_gradient(
  state: TrainState,
  grads: Params,
  model_state: ModelState,
  rule_state: Any,
  tx: optax.GradientTransformation,
) -> TrainState:
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return state._replace(
    step=state.step + 1,
    params=params,
    model_state=model_state,
    rule_state=rule_state,
    opt_state=opt_state,
  )


def step_metrics(batch: Batch, outputs: Outputs, weights: Array) -> StepMetrics:
  return StepMetrics(
    loss=jnp.sum(outputs.losses) / num_real(batch.mask, outputs.losses.dtype),
    losses=outputs.losses,
    weights=weights,
    effective_sample_size=metrics.effective_sample_size(weights),
    zero_weight_share=metrics.zero_weight_share(weights, batch.mask),
    all_zero=jnp.all(weights == 0),
  )
