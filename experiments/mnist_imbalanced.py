"""How far can one class shrink before a classifier gives it up? MNIST, 4 against 9.

    python -m experiments.mnist_imbalanced --seeds=0,1,2
    python -m experiments.mnist_imbalanced --majority_shares=0.98,0.995 --method=ce,proportion,l2rw

The imbalance experiment of Ren et al. 2018 (arXiv 1803.09050, section 4.1): 5000 images of the
digits 9 (frequent) and 4 (rare), a LeNet with one logit, and ten clean images, five of each, out of
the 5000. Trains each method at each share of the frequent class and with each seed, prints the test
error on all 4s and 9s that balance, and draws error against share. Needs MNIST as a folder of
tensorflow-datasets. Expected of the first command: five shares, six methods, three seeds, about 13
hours on two cores, minutes on a GPU; published at share 0.995: 18.3 % for ce, 8.3 for proportion,
3.6 for l2rw.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from absl import flags

import reweight_jax as rw
from experiments import (
  _check,
  _command,
  _errors,
  _flags,
  _model,
  _pictures,
  _report,
  _task,
  _workdir,
)
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import data, runlog
from reweight_jax.types import Array

NUM_IMAGES = 5000
SHARES = (0.9, 0.95, 0.98, 0.99, 0.995)
METHODS = ("ce", "random", "proportion", "resample", "hard_mining", "l2rw")

# Test error in %, mean and error bar over 10 runs, read off the figure of Ren et al. 2018.
PUBLISHED = {
  "ce": ("1.62 ± 0.21", "2.86 ± 0.30", "5.80 ± 0.61", "10.48 ± 1.00", "18.26 ± 1.72"),
  "random": ("1.78 ± 0.20", "2.82 ± 0.55", "5.62 ± 0.52", "9.52 ± 1.42", "17.74 ± 1.97"),
  "proportion": ("1.22 ± 0.17", "2.04 ± 0.32", "3.32 ± 0.44", "5.40 ± 0.58", "8.30 ± 1.35"),
  "resample": ("1.40 ± 0.24", "1.78 ± 0.20", "3.38 ± 0.41", "5.96 ± 0.86", "9.62 ± 1.09"),
  "hard_mining": ("1.34 ± 0.39", "1.48 ± 0.53", "2.16 ± 0.52", "4.50 ± 0.87", "7.74 ± 1.98"),
  "l2rw": ("1.28 ± 0.54", "1.44 ± 0.58", "1.96 ± 0.62", "2.50 ± 0.75", "3.62 ± 0.65"),
}


@dataclasses.dataclass(frozen=True)
class MnistConfig(Config):
  """The protocol at one share of the frequent class."""

  dataset: str = "mnist"
  methods: tuple[str, ...] = METHODS
  majority_share: float = 0.995
  noise: str = "none"
  meta_size: int = 10
  validation_size: int = 0
  model: str | None = "lenet"
  batch_size: int = 100
  steps: int | None = 4000
  learning_rate: float | None = 1e-3
  momentum: float = 0.9
  eval_every: int = 500
  pictures: bool = False

  def title(self) -> str:
    """What is trained on, in words."""
    return f"{self.dataset} 4 against 9, {100 * self.majority_share:.10g} %"

  def num_meta(self) -> int:
    """Meta examples a step: the paper's ten, or all of fewer."""
    return self.meta_batch_size or min(10, self.meta_size)


DEFAULT = MnistConfig()
ROOT = "runs/mnist_imbalanced"
WITHOUT_FLAGS = (
  *("protocol", "dataset", "noise", "noise_rate", "human_labels", "imbalance", "imbalance_ratio"),
  *("model", "norm", "dtype", "augment", "label_smoothing", "mixup", "validation_size", "pictures"),
  *("train_size", "meta_batch_size", "meta_labels"),
)


def load(config: MnistConfig) -> data.Dataset:
  """The 9s of MNIST (class 0, which stays frequent) and its 4s (class 1); a balanced test set."""
  return _load(config.dataset, config.data_dir)


