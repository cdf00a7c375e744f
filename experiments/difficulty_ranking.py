"""Which measure of difficulty finds which hard examples, and what does it cost?

    python -m experiments.difficulty_ranking
    python -m experiments.difficulty_ranking --dataset=mnist --factors=symmetric:0.1,symmetric:0.4

Makes a data set hard for one known reason at a time (wrong labels of several kinds, rare classes, a
small margin, noisy inputs, a region with a rule of its own), then for several at once, and lets
every measure rank the examples: AUROC and average precision of finding those that are hard, larger
scores being harder for all of them; the worst factor; how well the rankings of two training seeds
on the same data agree; and the price in trainings of one network. Random scores and neighbors,
which need no training, are rows like the others. Expected of the first command, on made-up points:
7 factors, 3 draws of the data, 3 seeds, a quarter of an hour on two cores; of the second: 10,000
images, 30 members, 3 seeds, half an hour.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
from absl import flags

import reweight_jax as rw
from experiments import (
  _command,
  _errors,
  _factors,
  _flags,
  _measures,
  _progress,
  _ranking,
  _ranking_report,
  _workdir,
)
from experiments._factors import MADE_UP, Problem
from reweight_jax import data, runlog

MADE_UP_FACTORS = (
  "symmetric,background,imbalance,margin,feature_noise,region,mixed"  # pair is symmetric there
)
IMAGE_FACTORS = "symmetric,pair,background,imbalance,feature_noise,region,mixed"


def run(config: _ranking.RankingConfig) -> dict[str, Any]:
  """Measures every job and writes tables, numbers and a figure into the workdir.

  Returns:
    The summary.

  Raises:
    UsageError: before anything runs, if a setting, the data or a folder of the workdir does not
      fit.
    DivergedError: if the params of a network are not finite.
  """
  config, dataset, jobs = _ranking.plan(config)
  root, versions = _ranking.path_of(config), _workdir.versions()  # as they are at the start
  with _command.at_work_in(root):
    parts = {job: _ranking.open_parts(config, dataset, job) for job in jobs}
    rows, agreement = [], []
    with _progress.Progress(len(jobs) * config.setting.total_steps()) as progress:
      for factor in config.factors:
        for draw in range(config.draws):
          same_data = [job for job in jobs if job[:2] == (factor, draw)]
          problem = _ranking.problem_of(config, dataset, factor, draw)
          found = []
          for job in same_data:
            row, scores = _measure(config, problem, job, parts[job], progress)
            rows.append({"dataset": config.dataset} | row)
            found.append(scores)
          agreement.append(_ranking_report.between_seeds(found))
    costs = {name: _measures.COSTS[name](config.setting) for name in found[0]}
    summary = _ranking_report.summarize(rows, agreement, costs)
    _write(root, config, rows, {"versions": versions} | summary)
  return summary


def _measure(
  config: _ranking.RankingConfig,
  problem: Problem,
  job: _ranking.Job,
  parts: _ranking.TimedParts,
  progress: _progress.Progress,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The row of a job, and its scores."""
  net = _measures.make_net(
    rw.models.MLP(problem.num_classes, hidden=config.hidden), problem.inputs.shape[1:]
  )
  subject = _measures.Subject(
    problem.inputs, problem.labels, problem.num_classes, problem.embedding
  )
  measured = _measures.measure(subject, net, config.setting, job.seed, parts, progress)
  row = {"factor": str(job.factor), "draw": job.draw, "seed": job.seed}
  row |= _ranking_report.judge(job.factor, problem, measured.scores)
  row |= {"train_accuracy": measured.accuracy, "seconds": parts.seconds}
  progress.begin(f"{config.dataset}, {job.factor}, draw {job.draw}, seed {job.seed}")
  progress.tell(f"measured in {sum(parts.seconds.values()):.0f} s")
  return row, measured.scores


