"""Emphasis densities: which probabilities of the label have long gradients."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from reweight_jax.densities import Density, area, mode
from reweight_jax.densities._density import as_density
from reweight_jax.plotting.curves import COLORS, STYLES, add_legend
from reweight_jax.types import Array

_INNER = (0.02, 0.98)  # what an unbounded density may show of itself


def emphasis_densities(
  axes: Axes,
  densities: Mapping[str, Density | Callable[[Array], Array]] | Sequence[Density],
  *,
  normalized: bool = True,
) -> None:
  r"""Draws densities of emphasis over the probability of the label, a dot where each is largest.

  Normalized, that is :math:`w(p) / \int_0^1 w`, every line has area 1 and what shows is the shape:
  whom a density prefers. Otherwise the lengths are those of the gradients themselves.

  Guarantees: the points of a line lie densest at the ends and around its mode, so that an infinite
  slope there (lambda below 1) and a narrow peak are drawn as they are; normalized, a constant
  factor changes nothing and nothing overflows.
  Edge cases: without a largest weight (all equal, or unbounded) there is no dot; an unbounded line
  leaves the picture at the top, whose height follows its values between 0.02 and 0.98.

  Args:
    axes: where to draw.
    densities: those of `reweight_jax.densities`, which bring their names, or a mapping of names to
      densities or functions of p written with `jax.numpy`.
    normalized: divide by the area, which must be finite.

  Raises:
    TypeError: if something is neither a density nor, under a name, a function.
    ValueError: if there is no density, or one has weights that are not numbers or, not normalized,
      too large for them, or, normalized, an infinite area.

  Source: Wang et al. 2019, arXiv 1905.11233, eq. (8) and figure 1b; definition 1 for the dot.

  Example:
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> emphasis_densities(axes, [rw.densities.cross_entropy(), rw.densities.mean_squared_error()])
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['cross-entropy', 'mean squared error', 'largest: the emphasis mode']
  """
  top, has_dots = 0.0, False
  for i, density in enumerate(_named(densities)):
    p, weights, peak = _curve(density, normalized)
    color = COLORS[i % len(COLORS)]
    style = STYLES[(i + i // len(COLORS)) % len(STYLES)]  # no pair twice in 32
    axes.plot(p, weights, style, color=color, label=density.name)
    is_bounded = np.isfinite(weights).all()
    shown = weights if is_bounded else weights[(p >= _INNER[0]) & (p <= _INNER[1])]
    top = max(top, float(shown.max()))
    if is_bounded and not np.isnan(peak):
      height = weights[np.searchsorted(p, peak)]
      # Unclipped: a dot at an end is whole.
      axes.plot(peak, height, "o", color=color, markersize=5, clip_on=False, zorder=3)
      has_dots = True
  if has_dots:
    axes.plot([], [], "o", color="black", markersize=5, label="largest: the emphasis mode")
  axes.set_xlim(0, 1)
  axes.set_xlabel("probability that the model gives to the label")
  axes.set_ylabel("length of the gradient" + (", scaled to area 1" if normalized else ""))
  axes.set_title("which examples are emphasized?")
  axes.grid(alpha=0.3)
  add_legend(axes, 0, top)


def _named(
  densities: Mapping[str, Density | Callable[[Array], Array]] | Sequence[Density],
) -> list[Density]:
  """The densities under the names of the legend, or TypeError, or ValueError if there is none."""
  if isinstance(densities, Density):
    raise TypeError(
      f"emphasis_densities expects a list of densities, got {densities.name!r} alone. "
      "Put it into a list."
    )
  if not isinstance(densities, Mapping):
    for density in densities:
      if not isinstance(density, Density):
        raise TypeError(
          f"emphasis_densities expects a list of reweight_jax.densities, got {density!r} in it. "
          "Give functions of one's own a name: {name: function}."
        )
  elif wrong := [name for name, density in densities.items() if not callable(density)]:
    raise TypeError(
      "emphasis_densities expects densities or functions of the probability, got "
      f"{densities[wrong[0]]!r} for {wrong[0]!r}. Take one of reweight_jax.densities."
    )
  if not densities:
    raise ValueError("emphasis_densities expects at least one density, got none.")
  if not isinstance(densities, Mapping):
    return list(densities)
  return [
    as_density("emphasis_densities", density)._replace(name=name)
    for name, density in densities.items()
  ]


def _curve(density: Density, normalized: bool) -> tuple[np.ndarray, np.ndarray, float]:
  """Probabilities from 0 to 1, the weights there, infinite where unbounded, and the mode or NaN."""
  peak = mode(density)
  # Even in the margin, that is in log p near 0, and even in p: neither end nor middle is coarse.
  # Around the peak finer and finer, however narrow it is.
  graded = 1 / (1 + np.exp(-np.linspace(-30, 30, 400)))
  center, near = np.nan_to_num(peak), np.geomspace(1e-6, 1, 100)
  around = np.clip([center - near, center + near], 0, 1).ravel()
  p = np.sort(np.concatenate([graded, np.linspace(0, 1, 400), around, [center]]))
  with jax.enable_x64(True):
    points = jnp.asarray(p)
    logarithms = np.asarray(density.log_weight(jnp.log(points), jnp.log1p(-points)), np.float64)
  if np.isnan(logarithms).any():
    place = p[int(np.argmax(np.isnan(logarithms)))]
    raise ValueError(
      f"emphasis_densities expects weights of at least 0, got NaN at p = {place:g} from "
      f"{density.name!r}."
    )
  largest = float(logarithms[np.isfinite(logarithms)].max())
  if not normalized:
    if largest > np.log(np.finfo(np.float64).max):
      raise ValueError(
        "emphasis_densities expects weights that a float64 holds, got the logarithm "
        f"{largest:.3g} from {density.name!r}. Draw it normalized."
      )
    return p, np.exp(logarithms), peak
  # Relative to the largest weight neither these nor the area overflow.
  relative = Density(density.name, lambda log_p, log_q: density.log_weight(log_p, log_q) - largest)
  whole = area(relative)
  if np.isinf(whole):
    raise ValueError(
      f"emphasis_densities expects densities of finite area, got {density.name!r}. "
      "Draw it with normalized=False."
    )
  return p, np.exp(logarithms - largest) / whole, peak
