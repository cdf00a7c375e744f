"""The nets and the steps that the benchmark of the meta gradient compares."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from benchmarks import _cases
from reweight_jax import training
from reweight_jax.types import Array, Batch, MetaAlignment, PerExampleLoss, WeightingRule

ENCODER = "encoder"
MODELS = (ENCODER, *rw.models.MODELS)
SMALL, PAPER = ("resnet20", ENCODER), ("resnet32", "resnet18", "wrn28_10", ENCODER)
LENGTH, VOCABULARY_SIZE = 64, 1000  # of the encoder's sequences

PLAIN = {"sgd": "plain", "adamw": "adamw_plain"}
# By name: the form of the step, its route, and the optimizer of training.
STEPS = {
  "nested": ("fused", "nested", "sgd"),
  "forward": ("fused", "forward", "sgd"),
  "ghost": ("fused", "ghost", "sgd"),
  "split_forward": ("split", "forward", "sgd"),
  "split_ghost": ("split", "ghost", "sgd"),
  "adamw_nested": ("fused", "nested", "adamw"),
  "adamw_forward": ("fused", "forward", "adamw"),
  "adamw_ghost": ("fused", "ghost", "adamw"),
}
OPTIMIZERS = {"sgd": optax.sgd(_cases.LEARNING_RATE), "adamw": optax.adamw(1e-3)}


class Net(NamedTuple):
  """A net with a batch of its inputs."""

  module: Any
  draw: Callable[[int, int], Batch]  # (seed, size) -> a random batch
  batch_size: int


def make_net(model: str, norm: str | None, dtype: str) -> Net:
  """The net of a name; the transformer encoder has its own norm, lenet and mlp may have none.

  Raises:
    UsageError: if the net does not take the norm.
  """
  if model != ENCODER:
    own_norm = model in ("lenet", "transformer")
    net = _cases.build(model, None if own_norm else norm, dtype)
    return Net(net, _cases.random_batch, 100)
  net = rw.models.Transformer(
    num_classes=_cases.NUM_CLASSES,
    vocabulary_size=VOCABULARY_SIZE,
    width=128,
    num_blocks=4,
    dtype=None if dtype == "float32" else jnp.dtype(dtype),
  )
  return Net(net, random_tokens, 32)


def random_tokens(seed: int, size: int) -> Batch:
  """Sequences without padding, of labels 0, 1, 2, and so on."""
  tokens = np.random.default_rng(seed).integers(1, VOCABULARY_SIZE, (size, LENGTH), np.int32)
  return rw.types.make_batch(jnp.asarray(tokens), jnp.arange(size) % _cases.NUM_CLASSES)


def loss_of(net: Net) -> PerExampleLoss:
  """The loss of a net in training mode."""
  return rw.losses.from_apply(rw.models.linen_apply(net.module))


def make_cases(
  net: Net, batch_size: int, meta_batch_sizes: Sequence[int], names: Sequence[str]
) -> list[_cases.Case]:
  """The plain steps of the optimizers that are asked for, then each step at each size."""
  loss_fn = loss_of(net)
  cases = []
  for optimizer in dict.fromkeys(STEPS[name][2] for name in names):
    tx = OPTIMIZERS[optimizer]
    plain = optax.with_extra_args_support(optax.identity())
    step = jax.jit(training.make_train_step(loss_fn, plain, tx))
    cases.append(_make_case(net, PLAIN[optimizer], batch_size, None, (step, plain, tx)))
  steps = {name: _make_step(loss_fn, *STEPS[name]) for name in names}
  for size in meta_batch_sizes:
    cases += [_make_case(net, name, batch_size, size, steps[name]) for name in names]
  return cases


def make_unrolled_cases(
  net: Net, batch_size: int, meta_batch_size: int, counts: Sequence[int]
) -> list[_cases.Case]:
  """The plain step, then the step by route "nested" with so many virtual SGD steps."""
  loss_fn, tx, rule = loss_of(net), OPTIMIZERS["sgd"], reweight_at_uniform()
  cases = make_cases(net, batch_size, (), ("nested",))
  for count in counts:
    step = training.make_train_step(
      loss_fn, rule, tx, route="nested", virtual_optimizer=tx, virtual_steps=count
    )
    parts = jax.jit(step), rule, tx
    cases.append(_make_case(net, f"{count}_steps", batch_size, meta_batch_size, parts))
  return cases


def reweight_at_uniform() -> WeightingRule:
  """Learning to reweight with the meta gradient taken at the weights of plain training, not at 0.

  So the virtual step is the one that training would take, and what an optimizer makes of it counts.
  """

  def weigh(weights: Array, *, meta_alignment: MetaAlignment, mask: Array, **unused: Any) -> Array:
    return weights * meta_alignment(mask / jnp.sum(mask))

  return optax.chain(rw.rules.weighting_rule(weigh), rw.rules.rectify(), rw.rules.normalize("mean"))


def law(name: str, meta_batch_size: int | None, batch_size: int) -> float | None:
  """FLOPs in plain steps as the derivation has them; None for route "nested", which XLA prunes.

  In units of one forward pass over the batch the plain step is 3, as is the gradient of the meta
  batch times V / B. Route "forward" needs a pass (1), and 2 for every push and every pull; "ghost"
  a pass with the cotangents of the layers (2), and 1 for every push and pull. The optimizer's
  pull-back takes a second pull.
  """
  if meta_batch_size is None:
    return 1.0
  _, route, optimizer = STEPS[name]
  maps = 3 if optimizer == "adamw" else 2
  passes = {"forward": 1 + 2 * maps, "ghost": 2 + maps}
  return (passes[route] + 3 * meta_batch_size / batch_size) / 3 if route in passes else None


def _make_step(
  loss_fn: PerExampleLoss, form: str, route: str, optimizer: str
) -> tuple[Callable[..., Any], WeightingRule, optax.GradientTransformation]:
  tx = OPTIMIZERS[optimizer]
  if optimizer == "adamw":
    rule = reweight_at_uniform()
    step = training.make_train_step(loss_fn, rule, tx, route=route, virtual_optimizer=tx)
    return jax.jit(step), rule, tx
  rule = rw.meta.learning_to_reweight()
  if form == "split":
    return training.make_split_train_step(loss_fn, rule, tx, route=route), rule, tx
  return jax.jit(training.make_train_step(loss_fn, rule, tx, route=route)), rule, tx


def _make_case(
  net: Net, name: str, batch_size: int, size: int | None, parts: tuple[Any, ...]
) -> _cases.Case:
  step, rule, tx = parts

  def make_arguments() -> tuple[Any, ...]:
    batch = net.draw(1, batch_size)
    params, model_state = _cases.random_variables(net.module, batch.inputs)
    state = training.init_train_state(
      params, model_state, rule, tx, key=jax.random.key(0), batch_size=batch_size
    )
    return (state, batch) if size is None else (state, batch, net.draw(2, size))

  return _cases.Case(name, size, step, make_arguments)
