"""The steps that the benchmark compares, each with arguments of its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments._errors import UsageError
from reweight_jax import per_example, training
from reweight_jax.meta.routes import make_meta_objective
from reweight_jax.types import Batch, PerExampleLoss, WeightingRule

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10
LEARNING_RATE = 0.1
ROUTES = ("forward", "nested", "split", "vmapped")


class Case(NamedTuple):
  """One row of the table."""

  name: str
  meta_batch_size: int | None
  step: Callable[..., Any]  # jitted; "split" is a function that calls two jitted ones
  make_arguments: Callable[[], tuple[Any, ...]]


def make_cases(
  model: str,
  norm: str | None,
  dtype: str,
  batch_size: int,
  meta_batch_sizes: Sequence[int],
  routes: Sequence[str],
) -> list[Case]:
  """The plain step, and each form of learning to reweight at each size of the meta batch."""
  net = build(model, norm, dtype)
  apply_fn = rw.models.linen_apply(net)
  loss_fn = rw.losses.from_apply(apply_fn)
  tx = optax.sgd(LEARNING_RATE)
  rule = rw.meta.learning_to_reweight()
  # No rule: the weights stay what the step starts from, 1 for every example.
  plain = optax.with_extra_args_support(optax.identity())

  def make_case(name: str, size: int | None, step: Callable[..., Any], rule: WeightingRule) -> Case:
    def make_arguments() -> tuple[Any, ...]:
      params, model_state = random_variables(net)
      state = training.init_train_state(
        params, model_state, rule, tx, key=jax.random.key(0), batch_size=batch_size
      )
      batch = random_batch(1, batch_size)
      return (state, batch) if size is None else (state, batch, random_batch(2, size))

    return Case(name, size, step, make_arguments)

  steps: dict[str, Callable[..., Any]] = {
    "forward": jax.jit(training.make_train_step(loss_fn, rule, tx, route="forward")),
    "nested": jax.jit(training.make_train_step(loss_fn, rule, tx, route="nested")),
    "split": training.make_split_train_step(loss_fn, rule, tx),
    "vmapped": jax.jit(make_vmapped_step(loss_fn, tx)),
  }
  return [
    make_case("plain", None, jax.jit(training.make_train_step(loss_fn, plain, tx)), plain),
    *(make_case(name, size, steps[name], rule) for size in meta_batch_sizes for name in routes),
  ]


def build(model: str, norm: str | None, dtype: str) -> Any:
  """The net, or a UsageError if it does not take the norm."""
  hidden = None if dtype == "float32" else jnp.dtype(dtype)
  try:
    return rw.models.build(model, NUM_CLASSES, norm=norm, dtype=hidden)
  except ValueError as error:
    raise UsageError(f"--norm: {error}") from error


def make_vmapped_step(
  loss_fn: PerExampleLoss, tx: optax.GradientTransformation
) -> Callable[..., Any]:
  """Learning to reweight from all gradients of the batch, one by one under `jax.vmap`.

  What one writes without push and pull: inner products with the rows, then their weighted sum. The
  rows take the memory of as many copies of the params as there are examples.
  """

  def step(state: training.TrainState, batch: Batch, meta_batch: Batch) -> Any:
    params, model_state = state.params, state.model_state
    rows = per_example.grads(loss_fn, params, model_state, batch, key=state.key)
    objective = make_meta_objective(loss_fn, model_state, meta_batch, state.key)
    direction = jax.grad(objective)(params)
    inner = lambda row, leaf: row.reshape(row.shape[0], -1) @ leaf.ravel()
    alignment = sum(jax.tree.leaves(jax.tree.map(inner, rows, direction)))
    positive = jnp.maximum(alignment, 0)
    total = jnp.sum(positive)
    weights = positive / jnp.where(total > 0, total, 1)
    grads = jax.tree.map(lambda row: jnp.tensordot(weights, row, 1), rows)
    updates, opt_state = tx.update(grads, state.opt_state, params)
    return state._replace(params=optax.apply_updates(params, updates), opt_state=opt_state), weights

  return step


def random_batch(seed: int, size: int) -> Batch:
  """Normal images with labels 0, 1, 2, and so on."""
  inputs = np.random.default_rng(seed).standard_normal((size, *IMAGE_SHAPE), np.float32)
  return rw.types.make_batch(jnp.asarray(inputs), jnp.arange(size) % NUM_CLASSES)


def random_variables(net: Any, inputs: Any = None) -> tuple[Any, Any]:
  """Params, He normal matrices and kernels, and a state of ones, without compiling a thing."""
  rng = np.random.default_rng(0)
  inputs = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32) if inputs is None else inputs
  variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), inputs)

  def draw(leaf: Any) -> jax.Array:
    if len(leaf.shape) < 2:
      return jnp.ones(leaf.shape, leaf.dtype)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype)

  values = jax.tree.map(draw, dict(variables))
  return values.pop("params"), values
