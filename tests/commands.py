"""Commands of any binary run in this process, for the tests of the experiments."""

import contextlib
import io
import pathlib
import tempfile

from absl import flags
from absl.testing import parameterized

from experiments import _errors, _flags


def flags_of(*argv):
  """The parsed command line of methods, of what all experiments with methods share."""
  values = flags.FlagValues()
  _flags.define_flags(values)
  _errors.parse_flags(values, ("cifar_noisy", *argv))
  return values


def run(module, *argv):
  """Runs a binary's command line: its exit status, stdout and stderr."""
  values = flags.FlagValues()
  module.define_flags(values)
  stdout, stderr, status = io.StringIO(), io.StringIO(), 0

  def call():
    _errors.parse_flags(values, ("binary", *argv))
    module.main(values)

  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    try:
      _errors.exit_on_mistake(call)
    except SystemExit as stop:
      status = stop.code
  return status, stdout.getvalue(), stderr.getvalue()


class CommandTestCase(parameterized.TestCase):
  """A test of one binary, `MODULE`, in an empty folder."""

  MODULE = None

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = self.root / "work"

  def command(self, *argv):
    """Runs the binary, which must succeed, with the workdir; its stdout."""
    argv = (f"--workdir={self.workdir}", "--compilation_cache=none", *argv)
    status, stdout, stderr = run(self.MODULE, *argv)
    self.assertEqual(status, 0, stderr)
    return stdout

  def assert_refused(self, pattern, *argv, status=2):
    """The command ends with one line, and nothing is written."""
    found, stdout, stderr = run(self.MODULE, f"--workdir={self.workdir}", *argv)
    self.assertEqual((found, stdout), (status, ""), stderr)
    self.assertRegex(stderr, f"^error: .*{pattern}.*\n$")
    self.assertEqual(stderr.count("\n"), 1)
    self.assertFalse(self.workdir.exists())
