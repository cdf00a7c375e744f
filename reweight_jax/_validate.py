"""Checks at the doors of public functions: of plain numbers and shapes, never of tracers."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_number(
  name: str,
  value: Any,
  *,
  at_least: float = -math.inf,
  above: float = -math.inf,
  at_most: float = math.inf,
  below: float = math.inf,
  whole: bool = False,
) -> None:
  """Raises ValueError if a plain number is infinite, outside its range, or not whole where that is
  asked for; arrays and tracers pass unread.
  """
  if isinstance(value, bool) or value is None or isinstance(value, str):
    raise TypeError(f"{name} expects a number, got {value!r}.")
  if not isinstance(value, (int, float, np.number)):
    return
  in_range = value >= at_least and value > above and value <= at_most and value < below
  if not in_range or (whole and float(value) % 1 != 0):
    limits = [
      text
      for bound, text in (
        (at_least, f">= {at_least:g}"),
        (above, f"> {above:g}"),
        (at_most, f"<= {at_most:g}"),
        (below, f"< {below:g}"),
      )
      if math.isfinite(bound)
    ]
    # Where a range has no end on one side, infinity is what the limits alone would not refuse.
    kind = "whole" if whole else "finite" if not limits or abs(value) == math.inf else ""
    what = " ".join(word for word in ("a", kind, "number", " and ".join(limits)) if word)
    raise ValueError(f"{name} expects {what}, got {value}.")


def check_decay(name: str, value: Any) -> None:
  """Raises ValueError unless a plain number is in [0, 1), in float32 too: at 1 nothing moves."""
  check_number(name, value, at_least=0, below=1)
  if isinstance(value, float) and np.float32(value) == 1:
    raise ValueError(f"{name} expects a number that float32 can tell from 1, got {value}.")


def check_table(name: str, values: Any, row: str, *, at_least: float = 0.0) -> np.ndarray:
  """Returns plain numbers, one for each class or example, or raises ValueError naming the first
  that is not finite or too small; concrete arrays are read.
  """
  table = np.asarray(values)
  if table.ndim != 1 or table.size == 0 or not np.issubdtype(table.dtype, np.number):
    raise ValueError(
      f"{name} expects a vector of one number for each {row}, got {table.dtype} of shape "
      f"{table.shape}."
    )
  good = np.isfinite(table) & (table >= at_least)
  if not good.all():
    first = int(np.argmin(good))
    limit = "" if at_least == -math.inf else f" >= {at_least:g}"
    raise ValueError(f"{name} expects finite numbers{limit}, got {table[first]} for {row} {first}.")
  return table


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raises ValueError if a word is not one of the choices."""
  if value not in choices:
    raise ValueError(f"{name} expects one of {', '.join(choices)}; got {value!r}.")


def check_floating(tree: Any, name: str) -> None:
  """Raises TypeError naming the first leaf that is not a floating array."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"{name} expects floating leaves, got {dtype} at {name}{jax.tree_util.keystr(path)}. "
        "Keep integers and keys in model_state."
      )
