"""The accumulating step: a batch in microbatches, weighed as a whole."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from reweight_jax import per_example
from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._validate import check_number
from reweight_jax.meta.routes import Virtual
from reweight_jax.training import _parts
from reweight_jax.training.state import StepMetrics, TrainState
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
  WeightingRule,
)


def make_accumulating_train_step(
  loss_fn: PerExampleLoss,
  rule: WeightingRule,
  tx: optax.GradientTransformation,
  *,
  num_microbatches: int,
  meta_loss_fn: PerExampleLoss | None = None,
  virtual_optimizer: optax.GradientTransformation | None = None,
) -> _parts.Step:
  """Builds a step that runs the batch in microbatches and weighs it as a whole.

  A first sweep collects losses, logits and alignments of all microbatches, the rule sees the whole
  batch once, and a second sweep adds up the weighted gradients: one more forward pass than the
  fused step, for the memory of one microbatch.

  Guarantees: equals the fused step for models without dropout or batch statistics. BatchNorm sees
  one microbatch at a time, and its running averages move once per microbatch.

  Args:
    loss_fn: per-example loss, in training mode.
    rule: weighting rule.
    tx: optax optimizer.
    num_microbatches: number of equal parts, at least 1.
    meta_loss_fn: loss of the meta batch, passed in one piece; None for `loss_fn`.
    virtual_optimizer: as in `meta.example_weights`.

  Returns:
    `step(state, batch, meta_batch=None) -> (state, StepMetrics)`, of jitted calls.

  Raises:
    ValueError: if `num_microbatches` is below 1, or does not divide the batch size at a call.
  """
  check_number("num_microbatches", num_microbatches, at_least=1)
  direct = _parts.jit_meta_direction(meta_loss_fn or loss_fn, Virtual(virtual_optimizer), tx)

  @jax.jit
  def sweep(
    state: TrainState, part: Batch, index: Array, direction: Params | None
  ) -> tuple[Outputs, Array | None]:
    key = _microbatch_key(state, index)
    if direction is None:
      outputs = loss_fn(state.params, state.model_state, part, key)
      losses = jnp.where(part.mask, at_least_float32(outputs.losses), 0)
      return outputs._replace(losses=losses, model_state=()), None
    linearized = per_example.linearize(loss_fn, state.params, state.model_state, part, key=key)
    return linearized.outputs._replace(model_state=()), linearized.push(direction)

  @jax.jit
  def weigh(
    state: TrainState,
    batch: Batch,
    meta_batch: Batch | None,
    outputs: Outputs,
    alignment: Array | None,
  ) -> tuple[Array, Any]:
    meta = _parts.meta_pass(meta_loss_fn or loss_fn, state, meta_batch, _parts.step_keys(state)[1])
    if alignment is not None:
      meta["meta_alignment"] = _parts.alignment_at_zero(lambda: alignment)
    return _parts.weigh(state, batch, outputs, meta, rule)

  @jax.jit
  def add(
    state: TrainState,
    model_state: ModelState,
    part: Batch,
    index: Array,
    factors: Array,
    grads: Params,
  ) -> tuple[Params, ModelState]:
    def weighted_loss(params: Params) -> tuple[Array, ModelState]:
      outputs = loss_fn(params, model_state, part, _microbatch_key(state, index))
      return jnp.vdot(factors, jnp.where(part.mask, outputs.losses, 0)), outputs.model_state

    new, model_state = jax.grad(weighted_loss, has_aux=True)(state.params)
    # Summed in float32: bfloat16 would drop what a late microbatch adds.
    return jax.tree.map(
      lambda total, part: total + part.astype(total.dtype), grads, new
    ), model_state

  @jax.jit
  def finish(
    state: TrainState,
    batch: Batch,
    outputs: Outputs,
    weights: Array,
    rule_state: Any,
    grads: Params,
  ) -> tuple[TrainState, StepMetrics]:
    grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, state.params)
    state = _parts.apply_gradient(state, grads, outputs.model_state, rule_state, tx)
    return state, _parts.step_metrics(batch, outputs, weights)

  def step(
    state: TrainState, batch: Batch, meta_batch: Batch | None = None
  ) -> tuple[TrainState, StepMetrics]:
    size = batch.mask.shape[0]
    if size % num_microbatches:
      raise ValueError(
        f"the accumulating step expects a batch size divisible by {num_microbatches} microbatches, "
        f"got {size}. Pad the batch (mask False) or change num_microbatches."
      )
    length = size // num_microbatches
    cut = lambda tree, i: jax.tree.map(lambda leaf: leaf[i * length : (i + 1) * length], tree)
    parts = [cut(batch, i) for i in range(num_microbatches)]
    direction = None if meta_batch is None else direct(state, meta_batch)
    sweeps = [sweep(state, part, jnp.int32(i), direction) for i, part in enumerate(parts)]
    outputs, alignment = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *sweeps)
    weights, rule_state = weigh(state, batch, meta_batch, outputs, alignment)
    factors = weights / num_real(batch.mask, weights.dtype)
    zeros = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
    grads, model_state = jax.tree.map(zeros, state.params), state.model_state
    for i, part in enumerate(parts):
      grads, model_state = add(state, model_state, part, jnp.int32(i), cut(factors, i), grads)
    outputs = outputs._replace(model_state=model_state)
    return finish(state, batch, outputs, weights, rule_state, grads)

  return step


def _microbatch_key(state: TrainState, index: Array) -> Key:
  return jax.random.fold_in(_parts.step_keys(state)[0], index)
