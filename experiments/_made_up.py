"""A made-up task with two classes, a nonlinear boundary and a model that is fitted exactly."""

import math
from typing import NamedTuple

import numpy as np

DIMENSIONS, NUM_UNITS = 10, 300
_POOL = 20  # points drawn for each one kept, so that both classes have enough


class MadeUp(NamedTuple):
  """Examples with their clean labels, the test set balanced by nothing but its size."""

  features: np.ndarray  # [examples, features], in double precision
  labels: np.ndarray  # [examples] int32, 0 or 1
  test_features: np.ndarray
  test_labels: np.ndarray


def draw(
  rng: np.random.Generator, num_examples: int, ratio: float = 1.0, num_test: int = 10_000
) -> MadeUp:
  """Normal points, cut at the median of a random quadratic function; random ReLU features of them.

  311 features: 300 units, the 10 coordinates and a constant, all halved, which puts an L2 penalty
  of 1e-3 between fitting too little and fitting every wrong label.

  Args:
    rng: draws all of it.
    num_examples: for training.
    ratio: class 0 to class 1 among those, at least 1; the test set has both alike.
    num_test: for testing.
  """
  form = rng.standard_normal((DIMENSIONS, DIMENSIONS))
  form = (form + form.T) / np.linalg.norm(form + form.T)
  slope = rng.standard_normal(DIMENSIONS)
  slope /= np.linalg.norm(slope)
  kernel, offsets = rng.standard_normal((DIMENSIONS, NUM_UNITS)), rng.standard_normal(NUM_UNITS)
  points = rng.standard_normal((_POOL * num_examples + num_test, DIMENSIONS))
  values = points @ slope + ((points @ form) * points).sum(1)
  labels = (values > np.median(values)).astype(np.int32)
  rare = round(num_examples / (1 + ratio))
  pool = labels[num_test:]
  chosen = [np.flatnonzero(pool == 0)[: num_examples - rare], np.flatnonzero(pool == 1)[:rare]]
  rows = num_test + rng.permutation(np.concatenate(chosen))

  def features(points: np.ndarray) -> np.ndarray:
    units = np.maximum(points @ kernel / math.sqrt(DIMENSIONS) + offsets, 0)
    return np.concatenate([units, points, np.ones((len(points), 1))], axis=1) / 2

  return MadeUp(
    features(points[rows]), labels[rows], features(points[:num_test]), labels[:num_test]
  )


def fit_logistic(
  features: np.ndarray, labels: np.ndarray, weights: np.ndarray, l2: float
) -> np.ndarray:
  """The weighted logistic regression with an L2 penalty: `[features]` params, by Newton's method.

  Minimizes the weighted mean of the losses plus `l2 / 2` times the squared length of the params,
  which has one minimum.
  """
  signed = np.where(labels == 1, 1.0, -1.0)[:, None] * features
  shares = weights / weights.sum()
  params = np.zeros(features.shape[1])
  objective = lambda params: shares @ np.logaddexp(0, -(signed @ params)) + l2 / 2 * params @ params
  value = objective(params)
  for _ in range(100):
    wrong = np.exp(-np.logaddexp(0, signed @ params))  # the probability of the other class
    gradient = l2 * params - signed.T @ (shares * wrong)
    hessian = (signed * (shares * wrong * (1 - wrong))[:, None]).T @ signed
    hessian[np.diag_indices_from(hessian)] += l2
    step = np.linalg.solve(hessian, gradient)
    decrease = gradient @ step
    if decrease < 1e-12:
      break
    size = 1.0
    while objective(params - size * step) > value - 1e-4 * size * decrease and size > 1e-6:
      size /= 2
    params = params - size * step
    value = objective(params)
  return params


def log_probs(features: np.ndarray, params: np.ndarray) -> np.ndarray:
  """The model's log-probabilities `[examples, 2]`."""
  logits = features @ params
  return -np.logaddexp(0, np.stack([logits, -logits], axis=-1))


def balanced_accuracy(features: np.ndarray, labels: np.ndarray, params: np.ndarray) -> float:
  """The mean over both classes of the share that is right."""
  is_right = (features @ params > 0) == (labels == 1)
  return float((is_right[labels == 0].mean() + is_right[labels == 1].mean()) / 2)
