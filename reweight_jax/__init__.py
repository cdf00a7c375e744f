"""Example weighting for deep learning in JAX.

>>> import reweight_jax as rw
>>> rule = rw.meta.learning_to_reweight()

The core (types, augment, densities, losses, metrics, margins, ghost, per_example, rules, meta,
difficulty, training, sharding) needs jax and optax. The edges (data, models, checkpointing, runlog,
plotting) load on first use.
"""

import importlib
from types import ModuleType

from reweight_jax import (
  augment,
  densities,
  difficulty,
  ghost,
  ledger,
  losses,
  margins,
  meta,
  metrics,
  per_example,
  rules,
  sharding,
  training,
  types,
)

__version__ = "0.1.0"

_EDGES = ("checkpointing", "data", "models", "plotting", "runlog")

__all__ = [
  "augment",
  "checkpointing",
  "data",
  "densities",
  "difficulty",
  "ghost",
  "ledger",
  "losses",
  "margins",
  "meta",
  "metrics",
  "models",
  "per_example",
  "plotting",
  "rules",
  "runlog",
  "sharding",
  "training",
  "types",
]


def __getattr__(name: str) -> ModuleType:
  if name in _EDGES:
    return importlib.import_module(f"reweight_jax.{name}")
  raise AttributeError(f"module 'reweight_jax' has no attribute {name!r}")
