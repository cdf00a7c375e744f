"""Evaluation: predictions of a model on a whole set, in batches of one size."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import reweight_jax as rw
from reweight_jax.types import Array, Batch, Params, PerExampleLoss

BATCH_SIZE = 500


class Predictions(NamedTuple):
  """What a model says of a whole set."""

  classes: np.ndarray  # [examples] integers, the most probable ones
  losses: np.ndarray  # [examples] of the labels given, nats
  margins: np.ndarray  # [examples] of the labels given
  gaps: np.ndarray  # [examples] by how much the largest logit is above the second


Predict = Callable[[Params, Any, Batch], Predictions]


def make_predictor(eval_loss_fn: PerExampleLoss) -> Predict:
  """The predictions for a whole set, as `padded` makes it; padding is left out."""

  @jax.jit
  def evaluate(params: Params, model_state: Any, batch: Batch) -> tuple[Array, ...]:
    outputs = eval_loss_fn(params, model_state, batch, None)
    margins = rw.margins.output_margins(outputs.logits, batch.labels)
    first, second = jax.lax.top_k(outputs.logits, 2)[0].T
    return jnp.argmax(outputs.logits, -1), outputs.losses, margins, first - second

  def predict(params: Params, model_state: Any, examples: Batch) -> Predictions:
    total = examples.mask.shape[0]
    size = min(BATCH_SIZE, total)
    parts = [
      evaluate(
        params,
        model_state,
        jax.tree.map(operator.itemgetter(slice(start, start + size)), examples),
      )
      for start in range(0, total, size)
    ]
    mask = np.asarray(examples.mask)
    columns = zip(*jax.device_get(parts), strict=True)
    return Predictions(*(np.concatenate(column)[mask] for column in columns))

  return predict


def accuracy(predicted: np.ndarray, examples: Batch, *, by_class: bool = False) -> float:
  """The share of predicted classes that are the labels; by class, the mean of the classes' shares.

  Classes without examples do not count.
  """
  labels = np.asarray(examples.labels)[np.asarray(examples.mask)]
  is_right = predicted == labels
  if not by_class:
    return float(np.mean(is_right))
  return float(np.mean([np.mean(is_right[labels == label]) for label in np.unique(labels)]))


def padded(inputs: np.ndarray, labels: np.ndarray) -> Batch | None:
  """A whole set as one batch on the device, padded to full evaluation batches; None if empty."""
  size = len(labels)
  if size == 0:
    return None
  padding = -size % min(BATCH_SIZE, size)
  rows = np.concatenate([np.arange(size), np.zeros(padding, np.int64)])
  mask = jnp.arange(size + padding) < size
  return rw.types.make_batch(inputs[rows], labels[rows], mask=mask)
