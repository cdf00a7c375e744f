"""Difficulty from training dynamics: the scores of what a run showed of each example."""

from collections.abc import Callable

import jax.numpy as jnp

from reweight_jax.difficulty._record import (
  Dynamics,
  dynamics_of,
  init_dynamics,
  observe,
  record_dynamics,
)
from reweight_jax.types import Array


def _where_seen(dynamics: Dynamics, score: Array) -> Array:
  """To be documented."""
  return jnp.where(dynamics.times_seen > 0, score, jnp.nan)


def final_loss(dynamics: Dynamics) -> Array:
  """To be documented."""
  return _where_seen(dynamics, dynamics.last_loss)


def final_negative_margin(dynamics: Dynamics) -> Array:
  """To be documented."""
  return _where_seen(dynamics, -dynamics.last_margin)


def incorrectness(dynamics: Dynamics) -> Array:
  """To be documented."""
  dtype = dynamics.mean_loss.dtype
  seen = jnp.maximum(dynamics.times_seen, 1).astype(dtype)
  return _where_seen(dynamics, 1 - dynamics.times_correct.astype(dtype) / seen)


Measure = Callable[[Dynamics], Array]
OF_DYNAMICS: dict[str, Measure] = {
  measure.__name__: measure for measure in (final_loss, final_negative_margin, incorrectness)
}

__all__ = [
  "OF_DYNAMICS",
  "Dynamics",
  "dynamics_of",
  "final_loss",
  "final_negative_margin",
  "incorrectness",
  "init_dynamics",
  "observe",
  "record_dynamics",
]
