"""One seed's task: which examples train, which are trusted, and which labels are wrong."""

from typing import NamedTuple

import numpy as np

from reweight_jax import data


class Examples(NamedTuple):
  """Inputs and labels on the host."""

  inputs: np.ndarray  # [examples, height, width, channels] uint8
  labels: np.ndarray  # [examples] int32


class Task(NamedTuple):
  """The four disjoint sets of one seed, with what only audits may know."""

  train: Examples  # noisy labels
  meta: Examples  # clean labels
  validation: Examples  # noisy labels
  test: Examples  # clean labels
  train_ids: np.ndarray  # [train examples] int32, where each stood in the original data set
  is_noisy: np.ndarray  # [train examples] bool
  realized_rate: float
  num_classes: int


def make_task(
  dataset: data.Dataset,
  *,
  noise: str,
  noise_rate: float,
  meta_size: int,
  validation_size: int,
  seed: int,
) -> Task:
  """Splits a data set and corrupts the labels of its training and validation parts.

  Guarantees: train, meta and validation share no example, asserted by index; the clean meta set is
  stratified by the true class; all randomness comes from `seed`.

  Raises:
    ValueError: if the sizes do not fit the data set, or noise or rate are out of range.
  """
  rng = np.random.default_rng(seed)
  split = data.split_indices(
    dataset.train_labels,
    dataset.num_classes,
    meta_size=meta_size,
    validation_size=validation_size,
    rng=rng,
  )

  def corrupt(indices: np.ndarray) -> data.NoisyLabels:
    # Equal generators: training and validation share the background class.
    noise_rng = np.random.default_rng([seed, 1])
    labels = dataset.train_labels[indices]
    if not labels.size:
      return data.NoisyLabels(labels, np.zeros(0, bool), 0.0)
    return data.corrupt_labels(labels, dataset.num_classes, noise, noise_rate, noise_rng)

  train, validation = corrupt(split.train), corrupt(split.validation)
  inputs = dataset.train_inputs
  return Task(
    train=Examples(inputs[split.train], train.labels),
    meta=Examples(inputs[split.meta], dataset.train_labels[split.meta]),
    validation=Examples(inputs[split.validation], validation.labels),
    test=Examples(dataset.test_inputs, dataset.test_labels),
    train_ids=dataset.train_ids[split.train],
    is_noisy=train.is_noisy,
    realized_rate=train.realized_rate,
    num_classes=dataset.num_classes,
  )
