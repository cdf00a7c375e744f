"""Out of space, and real processes: terminated, killed; what is left goes on to the same end."""

import random
import resource
import signal

import pytest
from absl.testing import absltest

from tests import processes


class StopTest(processes.ProcessTestCase):
  def test_a_run_out_of_space_and_then_killed_ends_bit_for_bit_as_an_undisturbed_one(self):
    self._check(is_terminated=False)

  @pytest.mark.long
  def test_terminated_in_between_too(self):
    self._check(is_terminated=True)

  def _check(self, is_terminated):
    with self.subTest("no space left is one line and status 1"):
      # A limit on the size of a file stands for a full disk: 10 kB, smaller than a checkpoint.
      limit = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
      try:
        status, stderr = self.finish("stopped")
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
      self.assertRegex(
        stderr, r"\Aerror: cannot write a checkpoint to .*; once there is space .* goes on .*\n\Z"
      )
      self.assertEqual(status, 1)
    if is_terminated:
      with self.subTest("SIGTERM is one line and status 143"):
        terminated = self.start("stopped")
        stderr = self.stop(terminated, signal.SIGTERM, "stopped")
        self.assertRegex(stderr, r"\Aerror: stopped by SIGTERM at step \d+ of .*from there\n\Z")
        self.assertEqual(terminated.returncode, 143)
    seconds = random.uniform(0, 0.3)  # any moment will do
    self.stop(self.start("stopped"), signal.SIGKILL, "stopped", seconds)
    for name in ("whole", "stopped"):
      status, stderr = self.finish(name)
      self.assertEqual(status, 0, stderr)
      line = r".*/small.npz, pair noise 0.45, finetune, seed 0: step \d+: .*\n"
      self.assertRegex(stderr, rf"\A({line})+\Z")
    with self.subTest(f"killed {seconds} s after a checkpoint"):
      self.assert_same_files("stopped", "whole")


class HelpTest(processes.ProcessTestCase):
  @pytest.mark.long
  def test_a_bad_flag_is_one_line(self):
    workdir = self.root / "work"
    bad = processes.start("--metod=ce", f"--workdir={workdir}")
    stdout, stderr = bad.communicate()
    self.assertEqual((bad.returncode, stdout), (2, ""))
    self.assertEqual(stderr, "error: --metod: no such flag; --help lists the flags\n")
    self.assertFalse(workdir.exists())

  @pytest.mark.long
  def test_help_shows_our_flags_alone(self):
    process = processes.start("--help")
    stdout, stderr = process.communicate()
    self.assertIn(process.returncode, (0, 1))
    self.assertEqual(stderr, "")
    self.assertStartsWith(stdout, "Does example weighting help")
    for flag in processes.parse().flag_values_dict():
      self.assertRegex(stdout, rf"--(\[no\])?{flag}: ")
    self.assertNotIn("--run_with_pdb", stdout)


if __name__ == "__main__":
  absltest.main()
