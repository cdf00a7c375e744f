"""How binaries speak of mistakes: one line and an exit status, no traceback."""

import errno
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments import _signals
from reweight_jax.data import DataError

GOES_ON = "the same command goes on from the last checkpoint"


class UsageError(Exception):
  """A mistake of the user in flags or workdir: one line; exit status 2."""


class RunError(Exception):
  """A run that could not go on, such as a loss that is not finite: one line; exit status 1."""


class DivergedError(RunError):
  """A run whose numbers were not finite; in a study of settings that is a result."""


class StoppedError(Exception):
  """A run that was asked to stop and saved its state: one line; exit status 128 + signal."""

  def __init__(self, received: signal.Signals, where: str):
    super().__init__(
      f"stopped by {received.name} {where}; the state is saved, the same command goes on from there"
    )
    self.status = 128 + received


def run_binary(
  define_flags: Callable[[flags.FlagValues], None], main: Callable[[flags.FlagValues], Any]
) -> None:
  """Defines and parses absl flags and calls `main(flags)`, each mistake becoming one line.

  Exit status 2 for a bad flag, bad data or a workdir that does not fit; 1 for a run that failed;
  130 after Ctrl-C, 143 after SIGTERM.
  """
  others = set(flags.FLAGS)
  define_flags(flags.FLAGS)
  for name in set(flags.FLAGS) - others:
    # --help shows the flags of the binary, wherever they are defined.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

  def guarded(argv: Sequence[str]) -> None:
    del argv  # holds the program's name alone
    silence_orbax()
    exit_on_mistake(lambda: main(flags.FLAGS))

  app.run(
    guarded, flags_parser=lambda argv: exit_on_mistake(lambda: parse_flags(flags.FLAGS, argv))
  )


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Parses a command line into flags and returns what is left of it: the program's name.

  Raises:
    UsageError: for an unknown flag, a value of the wrong type, or an argument that is no flag.
  """
  try:
    rest = values(argv)
  except flags.IllegalFlagValueError as error:
    name, _, value = str(error).removeprefix("flag --").partition(":")[0].partition("=")
    if name not in values:
      raise UsageError(str(error)) from error
    expected = values[name].parser.syntactic_help or "true or false"  # only that of bool has none
    raise UsageError(f"--{name}: expected {expected}, got {value!r}") from error
  except flags.UnrecognizedFlagError as error:
    raise UsageError(f"--{error.flagname}: no such flag; --help lists the flags") from error
  except flags.Error as error:
    raise UsageError(f"{error}; --help lists the flags") from error
  if len(rest) > 1:
    raise UsageError(f"expected flags alone, written --name=value; got the argument {rest[1]!r}")
  return rest


def exit_on_mistake(call: Callable[[], Any]) -> Any:
  """Calls a function; what is no bug but a mistake ends the program with one line on stderr."""
  try:
    with _signals.termination():
      return call()
  except (UsageError, DataError, ImportError) as error:
    message, status = str(error), 2
  except StoppedError as error:
    message, status = str(error), error.status
  except RunError as error:
    message, status = str(error), 1
  except OSError as error:
    message, status = _explain(error), 1
  except KeyboardInterrupt:
    message, status = f"interrupted; {GOES_ON}", 130
  except _signals.Terminated:
    message, status = f"terminated; {GOES_ON}", 143
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  sys.exit(status)


def silence_orbax() -> None:
  """What it tells of a checkpoint that fails are tracebacks; the run says it in one line."""
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = _report_unraisable


def _report_unraisable(error: "sys.UnraisableHookArgs") -> None:
  """Python's own report, but for what a checkpoint that could not be read leaves behind."""
  if str(error.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(error)


def _explain(error: OSError) -> str:
  """What the operating system said, and what to do."""
  if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return f"no space left to write {error.filename or 'a file'}; free some, then {GOES_ON}"
  if error.errno == errno.ENOENT:
    return f"{error.filename} vanished during the run ({error.strerror})"
  return f"{error}; once there is space and a folder to write to, {GOES_ON}"
