"""What rules know from outside the run: a finished run that they build on, or a file of ratios."""

import dataclasses
import pathlib

import numpy as np

from experiments import _methods
from experiments._config import Config
from experiments._errors import UsageError
from experiments._task import Task
from reweight_jax import data

RATIOS = "importance_file or --example_weights"
"""The flags by either of which ratios are given, in words."""


@dataclasses.dataclass(
  frozen=True, eq=False
)  # compared by identity: a step compiled with it is its
class Examples:
  """Numbers by position in the data set; those of examples that do not train are 0."""

  losses: np.ndarray | None = None  # [examples] of the reference run's last params, nats
  is_error: np.ndarray | None = None  # [examples] bool, where it contradicts the given label
  # [classes, classes], predicted by given: validation's, each class as frequent as it trains.
  confusion: np.ndarray | None = None
  target_predictions: np.ndarray | None = None  # [classes], how often it predicts each on test
  ratios: np.ndarray | None = None  # [examples] importance ratios


def read(
  config: Config, dataset: data.Dataset, task: Task, seed: int, *, ratios: bool, reference: bool
) -> Examples:
  """Reads what the rules of a run need.

  Raises:
    UsageError: if a flag is missing, or what it names is no such file or run, or of other data.
  """
  found = Examples()
  if ratios:
    found = dataclasses.replace(found, ratios=_read_ratios(config, dataset, task))
  if reference:
    found = dataclasses.replace(found, **_read_run(config, dataset, task, seed))
  return found


def _read_ratios(config: Config, dataset: data.Dataset, task: Task) -> np.ndarray:
  if not config.importance_file:
    raise UsageError(
      f"--{RATIOS}: expected an NPZ file with arrays index and ratio for importance_ratio; got none"
    )
  arrays = _read(RATIOS, pathlib.Path(config.importance_file), ("index", "ratio"))
  index, ratio = arrays["index"], arrays["ratio"]
  wrong = ~((ratio >= 0) & (ratio <= np.finfo(np.float32).max))
  if wrong.any():
    raise UsageError(
      f"--{RATIOS}: expected ratios of at least 0 that float32 can hold, got "
      f"{ratio[wrong][0]:g} for index {index[wrong][0]}"
    )
  ratios = np.full(len(task.labels), np.nan)
  ratios[_positions(dataset, index, RATIOS)] = ratio
  found, times = np.unique(index, return_counts=True)
  if len(found) < len(index):
    raise UsageError(
      f"--{RATIOS}: expected one ratio for each index, got {times.max()} for index "
      f"{found[times.argmax()]:g}; leave out all but one"
    )
  missing = np.isnan(ratios[task.train])
  if missing.any():
    raise UsageError(
      f"--{RATIOS}: expected a ratio for every training example, got none for "
      f"{int(missing.sum())} of them, first index {dataset.train_ids[task.train[missing][0]]}"
    )
  return np.nan_to_num(ratios)


def _read_run(
  config: Config, dataset: data.Dataset, task: Task, seed: int
) -> dict[str, np.ndarray]:
  if not config.reference:
    raise UsageError(
      "--reference: expected the folder WORKDIR/METHOD of finished runs with the same seeds, whose "
      "losses, errors or predictions the rules read; got none"
    )
  folder = pathlib.Path(config.reference) / f"seed_{seed}"
  _check_seed(folder, seed)
  columns: tuple[str, ...] = ("index", "given_label", "last_loss", "last_prediction")
  entries = _read("reference", folder / "weights.npz", columns)
  places = _positions(dataset, entries["index"], "reference")
  if not np.array_equal(np.sort(places), np.sort(task.train)) or not np.array_equal(
    entries["given_label"], task.labels[places]
  ):
    raise UsageError(
      f"--reference: {folder} was trained on other examples or labels; run it with the same data "
      "set, noise, sizes and seed"
    )
  losses, is_error = np.zeros(len(task.labels)), np.zeros(len(task.labels), bool)
  losses[places] = entries["last_loss"]
  is_error[places] = entries["last_prediction"] != entries["given_label"]
  columns = ("test_prediction", "validation_prediction", "validation_label")
  predictions = _read("reference", folder / "predictions.npz", columns)
  confusion = np.zeros((task.num_classes, task.num_classes))
  np.add.at(confusion, (predictions["validation_prediction"], predictions["validation_label"]), 1)
  # Validation may be less imbalanced than training, or by chance have other shares.
  confusion *= task.class_counts("train") / np.maximum(confusion.sum(axis=0), 1)
  target = np.bincount(predictions["test_prediction"], minlength=task.num_classes)
  return {
    "losses": losses,
    "is_error": is_error,
    "confusion": confusion,
    "target_predictions": target,
  }


def _check_seed(folder: pathlib.Path, seed: int) -> None:
  """Raises UsageError, with what to run, if other seeds of the reference are there and not this."""
  method = folder.parent
  names = [path.parent.name for path in method.glob("seed_*/weights.npz")]
  there = sorted(int(name[5:]) for name in names if name[5:].isdecimal())
  if there and seed not in there:
    same = f"--method={method.name}" if method.name in _methods.METHODS else "the same --rules"
    raise UsageError(
      f"--reference: expected a finished run of seed {seed} in {method}, got seeds "
      f"{', '.join(map(str, there))}; run the command of {method.parent} again with "
      f"{same} and --seeds={seed}"
    )


def _positions(dataset: data.Dataset, ids: np.ndarray, flag: str) -> np.ndarray:
  order = np.argsort(dataset.train_ids)
  places = order[np.clip(np.searchsorted(dataset.train_ids[order], ids), 0, len(order) - 1)]
  if not np.array_equal(dataset.train_ids[places], ids):
    unknown = ids[dataset.train_ids[places] != ids]
    raise UsageError(f"--{flag}: {dataset.name} has no training example of index {unknown[0]}")
  return places


def _read(flag: str, path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
  try:
    arrays = data.read_npz(path)
  except data.DataError as error:
    raise UsageError(f"--{flag}: {error}") from error
  for name in names:
    if name not in arrays:
      raise UsageError(
        f"--{flag}: expected an array {name} in {path}, got {', '.join(sorted(arrays))}"
      )
    if flag == RATIOS and (arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iuf"):
      raise UsageError(
        f"--{flag}: expected {name} of {path} to be a vector of numbers, got {arrays[name].dtype} "
        f"of shape {arrays[name].shape}"
      )
    if flag == RATIOS and len(arrays[name]) != len(arrays[names[0]]):
      raise UsageError(
        f"--{flag}: expected as many numbers in {name} as in {names[0]} of {path}, got "
        f"{len(arrays[name])} and {len(arrays[names[0]])}"
      )
  return arrays
