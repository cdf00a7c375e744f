"""Pictures of difficulty: suspicious labels, where wrong ones and rare examples lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle

from reweight_jax._validate import check_number
from reweight_jax.plotting._checks import check_classes, check_lengths
from reweight_jax.plotting.curves import COLORS, add_legend
from reweight_jax.plotting.gallery import HEIGHT, MAX_CLASSES, SIDE, _cut

KINDS = {"": "other", "rare": "called rare", "noise": "called wrong"}
"""What an example is called -> how a legend says it; what is drawn last lies on top."""
_LOOKS: dict[str, dict[str, Any]] = {
  "": {"color": COLORS[0], "marker": ".", "s": 12, "alpha": 0.35, "linewidths": 0},
  "rare": {"color": COLORS[2], "marker": "^", "s": 22, "alpha": 0.8, "linewidths": 0},
  "noise": {"color": COLORS[1], "marker": "x", "s": 22, "alpha": 0.9, "linewidths": 1},
}
_LINES = {"": "-", "rare": "--", "noise": "-."}
_FRAMES = {"": (COLORS[0], 0.8), "rare": (COLORS[2], 2.5), "noise": (COLORS[1], 2.5)}
_JITTER = 0.3  # of the distance between two values that a coarse score may take


def difficulty_histogram(
  axes: Axes,
  scores: np.ndarray,
  kinds: np.ndarray | None = None,
  *,
  name: str = "held-out error",
  unit: str = "nats",
  num_bins: int = 40,
) -> None:
  """Draws how many examples are how hard, those called wrong and rare apart; the title says more.

  Guarantees: every finite score is in a bar; counts are on a logarithmic axis, where a few are
  seen beside thousands.
  Edge cases: scores that are not finite are left out, and the legend's counts do not have them.

  Args:
    axes: where to draw.
    scores: `[examples]`, larger is harder.
    kinds: `[examples]` words, "noise", "rare" or "" for what is called neither; None for all.
    name: of the score.
    unit: of the score; "" for none.
    num_bins: bins of the range.

  Raises:
    ValueError: if the arrays are of different lengths or a kind is another word.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> difficulty_histogram(axes, np.array([0.0, 0.2, 3.0]), np.array(["", "", "noise"]))
    >>> print(axes.get_title())
    median held-out error: 3 where called wrong, 0.1 elsewhere
  """
  scores, kinds = _checked(np.asarray(scores, float), kinds)
  known = np.isfinite(scores)
  bins = np.linspace(*_range(scores[known]), num_bins + 1)
  for kind, words in KINDS.items():
    values = scores[known & (kinds == kind)]
    if not values.size:
      continue
    axes.hist(
      values,
      bins.tolist(),
      histtype="step",
      color=_FRAMES[kind][0],
      linestyle=_LINES[kind],
      linewidth=1.8,
      label=f"{words} ({values.size})",
    )
  axes.set_yscale("log")
  axes.set_ylim(bottom=0.7)
  axes.set_xlabel(_with_unit(name, unit))
  axes.set_ylabel("examples (logarithmic)")
  axes.set_title(_claim(scores, kinds, name), fontsize="medium")
  axes.legend(fontsize="small", loc="upper right")


def difficulty_map(
  axes: Axes,
  error: np.ndarray,
  other: np.ndarray,
  kinds: np.ndarray | None = None,
  *,
  names: tuple[str, str],
  units: tuple[str, str] = ("", ""),
) -> None:
  """Draws one score against another, a point an example, those called wrong and rare on top.

  Scores of few values, such as shares of ten neighbors, are moved a little sideways, at most
  0.3 of the distance between two of them, so that equal points are seen beside each other.

  Edge cases: examples of which a score is not finite are left out.

  Args:
    axes: where to draw.
    error: `[examples]`, on the horizontal axis.
    other: `[examples]`, on the vertical one.
    kinds: `[examples]` words, as in `difficulty_histogram`.
    names: of both scores.
    units: of both scores; "" for none.

  Raises:
    ValueError: as `difficulty_histogram`.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> names = ("held-out error", "memorization")
    >>> kinds = np.array(["", "noise"])
    >>> difficulty_map(axes, np.array([0.0, 3.0]), np.array([0.0, 0.5]), kinds, names=names)
    >>> print(axes.get_ylabel(), "|", axes.get_title())
    memorization | median memorization: 0.5 where called wrong, 0 elsewhere
  """
  check_lengths(error=error, other=other)
  error, kinds = _checked(np.asarray(error, float), kinds)
  other = np.asarray(other, float)
  known = np.isfinite(error) & np.isfinite(other)
  rng = np.random.default_rng(0)
  places = [_spread(values, rng) for values in (error, other)]
  for kind, words in KINDS.items():
    chosen = known & (kinds == kind)
    if chosen.any():
      x, y = (values[chosen] for values in places)
      axes.scatter(x, y, label=f"{words} ({chosen.sum()})", rasterized=True, **_LOOKS[kind])
  axes.set_xlabel(_with_unit(names[0], units[0]))
  axes.set_ylabel(_with_unit(names[1], units[1]))
  axes.set_title(_claim(other, kinds, names[1]), fontsize="medium")
  axes.grid(alpha=0.3)
  add_legend(axes, *axes.get_ylim())
  legend = axes.get_legend()
  for handle in legend.legend_handles if legend is not None else ():
    if isinstance(handle, PathCollection):  # as clear as in a crowd
      handle.set_alpha(1)
      handle.set_sizes([40])


def issue_gallery(
  axes: Axes,
  images: np.ndarray,
  labels: np.ndarray,
  suggested: np.ndarray,
  scores: np.ndarray,
  class_names: Sequence[str],
  *,
  kinds: np.ndarray | None = None,
  per_class: int = 8,
) -> None:
  """Draws a row for each given class: its most suspicious images, each with the label suggested.

  Above an image stands its place among all examples, below it the suggested class. What is called
  wrong has a thick orange frame, what is called rare a thick green one.

  Guarantees: from left to right the scores of a row never rise.
  Edge cases: of more than ten classes the ten with the most labels called wrong are shown, and the
  title says so; examples without a score (NaN) are left out; long names lose their middle.

  Args:
    axes: where to draw; a class wants about 1.1 inches of height, an image 0.8 of width.
    images: `[examples, height, width, channels]` uint8, of 1 or 3 channels.
    labels: `[examples]` given classes.
    suggested: `[examples]` classes that are likelier; under an image with the given one stands "=".
    scores: `[examples]`, larger is more suspicious.
    class_names: a name for each class.
    kinds: `[examples]` words, as in `difficulty_histogram`.
    per_class: images of a row, at least 1.

  Raises:
    ValueError: if the arrays are of different lengths, images are not as above, a class has no name
      or a kind is another word.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> images, scores = np.zeros((3, 8, 8, 1), np.uint8), np.array([0.1, 0.9, 0.5])
    >>> labels, suggested = np.array([0, 0, 1]), np.array([0, 1, 1])
    >>> issue_gallery(axes, images, labels, suggested, scores, ["zero", "one"])
    >>> [text.get_text() for text in axes.texts]
    ['1', '→ one', '3', '=', '2', '=']
  """
  images, labels, suggested = np.asarray(images), np.asarray(labels), np.asarray(suggested)
  check_lengths(images=images, labels=labels, suggested=suggested, scores=scores)
  for name, classes in (("labels", labels), ("suggested", suggested)):
    check_classes(name, classes, class_names)
  check_number("per_class", per_class, at_least=1)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise ValueError(
      "images expects uint8 [examples, height, width, 1 or 3 channels], got "
      f"{images.dtype} {list(images.shape)}. Undo scaling and flattening."
    )
  scores, kinds = _checked(np.asarray(scores, float), kinds)
  order = np.argsort(-scores, kind="stable")
  order = order[np.isfinite(scores[order])]
  places = np.empty(len(scores), int)
  places[order] = np.arange(1, len(order) + 1)
  classes = np.unique(labels[order])
  called = np.array([np.sum((labels == label) & (kinds == "noise")) for label in classes])
  shown = np.sort(classes[np.argsort(-called, kind="stable")[:MAX_CLASSES]])
  for row, label in enumerate(shown):
    for column, example in enumerate(order[labels[order] == label][:per_class]):
      _draw(axes, column, row * HEIGHT, images[example], kinds[example])
      middle = column + SIDE / 2
      name = _cut(class_names[suggested[example]])
      words = "=" if suggested[example] == label else f"→ {name}"
      for y, text, align in ((-0.03, str(places[example]), "bottom"), (SIDE + 0.03, words, "top")):
        axes.text(middle, row * HEIGHT + y, text, ha="center", va=align, fontsize="x-small")
  title = "the most suspicious labels of each given class; above: place among all, below: suggested"
  if kinds.any():
    wrong, rare = (int(np.sum(kinds == kind)) for kind in ("noise", "rare"))
    title = (
      f"{wrong} labels are called wrong (thick orange frame), {rare} rare (thick green):\n{title}"
    )
  if len(shown) < len(classes):
    title += f"\nthe {len(shown)} of {len(classes)} classes with the most labels called wrong"
  axes.set_title(title, fontsize="medium")
  axes.set_xlim(-0.1, per_class)
  axes.set_ylim(HEIGHT * max(len(shown), 1), -0.35)
  axes.set_xticks([])
  names = [_cut(class_names[label]) for label in shown]
  axes.set_yticks([HEIGHT * row + SIDE / 2 for row in range(len(shown))], names, fontsize="small")
  axes.tick_params(length=0)
  axes.set_aspect("equal")
  axes.spines[:].set_visible(False)


def _checked(scores: np.ndarray, kinds: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays of one length; no kinds are all alike."""
  words = np.full(len(scores), "", "U5") if kinds is None else np.asarray(kinds)
  check_lengths(scores=scores, kinds=words)
  unknown = set(np.unique(words).tolist()) - set(KINDS)
  if unknown:
    raise ValueError(f"kinds expects the words {list(KINDS)}, got {sorted(unknown)[0]!r}.")
  return scores, words


