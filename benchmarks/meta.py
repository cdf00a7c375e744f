"""What does the meta gradient cost by each route, with an optimizer's pull-back, or approximated?

    python -m benchmarks.meta --dial --steps --output=results/meta_cpu.jsonl

Compiles the training step with learning to reweight for net x meta batch x route on random inputs,
and prints its floating-point operations (FLOPs, XLA's count of the compiled program), its peak
temporary memory and its wall time, each beside the plain step of the same optimizer.

* nested, forward, ghost: the fused step by these routes, with SGD.
* split_forward, split_ghost: the step as two programs; FLOPs add up, the larger memory counts.
* adamw_nested, adamw_forward, adamw_ghost: training with AdamW, whose own step is the virtual one;
  the meta gradient is taken at the weights of plain training and pulled back through AdamW.
* torch plain, torch double backward, torch higher, torch torchopt: our own steps in PyTorch on
  residual networks, from the definition and by two libraries, where they are installed. Their
  ratios are to the plain step in torch, in the same process.

`--steps` adds the cost of 1, 2, 3 and 4 virtual steps (route "nested", each step rematerialized,
no loop), and `--dial` what approximations lose: the cosine of their alignment with the exact one
on digits with wrong labels, beside the FLOPs of their step; `--nobase` leaves the first table out.

By default the nets are ResNet-20 (GroupNorm, images 32x32x3, batch 100) and a transformer encoder
(4 blocks, width 128, 64 tokens of a vocabulary of 1000, batch 32); with a GPU those of the papers,
in float32 and bfloat16: ResNet-32, ResNet-18, WRN-28-10 and the encoder. XLA counts FLOPs on CPU
alone: for counts of the large nets add JAX_PLATFORMS=cpu, `--models=wrn28_10 --num_timings=0`.

Exits with status 1 if route "ghost" needs more FLOPs than its bound: 1.46 plain steps for ResNet-20
at a meta batch of a tenth of the batch and 2.37 at one as large (encoder: 1.44 and 2.35), and 1.80
with AdamW's pull-back. Whether the split step keeps within 1.3 times the memory of plain training,
or of its meta batch, is printed too. Expected: half an hour on two idle cores, a few minutes for
`--models=encoder --num_timings=0`. Seed 0, in the dial 0, 1, 2.

The libraries of the peers are no dependency of this package. An environment with them:

    python -m venv ~/peers && . ~/peers/bin/activate
    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install higher torchopt -e ".[experiments]"
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import _cases, _cost, _meta_cases, _meta_dial, _meta_report, _report
from experiments import _errors
from experiments._errors import RunError, UsageError

DTYPES = ("float32", "bfloat16")
PRECISIONS = ("highest", "default")
PEERS = ("auto", "torch", "none")
STEP_COUNTS = (1, 2, 3, 4)
# The most FLOPs in plain steps that route "ghost" may need, by how many times the batch is larger
# than the meta batch: the derivation's (4 + 3 V / B) / 3, and a little for what is no product.
_FLOPS_BOUNDS = {
  ("resnet20", "ghost"): {10: 1.46, 1: 2.37},
  (_meta_cases.ENCODER, "ghost"): {10: 1.44, 1: 2.35},
  ("resnet20", "adamw_ghost"): {10: 1.80},
  (_meta_cases.ENCODER, "adamw_ghost"): {10: 1.80},
}
_FLOPS_KEYS = {"flops", "flops_ratio", "saved"}
MEMORY_BOUND = 1.3

Row = dict[str, Any]
Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Config:
  """What to measure."""

  base: bool = True
  steps: bool = False
  dial: bool = False
  models: tuple[str, ...] = ()  # (): those of the backend
  norm: str | None = "group"
  batch_size: int | None = None  # None: the net's own
  meta_divisors: tuple[int, ...] = (10, 1)  # how many times smaller the meta batch is
  routes: tuple[str, ...] = tuple(_meta_cases.STEPS)
  dtypes: tuple[str, ...] = ()  # (): those of the backend
  precision: str = "highest"  # of float32 products, in JAX and torch alike
  peers: str = "auto"
  num_timings: int = 5
  setting: _meta_dial.Setting = dataclasses.field(default_factory=_meta_dial.Setting)

  def uses_torch(self) -> bool:
    """Whether peers are measured."""
    return self.base and (self.peers == "torch" or (self.peers == "auto" and _has("torch")))


def for_backend(config: Config) -> Config:
  """The config with the nets and dtypes that are left to the backend filled in."""
  small = jax.default_backend() == "cpu"
  models = config.models or (_meta_cases.SMALL if small else _meta_cases.PAPER)
  return dataclasses.replace(
    config, models=models, dtypes=config.dtypes or (DTYPES[:1] if small else DTYPES)
  )


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  for flag, words, known in (
    ("models", config.models, _meta_cases.MODELS),
    ("routes", config.routes, tuple(_meta_cases.STEPS)),
    ("dtypes", config.dtypes, DTYPES),
    ("precision", (config.precision,), PRECISIONS),
    ("peers", (config.peers,), PEERS),
  ):
    for word in words:
      if word not in known:
        raise UsageError(f"--{flag}: expected one of {', '.join(known)}; got {word!r}")
  for flag, numbers in (
    ("batch_size", () if config.batch_size is None else (config.batch_size,)),
    ("meta_divisors", config.meta_divisors),
  ):
    if min(numbers, default=1) < 1:
      raise UsageError(f"--{flag}: expected at least 1, got {min(numbers)}")
  if config.num_timings < 0:
    raise UsageError(f"--num_timings: expected at least 0, got {config.num_timings}")
  if config.peers == "torch" and not _has("torch"):
    raise UsageError("--peers=torch needs torch: see the top of benchmarks/meta.py")
  if not (config.base or config.steps or config.dial):
    raise UsageError("--nobase leaves nothing to do: add --steps or --dial")
  for model in config.models:
    _meta_cases.make_net(model, config.norm, "float32")


def run(
  config: Config,
  log: Callable[[str], None] = lambda line: None,
  keep: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
  """Measures everything that is asked for.

  Args:
    config: what to measure.
    log: is told of each program that is compiled.
    keep: is given all rows so far after each table.

  Returns:
    One row for each step or approximation.

  Raises:
    UsageError: for a setting that cannot be run.
    RunError: if XLA on CPU does not count a product and a convolution as they are by hand.
  """
  config = for_backend(config)
  check(config)
  hidden = set() if _cost.counts_flops() else _FLOPS_KEYS
  rows: list[Row] = []

  def add(table: list[Row]) -> None:
    rows.extend(row | dict.fromkeys(hidden & row.keys()) for row in table)
    keep(rows)

  with jax.default_matmul_precision(config.precision):
    for is_wanted, measure in ((config.base, _measure_base), (config.steps, _measure_steps)):
      for dtype, model in itertools.product(config.dtypes, config.models) if is_wanted else ():
        net = _meta_cases.make_net(model, config.norm, dtype)
        size = config.batch_size or net.batch_size
        about = {"model": model, "dtype": dtype, "batch_size": size}
        add(measure(config, net, about, log))
    if config.dial:
      log("dial")
      add([{"table": "dial", **row} for row in _meta_dial.run(config.setting)])
  return rows


def _measure_base(
  config: Config, net: _meta_cases.Net, about: Row, log: Callable[[str], None]
) -> list[Row]:
  batch_size = about["batch_size"]
  divisors = {max(1, batch_size // by): by for by in config.meta_divisors}
  cases = _meta_cases.make_cases(net, batch_size, tuple(divisors), config.routes)
  rows, calls = _measure_cases(cases, {"table": "base", **about}, log)
  for row in rows:
    size = row["meta_batch_size"]
    row["flops_by_law"] = _meta_cases.law(row["step"], size, batch_size)
    bounds = _FLOPS_BOUNDS.get((row["model"], row["step"]), {})
    row["flops_bound"] = bounds.get(divisors.get(size, 0))
    row["temp_bound"] = _temp_bound(row, rows[0])
  if config.uses_torch():
    log(f"{about['model']}: torch")
    _add_torch(config, about, tuple(divisors), rows, calls)
  _add_times(config.num_timings, rows, calls)
  return rows


def _measure_steps(
  config: Config, net: _meta_cases.Net, about: Row, log: Callable[[str], None]
) -> list[Row]:
  batch_size = about["batch_size"]
  size = max(1, batch_size // max(config.meta_divisors))
  cases = _meta_cases.make_unrolled_cases(net, batch_size, size, STEP_COUNTS)
  rows, calls = _measure_cases(cases, {"table": "steps", **about}, log)
  _add_times(config.num_timings, rows, calls)
  return rows


def _measure_cases(
  cases: list[_cases.Case], about: Row, log: Callable[[str], None]
) -> tuple[list[Row], list[Call | None]]:
  """Compiles every case; each row has ratios to the last plain one of its optimizer."""
  rows: list[Row] = []
  calls: list[Call | None] = []
  for case in cases:
    log(f"{about['model']} {about['dtype']}: {case.name}, meta batch {case.meta_batch_size}")
    row = {**about, "step": case.name, "meta_batch_size": case.meta_batch_size}
    row |= {"framework": "jax", "reason": ""}
    try:
      cost, call = _measure_case(case)
      row |= cost
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      row["reason"], call = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", None
    rows.append(row)
    calls.append(call)
  for row in rows:
    plain = _plain_of(row, rows)
    for name in ("flops", "temp_bytes"):
      row[f"{name.removesuffix('_bytes')}_ratio"] = _ratio(row.get(name), plain.get(name))
  return rows, calls


def _measure_case(case: _cases.Case) -> tuple[Row, Call]:
  cost = _cost.measure(case.step, jax.eval_shape(case.make_arguments))
  arguments: list[Any] = []

  def call() -> Any:
    if not arguments:  # made when first timed, so that compiling alone needs no memory for them
      arguments.append(case.make_arguments())
    return jax.block_until_ready(cost.call(*arguments[0]))

  numbers = cost._asdict()
  del numbers["call"]
  return numbers, call


def _temp_bound(row: Row, plain: Row) -> float | None:
  """The most memory that a split step may need: 1.3 plain steps', or that of its meta batch."""
  if not row["step"].startswith("split") or not row.get("temp_bytes") or "temp_bytes" not in plain:
    return None
  meta_batch = row["temp_bytes_of_programs"][0]
  return max(MEMORY_BOUND * plain["temp_bytes"], meta_batch) / plain["temp_bytes"]


