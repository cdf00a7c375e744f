"""What a finished benchmark says: a Markdown table, a JSON file, and whether the bounds hold."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jaxlib

from experiments import _workdir
from experiments._errors import UsageError
from reweight_jax import runlog

Rows = Sequence[Mapping[str, Any]]


def check_output(path: str | None, suffix: str = ".json") -> None:
  """Raises UsageError, before the work, if the file could not be written after it."""
  if path is None:
    return
  if pathlib.Path(path).suffix != suffix:
    raise UsageError(f"--output: expected a name that ends in {suffix}, got {path!r}")
  if not os.access(pathlib.Path(path).parent, os.W_OK):
    raise UsageError(f"--output: expected a folder that can be written to, got {path!r}")


def header(config: Any, note: str) -> dict[str, Any]:
  """Command, flags, machine and versions of this process."""
  device = jax.devices()[0]
  versions = _workdir.versions() | {"jaxlib": jaxlib.__version__}
  if config.uses_torch():
    versions["torch"] = importlib.metadata.version("torch")
  return {
    "command": shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]]),
    "flags": dataclasses.asdict(config),
    "device": f"{jax.device_count()} {device.platform} device of kind {device.device_kind}, "
    f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
    "load_average_at_start": round(os.getloadavg()[0], 2),
    "versions": versions | {"python": platform.python_version()},
    "note": note,
  }


def write(path: str, header: Mapping[str, Any], rows: Rows) -> None:
  """Writes the JSON file, and the table beside it."""
  runlog.write_json(path, {**header, "rows": rows})
  runlog.write_text(pathlib.Path(path).with_suffix(".md"), markdown(header, rows))


def markdown(header: Mapping[str, Any], rows: Rows) -> str:
  """The header in words, a table for each net and batch, and the bounds."""
  flags = header["flags"]
  versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
  lines = [
    f"Cost of one training step: images 32x32x3, {flags['dtype']}, float32 products at precision "
    f"{flags['precision']!r} (in torch alike), SGD. Ratios are to the plain step of the same "
    "framework.",
  ]
  for model, batch_size in dict.fromkeys((row["model"], row["batch_size"]) for row in rows):
    table = [row for row in rows if (row["model"], row["batch_size"]) == (model, batch_size)]
    norm = flags["norm"] or "the model's own"
    lines += ["", f"{model}, norm: {norm}, batch {batch_size}", "", *_table(table)]
  lines += [
    "",
    *(f"- {line}" for line in _bound_lines(rows)),
    "",
    f"- Command: `{header['command']}`",
    f"- Machine: {header['device']}; load average at the start {header['load_average_at_start']}",
    f"- Versions: {versions}",
    f"- Times: medians of {flags['num_timings']} interleaved rounds, ratios taken within a round"
    if flags["num_timings"]
    else "- Times: not taken",
    "- FLOPs and bytes accessed: `cost_analysis()` of the compiled programs, in torch those of "
    "products and convolutions by its own counter; memory: `temp_size_in_bytes`, what XLA "
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
    f"{row['model']}, {row['step']}, meta batch {row['meta_batch_size']} of {row['batch_size']}: "
    f"{row['flops_ratio']:.3f} times the FLOPs of the plain step, bound {row['flops_bound']:.2f}: "
    + ("holds" if row["flops_ratio"] <= row["flops_bound"] else "DOES NOT HOLD")
    for row in rows
    if row.get("flops_bound") is not None and row.get("flops_ratio") is not None
  ]


def number(name: str, form: str, scale: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
  """A column of the numbers of that name, "-" where there is none."""
  return lambda row: "-" if row.get(name) is None else f"{row[name] / scale:{form}}"


def table(columns: Mapping[str, Callable[[Mapping[str, Any]], str]], rows: Rows) -> list[str]:
  """The lines of a Markdown table."""
  cells = [list(columns), ["---"] * len(columns)]
  cells += [[show(row) for show in columns.values()] for row in rows]
  return [f"| {' | '.join(line)} |" for line in cells]


def _table(rows: Rows) -> list[str]:
  columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "step": lambda row: row["step"],
    "meta batch": lambda row: str(row["meta_batch_size"] or ""),
    "GFLOP": number("flops", ".3f", 1e9),
    "FLOPs ratio": number("flops_ratio", ".3f"),
    "GB accessed": number("bytes_accessed", ".2f", 1e9),
    "temporary MB": number("temp_bytes", ".1f", 1e6),
    "memory ratio": number("temp_ratio", ".2f"),
    "compile s": number("compile_seconds", ".1f"),
  }
  if any("seconds" in row for row in rows):
    columns |= {"step s": number("seconds", ".3g"), "time ratio": number("time_ratio", ".2f")}
  if any(row["reason"] for row in rows):
    columns["not measured because"] = lambda row: row["reason"]
  return table(columns, rows)
