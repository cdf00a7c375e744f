"""The demo and the report: it runs, and its verdicts and tables say what the numbers say."""

import io
import json
import pathlib
import tempfile
from contextlib import redirect_stderr

import numpy as np
from absl.testing import absltest, parameterized

from experiments import _check, _report, digits_demo
from experiments._errors import UsageError
from reweight_jax import runlog


def _numbers(mean, std):
  return {"mean": mean, "std": std}


def _summary(stopped, weighted, finetuned=0.9, spread=(0.02, 0.02)):
  return {
    "ce": {"selected": _numbers(stopped, spread[0])},
    "l2rw": {"last": _numbers(weighted, spread[1])},
    "finetune": {"last": _numbers(finetuned, 0.01)},
  }


def _write_run(folder, rows, is_noisy, mean_weight):
  """A finished run by hand: rows of (validation, test) accuracy."""
  folder.mkdir(parents=True)
  books = {"effective_sample_size": 4.0, "zero_weight_share": 0.25, "all_zero_batches": 1}
  for number, (validation, test) in enumerate(rows, start=1):
    row = {"step": 10 * number, "validation_accuracy": validation, "test_accuracy": test}
    row |= {"seconds": 20.0 * number, "input_seconds": 5.0 * number}
    runlog.append_row(folder / "metrics.jsonl", row | books)
  weights = {"is_noisy": np.array(is_noisy), "mean_weight": np.array(mean_weight)}
  runlog.write_npz(folder / "weights.npz", weights)


class DemoTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_two_steps_with_one_seed(self):
    commands = digits_demo.configs(str(self.root), seeds=(0,), steps=2)
    with redirect_stderr(io.StringIO()) as stderr:
      summaries = digits_demo.run(commands)
    self.assertLen(stderr.getvalue().splitlines(), 10)
    self.assertEqual([tuple(summary) for summary in summaries], [digits_demo.METHODS] * 2)
    for noise, summary in zip(("pair", "symmetric"), summaries, strict=True):
      self.assertIn("l2rw at its last step: ", digits_demo.verdict(summary))
      self.assertIsNone(summary["l2rw"]["last"]["std"])
      self.assertEqual(summary["finetune"]["steps"]["mean"], 202)
      written = json.loads((self.root / noise / "summary.json").read_text())
      self.assertEqual(written["setting"]["noise"], noise)
      self.assertEqual(written["methods"]["ce"]["runs"][0], summary["ce"]["runs"][0])
    self.assertStartsWith(digits_demo.conclusion(["pair", "symmetric"], summaries), "Plain")

  def test_workdir_of_the_second_command_is_looked_at_before_the_first_runs(self):
    commands = digits_demo.configs(str(self.root / "work"), seeds=(0,), steps=2)
    folder = self.root / "work" / "symmetric" / "ce" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    with self.assertRaisesRegex(UsageError, "--workdir: .*symmetric/ce/seed_0/config.json"):
      digits_demo.run(commands)
    self.assertFalse((self.root / "work" / "pair").exists())

  def test_commands_are_valid_and_differ_in_noise_alone(self):
    pair, symmetric = digits_demo.configs("x")
    _check.check(pair)
    _check.check(symmetric)
    self.assertEqual((pair.noise, pair.noise_rate, pair.seeds), ("pair", 0.45, (0, 1, 2)))
    same = {name for name, value in vars(pair).items() if vars(symmetric)[name] == value}
    self.assertEqual(vars(pair).keys() - same, {"noise", "noise_rate", "workdir"})


class VerdictTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.90, 0.88, (0.01, 0.01), True),  # worse than early stopping
    (0.90, 0.925, (0.03, 0.01), True),  # within the spread of the one
    (0.90, 0.925, (0.01, 0.03), True),  # and of the other
    (0.90, 0.925, (0.02, 0.02), False),
    (0.90, 0.909, (0.0, 0.0), True),  # within a point
    (0.90, 0.909, (None, None), True),  # one seed has no spread
    (0.90, 0.92, (None, None), False),
    (0.55, 0.90, (0.05, 0.02), False),
  )
  def test_early_stopping_is_enough(self, stopped, weighted, spread, expected):
    summary = _summary(stopped, weighted, spread=spread)
    self.assertIs(digits_demo.is_early_stopping_enough(summary), expected)

  def test_verdict_counts_points(self):
    self.assertEqual(
      digits_demo.verdict(_summary(0.90, 0.885, finetuned=0.87)),
      "l2rw at its last step: -1.5 points against plain training stopped early, "
      "+1.5 against fine-tuning on the clean set.",
    )

  def test_no_points_have_no_minus(self):
    told = digits_demo.verdict(_summary(0.9001, 0.9, finetuned=0.90001))
    self.assertIn(" +0.0 points against", told)
    self.assertIn(" +0.0 against", told)

  def test_conclusion_names_both_kinds(self):
    enough, rest = _summary(0.9, 0.9), _summary(0.5, 0.9)
    say = "Plain training with early stopping is enough for: "
    for summaries, expected in (
      ([rest, enough], "b; not for: a."),
      ([enough, enough], "a, b; not for: none of these."),
      ([rest, rest], "none of these; not for: a, b."),
    ):
      self.assertEqual(digits_demo.conclusion(["a", "b"], summaries), say + expected)


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.folder = self.root / "l2rw" / "seed_3"

  def test_selected_is_test_accuracy_where_noisy_validation_is_best(self):
    rows = [(0.2, 0.5), (0.6, 0.7), (0.6, 0.95), (0.5, 0.8)]  # the first of two best rows
    _write_run(self.folder, rows, [True, False, False, True], [0.0, 2.0, 1.0, 0.5])
    result = _report.run_result(self.folder)
    self.assertEqual((result["selected"], result["selected_step"]), (0.7, 20))
    self.assertEqual((result["last"], result["best"], result["steps"]), (0.8, 0.95, 40))
    self.assertEqual((result["weight_auroc"], result["realized_noise_rate"]), (1.0, 0.5))
    self.assertEqual((result["all_zero_batches"], result["zero_weight_share"]), (4, 0.25))

  @parameterized.parameters(
    ([False, False], [0.0, 1.0]),  # no wrong labels
    ([False, True], [1.0, 1.0]),  # all weights equal
    ([False, True], [np.nan, np.nan]),  # never seen
  )
  def test_weights_that_say_nothing_have_no_auroc(self, is_noisy, mean_weight):
    _write_run(self.folder, [(None, 0.5)], is_noisy, mean_weight)
    result = _report.run_result(self.folder)
    self.assertIsNone(result["weight_auroc"])
    self.assertIsNone(result["selected"])

  @parameterized.parameters("metrics.jsonl", "weights.npz")
  def test_damaged_files_are_the_users_mistake(self, name):
    _write_run(self.folder, [(0.5, 0.5)], [True, False], [0.0, 1.0])
    for content in (b"", b"PK\x03\x04", b"{}\n{}\n"):
      (self.folder / name).write_bytes(content)
      with self.assertRaisesRegex(UsageError, "--workdir: .*l2rw/seed_3.*delete that folder"):
        _report.run_result(self.folder)

  def test_a_log_that_is_cut_short_has_no_last_step(self):
    _write_run(self.folder, [(0.5, 0.5), (0.6, 0.6)], [True, False], [0.0, 1.0])
    log = self.folder / "metrics.jsonl"
    self.assertEqual(_report.run_result(self.folder)["last"], 0.6)
    log.write_bytes(log.read_bytes()[:-9])
    with self.assertRaisesRegex(UsageError, "l2rw/seed_3.*cut short"):
      _report.run_result(self.folder)

  def test_spread_over_seeds_is_that_of_a_sample(self):
    for seed, last in ((0, 0.7), (1, 0.9)):
      folder = self.root / "ce" / f"seed_{seed}"
      _write_run(folder, [(None, last)], [True, False], [1.0, 1.0])
    folders = {"ce": [self.root / "ce" / "seed_0", self.root / "ce" / "seed_1"]}
    summary = _report.summarize(_report.read_results(folders))
    self.assertAlmostEqual(summary["ce"]["last"]["mean"], 0.8)
    self.assertAlmostEqual(summary["ce"]["last"]["std"], 0.2 / 2**0.5)  # not 0.1
    self.assertEqual(summary["ce"]["selected"], {"mean": None, "std": None})
    self.assertEqual(summary["ce"]["seeds"], [0, 1])
    table = _report.markdown_table(summary)
    self.assertIn("| ce | 80.0 ± 14.1 | - | 80.0 ± 14.1 | - | 25.0 ± 0.0 | 4 |", table)


if __name__ == "__main__":
  absltest.main()
