"""What a finished command says: rows of a table, a summary in JSON and Markdown."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import reweight_jax as rw
from experiments import _workdir
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import runlog

Results = Mapping[int, Mapping[str, Any]]  # seed -> name -> number

COLUMNS = {
  "last": "last step",
  "selected": "selected on noisy validation",
  "best": "best seen (not a result)",
}


def run_result(folder: pathlib.Path) -> dict[str, Any]:
  """The numbers of one finished run, read from its files; accuracies on the clean test set.

  Raises:
    UsageError: if a file is missing or damaged.
  """
  try:
    return _run_result(folder)
  except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
    raise UsageError(
      f"--workdir: expected the files of a finished run in {folder}, which cannot be read "
      f"({type(error).__name__}: {error}); delete that folder to run it again"
    ) from error


def _run_result(folder: pathlib.Path) -> dict[str, Any]:
  rows = runlog.read_rows(folder / "metrics.jsonl")
  if not (folder / "metrics.jsonl").read_bytes().endswith(b"\n"):
    raise ValueError("metrics.jsonl is cut short")
  test = [row["test_accuracy"] for row in rows]
  validation = [row["validation_accuracy"] for row in rows]
  has_validation = validation[0] is not None
  selected = int(np.argmax(validation)) if has_validation else None
  with np.load(folder / "weights.npz") as weights:
    correct, mean = ~weights["is_noisy"], weights["mean_weight"]
  known = np.isfinite(mean) & (0 < correct.mean() < 1)
  return {
    "last": test[-1],
    "selected": None if selected is None else test[selected],
    "selected_step": None if selected is None else rows[selected]["step"],
    "best": max(test),
    "last_validation": validation[-1],
    "weight_auroc": _number(rw.metrics.auroc, mean[known], correct[known]),
    "weight_average_precision": _number(rw.metrics.average_precision, mean[known], correct[known]),
    "effective_sample_size": float(np.mean([row["effective_sample_size"] for row in rows])),
    "zero_weight_share": float(np.mean([row["zero_weight_share"] for row in rows])),
    "all_zero_batches": sum(row["all_zero_batches"] for row in rows),
    "realized_noise_rate": float(1 - correct.mean()),
    "steps": rows[-1]["step"],
    "seconds": rows[-1]["seconds"],
    "input_share": rows[-1]["input_seconds"] / rows[-1]["seconds"],
    "collapsed": next((row["step"] for row in rows if "warning" in row), None),
    "weights_idle": next((row["step"] for row in rows if "advice" in row), None),
  }


def read_results(folders: Mapping[str, Sequence[pathlib.Path]]) -> dict[str, Results]:
  """The numbers of finished runs: method -> seed -> name -> number."""
  return {
    method: {_workdir.seed_of(folder): run_result(folder) for folder in group}
    for method, group in folders.items()
  }


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
  """Mean and the sample's standard deviation of the numbers known; one number has no deviation."""
  known = [value for value in values if value is not None]
  return {
    "mean": float(np.mean(known)) if known else None,
    "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
  }


def summarize(results: Mapping[str, Results]) -> dict[str, Any]:
  """Mean and standard deviation over seeds of every number, method by method."""
  summary: dict[str, Any] = {}
  for method, runs in results.items():
    numbers = list(runs.values())
    summary[method] = {name: spread([run[name] for run in numbers]) for name in numbers[0]}
    summary[method] |= {"seeds": list(runs), "runs": numbers}
  return summary


def finished_summary(config: Config) -> dict[str, Any]:
  """The summary of all finished runs in the workdir, of earlier commands too."""
  folders = _workdir.finished_folders(config)
  return summarize(read_results({name: group for name, group in folders.items() if group}))


def write_summary(config: Config, summary: Mapping[str, Any]) -> None:
  """Writes summary.json and summary.md into the workdir."""
  workdir, setting = _workdir.path_of(config), config.setting()
  runlog.write_json(workdir / "summary.json", {"setting": setting, "methods": summary})
  seeds = "; ".join(
    f"{method} {', '.join(map(str, numbers['seeds']))}" for method, numbers in summary.items()
  )
  table = markdown_table(summary)
  runlog.write_text(workdir / "summary.md", f"# {config.title()}\n\n{table}\nSeeds: {seeds}.\n")


def markdown_table(summary: Mapping[str, Any]) -> str:
  """The summary as a table: accuracies in percent, mean and standard deviation over seeds."""
  head = ["method", *COLUMNS.values(), "AUROC of weights", "zero weights", "effective batch"]
  lines = [" | ".join(head), " | ".join(["---"] * len(head))]
  for method, numbers in summary.items():
    cells = [method, *(percent(numbers[name]) for name in COLUMNS)]
    cells += [_plain(numbers["weight_auroc"], ".2f"), percent(numbers["zero_weight_share"])]
    cells += [_plain(numbers["effective_sample_size"], ".0f")]
    lines.append(" | ".join(cells))
  return "".join(f"| {line} |\n" for line in lines)


def time_line(summary: Mapping[str, Any]) -> str:
  """How long the runs took and what share of it the host spent on picking batches."""
  runs = [run for numbers in summary.values() for run in numbers["runs"]]
  seconds, share = (
    float(np.mean([run[name] for run in runs])) for name in ("seconds", "input_share")
  )
  return f"Mean time of a run {seconds:.0f} s, of it input {100 * share:.1f} %."


def _number(metric: Any, scores: np.ndarray, positive: np.ndarray) -> float | None:
  """A metric of weights; None where it says nothing: no wrong labels, or all weights equal."""
  if not len(scores) or np.ptp(scores) == 0:
    return None
  return float(metric(scores, positive))


_NOT_KNOWN = {"mean": float("nan"), "std": None}
UNKNOWN: Mapping[str, Any] = {"last": _NOT_KNOWN, "best": _NOT_KNOWN}
"""Numbers for figures of what diverged or was never run: they draw no point."""


def exact(value: float) -> str:
  """A number in the name of a folder, where no two may look alike."""
  short = f"{value:g}"
  return short if float(short) == value else repr(value)


def percent(value: Mapping[str, float | None]) -> str:
  """A number of a summary in percent, with its spread if there is one."""
  if value["mean"] is None:
    return "-"
  mean = f"{100 * value['mean']:.1f}"
  return mean if value["std"] is None else f"{mean} ± {100 * value['std']:.1f}"


def _plain(value: Mapping[str, float | None], form: str) -> str:
  return "-" if value["mean"] is None else f"{value['mean']:{form}}"
