"""Checks that take minutes, run by `make long`: twenty kills, thirty drawn nets, CIFAR-10."""

import json
import os
import pathlib
import random
import signal

import jax
from absl.testing import absltest, parameterized

from tests import ghost_random_test, processes


class KillsTest(processes.ProcessTestCase):
  """A run of 3000 steps, so that it lives long enough to be killed twenty times."""

  TOTAL = 3000
  ARGV = (
    *("--method=finetune", "--steps=2000", "--finetune_steps=1000", "--batch_size=50"),
    *("--eval_every=100", "--checkpoint_every=50", "--momentum=0.9", "--nopictures"),
  )

  def test_killed_twenty_times_at_random_moments_it_ends_as_undisturbed(self):
    whole = self.start("whole")
    self.assertEqual(whole.wait(), 0)
    for kill in range(1, 21):
      # Each life gets at least one checkpoint further, so that the kills spread over the run.
      process = self.start("killed")
      self.stop(process, signal.SIGKILL, "killed", random.uniform(0, 0.1))
      self.assertEqual(process.returncode, -signal.SIGKILL)
      print(f"kill {kill}: newest checkpoint at step {self.newest('killed')}", flush=True)
    last = self.start("killed")
    stderr = last.communicate()[1]
    self.assertEqual(last.returncode, 0, stderr)
    self.assert_same_files("killed", "whole")


class ArchitecturesTest(parameterized.TestCase):
  @parameterized.parameters(*range(30))
  def test_every_route_agrees_with_brute_force(self, seed):
    with jax.enable_x64(True):
      ghost_random_test.check_architecture(self, seed)


class CifarTest(processes.ProcessTestCase):
  def setUp(self):
    super().setUp()
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not pathlib.Path(folder, "cifar10").is_dir():
      self.skipTest("needs CIFAR-10 in TFDS_DATA_DIR")

  def test_200_steps_of_l2rw_on_resnet20_learn_and_find_wrong_labels(self):
    argv = (
      *("--dataset=cifar10", "--noise=background", "--noise_rate=0.4", "--method=l2rw"),
      *("--model=resnet20", "--steps=200", "--meta_size=100", "--meta_batch_size=100"),
      *("--validation_size=5000", "--momentum=0.9", "--weight_decay=2e-4", "--eval_every=100"),
      f"--workdir={self.root}",
    )
    # A process of its own: the tests' own compiler settings make slow programs.
    stdout, stderr = processes.start(*argv).communicate()
    print(stdout, stderr, flush=True)
    summary = json.loads((self.root / "summary.json").read_text())["methods"]["l2rw"]["runs"][0]
    self.assertGreater(summary["last"], 0.2)  # twice chance
    self.assertGreater(summary["weight_auroc"], 0.55)
    self.assertLess(summary["input_share"], 0.05)


if __name__ == "__main__":
  absltest.main()
