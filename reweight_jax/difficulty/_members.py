"""The programs that train members of an ensemble, and what the loss must be like for them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reweight_jax import _dataflow
from reweight_jax._arrays import at_least_float32, num_real
from reweight_jax._coupling import examples_are_coupled
from reweight_jax.types import Array, Batch, Key, ModelState, Params, PerExampleLoss

STEPS_AT_ONCE = 100
"""Steps between two looks of the host; where steps are fused, the length of a program's loop."""

MANY_PARAMS = 50_000
"""Params of a member from which on members are trained one by one on a CPU."""

InitFn = Callable[[Key], tuple[Params, ModelState]]


class Training(NamedTuple):
  """What a member carries from step to step; with a leading `[members]` axis under vmap."""

  params: Params
  model_state: ModelState
  opt_state: Any
  key: Key  # step t draws from fold_in(key, t)


class Programs(NamedTuple):
  """`start(key, number)`; `run(training, data, present, positions, first_step)` takes steps."""

  start: Callable[..., Training]
  run: Callable[..., Training]


@functools.lru_cache(maxsize=8)
def programs(
  loss_fn: PerExampleLoss,
  init_fn: InitFn,
  tx: optax.GradientTransformation,
  form: str,
  is_fused: bool,
) -> Programs:
  """The compiled programs of one form, kept so that later chunks of members find them."""
  step = functools.partial(_step, loss_fn, tx)
  start = functools.partial(_start, init_fn, tx)
  if form == "vmap":
    step = jax.vmap(step, in_axes=(0, None, 0, None, None))
    # One after the other: whatever draws the params, it does not see how many members there are.
    starts = lambda key, numbers: jax.lax.map(functools.partial(start, key), numbers)
  else:
    starts = start
  return Programs(jax.jit(starts), _fused(step) if is_fused else _unfused(step))


def _start(init_fn: InitFn, tx: optax.GradientTransformation, key: Key, number: Array) -> Training:
  init_key, draw_key = jax.random.split(jax.random.fold_in(key, number))
  params, model_state = init_fn(init_key)
  return Training(params, model_state, tx.init(params), draw_key)


def _step(
  loss_fn: PerExampleLoss,
  tx: optax.GradientTransformation,
  training: Training,
  data: Batch,
  present: Array,
  positions: Array,
  number: Array,
) -> Training:
  """One step of one member, for which an example that is not `present` is padding."""
  batch = jax.tree.map(lambda leaf: leaf[positions], data)
  batch = batch._replace(mask=present[positions])
  key = jax.random.fold_in(training.key, number)

  def mean_loss(params: Params) -> tuple[Array, ModelState]:
    outputs = loss_fn(params, training.model_state, batch, key)
    losses = jnp.where(batch.mask, at_least_float32(outputs.losses), 0)
    return jnp.sum(losses) / num_real(batch.mask, losses.dtype), outputs.model_state

  grads, model_state = jax.grad(mean_loss, has_aux=True)(training.params)
  updates, opt_state = tx.update(grads, training.opt_state, training.params)
  params = optax.apply_updates(training.params, updates)
  return Training(params, model_state, opt_state, training.key)


def _unfused(step: Callable[..., Training]) -> Callable[..., Training]:
  """A loop on the host."""
  one = jax.jit(step, donate_argnums=0)

  def run(
    training: Training, data: Batch, present: Array, positions: np.ndarray, first_step: int
  ) -> Training:
    for number, row in enumerate(positions, first_step):
      training = one(training, data, present, row, np.int32(number))
    return training

  return run