def _add_torch(
  config: Config, about: Row, sizes: tuple[int, ...], rows: list[Row], calls: list[Call | None]
) -> None:
  from benchmarks import _meta_peers, _torch_peer

  _torch_peer.set_precision(config.precision)
  found: list[Row] = []
  for name, size, call, reason in _torch_peer.rows(
    about["model"], config.norm, about["dtype"], about["batch_size"], sizes, _meta_peers.rows
  ):
    row = {"table": "base", **about, "step": name, "meta_batch_size": size}
    row |= {"framework": "torch", "reason": reason}
    if call is not None and "compiled" not in name:
      row |= {"flops": _torch_peer.count_flops(call), "temp_bytes": _torch_peer.peak_bytes(call)}
    found.append(row)
    calls.append(call)
  for row in found:
    row["flops_ratio"] = _ratio(row.get("flops"), found[0].get("flops"))
    row["temp_ratio"] = _ratio(row.get("temp_bytes"), found[0].get("temp_bytes"))
  rows += found


def _add_times(num_timings: int, rows: list[Row], calls: list[Call | None]) -> None:
  known = [row for row, call in zip(rows, calls, strict=True) if call is not None]
  if not num_timings or not known:
    return
  times = _cost.time_steps(num_timings, [call for call in calls if call is not None])
  for row, seconds in zip(known, times, strict=True):
    row["seconds"], row["seconds_min"] = float(np.median(seconds)), float(seconds.min())
    plain = _plain_of(row, known)
    if plain["meta_batch_size"] is None:
      beside = times[known.index(plain)]
      # Ratios within a round, so that a slow spell of the machine meets both sides alike.
      row["time_ratio"] = float(np.median(seconds / beside))
      row["time_ratio_min"] = float(seconds.min() / beside.min())


