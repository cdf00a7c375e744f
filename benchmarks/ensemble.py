"""Are the members of an ensemble trained faster together, by vmap, or one by one?

    python -m benchmarks.ensemble --output=results/ensemble_cpu.md

Times `difficulty.train_members` on random inputs in both forms, turn by turn, and says which of
them `form="auto"` takes. Nets: an MLP 64-64-10 (30 members), an MLP 784-128-10 (30) and LeNet (6);
on a GPU the same with five times the steps. Programs are compiled before the clock starts.

Exits with status 1 if the form that "auto" takes is more than a tenth slower than the other.
Expected, on a CPU: vmap for the small MLP, one by one for the others; three minutes on two cores.
"""

import dataclasses
import functools
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

import reweight_jax as rw
from benchmarks import _report
from experiments import _errors, _workdir
from experiments._errors import RunError, UsageError
from reweight_jax import difficulty, runlog
from reweight_jax.difficulty import _members

NETS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int, int]] = {
  # name: net, shape of an input, members, steps
  "mlp_64": (lambda: rw.models.MLP(10, hidden=(64,)), (64,), 30, 200),
  "mlp_784": (lambda: rw.models.MLP(10, hidden=(128,)), (784,), 30, 100),
  "lenet": (lambda: rw.models.LeNet(10), (28, 28, 1), 6, 5),
}
FORMS = ("vmap", "one_by_one")
TOLERANCE = 1.1

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
  """What to time."""

  nets: tuple[str, ...] = tuple(NETS)
  num_timings: int = 3
  batch_size: int = 100
  output: str | None = None


def check(config: Config) -> None:
  """Raises UsageError, one line, for what cannot be run."""
  for name in config.nets:
    if name not in NETS:
      raise UsageError(f"--nets: expected some of {', '.join(NETS)}; got {name!r}")
  for flag in ("num_timings", "batch_size"):
    if getattr(config, flag) < 1:
      raise UsageError(f"--{flag}: expected at least 1, got {getattr(config, flag)}")
  _report.check_output(config.output, ".md")


def measure(name: str, config: Config) -> Row:
  """Times both forms on one net, turn by turn."""
  make, shape, num_members, num_steps = NETS[name]
  num_steps *= 1 if jax.default_backend() == "cpu" else 5
  net, rng, size = make(), np.random.default_rng(0), 10 * config.batch_size
  inputs = rng.normal(size=(size, *shape)).astype(np.float32)
  examples = rw.types.make_batch(inputs, rng.integers(0, 10, size).astype(np.int32))
  loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
  init_fn = functools.partial(_init, net, inputs[:1])
  train = functools.partial(
    difficulty.train_members,
    loss_fn,
    init_fn,
    optax.sgd(0.05),
    jax.device_put(examples),
    difficulty.subset_masks(size, num_members, seed=0, min_held_out=1),
    key=jax.random.key(0),
    num_steps=num_steps,
    batch_size=config.batch_size,
  )
  seconds: dict[str, list[float]] = {form: [] for form in FORMS}
  for round_number in range(config.num_timings + 1):
    for form in FORMS:
      start = time.perf_counter()
      jax.block_until_ready(train(form=form).params)
      if round_number:  # the first compiles
        seconds[form].append(time.perf_counter() - start)
  auto, _ = _members.inspect(loss_fn, init_fn, examples, config.batch_size, jax.random.key(0))
  ratios = [one / many for many, one in zip(*(seconds[form] for form in FORMS), strict=True)]
  return {
    "net": name,
    "members": num_members,
    "steps": num_steps,
    **{form: min(seconds[form]) for form in FORMS},
    "one_by_one over vmap": statistics.median(ratios),
    "auto": auto,
  }


def _init(net: Any, example: np.ndarray, key: jax.Array) -> Any:
  return rw.models.init_linen(net, example, key)


def run(config: Config) -> list[Row]:
  """Times every net and writes the table.

  Raises:
    UsageError: before any work, for what cannot be run.
    RunError: if the form that "auto" takes is slower than the other.
  """
  check(config)
  rows = [measure(name, config) for name in config.nets]
  if config.output:
    runlog.write_text(config.output, _text(config, rows))
  for row in rows:
    ratio = row["one_by_one over vmap"]
    slower = 1 / ratio if row["auto"] == "vmap" else ratio
    if slower > TOLERANCE:
      raise RunError(
        f"{row['net']}: auto takes {row['auto']}, which took {slower:.2f} times as long"
      )
  return rows


def table(rows: list[Row]) -> str:
  """One line for each net."""
  columns = {
    "net": lambda row: row["net"],
    "members": lambda row: str(row["members"]),
    "steps": lambda row: str(row["steps"]),
    "vmap, s": _report.number("vmap", ".2f"),
    "one by one, s": _report.number("one_by_one", ".2f"),
    "one by one / vmap": _report.number("one_by_one over vmap", ".2f"),
    "auto takes": lambda row: row["auto"],
  }
  return "\n".join(_report.table(columns, rows))


def _text(config: Config, rows: list[Row]) -> str:
  device = jax.devices()[0]
  versions = ", ".join(f"{name} {version}" for name, version in _workdir.versions().items())
  command = shlex.join(["python", "-m", "benchmarks.ensemble", *sys.argv[1:]])
  return (
    "# Members of an ensemble together or one by one\n\n"
    f"`{command}`\n\n{table(rows)}\n\n"
    f"Batches of {config.batch_size}, SGD; least seconds of {config.num_timings} rounds, turn by "
    "turn, compiled before; ratios are medians of those within a round.\n\n"
    f"Machine: {jax.device_count()} {device.platform} device of kind {device.device_kind}, "
    f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}; load average "
    f"{os.getloadavg()[0]:.1f}. Versions: {versions}.\n"
  )


def define_flags(values: flags.FlagValues) -> None:
  """The flags."""
  default = Config()
  flags.DEFINE_list("nets", list(default.nets), f"some of {', '.join(NETS)}", flag_values=values)
  flags.DEFINE_integer("num_timings", default.num_timings, "rounds", flag_values=values)
  flags.DEFINE_integer("batch_size", default.batch_size, "examples a step", flag_values=values)
  flags.DEFINE_string("output", None, "Markdown file to write the table to", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Times the nets and prints the table."""
  config = Config(tuple(values.nets), values.num_timings, values.batch_size, values.output)
  print(table(run(config)))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
