"""The run log: rows survive kills, JSON is always valid, files are whole or not there."""

import json
import pathlib
import tempfile
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from reweight_jax import runlog


class RunlogTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.log = self.folder / "metrics.jsonl"


class RowsTest(RunlogTestCase):
  def test_rows_come_back_as_plain_values(self):
    runlog.append_row(self.log, {"step": np.int64(1), "loss": jnp.float32(0.5), "names": ("a",)})
    runlog.append_row(self.log, {"step": 2, "loss": None})
    rows = runlog.read_rows(self.log)
    self.assertEqual(rows, [{"step": 1, "loss": 0.5, "names": ["a"]}, {"step": 2, "loss": None}])

  @parameterized.parameters(float("nan"), float("inf"), -np.inf, np.float32("nan"))
  def test_numbers_that_json_lacks_become_null(self, value):
    runlog.append_row(self.log, {"loss": value, "all": np.array([1.0, value])})
    self.assertEqual(self.log.read_text(), '{"loss": null, "all": [1.0, null]}\n')

  def test_no_file_means_no_rows(self):
    self.assertEqual(runlog.read_rows(self.log), [])

  @parameterized.parameters('{"step": 2', "{", '{"step": 2}extra', "2", '{"step": \ufffd')
  def test_last_line_cut_short_is_left_out(self, rest):
    self.log.write_text('{"step": 1}\n' + rest)
    self.assertEqual(runlog.read_rows(self.log), [{"step": 1}])

  def test_damage_elsewhere_is_refused_with_file_and_line(self):
    self.log.write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    with self.assertRaisesRegex(
      ValueError, "metrics.jsonl, line 2: expected a JSON object.*broken"
    ):
      runlog.read_rows(self.log)

  def test_rows_after_a_step_are_dropped_and_the_cut_line_too(self):
    for step in (2, 4, 6):
      runlog.append_row(self.log, {"step": step})
    with self.log.open("a") as file:
      file.write('{"step": 8')
    self.assertEqual(runlog.keep_rows_until(self.log, 4), [{"step": 2}, {"step": 4}])
    runlog.append_row(self.log, {"step": 5})
    self.assertEqual(self.log.read_text(), '{"step": 2}\n{"step": 4}\n{"step": 5}\n')


class WholeFilesTest(RunlogTestCase):
  def test_json_file_is_valid_and_ends_with_a_newline(self):
    path = self.folder / "summary.json"
    runlog.write_json(path, {"mean": np.float64("nan"), 3: [np.bool_(True)]})
    self.assertEqual(json.loads(path.read_text()), {"mean": None, "3": [True]})
    self.assertEndsWith(path.read_text(), "}\n")

  def test_arrays_come_back_with_their_types(self):
    path = self.folder / "weights.npz"
    runlog.write_npz(path, {"index": np.arange(3, dtype=np.int32), "bad": np.array([True])})
    with np.load(path) as arrays:
      self.assertEqual((arrays["index"].dtype, arrays["bad"].dtype), (np.int32, bool))
      np.testing.assert_array_equal(arrays["index"], [0, 1, 2])

  def test_failed_write_keeps_the_old_file_and_leaves_no_other(self):
    path = self.folder / "summary.md"
    runlog.write_text(path, "old")
    with mock.patch("os.replace", side_effect=OSError("disk")), self.assertRaises(OSError):
      runlog.write_text(path, "new")
    self.assertEqual([file.name for file in self.folder.iterdir()], ["summary.md"])
    self.assertEqual(path.read_text(), "old")

  def test_files_are_readable_by_others(self):
    path = self.folder / "summary.md"
    runlog.write_text(path, "±")
    self.assertEqual((path.stat().st_mode & 0o777, path.read_text("utf-8")), (0o644, "±"))


if __name__ == "__main__":
  absltest.main()
