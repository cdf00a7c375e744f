"""One seed's task: which examples train, which are trusted, and which labels are wrong."""

from typing import NamedTuple

import numpy as np

from experiments._config import Config
from reweight_jax import data


class Task(NamedTuple):
  """One seed's disjoint sets, as positions in the data set, and the labels that a run may see."""

  labels: np.ndarray  # [examples] int32: noisy in train and validation, clean in meta unless asked
  train: np.ndarray  # positions, int32, sorted
  meta: np.ndarray
  validation: np.ndarray
  is_noisy: np.ndarray  # [examples] bool, only audits may know
  num_classes: int

  def positions(self, source: str) -> np.ndarray:
    """The positions of "train" or "meta"."""
    return self.train if source == "train" else self.meta

  def class_counts(self, source: str) -> tuple[int, ...]:
    """How often each class is among the labels of "train" or "meta"."""
    labels = self.labels[self.positions(source)]
    return tuple(np.bincount(labels, minlength=self.num_classes).tolist())


def make_task(config: Config, dataset: data.Dataset, seed: int) -> Task:
  """Splits a data set, thins out classes and corrupts the labels of training and validation.

  Those of the meta set too if the configuration says so.

  Guarantees: train, meta and validation share no example, asserted by index; the clean meta set is
  stratified by the true class; all randomness comes from `seed`.

  Raises:
    ValueError: if the data set has one class, the sizes do not fit it or leave a class out where
      imbalance needs all, or it does not know the noise.
  """
  if dataset.num_classes < 2:
    raise ValueError(f"{dataset.name}: expected at least 2 classes, got 1: nothing can be learned")
  rng = np.random.default_rng(seed)
  clean, num_classes = dataset.train_labels, dataset.num_classes
  split = data.split_indices(
    clean,
    num_classes,
    meta_size=config.meta_size,
    validation_size=config.validation_size,
    rng=rng,
  )
  if config.train_size is not None:
    split = split._replace(train=_some(split.train, config.train_size, seed))
  if config.imbalance != "none":
    split = split._replace(
      train=_thinned(config, clean, split.train, num_classes, seed),
      validation=_thinned(config, clean, split.validation, num_classes, seed, is_validation=True),
    )
  labels = clean.astype(np.int32)
  noisy_parts = [split.train, split.validation]
  noisy_parts += [split.meta] if config.meta_labels == "noisy" else []
  for part in noisy_parts:
    if part.size:
      labels[part] = _noisy_labels(config, dataset, part, seed)
  data.assert_disjoint(split)
  return Task(
    labels, split.train, split.meta, split.validation, labels != clean, dataset.num_classes
  )


def _some(part: np.ndarray, size: int, seed: int) -> np.ndarray:
  if size > len(part):
    raise ValueError(
      f"--train_size: expected at most the {len(part)} examples that meta and validation leave, "
      f"got {size}"
    )
  return np.sort(np.random.default_rng([seed, 3]).choice(part, size, replace=False))


def _thinned(
  config: Config,
  labels: np.ndarray,
  part: np.ndarray,
  num_classes: int,
  seed: int,
  *,
  is_validation: bool = False,
) -> np.ndarray:
  if not part.size:
    return part
  flag, ratio = "validation_size" if is_validation else "train_size", config.imbalance_ratio
  counts = np.bincount(labels[part], minlength=num_classes)
  if not counts.all():
    raise ValueError(
      f"--{flag}: expected examples of every class for --imbalance={config.imbalance}, got none of "
      f"class {counts.argmin()} among {len(part)}; give more{' or 0' if is_validation else ''}"
    )
  if is_validation:  # small as it is, every class stays in it
    ratio = min(ratio, float(counts.min()))
  kept = data.imbalanced_indices(
    labels[part],
    num_classes,
    config.imbalance,
    ratio,
    np.random.default_rng([seed, 2]),
  )
  return part[kept]


def _noisy_labels(config: Config, dataset: data.Dataset, part: np.ndarray, seed: int) -> np.ndarray:
  if config.noise.startswith(HUMAN):
    kind = config.noise.removeprefix(HUMAN)
    return data.human_labels(config.human_labels or "", kind, dataset)[part]
  flips = None
  if config.noise == "asymmetric":
    flips = data.asymmetric_flips(dataset.name, dataset.class_names)
  # Equal generators: training and validation share the background class.
  return data.corrupt_labels(
    dataset.train_labels[part],
    dataset.num_classes,
    config.noise,
    config.rate_of_noise(),
    np.random.default_rng([seed, 1]),
    flips=flips,
  ).labels


HUMAN = "human:"
"""What the names of human noise begin with; the rest names a vector of the file of labels."""
