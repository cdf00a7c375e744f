"""Signs that a run has collapsed although its numbers are finite."""

from collections.abc import Mapping, Sequence
from typing import Any


def warning(rows: Sequence[Mapping[str, Any]], num_classes: int, batch_size: int) -> str | None:
  """What to tell when the newest row of a run log shows a collapse; None if it does not.

  Each run is warned of once.
  """
  if any("warning" in earlier for earlier in rows[:-1]):
    return None
  chance = 1 / num_classes
  accuracies = [earlier["validation_accuracy"] for earlier in rows]
  if accuracies[-1] is not None and max(accuracies) > 2 * chance >= 1.5 * accuracies[-1]:
    return (
      f"accuracy on the noisy validation set fell to {100 * accuracies[-1]:.1f} %, chance is "
      f"{100 * chance:.1f} %; lower --learning_rate"
    )
  return None
