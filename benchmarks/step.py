"""What does a training step with learning to reweight cost beside a plain one?

    python -m benchmarks.step --output=results/step_flops.json

Compiles the steps of one model on random images and prints a table: floating-point operations
(FLOPs) by XLA's count of the compiled program, peak temporary memory, compile time and wall time,
each beside the plain step, which is this package's step with no rule and no meta batch.

* forward: the fused step, route "forward".
* nested: the fused step, route "nested", which differentiates through the virtual step.
* split: the step as two programs; FLOPs and compile times add up, the larger memory counts.

Exits with status 1 if "forward" or "split" needs more FLOPs than `flops_bound` allows. Expected: 5
to 10 minutes on two cores, about 2 with `--num_timings=0`, which runs no step. Seed 0; FLOPs and
memory do not depend on it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import reweight_jax as rw
from benchmarks import _report
from experiments import _errors
from experiments._errors import RunError, UsageError
from reweight_jax import training
from reweight_jax.types import Batch, WeightingRule

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
  """What to measure."""

  model: str = "resnet20"
  norm: str = "batch"
  batch_size: int = 100
  meta_batch_sizes: tuple[int, ...] = ()  # (): the batch size and a tenth of it
  num_timings: int = 5

  def meta_sizes(self) -> tuple[int, ...]:
    """The sizes of the meta batch, each once."""
    default = (self.batch_size, max(1, self.batch_size // 10))
    return tuple(dict.fromkeys(self.meta_batch_sizes or default))


class Case(NamedTuple):
  """One row of the table."""

  name: str
  meta_batch_size: int | None
  step: Callable[..., Any]  # jitted; "split" is a function that calls two jitted ones
  make_arguments: Callable[[], tuple[Any, ...]]


class Cost(NamedTuple):
  """What compiling tells."""

  flops: float
  temp_bytes: int
  compile_seconds: float  # tracing and lowering included
  call: Callable[..., Any]  # the step, ready to run


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  for flag, word, known in (
    ("model", config.model, rw.models.MODELS),
    ("norm", config.norm, rw.models.NORMS),
  ):
    if word not in known:
      raise UsageError(f"--{flag}: expected one of {', '.join(known)}; got {word!r}")
  for flag, sizes in (
    ("batch_size", (config.batch_size,)),
    ("meta_batch_sizes", config.meta_batch_sizes),
  ):
    if min(sizes, default=1) < 1:
      raise UsageError(f"--{flag}: expected at least 1, got {min(sizes)}")
  if config.num_timings < 0:
    raise UsageError(f"--num_timings: expected at least 0, got {config.num_timings}")


def run(config: Config) -> list[dict[str, Any]]:
  """Compiles and times every case; returns one row each, the plain step first.

  Raises:
    UsageError: for a setting that cannot be run.
    RunError: if XLA does not count a product and a convolution as they are counted by hand.
  """
  check(config)
  check_cost_analysis()
  cases = make_cases(config)
  costs = [measure(case.step, jax.eval_shape(case.make_arguments)) for case in cases]
  seconds = time_steps(config.num_timings, cases, costs)
  rows = []
  for case, cost, times in zip(cases, costs, seconds, strict=True):
    row: dict[str, Any] = {
      "step": case.name,
      "meta_batch_size": case.meta_batch_size,
      "flops": cost.flops,
      "flops_ratio": cost.flops / costs[0].flops,
      "flops_bound": flops_bound(case.name, case.meta_batch_size, config.batch_size),
      "temp_bytes": cost.temp_bytes,
      "temp_ratio": cost.temp_bytes / costs[0].temp_bytes,
      "compile_seconds": cost.compile_seconds,
    }
    if config.num_timings:
      # Ratios within a round, so that a slow spell of the machine meets both sides alike.
      row |= {"seconds": np.median(times), "time_ratio": np.median(times / seconds[0])}
    rows.append(row)
  return rows


def flops_bound(name: str, meta_batch_size: int | None, batch_size: int) -> float | None:
  """The most FLOPs a step may need, in plain steps; None for steps that promise nothing.

  In units of one forward pass over the batch a gradient is 3. Route "forward" needs the pass (1), a
  push (2), a pull (2) and the gradient of the meta batch (3 V / B), so (5 + 3 V / B) / 3 plain
  steps. The bound is 1/30 above that: 2.70 at V = B, 1.80 at V = B / 10.
  """
  if meta_batch_size is None or name == "nested":
    return None
  return (5 + 3 * meta_batch_size / batch_size) / 3 + 1 / 30


def check_cost_analysis() -> None:
  """Raises RunError unless XLA counts two FLOPs per multiply-add, in products and convolutions.

  Where a backend hands such work to a library, its count may leave it out.
  """
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  convolve = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  images, kernel = shape(4, 10, 10, 16), shape(3, 3, 16, 32)
  probes = (
    ("product", jnp.dot, (shape(64, 128), shape(128, 32)), 2 * 64 * 128 * 32),
    ("convolution", convolve, (images, kernel), 2 * (4 * 8 * 8) * (3 * 3 * 16) * 32),
  )
  for name, fn, shapes, expected in probes:
    counted = measure(jax.jit(fn), shapes).flops
    if abs(counted / expected - 1) > 0.01:
      raise RunError(
        f"XLA's cost analysis on {jax.default_backend()} counts {counted:g} FLOPs in a {name} of "
        f"{expected:g}; run with JAX_PLATFORMS=cpu"
      )


def make_cases(config: Config) -> list[Case]:
  """The plain step, and each form of learning to reweight at each size of the meta batch."""
  try:
    net = rw.models.build(config.model, NUM_CLASSES, norm=config.norm)
  except ValueError as error:
    raise UsageError(f"--norm: {error}") from error
  loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
  tx = optax.sgd(0.1)
  rule = rw.meta.learning_to_reweight()
  # No rule: the weights stay what the step starts from, 1 for every example.
  plain = optax.with_extra_args_support(optax.identity())

  def make_case(name: str, size: int | None, step: Callable[..., Any], rule: WeightingRule) -> Case:
    def make_arguments() -> tuple[Any, ...]:
      params, model_state = random_variables(net)
      state = training.init_train_state(
        params, model_state, rule, tx, key=jax.random.key(0), batch_size=config.batch_size
      )
      batch = random_batch(1, config.batch_size)
      return (state, batch) if size is None else (state, batch, random_batch(2, size))

    return Case(name, size, step, make_arguments)

  steps: dict[str, Callable[..., Any]] = {
    "forward": jax.jit(training.make_train_step(loss_fn, rule, tx, route="forward")),
    "nested": jax.jit(training.make_train_step(loss_fn, rule, tx, route="nested")),
    "split": training.make_split_train_step(loss_fn, rule, tx),
  }
  return [
    make_case("plain", None, jax.jit(training.make_train_step(loss_fn, plain, tx)), plain),
    *(
      make_case(name, size, step, rule)
      for size in config.meta_sizes()
      for name, step in steps.items()
    ),
  ]


def measure(step: Callable[..., Any], shapes: Sequence[Any]) -> Cost:
  """Compiles a step for arguments of some shapes and reads what XLA says of its programs."""
  start = time.perf_counter()
  lowered = lower(step, shapes)
  programs = [program.compile() for program in lowered]
  return Cost(
    flops=sum(program.cost_analysis().get("flops", 0) for program in programs),
    temp_bytes=max(program.memory_analysis().temp_size_in_bytes for program in programs),
    compile_seconds=time.perf_counter() - start,
    call=programs[0] if hasattr(step, "lower") else step,
  )


def lower(step: Callable[..., Any], shapes: Sequence[Any]) -> list[Any]:
  """The lowered programs of a step: its own if it is jitted, else those of the jitted it calls."""
  if hasattr(step, "lower"):
    return [step.lower(*shapes)]
  programs = []
  for equation in jax.make_jaxpr(step)(*shapes).eqns:
    if "jaxpr" not in equation.params:
      raise RunError(f"expected a step that calls jitted functions alone, got {equation.primitive}")
    call = jax.extend.core.jaxpr_as_fun(equation.params["jaxpr"])
    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    programs.append(jax.jit(call).lower(*arguments))
  return programs


def time_steps(num_timings: int, cases: Sequence[Case], costs: Sequence[Cost]) -> np.ndarray:
  """Wall times `[cases, timings]`, taken in rounds of one run of every case, after one untimed."""
  seconds = np.zeros((len(cases), num_timings))
  if num_timings:
    runs = [(cost.call, case.make_arguments()) for case, cost in zip(cases, costs, strict=True)]
    for turn in range(-1, num_timings):
      for row, (call, arguments) in enumerate(runs):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        if turn >= 0:
          seconds[row, turn] = time.perf_counter() - start
  return seconds


def random_batch(seed: int, size: int) -> Batch:
  """Normal images with labels 0, 1, 2, and so on."""
  inputs = np.random.default_rng(seed).standard_normal((size, *IMAGE_SHAPE), np.float32)
  return rw.types.make_batch(jnp.asarray(inputs), jnp.arange(size) % NUM_CLASSES)


def random_variables(net: Any) -> tuple[Any, Any]:
  """Params, He normal matrices and kernels, and a state of ones, without compiling a thing."""
  rng = np.random.default_rng(0)
  images = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
  variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)

  def draw(leaf: Any) -> jax.Array:
    if len(leaf.shape) < 2:
      return jnp.ones(leaf.shape, leaf.dtype)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype)

  values = jax.tree.map(draw, dict(variables))
  return values.pop("params"), values


def define_flags(values: flags.FlagValues) -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  models, norms = ", ".join(rw.models.MODELS), ", ".join(rw.models.NORMS)
  define_string = functools.partial(flags.DEFINE_string, flag_values=values)
  define_integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  define_string("model", default.model, f"one of {models}")
  define_string("norm", default.norm, f"one of {norms}")
  define_integer("batch_size", default.batch_size, "training examples a step")
  define_string("meta_batch_sizes", "", "list; default the batch size and a tenth of it")
  define_integer("num_timings", default.num_timings, "timed rounds; 0: compile only")
  define_string("output", None, "JSON file to write; the table goes beside it, in Markdown")
  define_string("note", "", "a sentence to record, such as what else the machine was doing")


def make_config(values: flags.FlagValues) -> Config:
  """The flags as a `Config`."""
  try:
    sizes = tuple(int(size) for size in values.meta_batch_sizes.split(",") if size.strip())
  except ValueError as error:
    raise UsageError(
      f"--meta_batch_sizes: expected numbers such as 100,10; got {values.meta_batch_sizes!r}"
    ) from error
  return Config(values.model, values.norm, values.batch_size, sizes, values.num_timings)


def main(values: flags.FlagValues) -> None:
  """Measures, prints the table, writes it where asked to, and says whether the bounds hold."""
  config = make_config(values)
  check(config)
  _report.check_output(values.output)
  header = _report.header(config, values.note)
  rows = run(config)
  print(_report.markdown(header, rows))
  if values.output:
    _report.write(values.output, header, rows)
  broken = _report.broken_bounds(rows)
  if broken:
    raise RunError("more FLOPs than the bound allows: " + "; ".join(broken))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
