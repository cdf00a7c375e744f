"""The images that weigh least and most in each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from reweight_jax.plotting.curves import COLORS

MAX_CLASSES = 10
WRONG, RIGHT = COLORS[1], COLORS[0]
HEIGHT = 1.25  # of a row, in columns


def weight_gallery(
  axes: Axes,
  images: np.ndarray,
  labels: np.ndarray,
  weights: np.ndarray,
  class_names: Sequence[str],
  *,
  is_noisy: np.ndarray | None = None,
  true_labels: np.ndarray | None = None,
  per_class: int = 5,
) -> None:
  """Draws a row for each class: its images of the smallest weights, then those of the largest.

  A wrong label has a frame of its own color and the name of the true class.

  Edge cases: images without a weight (NaN) are left out; of more than ten classes the first ten
  that have weighed images are shown, and the title says so; a class with fewer images than places
  shows each at most once.

  Args:
    axes: where to draw; each class wants about 1.2 inches of height and twice `per_class` of width.
    images: `[examples, height, width, channels]` uint8, of 1 or 3 channels.
    labels: `[examples]` given classes, by which the rows go.
    weights: `[examples]`, 1 is an ordinary example.
    class_names: a name for each class.
    is_noisy: `[examples]` bool, which labels are known to be wrong; None if unknown.
    true_labels: `[examples]` true classes, named under wrong labels.
    per_class: images on each side, at least 1.
  """
  seen = np.isfinite(weights)
  shown = [label for label in range(len(class_names)) if (seen & (labels == label)).any()]
  title = "smallest mean weights on the left, largest on the right"
  if len(shown) > MAX_CLASSES:
    title += f"; {MAX_CLASSES} of {len(shown)} classes"
    shown = shown[:MAX_CLASSES]
  if is_noisy is not None:
    title += "\nframed in orange: label known to be wrong, its true class below"
  axes.set_title(title, fontsize="medium")
  for row, label in enumerate(shown):
    members = np.flatnonzero(seen & (labels == label))
    order = members[np.argsort(weights[members], kind="stable")]
    low = order[:per_class]
    high = order[len(low) :][-per_class:]
    columns = [*range(len(low)), *range(2 * per_class - len(high), 2 * per_class)]
    for column, place in zip(columns, [*low.tolist(), *high.tolist()], strict=True):
      wrong = is_noisy is not None and bool(is_noisy[place])
      name = class_names[true_labels[place]] if wrong and true_labels is not None else ""
      _draw(axes, row, column + (column >= per_class) * 0.3, images[place], wrong)
      text = f"{weights[place]:.2g}"
      x, y = column + (column >= per_class) * 0.3 + 0.4, row * HEIGHT
      axes.text(x, y - 0.03, text, ha="center", va="bottom", fontsize="x-small")
      axes.text(x, y + 0.83, name, ha="center", va="top", fontsize="x-small", color=WRONG)
  axes.set_xlim(-0.1, 2 * per_class + 0.3)
  axes.set_ylim(HEIGHT * len(shown), -0.35)
  axes.set_xticks([])
  axes.set_yticks([HEIGHT * row + 0.4 for row in range(len(shown))])
  axes.set_yticklabels([class_names[label] for label in shown])
  axes.set_ylabel("given class")
  axes.set_aspect("equal")
  axes.spines[:].set_visible(False)


def _draw(axes: Axes, row: int, column: float, image: np.ndarray, wrong: bool) -> None:
  """An image of side 0.8 and its frame."""
  x, y = column, row * HEIGHT
  pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
  axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + 0.8, y + 0.8, y))
  axes.add_patch(
    Rectangle(
      (x, y),
      0.8,
      0.8,
      fill=False,
      edgecolor=WRONG if wrong else RIGHT,
      linewidth=2.5 if wrong else 0.8,
    )
  )
