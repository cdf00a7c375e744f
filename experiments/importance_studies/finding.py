"""What a study says: the claim, what it predicts, what was measured, and whether that is it."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reweight_jax.plotting.curves import COLORS, STYLES

RATIO_COLORS = {16.0: COLORS[0], 1.0: COLORS[6], 1 / 16: COLORS[1]}
RATIO_NAMES = {16.0: "16:1", 1.0: "1:1", 1 / 16: "1:16"}


class Check(NamedTuple):
  """One measured number beside what was asked of it."""

  name: str
  measured: float
  asked: str
  holds: bool

  def line(self) -> str:
    """The check as one line of text."""
    return f"{self.name}: {self.measured:.4g}, asked {self.asked}{'' if self.holds else '  <-- no'}"


def near(name: str, measured: float, predicted: float, tolerance: float) -> Check:
  """Asks for a number within a tolerance of the predicted one; NaN is not."""
  holds = bool(abs(measured - predicted) <= tolerance)
  return Check(name, float(measured), f"{predicted:.4g} +- {tolerance:.2g}", holds)


def at_most(name: str, measured: float, bound: float) -> Check:
  """Asks for a number that is not above the bound; NaN is."""
  return Check(name, float(measured), f"at most {bound:.4g}", bool(measured <= bound))


def at_least(name: str, measured: float, bound: float) -> Check:
  """Asks for a number that is not below the bound; NaN is."""
  return Check(name, float(measured), f"at least {bound:.4g}", bool(measured >= bound))


class Finding(NamedTuple):
  """The result of a study; `checks` decide about it, `numbers` are all that was measured."""

  claim: str  # also the title of the figure
  prediction: str
  measurement: str
  checks: Sequence[Check]
  numbers: Mapping[str, Any]
  draw: Callable[[Any], None]  # onto a matplotlib figure

  @property
  def holds(self) -> bool:
    """Whether every check holds, and there is one."""
    return bool(self.checks) and all(check.holds for check in self.checks)

  @property
  def verdict(self) -> str:
    """The verdict in words."""
    return "holds" if self.holds else "does not hold"

  def text(self) -> str:
    """Claim, prediction, measurement, checks and verdict."""
    parts = {"claim": self.claim, "prediction": self.prediction, "measurement": self.measurement}
    lines = [
      textwrap.fill(f"{key}: {words}", 100, subsequent_indent="  ") for key, words in parts.items()
    ]
    lines += [f"  {check.line()}" for check in self.checks]
    return "\n".join([*lines, f"verdict: {self.verdict}"])

  def record(self) -> dict[str, Any]:
    """Everything but the figure, for JSON."""
    return {
      "claim": self.claim,
      "prediction": self.prediction,
      "measurement": self.measurement,
      "verdict": self.verdict,
      "checks": [check._asdict() for check in self.checks],
      "numbers": self.numbers,
    }


def states_at(
  step: Callable[[Any], Any],
  state: Any,
  times: Sequence[int],
  view: Callable[[Any], Any] = lambda state: state,
) -> list[Any]:
  """The states after given numbers of steps, from one compiled loop.

  Args:
    step: state -> state, traced once.
    state: pytree at step 0.
    times: increasing numbers of steps.
    view: what of a state is kept.

  Returns:
    NumPy arrays for each of the times.
  """
  advance = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, state: step(state), state))
  found, done = [], 0
  for time in times:
    state = advance(state, time - done)
    found.append(jax.tree.map(np.asarray, view(state)))
    done = time
  return found


def style(i: int) -> dict[str, Any]:
  """The look of the i-th line, told apart by color and by dashes."""
  return {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i % len(STYLES)]}


def words(numbers: Sequence[float] | np.ndarray, form: str = ".3f") -> str:
  """Numbers in a sentence."""
  return ", ".join(f"{number:{form}}" for number in np.ravel(np.asarray(numbers)))
