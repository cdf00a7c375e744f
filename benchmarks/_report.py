"""What a finished benchmark says: a Markdown table, a JSON file, and whether the bounds hold."""

import dataclasses
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib

from experiments import _workdir
from experiments._errors import UsageError
from reweight_jax import runlog

Rows = Sequence[Mapping[str, Any]]


def check_output(path: str | None) -> None:
  """Raises UsageError, before the work, if the file could not be written after it."""
  if path is None:
    return
  if pathlib.Path(path).suffix != ".json":
    raise UsageError(f"--output: expected a name that ends in .json, got {path!r}")
  if not os.access(pathlib.Path(path).parent, os.W_OK):
    raise UsageError(f"--output: expected a folder that can be written to, got {path!r}")


def header(config: Any, note: str) -> dict[str, Any]:
  """Command, flags, machine and versions of this process."""
  device = jax.devices()[0]
  return {
    "command": shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]]),
    "flags": dataclasses.asdict(config) | {"meta_batch_sizes": config.meta_sizes()},
    "device": f"{jax.device_count()} {device.platform} device of kind {device.device_kind}, "
    f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
    "load_average_at_start": round(os.getloadavg()[0], 2),
    "versions": _workdir.versions()
    | {"jaxlib": jaxlib.__version__, "python": platform.python_version()},
    "note": note,
  }


def write(path: str, header: Mapping[str, Any], rows: Rows) -> None:
  """Writes the JSON file, and the table beside it."""
  runlog.write_json(path, {**header, "rows": rows})
  runlog.write_text(pathlib.Path(path).with_suffix(".md"), markdown(header, rows))


def markdown(header: Mapping[str, Any], rows: Rows) -> str:
  """The header in words, the table, and the bounds."""
  flags = header["flags"]
  versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
  lines = [
    f"Cost of one training step: {flags['model']}, norm {flags['norm']}, images 32x32x3, batch "
    f"{flags['batch_size']}, float32, SGD. Ratios are to the plain step.",
    "",
    *_table(rows),
    "",
    *(f"- {line}" for line in _bound_lines(rows)),
    "",
    f"- Command: `{header['command']}`",
    f"- Machine: {header['device']}; load average at the start {header['load_average_at_start']}",
    f"- Versions: {versions}",
    f"- Times: medians of {flags['num_timings']} interleaved rounds, ratios taken within a round"
    if flags["num_timings"]
    else "- Times: not taken",
    "- FLOPs: `cost_analysis()` of the compiled programs; memory: `temp_size_in_bytes`, what XLA "
    "allocates beside arguments and results, which leaves out the scratch of library calls",
  ]
  if header["note"]:
    lines.append(f"- Note: {header['note']}")
  return "\n".join(lines) + "\n"


def broken_bounds(rows: Rows) -> list[str]:
  """The bounds that do not hold, in words."""
  return [line for line in _bound_lines(rows) if not line.endswith(": holds")]


def _bound_lines(rows: Rows) -> list[str]:
  return [
    f"{row['step']}, meta batch {row['meta_batch_size']}: {row['flops_ratio']:.3f} times the FLOPs "
    f"of the plain step, bound {row['flops_bound']:.2f}: "
    + ("holds" if row["flops_ratio"] <= row["flops_bound"] else "DOES NOT HOLD")
    for row in rows
    if row["flops_bound"] is not None
  ]


def _table(rows: Rows) -> list[str]:
  columns = {
    "step": lambda row: row["step"],
    "meta batch": lambda row: str(row["meta_batch_size"] or ""),
    "GFLOP": lambda row: f"{row['flops'] / 1e9:.3f}",
    "FLOPs ratio": lambda row: f"{row['flops_ratio']:.3f}",
    "temporary MB": lambda row: f"{row['temp_bytes'] / 1e6:.1f}",
    "memory ratio": lambda row: f"{row['temp_ratio']:.2f}",
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
  }
  if "seconds" in rows[0]:
    columns |= {
      "step s": lambda row: f"{row['seconds']:.3g}",
      "time ratio": lambda row: f"{row['time_ratio']:.2f}",
    }
  cells = [list(columns), ["---"] * len(columns)]
  cells += [[show(row) for show in columns.values()] for row in rows]
  return [f"| {' | '.join(line)} |" for line in cells]
