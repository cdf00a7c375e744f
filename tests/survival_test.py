"""What a run survives: damaged checkpoints, signals, changed files; runs side by side."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import tempfile
from unittest import mock

import chex
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import (
  _config,
  _errors,
  _lane,
  _run,
  _signals,
  _workdir,
  text_noisy,
)
from reweight_jax import checkpointing
from tests import runs


class SurvivalTest(runs.RunTestCase):
  def test_any_file_of_the_newest_checkpoint_cut_short_or_lost_leads_to_the_same_end(self):
    self._check_harm(lambda file, harm: harm == ("cut", "lost")[file % 2])  # the one or the other

  @pytest.mark.long
  def test_each_file_cut_short_and_lost_leads_to_the_same_end(self):
    self._check_harm(lambda file, harm: True)

  def _check_harm(self, is_wanted):
    self.train("whole")
    newest = self.root / "whole" / "checkpoints" / "10"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    harms = [(f, h) for i, f in enumerate(files) for h in ("cut", "lost") if is_wanted(i, h)]
    fallen_back = 0
    for number, (file, harm) in enumerate(harms):
      with self.subTest(f"{file} {harm}"):
        folder = self.root / f"run_{number}"
        shutil.copytree(self.root / "whole", folder)
        (folder / "weights.npz").unlink()
        path = folder / "checkpoints" / "10" / file
        if harm == "lost":
          path.unlink()
        else:
          os.truncate(path, path.stat().st_size // 2)
        stderr = self.train(folder.name)
        self.assert_same_run(folder.name, "whole")
        if stderr:
          fallen_back += 1
          self.assertRegex(stderr, r"\Awarning: a checkpoint of .*damaged_10; .* from step 8\n\Z")
          self.assertTrue((folder / "damaged_10").is_dir())
    self.assertGreater(fallen_back, len(harms) // 4)

  def test_without_any_readable_checkpoint_the_run_starts_over_and_says_so(self):
    self.train("whole")
    shutil.copytree(self.root / "whole", self.root / "run")
    for step in (6, 8, 10):  # the best, and the two newest
      shutil.rmtree(self.root / "run" / "checkpoints" / str(step) / "default")
    stderr = self.train("run")
    for line, step in zip(stderr.splitlines(), (10, 8, 6), strict=True):
      self.assertRegex(line, f"damaged_{step}; the run goes on from its start")
    self.assert_same_run("run", "whole")

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_from_there(self, number):
    self.train("whole")
    steps = []

    def advance(count, text):
      steps.append(count)
      if sum(steps) == 5:
        signal.raise_signal(number)

    before = signal.getsignal(number)
    with self.assertRaisesRegex(_errors.StoppedError, f"by {number.name} at step 5 of ") as raised:
      self.train("stopped", advance=advance)
    self.assertEqual(raised.exception.status, 128 + number)
    self.assertIs(signal.getsignal(number), before)
    self.assertEqual(self.carry("stopped").state.step, 5)
    reports = []
    self.train("stopped", advance=lambda steps, text: reports.append(steps))
    self.assertEqual((reports[0], sum(reports)), (5, runs.TOTAL))
    self.assert_same_run("stopped", "whole")

  def test_a_signal_before_the_next_step_adds_no_row_and_the_run_goes_on_from_there(self):
    # Checkpoints at 4, 8 and 10: none at the row of step 3 and at the end of the phase, step 6.
    config = dataclasses.replace(runs.CONFIG, checkpoint_every=4)
    self.train("whole", config=config)
    positions = _run._positions
    for step in (0, 3, 3, 6):

      def stopped_there(run, phase, start, *rest, step=step):
        if start == step:
          signal.raise_signal(signal.SIGTERM)
        return positions(run, phase, start, *rest)

      with (
        mock.patch.object(_run, "_positions", stopped_there),
        self.assertRaisesRegex(_errors.StoppedError, f"at step {step} of "),
      ):
        self.train("stopped", config=config)
      rows = [row for row in self.rows("whole") if row["step"] <= step]
      self.assertEqual(self.rows("stopped"), rows)
      saved = self.root / "stopped" / "checkpoints" / str(step)
      self.assertEqual(saved.exists(), step > 0)
    self.train("stopped", config=config)
    self.assert_same_run("stopped", "whole", config=config)

  def test_a_signal_while_results_are_written_is_not_lost(self):
    write = _lane.write_results

    def stopped_there(*arguments):
      signal.raise_signal(signal.SIGTERM)
      write(*arguments)

    with (
      mock.patch.object(_lane, "write_results", stopped_there),
      self.assertRaisesRegex(_errors.StoppedError, f"at step {runs.TOTAL} of "),
    ):
      self.train("run")
    self.assertTrue((self.root / "run" / "weights.npz").exists())

  def test_a_second_interrupt_does_not_wait(self):
    with _signals.stop_requests() as request, self.assertRaises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
      self.assertEqual(request.received, signal.SIGINT)
      signal.raise_signal(signal.SIGINT)

  def test_sigterm_outside_of_training_is_one_line_and_its_status(self):
    before = signal.getsignal(signal.SIGTERM)

    def call():
      with contextlib.suppress(Exception):  # a failed step is retried or told; this is none
        signal.raise_signal(signal.SIGTERM)
      self.fail("goes on")

    with (
      contextlib.redirect_stderr(io.StringIO()) as stderr,
      self.assertRaises(SystemExit) as raised,
    ):
      _errors.exit_on_mistake(call)
    self.assertEqual(raised.exception.code, 143)
    self.assertRegex(stderr.getvalue(), r"\Aerror: terminated; the same command goes on .*\n\Z")
    self.assertIs(signal.getsignal(signal.SIGTERM), before)

  def test_a_folder_that_vanishes_is_named(self):
    def advance(count, text):
      if text.startswith("step 3"):
        shutil.rmtree(self.root / "run")

    with self.assertRaisesRegex(_errors.RunError, "folder .*/run vanished during the run"):
      self.train("run", advance=advance)

  def test_best_checkpoint_on_noisy_validation_is_kept(self):
    config = dataclasses.replace(
      runs.CONFIG, methods=("ce",), steps=15, eval_every=1, checkpoint_every=1, keep=1
    )
    self.train("run", config=config)
    scores = [row["validation_accuracy"] for row in self.rows("run")]
    best = max(range(15), key=lambda i: (scores[i], i)) + 1
    with checkpointing.Checkpoints(self.root / "run" / "checkpoints") as checkpoints:
      self.assertEqual(checkpoints.best_step(), best)
      self.assertEqual(checkpoints.steps(), sorted({best, 15}))


class TogetherTest(runs.RunTestCase):
  def test_steps_in_chunks_are_the_steps_one_by_one(self):
    self.train("single")
    self.train("chunks", config=dataclasses.replace(runs.CONFIG, chunk_steps=2))
    for name in ("single", "chunks"):
      self.assertEqual([row["step"] for row in self.rows(name)], [3, 6, 9, 10])
    self.assert_close("chunks", "single")

  def test_seeds_side_by_side_are_the_seeds_alone(self):
    self.train("a", "b")
    for seed, folder in enumerate(("a", "b")):
      self.train("unused" if seed else "alone_a", *(["alone_b"] if seed else []))
      self.assert_close(folder, f"alone_{folder}", seed)

  def test_seeds_killed_between_their_checkpoints_go_on_together_bit_for_bit(self):
    self.train("a", "b")
    for folder, whole in (("c", "a"), ("d", "b")):
      shutil.copytree(self.root / whole, self.root / folder)
    shutil.rmtree(self.root / "d" / "checkpoints" / "10")
    with self.subTest("further apart than an interval, each goes on from where it is"):
      often = dataclasses.replace(runs.CONFIG, checkpoint_every=1)
      self.assertEqual(self.starts("c", "d", config=often), [[8], [10]])
    with self.subTest("beside one that has not begun, each goes on from where it is"):
      self.assertEqual(self.starts("c", "new"), [[0], [10]])
    self.assertEqual(self.starts("c", "d"), [[8, 8]])
    self.train("c", "d")
    self.assert_same_run("c", "a")
    self.assert_same_run("d", "b")

  def starts(self, *folders, **kwargs):
    """The steps from which runs would go on, those that go together in one list."""
    groups = []
    note = lambda group, *rest: groups.append([lane.done for lane in group])
    with mock.patch.object(_run, "_train_together", note):
      self.train(*folders, **kwargs)
    return groups

  def assert_close(self, folder, other, seed=0):
    for mine, theirs in zip(self.rows(folder), self.rows(other), strict=True):
      self.assertEqual(mine.keys(), theirs.keys())
      numbers = [np.array(list(row.values()), float) for row in (mine, theirs)]  # None: NaN
      np.testing.assert_allclose(*numbers, rtol=1e-4)
    found, expected = self.weights(folder), self.weights(other)
    np.testing.assert_array_equal(found["index"], expected["index"])
    np.testing.assert_allclose(found["mean_weight"], expected["mean_weight"], rtol=1e-4)
    carries = [self.carry(name) for name in (folder, other)]
    chex.assert_trees_all_close(*[carry.state.params for carry in carries], atol=1e-5)


class FilesTest(parameterized.TestCase):
  """Whether a workdir takes a command back after its files have changed; nothing is trained."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = self.root / "work"

  def begin(self, kind=_config.Config, **fields):
    """Makes the folders of a command, as at its start; its configuration."""
    config = kind(workdir=str(self.workdir), **fields)
    with _workdir.prepared(config):
      return config

  def assert_refused(self, config, pattern):
    with self.assertRaisesRegex(_errors.UsageError, f"^--workdir: .*{pattern}") as raised:
      _workdir.check(config)
    self.assertNotIn("\n", str(raised.exception))

  @parameterized.parameters(
    ("dataset", _config.Config, {}),
    ("human_labels", _config.Config, {"noise": "human:worse_label"}),
    ("train_file", text_noisy.TextConfig, {"test_file": "absent"}),
    ("test_file", text_noisy.TextConfig, {"train_file": "absent"}),
  )
  def test_a_data_file_may_move_but_not_change(self, flag, kind, fields):
    path = self.root / "data.npz"
    path.write_text("once")
    config = self.begin(kind, methods=("ce",), **fields, **{flag: str(path)})
    for same in (str(path), os.path.relpath(path)):
      _workdir.check(dataclasses.replace(config, **{flag: same}, methods=("ce", "gce")))
    (self.root / "elsewhere").mkdir()
    moved = shutil.copy(path, self.root / "elsewhere")
    _workdir.check(dataclasses.replace(config, **{flag: moved}))
    path.write_text("twice")
    pattern = rf"configuration: {flag} data.npz \(sha256 \w+\) there, data.npz \(sha256 \w+\) here;"
    for methods in (("ce",), ("gce",)):
      self.assert_refused(dataclasses.replace(config, methods=methods), pattern)
    path.unlink()  # which the loader tells better
    _workdir.check(config)

  @parameterized.parameters(
    ("reference", "jtt", "work/ce", "work/ce/seed_0/weights.npz"),
    ("reference", "label_shift", "work/ce", "work/ce/seed_0/predictions.npz"),
    ("importance_file", "importance", "ratios.npz", "ratios.npz"),
  )
  def test_what_one_method_reads_is_compared_with_its_runs_alone(self, flag, method, named, file):
    plain = self.begin(methods=("ce",))
    for name in ("work/ce/seed_0/weights.npz", "work/ce/seed_0/predictions.npz", "ratios.npz"):
      (self.root / name).write_text("once")
    config = self.begin(methods=(method,), **{flag: str(self.root / named)})
    relative = os.path.relpath(self.root / named)
    for same in (config, plain, dataclasses.replace(config, **{flag: relative})):
      _workdir.check(same)
    (self.root / file).write_text("twice")
    self.assert_refused(config, rf"{method}/seed_0 .* {flag} \S+ \(sha256 .* here;")
    _workdir.check(plain)
    _workdir.check(dataclasses.replace(config, seeds=(1,)))

  def test_runs_of_a_program_that_knew_no_digests_are_taken_as_they_are(self):
    config = self.begin(methods=("jtt",), reference=str(self.root))
    path = self.workdir / "jtt" / "seed_0" / "config.json"
    found = json.loads(path.read_text())
    del found["files"]
    found["setting"] |= {"reference": "ref", "importance_file": None}
    path.write_text(json.dumps(found))
    _workdir.check(config)


if __name__ == "__main__":
  absltest.main()
