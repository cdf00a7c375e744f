"""Progress: one bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
  """Counts the steps of a whole command; a context manager, which takes the bar away at its end.

  On a terminal a bar shows the run at hand and the time left. Elsewhere a line is printed when a
  run ends, and every `seconds_between_lines` during long ones.
  """

  def __init__(self, total_steps: int, *, seconds_between_lines: float = 20.0):
    self._bar = tqdm(
      total=total_steps, unit="step", unit_scale=True, disable=None, dynamic_ncols=True, leave=False
    )
    self._seconds = seconds_between_lines
    self._last_line = time.monotonic()
    self._name = ""
    self._text = ""

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._bar.close()

  def begin(self, name: str) -> None:
    """Names the run at hand."""
    self._name, self._text = name, ""
    self._bar.set_description(name)

  def advance(self, num_steps: int, text: str = "") -> None:
    """Counts steps of the run at hand; a text replaces the one shown."""
    self._bar.update(num_steps)
    if text:
      self._text = text
      self._bar.set_postfix_str(text)
      if self._bar.disable and time.monotonic() - self._last_line > self._seconds:
        self._print()

  def tell(self, text: str) -> None:
    """A line about the run at hand that stays."""
    tqdm.write(f"{self._name}: {text}", file=sys.stderr)

  def end(self) -> None:
    """Says how the run at hand ended."""
    if self._bar.disable and self._text:
      self._print()

  def _print(self) -> None:
    print(f"{self._name}: {self._text}", file=sys.stderr, flush=True)
    self._last_line = time.monotonic()


def shared_or_own(
  progress: Progress | None, total_steps: int
) -> contextlib.AbstractContextManager[Progress]:
  """A bar that others go on using, or one of `total_steps` that ends with the `with` block."""
  return Progress(total_steps) if progress is None else contextlib.nullcontext(progress)
