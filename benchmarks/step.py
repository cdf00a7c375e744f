"""What does a training step with learning to reweight cost beside a plain one?

    python -m benchmarks.step --models=resnet20 --output=results/step_cpu.json

Compiles the steps of models on random images and prints tables: floating-point operations (FLOPs)
and bytes accessed by XLA's count of the compiled program, peak temporary memory, compile time and
wall time, each beside the plain step, which is this package's step with no rule and no meta batch.

* forward: the fused step, route "forward".
* nested: the fused step, route "nested", which differentiates through the virtual step.
* split: the step as two programs; FLOPs and compile times add up, the larger memory counts.
* vmapped: all gradients of the batch one by one, for nets whose examples do not couple.
* torch: our own step in PyTorch, functional with double backward, where torch is installed; its
  ratios are to its own plain step, in the same process.

Exits with status 1 if "forward" or "split" needs more FLOPs than `flops_bound` allows. Expected: 5
to 10 minutes on two cores, about 2 with `--num_timings=0`, which runs no step. Seed 0; FLOPs and
memory do not depend on it.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import reweight_jax as rw
from benchmarks import _cases, _cost, _report
from experiments import _errors
from experiments._errors import RunError, UsageError

DTYPES = ("float32", "bfloat16")
PRECISIONS = ("highest", "default")
PEERS = ("auto", "torch", "none")


@dataclasses.dataclass(frozen=True)
class Config:
  """What to measure."""

  models: tuple[str, ...] = ("resnet20",)
  norm: str | None = None
  batch_sizes: tuple[int, ...] = (100,)
  meta_batch_sizes: tuple[int, ...] = ()  # (): the batch size and a tenth of it
  routes: tuple[str, ...] = ("forward", "nested", "split")
  dtype: str = "float32"
  precision: str = "highest"  # of float32 products, in JAX and torch alike
  peers: str = "auto"
  num_timings: int = 5

  def meta_sizes(self, batch_size: int) -> tuple[int, ...]:
    """The sizes of the meta batch, each once."""
    default = (batch_size, max(1, batch_size // 10))
    return tuple(dict.fromkeys(self.meta_batch_sizes or default))

  def uses_torch(self) -> bool:
    """Whether the peer is measured."""
    return self.peers == "torch" or (self.peers == "auto" and _has_torch())


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  for flag, words, known in (
    ("models", config.models, rw.models.MODELS),
    ("norm", (config.norm,), (None, *rw.models.NORMS)),
    ("routes", config.routes, _cases.ROUTES),
    ("dtype", (config.dtype,), DTYPES),
    ("precision", (config.precision,), PRECISIONS),
    ("peers", (config.peers,), PEERS),
  ):
    for word in words:
      if word not in known:
        choices = ", ".join(choice for choice in known if choice)
        raise UsageError(f"--{flag}: expected one of {choices}; got {word!r}")
  for flag, sizes in (
    ("batch_sizes", config.batch_sizes),
    ("meta_batch_sizes", config.meta_batch_sizes),
  ):
    if min(sizes, default=1) < 1:
      raise UsageError(f"--{flag}: expected at least 1, got {min(sizes)}")
  if config.num_timings < 0:
    raise UsageError(f"--num_timings: expected at least 0, got {config.num_timings}")
  if config.peers == "torch" and not _has_torch():
    raise UsageError("--peers=torch needs torch: pip install torch, or --peers=none")
  for model in config.models:
    _cases.build(model, config.norm, config.dtype)


def run(config: Config) -> list[dict[str, Any]]:
  """Compiles and times every case; returns one row each, of each net and batch the plain one first.

  Raises:
    UsageError: for a setting that cannot be run.
    RunError: if XLA on CPU does not count a product and a convolution as they are by hand.
  """
  check(config)
  counts_flops = _cost.counts_flops()
  rows: list[dict[str, Any]] = []
  with jax.default_matmul_precision(config.precision):
    for model in config.models:
      for batch_size in config.batch_sizes:
        table = _measure_table(config, model, batch_size)
        rows += table if counts_flops else [row | dict.fromkeys(_FLOPS_KEYS) for row in table]
  return rows


_FLOPS_KEYS = ("flops", "flops_ratio", "flops_bound")


def _measure_table(config: Config, model: str, batch_size: int) -> list[dict[str, Any]]:
  sizes = config.meta_sizes(batch_size)
  rows: list[dict[str, Any]] = []
  calls: list[Callable[[], Any] | None] = []
  for case in _cases.make_cases(model, config.norm, config.dtype, batch_size, sizes, config.routes):
    row: dict[str, Any] = {"model": model, "batch_size": batch_size, "step": case.name}
    row |= {"meta_batch_size": case.meta_batch_size, "framework": "jax", "reason": ""}
    try:
      row_of_cost, call = _measure_case(case, batch_size)
      row |= row_of_cost
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      row["reason"], call = _reason(error), None
    rows.append(row)
    calls.append(call)
  for row in rows:
    for name in ("flops", "bytes_accessed", "temp_bytes"):
      row[f"{name.removesuffix('_bytes')}_ratio"] = _ratio(row.get(name), rows[0].get(name))
  if config.uses_torch():
    _add_torch(config, model, batch_size, sizes, rows, calls)
  _add_times(config.num_timings, rows, calls)
  return rows


def _measure_case(case: _cases.Case, batch_size: int) -> tuple[dict[str, Any], Callable[[], Any]]:
  cost = _cost.measure(case.step, jax.eval_shape(case.make_arguments))
  arguments: list[Any] = []

  def call() -> Any:
    if not arguments:  # made when first timed, so that compiling alone needs no memory for them
      arguments.append(case.make_arguments())
    return jax.block_until_ready(cost.call(*arguments[0]))

  numbers = cost._asdict()
  del numbers["call"]
  bound = _cost.flops_bound(case.name, case.meta_batch_size, batch_size)
  return numbers | {"flops_bound": bound}, call


def _add_torch(
  config: Config,
  model: str,
  batch_size: int,
  sizes: tuple[int, ...],
  rows: list[dict[str, Any]],
  calls: list[Callable[[], Any] | None],
) -> None:
  from benchmarks import _torch_peer

  _torch_peer.set_precision(config.precision)
  found: list[dict[str, Any]] = []
  for name, size, call, reason in _torch_peer.rows(
    model, config.norm, config.dtype, batch_size, sizes
  ):
    row: dict[str, Any] = {"model": model, "batch_size": batch_size, "step": name}
    row |= {"meta_batch_size": size, "framework": "torch", "reason": reason}
    if call is not None and "compiled" not in name:
      row |= {"flops": _torch_peer.count_flops(call), "temp_bytes": _torch_peer.peak_bytes(call)}
    found.append(row)
    calls.append(call)
  for row in found:
    row["flops_ratio"] = _ratio(row.get("flops"), found[0].get("flops"))
    row["temp_ratio"] = _ratio(row.get("temp_bytes"), found[0].get("temp_bytes"))
  rows += found


def _add_times(
  num_timings: int, rows: list[dict[str, Any]], calls: Sequence[Callable[[], Any] | None]
) -> None:
  known = [i for i, call in enumerate(calls) if call is not None]
  if not num_timings or not known:
    return
  seconds = _cost.time_steps(num_timings, [call for call in calls if call is not None])
  for times, i in zip(seconds, known, strict=True):
    first = next((j for j in known if rows[j]["framework"] == rows[i]["framework"]), None)
    rows[i]["seconds"] = float(np.median(times))
    # Ratios within a round, so that a slow spell of the machine meets both sides alike.
    if first is not None and rows[first]["meta_batch_size"] is None:
      rows[i]["time_ratio"] = float(np.median(times / seconds[known.index(first)]))


def _ratio(value: Any, plain: Any) -> float | None:
  return value / plain if value and plain else None


def _reason(error: Exception) -> str:
  first = str(error).split("\n")[0]
  return f"{type(error).__name__}: {first[:160]}"


def _has_torch() -> bool:
  return importlib.util.find_spec("torch") is not None


def define_flags(values: flags.FlagValues) -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  one_of = lambda known: f"one of {', '.join(known)}"
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  text("models", "resnet20", f"list of {', '.join(rw.models.MODELS)}")
  text("norm", None, f"{one_of(rw.models.NORMS)}; default each model's own")
  text("batch_sizes", "100", "list of numbers of training examples a step")
  text("meta_batch_sizes", "", "list; default the batch size and a tenth of it")
  text("routes", ",".join(default.routes), f"list of {', '.join(_cases.ROUTES)}")
  text("dtype", default.dtype, f"of hidden layers, {one_of(DTYPES)}")
  text("precision", default.precision, f"of float32 products, {one_of(PRECISIONS)}")
  text("peers", default.peers, f"{one_of(PEERS)}; auto: torch if it is installed")
  flags.DEFINE_integer(
    "num_timings", default.num_timings, "timed rounds; 0: compile only", flag_values=values
  )
  text("output", None, "JSON file to write; the tables go beside it, in Markdown")
  text("note", "", "a sentence to record, such as what else the machine was doing")


def make_config(values: flags.FlagValues) -> Config:
  """The flags as a `Config`."""

  def sizes(flag: str) -> tuple[int, ...]:
    try:
      return tuple(int(size) for size in str(values[flag].value or "").split(",") if size.strip())
    except ValueError as error:
      raise UsageError(
        f"--{flag}: expected numbers such as 100,10; got {values[flag].value!r}"
      ) from error

  def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())

  return Config(
    models=words(values.models),
    norm=values.norm,
    batch_sizes=sizes("batch_sizes"),
    meta_batch_sizes=sizes("meta_batch_sizes"),
    routes=words(values.routes),
    dtype=values.dtype,
    precision=values.precision,
    peers=values.peers,
    num_timings=values.num_timings,
  )


def main(values: flags.FlagValues) -> None:
  """Measures, prints the tables, writes them where asked to, and says whether the bounds hold."""
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
