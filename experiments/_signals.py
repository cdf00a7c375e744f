"""Requests to stop: SIGTERM and Ctrl-C end a run at its next step, with everything saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


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

  before = {}
  if threading.current_thread() is threading.main_thread():
    for number in STOPPING:
      if signal.getsignal(number) is not signal.SIG_IGN:
        before[number] = signal.signal(number, receive)
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
