"""What the benchmark of the meta gradient says: Markdown tables, JSON lines, the bounds."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import _report
from benchmarks._report import Rows, number
from reweight_jax import runlog

Row = Mapping[str, Any]


def write(path: str, header: Row, rows: Rows) -> None:
  """Writes JSON lines, the header first, and the tables beside them."""
  lines = [json.dumps({"table": "header", **header}), *map(json.dumps, rows)]
  runlog.write_text(path, "\n".join(lines) + "\n")
  runlog.write_text(pathlib.Path(path).with_suffix(".md"), markdown(header, rows))


def markdown(header: Row, rows: Rows) -> str:
  """The header in words, a table for each net, the bounds, and the dial."""
  of = lambda table: [row for row in rows if row["table"] == table]
  lines: list[str] = ["Cost of the meta gradient, beside the plain step of the same optimizer."]
  for table, show, text in (
    ("base", _base_table, ""),
    ("steps", _steps_table, ", several virtual steps (route nested, rematerialized, unrolled)"),
  ):
    names = [(row["model"], row["dtype"], row["batch_size"]) for row in of(table)]
    for model, dtype, batch_size in dict.fromkeys(names):
      part = [row for row in of(table) if (row["model"], row["dtype"]) == (model, dtype)]
      lines += ["", f"## {model}, {dtype}, batch {batch_size}{text}", "", *show(part)]
  bounds = [*_flops_lines(rows), *_temp_lines(rows)]
  if bounds:
    lines += ["", "## Bounds", "", *(f"- {line}" for line in bounds)]
  if of("dial"):
    lines += ["", *_dial(header["flags"]["setting"], of("dial"))]
  return "\n".join([*lines, "", "## How it was made", "", *_made(header)]) + "\n"


def broken_flops(rows: Rows) -> list[str]:
  """The bounds of FLOPs that do not hold, in words."""
  return [line for line in _flops_lines(rows) if not line.endswith(": holds")]


def _flops_lines(rows: Rows) -> list[str]:
  return [
    f"{_name(row)}: {row['flops_ratio']:.3f} times the FLOPs of the plain step, bound "
    f"{row['flops_bound']:.2f}: {_verdict(row['flops_ratio'], row['flops_bound'])}"
    for row in rows
    if row.get("flops_bound") is not None and row.get("flops_ratio") is not None
  ]


def _temp_lines(rows: Rows) -> list[str]:
  return [
    f"{_name(row)}: {row['temp_ratio']:.2f} times the memory of the plain step, bound "
    f"{row['temp_bound']:.2f}: {_verdict(row['temp_ratio'], row['temp_bound'])}"
    for row in rows
    if row.get("temp_bound") is not None
  ]


def _name(row: Row) -> str:
  size = f"meta batch {row['meta_batch_size']} of {row['batch_size']}"
  return f"{row['model']}, {row['dtype']}, {row['step']}, {size}"


def _verdict(value: float, bound: float) -> str:
  # Not a `>`, which a ratio that is no number would pass.
  return "holds" if value <= bound else "DOES NOT HOLD"


def _base_table(rows: Rows) -> list[str]:
  columns: dict[str, Callable[[Row], str]] = {
    "step": lambda row: row["step"],
    "meta batch": lambda row: str(row["meta_batch_size"] or ""),
    **_cost_columns(),
    "by the law": number("flops_by_law", ".3f"),
    **_memory_columns(),
    "of each program": lambda row: _each(row.get("temp_bytes_of_programs", ())),
    **_time_columns(rows),
  }
  if any(row["reason"] for row in rows):
    columns["not measured because"] = lambda row: row["reason"]
  return _report.table(columns, rows)


def _steps_table(rows: Rows) -> list[str]:
  columns: dict[str, Callable[[Row], str]] = {
    "step": lambda row: row["step"].replace("_", " ").replace("1 steps", "1 step"),
    "meta batch": lambda row: str(row["meta_batch_size"] or ""),
    **_cost_columns(),
    **_memory_columns(),
    "compile s": number("compile_seconds", ".0f"),
    **_time_columns(rows),
  }
  return _report.table(columns, rows)


def _cost_columns() -> dict[str, Callable[[Row], str]]:
  return {"GFLOP": number("flops", ".3f", 1e9), "FLOPs ratio": number("flops_ratio", ".3f")}


def _memory_columns() -> dict[str, Callable[[Row], str]]:
  return {
    "temporary MB": number("temp_bytes", ".1f", 1e6),
    "memory ratio": number("temp_ratio", ".2f"),
  }


def _time_columns(rows: Rows) -> dict[str, Callable[[Row], str]]:
  if not any("seconds" in row for row in rows):
    return {}
  return {
    "s, median": number("seconds", ".3g"),
    "s, least": number("seconds_min", ".3g"),
    "time ratio": number("time_ratio", ".2f"),
    "of least times": number("time_ratio_min", ".2f"),
  }


def _each(sizes: Any) -> str:
  return ", ".join(f"{size / 1e6:.1f}" for size in sizes) if len(sizes) > 1 else ""


def _dial(setting: Row, rows: Rows) -> list[str]:
  chosen = [row for row in rows if any(row["layers"]) and row["approximation"][:7] == "learned"]
  windows = ", ".join(str(start) for start in setting["windows"])
  seeds = ", ".join(str(seed) for seed in setting["seeds"])
  accuracy = 100 * rows[0]["test_accuracy"]
  lines = [
    f"## Approximations: {setting['model']} on {setting['dataset']}",
    "",
    f"Norm {setting['norm']}, {100 * setting['noise_rate']:g} % wrong labels (symmetric), batch "
    f"{setting['batch_size']}, meta batch {setting['meta_batch_size']} out of "
    f"{setting['meta_size']} clean examples, SGD with momentum at rate "
    f"{setting['learning_rate']:g}, learning to reweight by route ghost. Cosine with the exact "
    "alignment of the same batch, parameters and meta batch, before rectifying; over "
    f"{setting['window_length']} steps from each of steps {windows}, seeds {seeds} (exact training "
    f"ends at {accuracy:.1f} % of the test images). A stale direction comes from its own training; "
    "its steps with a meta batch, which are exact, are left out. Layers were learned from 4 "
    f"batches at step {setting['calibrate_at']}. FLOPs are those of the whole step beside the "
    "plain one, for stale directions on average over the period; saved: of what the exact step "
    "costs beyond the plain one.",
    "",
  ]
  columns: dict[str, Callable[[Row], str]] = {
    "direction": lambda row: row["approximation"],
    "FLOPs ratio": number("flops_ratio", ".3f"),
    "saved": number("saved", ".0%"),
    "cosine, mean": number("cosine", ".3f"),
    "standard deviation": number("cosine_std", ".3f"),
    "least": number("cosine_min", ".3f"),
    "batches": lambda row: str(row["num_batches"] or ""),
  }
  lines += _report.table(columns, rows)
  if chosen:
    most = max(chosen, key=lambda row: max(map(len, row["layers"])))
    orders = zip(setting["seeds"], most["layers"], strict=False)
    lines += ["", *(f"- Seed {seed} chose {', '.join(names)}" for seed, names in orders)]
  return lines


def _made(header: Row) -> list[str]:
  flags = header["flags"]
  versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
  lines = [
    f"- Command: `{header['command']}`",
    f"- Machine: {header['device']}; load average at the start {header['load_average_at_start']}",
    f"- Versions: {versions}",
    f"- float32 products at precision {flags['precision']!r}, in torch alike; norm "
    f"{flags['norm']} where the net has a choice",
    "- FLOPs: `cost_analysis()` of the compiled programs, in torch those of products and "
    "convolutions by its own counter; by the law: in plain steps, (5 + 3 V / B) / 3 for route "
    "forward and (4 + 3 V / B) / 3 for ghost, 2 and 1 passes more with a pull-back. Memory: "
    "`temp_size_in_bytes`, what XLA allocates beside arguments and results",
    f"- Times: {flags['num_timings']} interleaved rounds; ratios are medians of those within a "
    "round, and of least times"
    if flags["num_timings"]
    else "- Times: not taken",
  ]
  return lines + ([f"- Note: {header['note']}"] if header["note"] else [])