def _plain_of(row: Row, rows: list[Row]) -> Row:
  """The plain step of the row's framework and optimizer; the first row if there is none."""
  name = "torch plain" if row["framework"] == "torch" else _meta_cases.PLAIN["sgd"]
  if row["step"].startswith("adamw"):
    name = _meta_cases.PLAIN["adamw"]
  return next((other for other in rows if other["step"] == name), rows[0])


def _ratio(value: Any, plain: Any) -> float | None:
  return value / plain if value and plain else None


def _has(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


def header(config: Config, note: str) -> dict[str, Any]:
  """Command, flags, machine and versions of this process."""
  made = _report.header(config, note)
  made["command"] = shlex.join(["python", "-m", "benchmarks.meta", *sys.argv[1:]])
  if config.uses_torch():
    for library in ("higher", "torchopt"):
      made["versions"][library] = importlib.metadata.version(library) if _has(library) else None
  return made


def define_flags(values: flags.FlagValues) -> None:
  """The flags, each with the default of `Config`."""
  default = Config()
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  boolean("base", default.base, "the table net x meta batch x route")
  boolean("steps", default.steps, "the table of 1, 2, 3 and 4 virtual steps")
  boolean("dial", default.dial, "the table of approximations")
  text("models", "", f"list of {', '.join(_meta_cases.MODELS)}; default those of the backend")
  text("norm", default.norm, "of the nets that have a choice: group, none, batch")
  whole("batch_size", default.batch_size, "training examples a step; default the net's own")
  text("meta_divisors", "10,1", "list: how many times smaller than the batch the meta batch is")
  text("routes", ",".join(default.routes), f"list of {', '.join(_meta_cases.STEPS)}")
  text("dtypes", "", f"of hidden layers, list of {', '.join(DTYPES)}; default the backend's")
  text("precision", default.precision, f"of float32 products, one of {', '.join(PRECISIONS)}")
  text("peers", default.peers, f"one of {', '.join(PEERS)}; auto: torch if it is installed")
  whole("num_timings", default.num_timings, "timed rounds; 0: compile only")
  text("output", None, "JSONL file to write; the tables go beside it, in Markdown")
  text("note", "", "a sentence to record, such as what else the machine was doing")


def make_config(values: flags.FlagValues) -> Config:
  """The flags as a `Config`."""

  def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())

  try:
    divisors = tuple(map(int, words(values.meta_divisors)))
  except ValueError as error:
    raise UsageError(
      f"--meta_divisors: expected numbers such as 10,1; got {values.meta_divisors!r}"
    ) from error
  return Config(
    base=values.base,
    steps=values.steps,
    dial=values.dial,
    models=words(values.models),
    norm=values.norm,
    batch_size=values.batch_size,
    meta_divisors=divisors,
    routes=words(values.routes),
    dtypes=words(values.dtypes),
    precision=values.precision,
    peers=values.peers,
    num_timings=values.num_timings,
  )


def main(values: flags.FlagValues) -> None:
  """Measures, prints the tables, writes them where asked to, and says which bounds hold."""
  config = for_backend(make_config(values))
  check(config)
  _report.check_output(values.output, ".jsonl")
  top = header(config, values.note)

  def keep(rows: list[Row]) -> None:
    if values.output:
      _meta_report.write(values.output, top, rows)

  rows = run(config, lambda line: print(line, file=sys.stderr, flush=True), keep)
  print(_meta_report.markdown(top, rows))
  broken = _meta_report.broken_flops(rows)
  if broken:
    raise RunError("more FLOPs than the bound allows: " + "; ".join(broken))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
