"""Checks at the doors of the drawing functions."""

from collections.abc import Sequence

import numpy as np


def check_lengths(**arrays: np.ndarray | None) -> None:
  """Raises ValueError unless all arrays have as many examples as the first; None passes."""
  present = {name: np.shape(array) for name, array in arrays.items() if array is not None}
  (first, shape), *others = present.items()
  for name, other in others:
    if other[:1] != shape[:1]:
      raise ValueError(
        f"{name} expects one entry for each of {first}, {shape[:1]}; got shape {other}. "
        "Select the same examples in both."
      )


def check_classes(name: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
  """Raises ValueError if a label has no class name."""
  bad = labels[(labels < 0) | (labels >= len(class_names))]
  if bad.size:
    raise ValueError(
      f"{name} expects classes from 0 to {len(class_names) - 1}, got {bad[0]}. "
      "Give a name for each class."
    )
