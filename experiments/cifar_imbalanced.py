"""Does weighting help the rare classes, and what does it cost the frequent ones?

    python -m experiments.cifar_imbalanced --protocol=long_tail --seeds=0,1,2
    python -m experiments.cifar_imbalanced --dataset=digits --imbalance_ratio=20

Thins out the classes of a training set (long tail or step), trains each method with each seed, and
prints the accuracy on the balanced test set, over all classes and over the many, medium and few
ones, with a picture of accuracy by class. Deferred methods weigh or resample only after
`--defer_until` of the run. The first command is long-tailed CIFAR-10 at ratio 100 with a ResNet-32,
meant for a GPU or TPU; published (Cao et al. 2019, arXiv 1906.07413; Ren et al. 2018 as run by
later work): 70.4 % for ce, 72 for class_balanced, 74 for l2rw. The second takes a minute on two
cores.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import (
  _command,
  _errors,
  _flags,
  _pictures,
  _report,
  _workdir,
)
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import runlog

METHODS = (
  *("ce", "random", "focal", "class_balanced", "class_balanced_deferred"),
  *("resample", "resample_deferred", "l2rw"),
)
DEFAULT = Config(
  dataset="cifar10",
  methods=METHODS,
  noise="none",
  imbalance="long_tail",
  imbalance_ratio=100.0,
  validation_size=0,
)
# Liu et al. 2019 (arXiv 1904.05160), section 5.1: many above 100 examples, few below 20.
SHOTS_OF = {"cifar100": (20.0, 100.0)}
GROUPS = ("many", "medium", "few")


def run(config: Config, shots: Sequence[float] = ()) -> dict[str, Any]:
  """Runs every method with every seed, as `_command.run` does on images.

  Writes beside its summary classes.md, .json and .png of all finished runs in the workdir.

  Raises:
    UsageError: as there, and before anything runs if the test set lacks a class.
  """
  plan = _command.plan(config)
  tests = np.bincount(plan.dataset.test_labels, minlength=plan.dataset.num_classes)
  absent = np.flatnonzero(tests == 0)
  if absent.size:
    raise UsageError(
      f"--dataset: expected test examples of every class, got none of class {absent[0]}; accuracy "
      "by class needs them"
    )
  summary = _command.train(plan)
  root, classes = _workdir.path_of(config), _classes(_workdir.finished_folders(config), shots)
  text = table(_report.finished_summary(config), classes)
  runlog.write_text(root / "classes.md", f"# {config.title()}\n\n{text}")
  runlog.write_json(root / "classes.json", classes)
  names = plan.dataset.class_names
  _pictures.draw_class_accuracy(root / "classes.png", classes, config.title(), names)
  return summary


def class_groups(counts: np.ndarray, shots: Sequence[float] = ()) -> dict[str, np.ndarray]:
  """The classes with many, medium and few training examples.

  Args:
    counts: `[classes]`, how often each (noisy) label trains.
    shots: few is below the first number, many above the second; none for thirds by rank.

  Returns:
    Group -> its classes, most frequent first; a group may be empty with `shots`.
  """
  order = np.argsort(-counts, kind="stable")
  if not shots:
    return dict(zip(GROUPS, np.array_split(order, 3), strict=True))
  low, high = shots
  sizes = counts[order]
  members = (sizes > high, (low <= sizes) & (sizes <= high), sizes < low)
  return {name: order[chosen] for name, chosen in zip(GROUPS, members, strict=True)}


def class_results(folder: pathlib.Path, shots: Sequence[float] = ()) -> dict[str, Any]:
  """Accuracy by class and by group of one finished run at its last step, in [0, 1].

  Raises:
    UsageError: if a file is missing or damaged.
  """
  entries = _pictures.read_arrays(folder / "weights.npz")
  predictions = _pictures.read_arrays(folder / "predictions.npz")
  labels = predictions["test_label"]
  is_right = predictions["test_prediction"] == labels
  num_classes = int(labels.max()) + 1  # the test set has every class
  counts = np.bincount(entries["given_label"], minlength=num_classes)
  by_class = np.bincount(labels[is_right], minlength=num_classes) / np.bincount(labels)
  groups = class_groups(counts, shots)
  return {
    "counts": counts.tolist(),
    "accuracy_by_class": by_class.tolist(),
    **{
      name: float(by_class[members].mean()) if members.size else None
      for name, members in groups.items()
    },
  }


def table(summary: Mapping[str, Any], classes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Test accuracy in %: last step and best, and at the last step many, medium and few."""
  selected = "selected on validation, by class"
  lines = [["method", "last step", *GROUPS, "rarest class", selected, "best seen (not a result)"]]
  lines.append(["---"] * len(lines[0]))
  for method, numbers in summary.items():
    runs = classes[method]
    parts = [_report.spread([run[name] for run in runs]) for name in GROUPS]
    parts.append(
      _report.spread([run["accuracy_by_class"][int(np.argmin(run["counts"]))] for run in runs])
    )
    ends = (numbers["last"], *parts, numbers["selected"], numbers["best"])
    lines.append([method, *map(_report.percent, ends)])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def define_flags(values: flags.FlagValues) -> None:
  """The flags of `cifar_noisy`, with other defaults, and the borders of the groups."""
  _flags.define_flags(values, DEFAULT)
  flags.DEFINE_string(
    "shots",
    None,
    "two training counts: few is below the first, many above the second; default 20,100 for "
    "cifar100, else thirds of the classes",
    flag_values=values,
  )


def _shots(values: flags.FlagValues, config: Config) -> tuple[float, ...]:
  if values.shots is None:
    return SHOTS_OF.get(config.dataset, ())
  shots = _flags.numbers("shots", values.shots)
  if len(shots) != 2 or not 0 <= shots[0] <= shots[1]:
    raise UsageError(
      "--shots: expected two numbers in order, such as 20,100; "
      f"got {','.join(f'{shot:g}' for shot in shots) or 'none'}"
    )
  return shots


def _classes(
  folders: Mapping[str, Sequence[pathlib.Path]], shots: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
  return {name: [class_results(one, shots) for one in group] for name, group in folders.items()}


def main(values: flags.FlagValues) -> None:
  """Runs the command, prints its table and draws accuracy by class."""
  config = _flags.config_of(values, DEFAULT)
  shots = _shots(values, config)
  _flags.apply_process_flags(values)
  summary = run(config, shots)
  print(table(summary, _classes(_workdir.run_folders(config), shots)))
  print(f"Accuracies in %, mean ± standard deviation over seeds. Files: {_workdir.path_of(config)}")
  print(_report.time_line(summary))


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
