"""Two examples at +1 and -1, one weight ratio: the laws in closed form.

The model is a x + b, trained by descent from 0 on (w+ loss(a + b) + w- loss(a - b)) / 2 with
weights R:1 of mean 1. Its boundary lies at -b / a.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reweight_jax as rw
from experiments.importance_studies.finding import Finding, near, states_at, style, words

RATIOS = (4.0, 16.0, 256.0)
TIMES = tuple(round(10 ** (k / 4)) for k in range(4, 21))  # 10 to 100,000
STEP_SIZE = 0.5
TOLERANCE = 0.002

MarginLoss = Callable[[Any], Any]


def boundaries(loss: MarginLoss, ratios: Sequence[float], times: Sequence[int]) -> np.ndarray:
  """Where the boundary is, `[times, ratios]`, after those numbers of steps, in float64."""
  share = np.array(ratios) / (1 + np.array(ratios))
  weights = np.stack([2 * share, 2 * (1 - share)])

  def objective(params: Any, weights: Any) -> Any:
    slope, shift = params
    losses = jax.vmap(loss)(jnp.stack([slope + shift, slope - shift]))
    return jnp.mean(weights * losses)

  with jax.enable_x64(True):
    grad = jax.vmap(jax.grad(objective), (1, 1), 1)
    step = lambda params: params - STEP_SIZE * grad(params, weights)
    states = states_at(step, jnp.zeros((2, len(ratios))), times)
  return np.array([-shift / slope for slope, shift in states])


def forgotten(ratios: Sequence[float], times: Sequence[int]) -> np.ndarray:
  """The law of the exponential tail: -log R / (2 log(1 + eta t 2 sqrt(R) / (1 + R)))."""
  ratio, time = np.array(ratios), np.array(times)[:, None]
  slope = np.log1p(STEP_SIZE * time * (2 * np.sqrt(ratio) / (1 + ratio))[None])
  return -np.log(ratio)[None] / (2 * slope)


def persistent(ratios: Sequence[float], power: float) -> np.ndarray:
  """The limit under a tail m^-k: -(r - 1) / (r + 1) with r = R^(1 / (k + 2))."""
  root = np.array(ratios) ** (1 / (power + 2))
  return -(root - 1) / (root + 1)


def polynomial(power: float) -> MarginLoss:
  """The polynomially-tailed loss as a function of the margin."""
  loss = rw.losses.polynomial_tail(power)
  return lambda margin: loss(jnp.stack([jnp.zeros_like(margin), margin]), jnp.array(1))


def forgetting_law() -> Finding:
  """How fast weights are forgotten under losses with an exponential tail."""
  losses = {"logistic": lambda m: jax.nn.softplus(-m), "exponential": lambda m: jnp.exp(-m)}
  found = {name: boundaries(loss, RATIOS, TIMES) for name, loss in losses.items()}
  law = forgotten(RATIOS, TIMES)
  checks = [
    near(f"boundary at t = 1e5, {name}, weights {ratio:g}:1", place, predicted, TOLERANCE)
    for name, places in found.items()
    for ratio, place, predicted in zip(RATIOS, places[-1], law[-1], strict=True)
  ]

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    for i, ratio in enumerate(RATIOS):
      look = style(i)
      axes.plot(TIMES, law[:, i], **look, label=f"law, weights {ratio:g}:1")
      for name, marker in (("logistic", "o"), ("exponential", "x")):
        axes.plot(
          TIMES, found[name][:, i], marker, color=look["color"], markersize=5, fillstyle="none",
          label=f"{name}, {ratio:g}:1",
        )  # fmt: skip
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_ylim(-1.05, 0.05)
    _label(figure, axes)

  return Finding(
    "Weights of separable examples are forgotten, as slowly as 1 / log t",
    "the boundary between examples at -1 and +1 under weights R:1 is at -log R / (2 a(t)), "
    "a(t) = log(1 + eta t 2 sqrt(R) / (1 + R)); the same for both losses",
    f"at t = 1e5 and R = 4, 16, 256: logistic {words(found['logistic'][-1])}; exponential "
    f"{words(found['exponential'][-1])}; predicted {words(law[-1])}",
    checks,
    {"times": TIMES, "ratios": RATIOS, "law": law, **found},
    draw,
  )


def polynomial_tail() -> Finding:
  """What weights do for ever under a polynomial tail."""
  powers = (1.0, 2.0)
  found = {power: boundaries(polynomial(power), RATIOS, TIMES) for power in powers}
  limits = {power: persistent(RATIOS, power) for power in powers}
  checks = [
    near(f"boundary at t = 1e5, m^-{power:g}, weights {ratio:g}:1", place, limit, TOLERANCE)
    for power in powers
    for ratio, place, limit in zip(RATIOS, found[power][-1], limits[power], strict=True)
  ]

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    for i, ratio in enumerate(RATIOS):
      color = style(i)["color"]
      for power, line in ((1.0, "-"), (2.0, "--")):
        axes.plot(
          TIMES, found[power][:, i], line, color=color, label=f"tail m^-{power:g}, {ratio:g}:1"
        )
        axes.plot(TIMES[-1] * 1.35, limits[power][i], "<", color=color, markersize=6)
      axes.plot(
        TIMES, forgotten(RATIOS, TIMES)[:, i], ":", color=color, label=f"exponential, {ratio:g}:1"
      )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_ylim(-1.05, 0.05)
    _label(figure, axes)
    axes.set_xlabel("steps of descent (triangles: predicted limits)")

  return Finding(
    "Under a polynomial tail weights stay: the boundary does not come back",
    "with tail m^-k the boundary tends to -(r - 1) / (r + 1), r = R^(1 / (k + 2))",
    f"at t = 1e5 and R = 4, 16, 256: k = 1 {words(found[1.0][-1])}, predicted "
    f"{words(limits[1.0])}; k = 2 {words(found[2.0][-1])}, predicted {words(limits[2.0])}",
    checks,
    {
      "times": TIMES,
      "ratios": RATIOS,
      **{f"power_{power:g}": found[power] for power in powers},
      **{f"limit_{power:g}": limits[power] for power in powers},
    },
    draw,
  )


def _label(figure: Any, axes: Any) -> None:
  axes.set_xscale("log")
  axes.set_xlabel("steps of descent")
  axes.set_ylabel("boundary, input units (examples: -1, 1)")
  axes.grid(alpha=0.3)
  figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
