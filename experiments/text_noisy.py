"""Do the robust losses and derivative manipulation help on text, at learning rates of their own?

    python -m experiments.text_noisy --train_file=TREC.train.all --test_file=TREC.test.all
    python -m experiments.text_noisy --dataset=imdb_reviews/plain_text --max_length=200
    python -m experiments.text_noisy --train_file=... --imbalances=1,10,50 --noise_rates=0

A 1-D convolution classifier on sentences, with symmetric label noise or one class thinned out.
Reads files of one labeled text a line ("3 who was galileo ?"), or a text set of
tensorflow-datasets. The length of derivative manipulation's step is not that of cross-entropy at
the same learning rate, so every method trains at every one of `--learning_rates`, and the table has
each at the rate that a *noisy* validation set chooses, beside the test accuracy at all rates.
Expected of the first command with five seeds: 3 noise rates x 5 learning rates x 5 methods, an hour
on two cores.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

import reweight_jax as rw
from experiments import (
  _check,
  _command,
  _errors,
  _flags,
  _model,
  _report,
  _task,
)
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import data, runlog

ROOT = "runs/text_noisy"
METHODS = ("ce", "ce_dn", "gce", "uniform_dn", "dm")
LARGEST = 100_000  # words of a text, and maps


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
  """One noise rate, imbalance and learning rate."""

  dataset: str = ""  # a name of tensorflow-datasets, unless there are files
  methods: tuple[str, ...] = METHODS
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  train_file: str | None = None
  test_file: str | None = None
  max_length: int | None = None
  min_count: int = 2
  width: int = 32
  model: str | None = "conv1d"
  validation_size: int = 500
  batch_size: int = 50
  steps: int | None = 1000
  learning_rate: float | None = 0.1
  momentum: float = 0.9
  eval_every: int = 100
  pictures: bool = False

  def source(self) -> str:
    """The data set's name: of the file, or of tensorflow-datasets."""
    return pathlib.Path(self.train_file).name if self.train_file else self.dataset

  def title(self) -> str:
    """What is trained on, in words."""
    named = dataclasses.replace(self, dataset=self.source())
    return f"{super(TextConfig, named).title()}, rate {self.rate():g}"


DEFAULT = TextConfig()
WITHOUT_FLAGS = (
  *("protocol", "dataset", "noise", "noise_rate", "human_labels", "imbalance", "imbalance_ratio"),
  *("model", "norm", "dtype", "augment", "label_smoothing", "mixup", "learning_rate", "pictures"),
)


@functools.lru_cache(maxsize=1)
def _load(
  name: str, train: str | None, test: str | None, folder: str | None, length: int | None, count: int
) -> data.Dataset:
  if train is not None and test is not None:
    return data.load_lines(train, test, max_length=length, min_count=count)
  return data.load_text(name, folder, max_length=length, min_count=count)


def load(config: TextConfig) -> data.Dataset:
  """The data set of a configuration, as token ids."""
  files = config.train_file, config.test_file
  return _load(config.dataset, *files, config.data_dir, config.max_length, config.min_count)


@functools.lru_cache(maxsize=2)
def _make_model(num_classes: int, vocabulary_size: int, width: int) -> _model.Model:
  net = rw.models.SequenceConvNet(
    num_classes=num_classes, vocabulary_size=vocabulary_size, width=width, maps=width
  )
  init = lambda key, inputs: rw.models.init_linen(net, inputs, key)
  return _model.from_apply(rw.models.linen_apply(net), init)


JOB = _command.Job(
  load,
  _task.make_task,
  lambda config, dataset: _make_model(
    dataset.num_classes, data.vocabulary_size(dataset), config.width
  ),
  _check.check_numbers,
)


class Setting(NamedTuple):
  """What one command of the experiment trains in."""

  noise: float
  ratio: float
  rate: float
  method: str


def commands(
  config: TextConfig,
  noise_rates: tuple[float, ...],
  ratios: tuple[float, ...],
  learning_rates: tuple[float, ...],
) -> dict[Setting, TextConfig]:
  """Setting -> command; those that differ in the method alone share a folder."""
  root = pathlib.Path(config.workdir or ROOT)
  settings = itertools.product(noise_rates, ratios, learning_rates, config.run_names())
  return {
    Setting(noise, ratio, rate, method): dataclasses.replace(
      config,
      methods=() if config.rules else (method,),
      noise="symmetric" if noise else "none",
      noise_rate=noise or None,
      imbalance="step" if ratio > 1 else "none",
      imbalance_ratio=ratio,
      learning_rate=rate,
      workdir=str(root / _folder(noise=noise, ratio=ratio, rate=rate)),
    )
    for noise, ratio, rate, method in settings
  }


def _folder(**numbers: float) -> str:
  return "_".join(f"{name}_{_report.exact(number)}" for name, number in numbers.items())


Results = Mapping[Setting, Mapping[str, Any] | None]
"""Setting -> the numbers of a method's summary; None where its loss was not finite."""


