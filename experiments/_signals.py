"""SIGTERM and Ctrl-C: a run ends at its next step with everything saved, all else at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
  """What SIGTERM raises where no run is on its way."""


class StopRequest:
  """Whether the run is asked to stop, and by which signal."""

  received: signal.Signals | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
  """Turns the first SIGTERM or Ctrl-C of the block into a request; a second Ctrl-C interrupts.

  Edge cases: outside the main thread, which alone may set handlers, no request ever comes; a
  signal that the process ignores stays ignored.
  """
  request = StopRequest()

  def receive(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and request.received is not None:
      raise KeyboardInterrupt
    request.received = signal.Signals(number)

  with _handled(STOPPING, receive):
    yield request


@contextlib.contextmanager
def termination() -> Iterator[None]:
  """Turns SIGTERM into an exception in the block, as Python does with Ctrl-C."""

  def receive(number: int, frame: FrameType | None) -> None:
    raise Terminated

  with _handled([signal.SIGTERM], receive):
    yield


@contextlib.contextmanager
def _handled(
  numbers: Sequence[signal.Signals], receive: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
  before = {}
  if threading.current_thread() is threading.main_thread():
    for number in numbers:
      if signal.getsignal(number) is not signal.SIG_IGN:
        before[number] = signal.signal(number, receive)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
