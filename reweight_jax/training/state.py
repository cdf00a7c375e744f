"""What a run carries from step to step, and what a step tells."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._validate import check_floating, check_number
from reweight_jax.types import Array, Key, ModelState, Params, WeightingRule


class TrainState(NamedTuple):
  """All that decides the future of a run, apart from the data."""

  step: Array  # [] int32, steps taken
  params: Params
  model_state: ModelState
  rule_state: Any
  opt_state: Any
  key: Key  # [] JAX key; step t draws from fold_in(key, t)
  meta_direction: Any = ()  # of the last meta batch, a tree like params; () if it is not kept


class StepMetrics(NamedTuple):
  """What one step tells about its batch. Scalars unless noted."""

  loss: Array  # mean unweighted loss of the real examples, nats
  losses: Array  # [batch], nats
  weights: Array  # [batch], 1 is an ordinary example
  effective_sample_size: Array  # examples
  zero_weight_share: Array  # of the real examples
  all_zero: Array  # bool: no real example has weight


def init_train_state(
  params: Params,
  model_state: ModelState,
  rule: WeightingRule,
  tx: optax.GradientTransformation,
  *,
  key: Key,
  batch_size: int,
  keep_direction: bool = False,
) -> TrainState:
  """The state before the first step.

  Args:
    params: pytree of floating arrays.
    model_state: the model's state, () if it has none.
    rule: weighting rule.
    tx: optax optimizer of the real step.
    key: JAX key for everything that the steps draw.
    batch_size: examples per batch, padding included; the template of the rule's state.
    keep_direction: keep the direction of the last meta batch for steps without one; until the first
      such batch it is 0, and so are all alignments.

  Returns:
    A `TrainState` at step 0.

  Raises:
    TypeError: if a leaf of `params` is not floating, naming it.
    ValueError: if `batch_size` is below 1.
  """
  check_floating(params, "params")
  check_number("batch_size", batch_size, at_least=1)
  template = jnp.ones(batch_size, jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    rule_state=rule.init(template),
    opt_state=tx.init(params),
    key=key,
    meta_direction=optax.tree.zeros_like(params) if keep_direction else (),
  )
