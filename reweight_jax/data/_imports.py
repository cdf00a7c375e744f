"""Imports of packages that only some data sets need."""

import importlib
from typing import Any


def import_or_explain(module: str) -> Any:
  """Imports a module, or raises an ImportError that says what to install."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f"this data set needs {module}, which cannot be imported ({error}); "
      'install it with pip install "reweight_jax[experiments]".'
    ) from error