@functools.lru_cache(maxsize=1)  # all shares are drawn from it
def _load(name: str, data_dir: str | None) -> data.Dataset:
  mnist = data.load(name, data_dir)

  def chosen(labels: np.ndarray) -> np.ndarray:
    return np.flatnonzero((labels == 9) | (labels == 4))

  train, test = chosen(mnist.train_labels), chosen(mnist.test_labels)
  is_rare = mnist.test_labels[test] == 4
  size = min(is_rare.sum(), (~is_rare).sum())
  test = np.sort(np.concatenate([test[is_rare][:size], test[~is_rare][:size]]))
  return mnist._replace(
    name="mnist_4_9",
    train_inputs=mnist.train_inputs[train],
    train_labels=(mnist.train_labels[train] == 4).astype(np.int32),
    test_inputs=mnist.test_inputs[test],
    test_labels=(mnist.test_labels[test] == 4).astype(np.int32),
    class_names=("9", "4"),
    train_ids=mnist.train_ids[train],
  )


def make_task(config: MnistConfig, dataset: data.Dataset, seed: int) -> _task.Task:
  """Draws the 5000 images of a seed, and out of them the meta set, as many of each digit.

  Raises:
    ValueError: if a digit has too few images.
  """
  rng = np.random.default_rng(seed)
  num_rare = round((1 - config.majority_share) * NUM_IMAGES)
  counts = np.array([NUM_IMAGES - num_rare, num_rare])
  half = config.meta_size // 2
  if num_rare <= half:
    raise ValueError(
      f"--meta_size: a meta set of {config.meta_size} needs {half} images of the rare digit and "
      f"one more to train on, but at a share of {config.majority_share:.10g} there are {num_rare}"
    )
  drawn = [
    rng.choice(np.flatnonzero(dataset.train_labels == label), count, replace=False)
    for label, count in enumerate(counts)
  ]
  return _task.Task(
    labels=dataset.train_labels,
    train=np.sort(np.concatenate([part[half:] for part in drawn])).astype(np.int32),
    meta=np.sort(np.concatenate([part[:half] for part in drawn])).astype(np.int32),
    validation=np.empty(0, np.int32),
    is_noisy=np.zeros(len(dataset.train_labels), bool),
    num_classes=2,
  )


@functools.cache
def _binary_lenet() -> _model.Model:
  """The LeNet with one logit, as two: softmax of (0, z) is the sigmoid of z."""
  net = rw.models.LeNet(num_classes=1, kernel_init=nn.initializers.truncated_normal(0.1))
  apply_fn = rw.models.linen_apply(net)
  scaled = lambda images: jnp.asarray(images, jnp.float32) / 255

  def two_logits(
    params: Any, model_state: Any, inputs: Any, key: Any, train: bool
  ) -> tuple[Array, Any]:
    logit, model_state = apply_fn(params, model_state, scaled(inputs), key, train)
    return jnp.concatenate([jnp.zeros_like(logit), logit], axis=1), model_state

  two_logits.recorder = apply_fn.recorder  # type: ignore[attr-defined]
  return _model.from_apply(
    two_logits, lambda key, inputs: rw.models.init_linen(net, scaled(inputs), key)
  )


JOB = _command.Job(load, make_task, lambda config, dataset: _binary_lenet())


def commands(
  config: MnistConfig, shares: tuple[float, ...]
) -> dict[tuple[float, str], MnistConfig]:
  """(share, method) -> command; the methods of a share have a folder in common."""
  return {
    (share, name): dataclasses.replace(_at(config, share), methods=() if config.rules else (name,))
    for share in shares
    for name in config.run_names()
  }


def _at(config: MnistConfig, share: float) -> MnistConfig:
  folder = pathlib.Path(config.workdir or ROOT, f"share_{_report.exact(share)}")
  return dataclasses.replace(config, majority_share=share, workdir=str(folder))


def _shares_there(config: MnistConfig) -> list[float]:
  """The shares whose folders the workdir holds, whatever command made them."""
  folders = pathlib.Path(config.workdir or ROOT).glob("share_0.*")
  numbers = [folder.name.removeprefix("share_") for folder in folders]
  return sorted(float(number) for number in numbers if number[2:].isdecimal())


Results = Mapping[float, Mapping[str, Mapping[str, Any] | None]]
"""Share -> method -> the numbers of its summary; None where a loss was not finite."""