def _fused(step: Callable[..., Training]) -> Callable[..., Training]:
  """A loop in the program, of as many steps as there are positions: compiled once."""

  @functools.partial(jax.jit, donate_argnums=0)
  def many(
    training: Training,
    data: Batch,
    present: Array,
    positions: Array,
    first_step: Array,
    count: Array,
  ) -> Training:
    def body(i: Array, training: Training) -> Training:
      return step(training, data, present, positions[i], first_step + i)

    return jax.lax.fori_loop(0, count, body, training)

  def run(
    training: Training, data: Batch, present: Array, positions: np.ndarray, first_step: int
  ) -> Training:
    padded = np.zeros((STEPS_AT_ONCE, positions.shape[1]), np.int32)
    padded[: len(positions)] = positions
    return many(training, data, present, padded, np.int32(first_step), np.int32(len(positions)))

  return run


def batch_positions(
  key: Key, real: np.ndarray, batch_size: int, num_steps: int
) -> Iterator[tuple[int, np.ndarray]]:
  """First steps, and the examples of the steps from there on, `[steps, batch]`.

  One shuffled pass over the real examples after the other, cut into batches wherever one is full;
  of the key alone, so that a longer run begins like a shorter one.
  """
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
  rows = np.flatnonzero(real).astype(np.int32)
  queue = np.empty(0, np.int32)
  for first_step in range(0, num_steps, STEPS_AT_ONCE):
    steps = min(STEPS_AT_ONCE, num_steps - first_step)
    while queue.size < steps * batch_size:
      queue = np.concatenate([queue, rng.permutation(rows)])
    taken, queue = np.split(queue, [steps * batch_size])
    yield first_step, taken.reshape(steps, batch_size)


def inspect(
  loss_fn: PerExampleLoss, init_fn: InitFn, data: Batch, batch_size: int, key: Key
) -> tuple[str, bool]:
  """The faster form, and whether steps are to be fused; refuses a loss that leaks."""
  row = lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)
  params, model_state = jax.eval_shape(init_fn, key)
  arguments = (params, model_state, jax.tree.map(row, data), key)
  _check_loss(loss_fn, *arguments)
  convolves = "conv_general_dilated" in str(jax.make_jaxpr(loss_fn)(*arguments))
  # Compiled for a CPU, a convolution's backward pass is several times slower under vmap, and many
  # times inside of a loop.
  if convolves and jax.default_backend() == "cpu":
    return "one_by_one", False
  # The params of many members at once leave a CPU's caches: measured 1.2 times as fast at 5,000
  # params and 0.8 times at 100,000 (results/ensemble_cpu.md).
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  if size > MANY_PARAMS and jax.default_backend() == "cpu":
    return "one_by_one", True
  return "vmap", True


def _check_loss(
  loss_fn: PerExampleLoss, params: Params, model_state: ModelState, batch: Batch, key: Key
) -> None:
  """Raises ValueError if an example that a member must not see could reach it all the same: through
  the other examples of its batch, or through the model's state. Shapes alone matter.
  """
  zeros = lambda tree: jax.tree.map(_zeros, tree)
  if examples_are_coupled(loss_fn, zeros(params), zeros(model_state), zeros(batch), key):
    raise ValueError(
      "train_members expects a model whose examples do not see each other, so that a mask keeps an "
      "example from a member; here the loss of one depends on another (BatchNorm in training mode "
      "does that). Use GroupNorm, LayerNorm or no norm, and no mixup."
    )
  new_state = lambda *arguments: loss_fn(*arguments).model_state
  traced = jax.make_jaxpr(new_state)(params, model_state, batch, key)
  before, within = (len(jax.tree.leaves(part)) for part in ((params, model_state), batch))
  if _dataflow.leaves_that_reach(traced.jaxpr, range(before, before + within)):
    raise ValueError(
      "train_members expects a model state that does not depend on the batch; here the new state "
      "does (running averages do), and would hold examples that a member must not see. Use a norm "
      "without batch statistics."
    )


def _zeros(leaf: Any) -> Any:
  """An array of the shape and dtype given."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jnp.broadcast_to(jax.random.key(0), leaf.shape)
  return np.zeros(leaf.shape, leaf.dtype)
