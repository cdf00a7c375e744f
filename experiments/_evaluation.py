"""Evaluation: predictions of a model on a whole set, in batches of one size."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reweight_jax as rw
from reweight_jax.types import Array, Batch, Params, PerExampleLoss

BATCH_SIZE = 500

Predict = Callable[[Params, Any, Batch], np.ndarray]


def make_predictor(eval_loss_fn: PerExampleLoss) -> Predict:
  """The predicted classes of a whole set, as `padded` makes it; padding is left out."""

  @jax.jit
  def classes(params: Params, model_state: Any, batch: Batch) -> Array:
    return jnp.argmax(eval_loss_fn(params, model_state, batch, None).logits, -1)

  def predict(params: Params, model_state: Any, examples: Batch) -> np.ndarray:
    total = examples.mask.shape[0]
    size = min(BATCH_SIZE, total)
    parts = [
      classes(
        params,
        model_state,
        jax.tree.map(operator.itemgetter(slice(start, start + size)), examples),
      )
      for start in range(0, total, size)
    ]
    return np.concatenate(jax.device_get(parts))[np.asarray(examples.mask)]

  return predict


def accuracy(predictions: np.ndarray, examples: Batch) -> float:
  """The share of predictions that are the examples' labels."""
  return float(np.mean(predictions == np.asarray(examples.labels)[np.asarray(examples.mask)]))


def padded(inputs: np.ndarray, labels: np.ndarray) -> Batch | None:
  """A whole set as one batch on the device, padded to full evaluation batches; None if empty."""
  size = len(labels)
  if size == 0:
    return None
  padding = -size % min(BATCH_SIZE, size)
  rows = np.concatenate([np.arange(size), np.zeros(padding, np.int64)])
  mask = jnp.arange(size + padding) < size
  return rw.types.make_batch(inputs[rows], labels[rows], mask=mask)
