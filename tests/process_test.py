"""Real processes: killed, terminated, out of space; what is left goes on to the same end."""

import random
import signal

from absl.testing import absltest

from tests import processes


class StopTest(processes.ProcessTestCase):
  def test_runs_that_were_stopped_end_bit_for_bit_as_undisturbed_ones(self):
    # A limit on the size of a file stands for a full disk: 20 kB, smaller than a checkpoint.
    full = self.start("full", "--compilation_cache=none", before="ulimit -f 20")
    killed, terminated = self.start("killed"), self.start("terminated")
    seconds = random.uniform(0, 0.5)  # any moment will do
    self.stop(killed, signal.SIGKILL, "killed", seconds)
    stderr = self.stop(terminated, signal.SIGTERM, "terminated", 0)
    with self.subTest("SIGTERM is one line and status 143"):
      self.assertRegex(stderr, r"\Aerror: stopped by SIGTERM at step \d+ of .*from there\n\Z")
      self.assertEqual(terminated.returncode, 143)
    stderr = full.communicate()[1]
    with self.subTest("no space left is one line and status 1"):
      self.assertRegex(
        stderr, r"\Aerror: cannot write a checkpoint to .*; once there is space .* goes on .*\n\Z"
      )
      self.assertEqual(full.returncode, 1)
    processes_by_name = {
      name: self.start(name) for name in ("whole", "killed", "terminated", "full")
    }
    for name, process in processes_by_name.items():
      stderr = process.communicate()[1]
      self.assertEqual(process.returncode, 0, stderr)
      self.assertRegex(stderr, r"\A(pair 0.45, finetune, seed 0: step \d+: .*\n)+\Z")
      with self.subTest(f"{name}, killed {seconds} s after the first checkpoint"):
        self.assert_same_files(name, "whole")


class HelpTest(processes.ProcessTestCase):
  def test_help_shows_our_flags_and_a_bad_flag_is_one_line(self):
    workdir = self.root / "work"
    process = processes.start("--help")
    bad = processes.start("--metod=ce", f"--workdir={workdir}")
    stdout, stderr = bad.communicate()
    self.assertEqual((bad.returncode, stdout), (2, ""))
    self.assertEqual(stderr, "error: --metod: no such flag; --help lists the flags\n")
    self.assertFalse(workdir.exists())
    stdout, stderr = process.communicate()
    self.assertIn(process.returncode, (0, 1))
    self.assertEqual(stderr, "")
    self.assertStartsWith(stdout, "Does example weighting help")
    for flag in processes.parse().flag_values_dict():
      self.assertRegex(stdout, rf"--(\[no\])?{flag}: ")
    self.assertNotIn("--run_with_pdb", stdout)


if __name__ == "__main__":
  absltest.main()
