"""Signs that a run has collapsed although its numbers are finite."""

from collections.abc import Mapping, Sequence
from typing import Any

CONSTANT = 0.98
"""The share of predictions that are one class from which on a model counts as constant."""


def warning(rows: Sequence[Mapping[str, Any]], num_classes: int) -> str | None:
  """What to tell when the newest row of a run log shows a collapse; None if it does not.

  A run that starts out constant or at chance has not collapsed: an earlier row must have been
  better. Each run is warned of once.

  Args:
    rows: the rows so far, the newest last.
    num_classes: how many classes there are.

  Returns:
    The warning, or None.
  """
  *earlier, row = rows
  if not earlier or any("warning" in other for other in earlier):
    return None
  advice = "lower --learning_rate or --momentum, or use a model with --norm"
  shares = [other["largest_predicted_share"] for other in rows]
  share = min(shares[-2:])  # two rows running: under noise plain training is constant now and then
  if share >= CONSTANT and min(shares) < 0.9:
    return f"collapse: {100 * share:.0f} % of the test images are taken for one class; {advice}"
  chance, accuracy = 1 / num_classes, row["validation_accuracy"]
  if accuracy is not None:
    best = max(other["validation_accuracy"] for other in earlier)
    if best > 3 * chance and accuracy <= 1.2 * chance:
      return (
        f"collapse: accuracy on noisy validation data fell from {100 * best:.0f} % to "
        f"{100 * accuracy:.0f} %, chance is {100 * chance:.0f} %; {advice}"
      )
  if row["effective_sample_size"] < 2 <= earlier[-1]["effective_sample_size"]:
    return (
      f"the weights of a batch count as {row['effective_sample_size']:.1f} examples: its gradient "
      f"is as noisy as that of so few; {advice}, or mix in uniform weights"
    )
  return None