def plan(config: MnistConfig, shares: tuple[float, ...]) -> dict[tuple[float, str], _command.Plan]:
  """Everything that is to be run, looked at before the first of it runs.

  Raises:
    UsageError: if a number, a setting or a workdir does not fit.
    DataError: if the data cannot be read.
  """
  _check.check(config)
  words = "in [0.5, 1), such as 0.98,0.995"
  _command.check_numbers("majority_shares", shares, lambda share: 0.5 <= share < 1, words)
  if config.meta_size % 2:
    raise UsageError(f"--meta_size: expected an even number, got {config.meta_size}")
  for share in _shares_there(config):  # the summary has them too
    _workdir.check(dataclasses.replace(_at(config, share), resume=True))
  return {key: _command.plan(one, JOB) for key, one in commands(config, shares).items()}


def run(config: MnistConfig, shares: tuple[float, ...]) -> Results:
  """Runs every method at every share; what diverges is a result, and the rest goes on.

  The files in the workdir tell of all that has finished there, the answer of what was asked for.

  Raises:
    UsageError: before anything runs, if a number, a setting or a workdir does not fit.
  """
  plans = plan(config, shares)
  root = pathlib.Path(config.workdir or ROOT)
  with _command.at_work_in(root):
    found = _command.train_all(plans)
    there: dict[float, dict[str, Any]] = {
      share: _report.finished_summary(_at(config, share)) for share in _shares_there(config)
    }
    for (share, name), numbers in found.items():
      if numbers is None:
        there[share][name] = None
    _write(root, {share: methods for share, methods in there.items() if methods})
  return {share: {name: found[share, name] for name in config.run_names()} for share in shares}


def _write(root: pathlib.Path, results: Results) -> None:
  title = "# MNIST, 4 against 9, test error in %"
  runlog.write_text(root / "summary.md", f"{title}\n\n{table(results)}")
  runlog.write_json(root / "summary.json", {_report.exact(s): row for s, row in results.items()})
  names = _methods_of(results)
  points = {
    s: {name: row.get(name) or _report.UNKNOWN for name in names} for s, row in results.items()
  }
  _pictures.draw_error_curves(root / "error.png", points)


def _methods_of(results: Results) -> list[str]:
  """In the order of the protocol, others last."""
  found = {name for methods in results.values() for name in methods}
  return [name for name in METHODS if name in found] + sorted(found - set(METHODS))


def table(results: Results) -> str:
  """Test error in % at the last step, shares in columns, ours above what was published."""
  shares = list(results)
  lines = [["method", *(f"{100 * share:.10g} %" for share in shares)], ["---"] * (len(shares) + 1)]
  for method in _methods_of(results):
    lines.append([method, *(_cell(results[share], method) for share in shares)])
    known = dict(zip(SHARES, PUBLISHED.get(method, ()), strict=False))
    if set(known) & set(shares):
      lines.append([f"{method}, published", *(known.get(share, "-") for share in shares)])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(methods: Mapping[str, Mapping[str, Any] | None], method: str) -> str:
  numbers = methods.get(method)
  if numbers is None:
    return "diverged" if method in methods else "-"
  mean, spread = numbers["last"]["mean"], numbers["last"]["std"]
  error = f"{100 * (1 - mean):.2f}"
  return error if spread is None else f"{error} ± {100 * spread:.2f}"


def define_flags(values: flags.FlagValues) -> None:
  """The flags of `cifar_noisy` that apply, with the protocol's defaults, and the shares."""
  _flags.define_flags(values, DEFAULT, WITHOUT_FLAGS)
  flags.DEFINE_integer(
    "meta_batch_size",
    None,
    "clean examples a step; default 10, or all of fewer",
    flag_values=values,
  )
  shares = ",".join(map(str, SHARES))
  flags.DEFINE_string(
    "majority_shares", shares, "list of shares of the frequent digit", flag_values=values
  )


def main(values: flags.FlagValues) -> None:
  """Runs the command and prints its table."""
  config = _flags.config_of(values, DEFAULT)
  shares = _flags.numbers("majority_shares", values.majority_shares)
  _flags.apply_process_flags(values)
  print(table(run(config, shares)))
  print(
    "Test error in % at the last step, mean ± standard deviation over seeds. "
    f"Files: {config.workdir or ROOT}"
  )


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
