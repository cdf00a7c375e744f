"""How binaries speak of mistakes: one line and an exit status, no traceback."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from reweight_jax.data import DataError


class UsageError(Exception):
  """A mistake of the user in flags or workdir: one line; exit status 2."""


class RunError(Exception):
  """A run that could not go on, such as a loss that is not finite: one line; exit status 1."""


def run_binary(main: Callable[[], Any]) -> None:
  """Parses absl flags and calls `main()`, turning mistakes into one line and an exit status.

  Exit status 2 for a bad flag, bad data or a workdir that does not fit; 1 for a run that failed;
  130 after Ctrl-C.
  """

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}: flags are written --name=value", 2)
    logging.set_verbosity(logging.WARNING)
    try:
      main()
    except (UsageError, DataError, ImportError) as error:
      _fail(str(error), 2)
    except RunError as error:
      _fail(str(error), 1)
    except KeyboardInterrupt:
      _fail("interrupted; the same command goes on from the last checkpoint", 130)

  app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    return _fail(str(error), 2)


def _fail(message: str, status: int) -> Any:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  sys.exit(status)