def plan(
  config: TextConfig,
  noise_rates: tuple[float, ...],
  ratios: tuple[float, ...],
  learning_rates: tuple[float, ...],
) -> dict[Setting, _command.Plan]:
  """Everything that is to be run, looked at before the first of it runs.

  Raises:
    UsageError: if a number, a setting or a workdir does not fit.
    DataError: if the data cannot be read.
  """
  if bool(config.train_file) != bool(config.test_file) or bool(config.train_file) == bool(
    config.dataset
  ):
    raise UsageError(
      "--train_file: expected both --train_file and --test_file, or --dataset with a text set of "
      f"tensorflow-datasets; got {config.train_file!r}, {config.test_file!r} and "
      f"{config.dataset or None!r}"
    )
  _check.check_numbers(config)
  lists = [
    _command.check_numbers("noise_rates", noise_rates, lambda rate: 0 <= rate < 1, "in [0, 1)"),
    _command.check_numbers("imbalances", ratios, lambda ratio: ratio >= 1, "at least 1"),
    _command.check_numbers("learning_rates", learning_rates, lambda rate: rate > 0, "above 0"),
  ]
  if len(learning_rates) > 1 and not config.validation_size:
    raise UsageError(
      "--validation_size: expected at least 1, to choose one of several --learning_rates on; got 0"
    )
  sizes = {"width": config.width, "min_count": config.min_count, "max_length": config.max_length}
  for flag, size in sizes.items():
    if size is not None and not 1 <= size <= LARGEST:
      raise UsageError(f"--{flag}: expected a number from 1 to {LARGEST}, got {size}")
  found = commands(config, *lists)
  return {setting: _command.plan(one, JOB) for setting, one in found.items()}


def run(
  config: TextConfig,
  noise_rates: tuple[float, ...],
  ratios: tuple[float, ...],
  learning_rates: tuple[float, ...],
) -> Results:
  """Runs all of it and writes the summary. What diverges is a result, and the rest goes on.

  Raises:
    UsageError: before anything runs, if a number, a setting or a workdir does not fit.
  """
  plans = plan(config, noise_rates, ratios, learning_rates)
  root = pathlib.Path(config.workdir or ROOT)
  with _command.at_work_in(root):
    results = _command.train_all(plans)
    runlog.write_text(root / "summary.md", f"# {config.source()}\n\n{table(results)}")
    runlog.write_json(
      root / "summary.json",
      [setting._asdict() | {"numbers": numbers} for setting, numbers in results.items()],
    )
  return results


def chosen_rate(by_rate: Mapping[float, Mapping[str, Any] | None]) -> float:
  """The learning rate of highest mean validation accuracy at the last step; the first of a tie."""
  score = {
    rate: -1.0 if numbers is None else numbers["last_validation"]["mean"] or 0.0
    for rate, numbers in by_rate.items()
  }
  return max(score, key=lambda rate: score[rate])


def table(results: Results) -> str:
  """Test accuracy in % of each method at the learning rate chosen, and at every one."""
  rates = list(dict.fromkeys(setting.rate for setting in results))
  head = ["noise", "ratio", "method", "rate chosen", *_report.COLUMNS.values()]
  lines = [[*head, *(f"last step at {_report.exact(rate)}" for rate in rates)]]
  lines.append(["---"] * len(lines[0]))
  for noise, ratio, method in dict.fromkeys((s.noise, s.ratio, s.method) for s in results):
    by_rate = {rate: results[Setting(noise, ratio, rate, method)] for rate in rates}
    rate = chosen_rate(by_rate)
    chosen = "-" if by_rate[rate] is None else _report.exact(rate)
    cells = [f"{100 * noise:.10g} %", _report.exact(ratio), method, chosen]
    cells += [_cell(by_rate[rate], name) for name in _report.COLUMNS]
    lines.append([*cells, *(_cell(by_rate[each], "last") for each in rates)])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(numbers: Mapping[str, Any] | None, column: str) -> str:
  return "diverged" if numbers is None else _report.percent(numbers[column])


def define_flags(values: flags.FlagValues) -> None:
  """The flags of `cifar_noisy` that apply, with this experiment's defaults, and its own."""
  _flags.define_flags(values, DEFAULT, WITHOUT_FLAGS)
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  text("dataset", None, "a text set of tensorflow-datasets, such as imdb_reviews/plain_text")
  text("train_file", None, "file of training texts, one a line: label, space, words")
  text("test_file", None, "file of test texts, alike")
  text("noise_rates", "0,0.2,0.4", "list of rates of wrong labels")
  text("imbalances", "1", "list of ratios of the largest class to the smallest")
  text("learning_rates", "0.01,0.03,0.1,0.3,1", "list of learning rates of SGD, all of them tried")
  whole(
    "max_length",
    None,
    "words of a text; default the longest; far longer ones are cut",
  )
  whole("min_count", None, f"rarer words are unknown; default {DEFAULT.min_count}")
  whole("width", None, f"of embedding and convolutions; default {DEFAULT.width}")


def main(values: flags.FlagValues) -> None:
  """Runs the command and prints its table."""
  config = _flags.config_of(values, DEFAULT)
  lists = ("noise_rates", "imbalances", "learning_rates")
  given = values.flag_values_dict()
  numbers = [_flags.numbers(name, given[name]) for name in lists]
  _flags.apply_process_flags(values)
  results = run(config, *numbers)
  print(table(results))
  print("Accuracies in %, mean ± standard deviation over seeds; the rate is chosen by the last")
  print("step's accuracy on noisy validation examples; diverged: a seed's loss was not finite.")
  print(f"Files: {config.workdir or ROOT}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
