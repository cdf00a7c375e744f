"""What the training loop calls: the step with its books, chunks of steps, several seeds at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments import _meta
from reweight_jax import ledger, training
from reweight_jax.types import Array, Batch, Key, PerExampleLoss, WeightingRule

# Streams of a run's key beside those of the steps, which fold in numbers from 0 up.
_AUGMENT_STREAM = 2**31
DIAGNOSTICS_STREAM = 2**31 + 1


class Tally(NamedTuple):
  """Sums over the steps since the last evaluation; kept on the device."""

  loss: Array
  effective_sample_size: Array
  zero_weight_share: Array
  all_zero_batches: Array  # int32
  steps: Array  # int32
  bad_step: Array  # int32, the first step whose loss was not finite; -1 if none


class Carry(NamedTuple):
  """Everything that decides the future of a run, apart from its phases and its data."""

  state: training.TrainState
  averages: Any  # moving averages of params and model state; () if none are kept
  ledger: ledger.WeightLedger
  tally: Tally

  def evaluated(self) -> tuple[Any, Any]:
    """The params and model state that evaluations use: the averages if there are any."""
    return self.averages or (self.state.params, self.state.model_state)


class StepOptions(NamedTuple):
  """What a step does beside weighting."""

  route: str = "forward"
  augment: str = "none"
  flips: bool = True
  ema_decay: float | None = None
  precision: str = "highest"
  virtual_optimizer: str = "none"  # or "training"
  virtual_steps: int = 1
  meta_layers: tuple[str, ...] = ()  # beginnings of parameters' names; () for all


class LoopStep(NamedTuple):
  """One body of the loop, compiled in the forms that the loop needs.

  Each takes `(carry, inputs, labels, indices, meta_indices, keep_ledger=...)`: the data set's
  `[examples, ...]` images, the run's `[examples]` labels, and positions in both, `[batch]` and
  `[meta batch]` or None. `chunk` takes positions of a number of steps, with a leading axis; `many`
  takes for several seeds carries, labels and positions with a leading axis. The carry is donated.
  """

  one: Callable[..., Carry]
  chunk: Callable[..., Carry]
  many: Callable[..., Carry]


def empty_tally() -> Tally:
  """A tally of no steps."""
  # Each its own buffer: the loop step donates them all.
  sums, counts = (jnp.zeros(()) for _ in range(3)), (jnp.int32(value) for value in (0, 0, -1))
  return Tally(*sums, *counts)


def averages(tally: Tally) -> dict[str, float]:
  """What a row of the run log says of the steps since the last one."""
  tally = jax.device_get(tally)
  steps = max(int(tally.steps), 1)
  return {
    "train_loss": float(tally.loss) / steps,
    "effective_sample_size": float(tally.effective_sample_size) / steps,
    "zero_weight_share": float(tally.zero_weight_share) / steps,
    "all_zero_batches": int(tally.all_zero_batches),
  }


def make_loop_step(
  loss_fn: PerExampleLoss,
  meta_loss_fn: PerExampleLoss,
  rule: WeightingRule,
  tx: optax.GradientTransformation,
  options: StepOptions,
) -> LoopStep:
  """The body of the loop: picks and augments the batch on the device, steps, keeps the books."""
  train_step = training.make_train_step(
    loss_fn,
    rule,
    tx,
    meta_loss_fn=meta_loss_fn,
    route=options.route,
    virtual_optimizer=tx if options.virtual_optimizer == "training" else None,
    virtual_steps=options.virtual_steps,
    meta_params=_chooser(options.meta_layers),
  )

  def step(
    carry: Carry,
    inputs: Array,
    labels: Array,
    indices: Array,
    meta_indices: Array | None,
    keep_ledger: bool,
  ) -> Carry:
    key = jax.random.fold_in(carry.state.key, _AUGMENT_STREAM)
    keys = jax.random.split(jax.random.fold_in(key, carry.state.step))
    pick = functools.partial(_pick, inputs, labels, options)
    batch = pick(indices, keys[0])
    meta_batch = None if meta_indices is None else pick(meta_indices, keys[1])
    with jax.default_matmul_precision(options.precision):
      state, metrics = train_step(carry.state, batch, meta_batch)
    tally = carry.tally
    is_bad = ~jnp.isfinite(metrics.loss) & (tally.bad_step < 0)
    tally = Tally(
      tally.loss + metrics.loss,
      tally.effective_sample_size + metrics.effective_sample_size,
      tally.zero_weight_share + metrics.zero_weight_share,
      tally.all_zero_batches + metrics.all_zero,
      tally.steps + 1,
      jnp.where(is_bad, state.step, tally.bad_step),
    )
    entries = ledger.record(carry.ledger, batch, metrics.weights) if keep_ledger else carry.ledger
    return Carry(state, _moved(carry.averages, state, options.ema_decay), entries, tally)

  def chunk(
    carry: Carry,
    inputs: Array,
    labels: Array,
    indices: Array,
    meta_indices: Array | None,
    keep_ledger: bool,
  ) -> Carry:
    def body(carry: Carry, positions: tuple[Array, Array | None]) -> tuple[Carry, None]:
      return step(carry, inputs, labels, *positions, keep_ledger), None

    return jax.lax.scan(body, carry, (indices, meta_indices))[0]

  def many(*arguments: Any, keep_ledger: bool) -> Carry:
    run = functools.partial(chunk, keep_ledger=keep_ledger)
    return jax.vmap(run, in_axes=(0, None, 0, 0, 0))(*arguments)

  jit = functools.partial(jax.jit, donate_argnums=0, static_argnames="keep_ledger")
  return LoopStep(jit(step), jit(chunk), jit(many))


def is_finite(carry: Carry) -> bool:
  """Whether a run can go on from here: params, statistics and optimizer hold finite numbers."""
  # On the host: compiling the check would take longer than a short run.
  state = carry.state
  leaves = jax.device_get(jax.tree.leaves((state.params, state.model_state, state.opt_state)))
  return all(np.isfinite(leaf.astype(np.float32)).all() for leaf in leaves)


def _chooser(layers: tuple[str, ...]) -> Callable[[str], bool] | None:
  return (lambda name: _meta.is_below(name, layers)) if layers else None


def _moved(averages: Any, state: training.TrainState, decay: float | None) -> Any:
  if decay is None:
    return averages
  return optax.incremental_update((state.params, state.model_state), averages, 1 - decay)


def _pick(inputs: Array, labels: Array, options: StepOptions, indices: Array, key: Key) -> Batch:
  picked = inputs[indices]
  if options.augment != "none":  # texts are no images
    picked = rw.augment.augment(picked, key, options.augment, flips=options.flips)
  return rw.types.make_batch(picked, labels[indices], indices=indices)