def _write(
  root: pathlib.Path,
  config: _ranking.RankingConfig,
  rows: list[dict[str, Any]],
  summary: dict[str, Any],
) -> None:
  setting = dataclasses.asdict(config) | {"factors": [str(factor) for factor in config.factors]}
  runlog.write_json(root / "summary.json", {"setting": setting} | summary)
  (root / "rows.jsonl").unlink(missing_ok=True)
  for row in rows:
    runlog.append_row(root / "rows.jsonl", row)
  runlog.write_text(root / "table.md", f"# Difficulty, {config.dataset}\n\n{tables(summary)}")
  _ranking_report.draw(root / "auroc.png", {config.dataset: summary})


def tables(summary: dict[str, Any]) -> str:
  """All that is printed, as Markdown."""
  return (
    f"Who is best:\n\n{_ranking_report.verdict(summary)}\n"
    f"AUROC:\n\n{_ranking_report.table(summary, 'auroc')}\n"
    f"Average precision:\n\n{_ranking_report.table(summary, 'average_precision')}"
  )


def define_flags(values: flags.FlagValues) -> None:
  """The flags; the default of some depends on the data set."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  number = functools.partial(flags.DEFINE_float, flag_values=values)
  common = _measures.Setting()
  known = ", ".join((MADE_UP, *data.DATASETS))
  text("dataset", MADE_UP, f"one of {known}, or a file FILE.npz")
  text("data_dir", None, "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  means = "; ".join(f"{name}: {words}" for name, (_, _, words) in _factors.NUMBERS.items())
  text("factors", None, f"list such as symmetric:0.4,region; default all that apply. {means}")
  text("seeds", "0,1,2", "list of seeds of the trainings")
  whole("draws", None, "draws of the data, each with all seeds; default 3 of made-up data, else 1")
  whole("train_size", None, "examples; default 600 made-up ones, else 10000 or all of fewer")
  text("hidden", None, "widths of the MLP's layers; default none (a linear model) or 128")
  whole("members", common.members, "networks of the ensemble")
  number("keep", common.keep, "share of the examples that a member is trained on")
  whole("steps", common.steps, "of each network")
  whole("batch_size", common.batch_size, "examples of a step")
  number("learning_rate", None, "of SGD; default 2 for made-up data, else 0.1")
  number("momentum", common.momentum, "of SGD")
  number("weight_decay", None, "default 0.001 for made-up data, else 0")
  whole("members_at_once", 10, "members trained side by side, and saved when they are done")
  text("workdir", None, f"folder of the results; default {_ranking.ROOT}/DATASET")
  text("compilation_cache", None, "folder of compiled programs, or none; ~/.cache/reweight_jax")
  flags.DEFINE_bool(
    "deterministic", False, "bit for bit the same on a GPU, slower", flag_values=values
  )


def config_of(values: flags.FlagValues) -> _ranking.RankingConfig:
  """The configuration that the flags ask for."""
  given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  is_made_up = given["dataset"] == MADE_UP
  factors = given.pop("factors", MADE_UP_FACTORS if is_made_up else IMAGE_FACTORS)
  hidden = given.pop("hidden", "" if is_made_up else "128")
  setting = dataclasses.replace(
    _ranking.SETTINGS[is_made_up], **_flags._fields_of(_measures.Setting, given)
  )
  whole = lambda flag, text: tuple(
    _flags._parsed(flag, part, int, "0,1") for part in _flags._split(text)
  )
  return _ranking.RankingConfig(
    dataset=given["dataset"],
    factors=_factors.parse(factors, given["dataset"]),
    seeds=whole("seeds", given["seeds"]),
    draws=given.get("draws", 3 if is_made_up else 1),
    train_size=given.get("train_size"),
    hidden=whole("hidden", hidden),
    setting=setting,
    data_dir=given.get("data_dir"),
    workdir=given.get("workdir"),
  )


def main(values: flags.FlagValues) -> None:
  """Runs the command and prints its tables."""
  config = config_of(values)
  _flags.apply_process_flags(values)
  print(tables(run(config)))
  print(
    "Mean ± standard deviation over draws of the data and seeds; worst: the lowest of the factors "
    "by themselves; between seeds: mean rank correlation of two trainings on the same data. "
    f"Files: {_ranking.path_of(config)}"
  )


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
