"""The images that weigh least and most in each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from reweight_jax._validate import check_number
from reweight_jax.plotting._checks import check_classes, check_lengths
from reweight_jax.plotting.curves import COLORS

MAX_CLASSES = 10
MAX_NAME = 13  # letters that fit under or beside an image
WRONG, OTHER = COLORS[1], COLORS[0]
SAME = 1e-5  # weights that differ by less are those of one rounded mean
SIDE, HEIGHT, GAP = 0.8, 1.25, 0.3  # of an image, of a row, between the halves; in columns


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
  """Draws a row for each given class: its images of the smallest weights, then of the largest.

  Each has its weight above it. A label known to be wrong has a thick orange frame and, below, the
  name of the true class; all other frames are thin and blue.

  Guarantees: from left to right the weights of a row never fall; equal weights stay in the order of
  the examples, and where no class has any others the title says so; no image is shown twice.
  Edge cases: examples never seen (NaN) are left out, and so are classes without any other; of more
  than ten classes the ten of lowest mean weight are shown, and the title says so; a class with
  fewer images than places has half of them on each side; long names lose their middle.

  Args:
    axes: where to draw; each class wants about 1.1 inches of height, each image 0.8 of width.
    images: `[examples, height, width, channels]` uint8, of 1 or 3 channels.
    labels: `[examples]` given classes, by which the rows go.
    weights: `[examples]` mean weights, 1 is an ordinary example.
    class_names: a name for each class.
    is_noisy: `[examples]` bool, which labels are known to be wrong; None if unknown.
    true_labels: `[examples]` true classes, named under wrong labels; None if unknown.
    per_class: images on each side, at least 1.

  Raises:
    ValueError: if the arrays are of different lengths, images are not as above, or a class has no
      name.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> images = np.zeros((3, 8, 8, 1), np.uint8)
    >>> weight_gallery(axes, images, np.zeros(3, int), np.array([2.0, 0.0, 0.5]), ["zero"])
    >>> [text.get_text() for text in axes.texts]
    ['0', '0.5', '2']
  """
  images, labels, weights = np.asarray(images), np.asarray(labels), np.asarray(weights)
  check_lengths(
    images=images, labels=labels, weights=weights, is_noisy=is_noisy, true_labels=true_labels
  )
  check_classes("labels", labels, class_names)
  check_number("per_class", per_class, at_least=1)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise ValueError(
      "images expects uint8 [examples, height, width, 1 or 3 channels], got "
      f"{images.dtype} {list(images.shape)}. Undo scaling and flattening."
    )
  is_wrong = np.zeros(len(labels), bool) if is_noisy is None else np.asarray(is_noisy, bool)
  rows = _rows(labels, weights)
  shown = sorted(sorted(rows, key=lambda label: weights[rows[label]].mean())[:MAX_CLASSES])
  for row, label in enumerate(shown):
    for column, example in _places(rows[label], per_class):
      x, y = column, row * HEIGHT
      _draw(axes, x, y, images[example], bool(is_wrong[example]))
      middle = x + SIDE / 2
      text = f"{weights[example]:.2g}"
      axes.text(middle, y - 0.03, text, ha="center", va="bottom", fontsize="x-small")
      if is_wrong[example] and true_labels is not None:
        name = _cut(class_names[int(true_labels[example])])
        axes.text(
          middle, y + SIDE + 0.03, name, ha="center", va="top", fontsize="x-small", color=WRONG
        )
  title = "in each given class: smallest mean weights on the left, largest on the right"
  if rows and all(np.ptp(weights[row]) <= SAME * weights[row].max() for row in rows.values()):
    title = "in each given class all mean weights are equal: the first images and the last"
  if len(shown) < len(rows):
    title += f"\nthe {len(shown)} of {len(rows)} classes of lowest mean weight"
  if is_noisy is not None:
    title += "\nthick orange frame: label known to be wrong"
    title += ", true class below" if true_labels is not None else ""
  axes.set_title(title, fontsize="medium")
  axes.set_xlim(-0.1, 2 * per_class + GAP)
  axes.set_ylim(HEIGHT * max(len(shown), 1), -0.35)
  axes.set_xticks([])
  names = [_cut(class_names[label]) for label in shown]
  axes.set_yticks([HEIGHT * row + SIDE / 2 for row in range(len(shown))], names, fontsize="small")
  axes.tick_params(length=0)
  axes.set_aspect("equal")
  axes.spines[:].set_visible(False)


def _rows(labels: np.ndarray, weights: np.ndarray) -> dict[int, np.ndarray]:
  """Class -> its examples that were seen, by growing weight."""
  seen = np.flatnonzero(np.isfinite(weights))
  order = seen[np.argsort(weights[seen], kind="stable")]
  return {int(label): order[labels[order] == label] for label in np.unique(labels[seen])}


def _places(order: np.ndarray, per_class: int) -> list[tuple[float, int]]:
  """Columns and examples of a row: the first half from the left, the second up to the right."""
  num_low = min(per_class, -(-len(order) // 2))
  low, high = order[:num_low], order[num_low:][-per_class:]
  first = 2 * per_class - len(high) + GAP
  return [
    *((float(i), int(example)) for i, example in enumerate(low)),
    *((first + i, int(example)) for i, example in enumerate(high)),
  ]


def _cut(name: str) -> str:
  """A name that fits under or beside an image; the ends stay, which tell numbered names apart."""
  if len(name) <= MAX_NAME:
    return name
  half = MAX_NAME // 2
  return name[:half] + "\N{HORIZONTAL ELLIPSIS}" + name[-half:]


def _draw(axes: Axes, x: float, y: float, image: np.ndarray, is_wrong: bool) -> None:
  """An image and its frame."""
  pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
  axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + SIDE, y + SIDE, y))
  color, width = (WRONG, 2.5) if is_wrong else (OTHER, 0.8)
  axes.add_patch(Rectangle((x, y), SIDE, SIDE, fill=False, edgecolor=color, linewidth=width))