def _with_unit(name: str, unit: str) -> str:
  return f"{name} ({unit})" if unit else name


def _range(values: np.ndarray) -> tuple[float, float]:
  if not values.size:
    return 0.0, 1.0
  low, high = float(values.min()), float(values.max())
  return low, high if high > low else low + 1


def _claim(scores: np.ndarray, kinds: np.ndarray, name: str) -> str:
  """What the picture shows, in the medians of both groups."""
  finite = np.isfinite(scores)
  is_wrong = finite & (kinds == "noise")
  rest = finite & ~is_wrong
  if not is_wrong.any() or not rest.any():
    return f"{name} of {len(scores)} examples"
  wrong, other = (f"{float(np.median(scores[chosen])):.2g}" for chosen in (is_wrong, rest))
  return f"median {name}: {wrong} where called wrong, {other} elsewhere"


def _spread(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Values of which there are few, moved a little; others as they are."""
  levels = np.unique(values[np.isfinite(values)])
  if not 1 < len(levels) <= 100:
    return values
  return values + _JITTER * np.diff(levels).min() * rng.uniform(-1, 1, len(values))


def _draw(axes: Axes, x: float, y: float, image: np.ndarray, kind: str) -> None:
  """An image and its frame."""
  pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
  axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + SIDE, y + SIDE, y))
  color, width = _FRAMES[str(kind)]
  axes.add_patch(Rectangle((x, y), SIDE, SIDE, fill=False, edgecolor=color, linewidth=width))
