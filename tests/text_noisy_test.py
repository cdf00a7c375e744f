"""Noisy text: one method at several learning rates, the rate chosen on noisy validation."""

import json
from typing import ClassVar
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from experiments import _command, text_noisy
from experiments._errors import DivergedError, UsageError
from experiments.text_noisy import Setting
from tests import commands


def _write_lines(path, size, seed):
  """Texts of two classes that differ in one word."""
  rng = np.random.default_rng(seed)
  words = np.array(["red", "blue", "one", "two", "three"])
  lines = [
    f"{i % 2} {words[i % 2]} {' '.join(rng.choice(words[2:], rng.integers(1, 6)))}"
    for i in range(size)
  ]
  path.write_text("\n".join(lines) + "\n")


def _summary(validation, last, std=None):
  number = lambda value: {"mean": value, "std": std}
  names = {"last": last, "selected": last, "best": last, "last_validation": validation}
  return {name: number(value) for name, value in names.items()}


class TableTest(parameterized.TestCase):
  RESULTS: ClassVar = {
    Setting(0.2, 1.0, 0.1, "ce"): _summary(0.6, 0.70),
    Setting(0.2, 1.0, 0.1, "dm"): None,
    Setting(0.2, 1.0, 0.3, "ce"): _summary(0.5, 0.90),
    Setting(0.2, 1.0, 0.3, "dm"): _summary(0.4, 0.80, std=0.01),
  }

  def test_the_rate_is_chosen_by_validation_not_by_test(self):
    ce = {setting.rate: row for setting, row in self.RESULTS.items() if setting.method == "ce"}
    self.assertEqual(text_noisy.chosen_rate(ce), 0.1)

  def test_a_method_that_diverges_is_told_and_never_chosen(self):
    lines = [line.strip("| ").split(" | ") for line in text_noisy.table(self.RESULTS).splitlines()]
    self.assertEqual(lines[2], ["20 %", "1", "ce", "0.1", *["70.0"] * 3, "70.0", "90.0"])
    self.assertEqual(
      lines[3], ["20 %", "1", "dm", "0.3", *["80.0 ± 1.0"] * 3, "diverged", "80.0 ± 1.0"]
    )


class CommandTest(commands.CommandTestCase):
  MODULE = text_noisy

  def setUp(self):
    super().setUp()
    self.files = [self.root / name for name in ("colors.train", "colors.test")]
    for seed, path in enumerate(self.files):
      _write_lines(path, 240, seed)
    train, test = self.files
    self.argv = (f"--train_file={train}", f"--test_file={test}", "--validation_size=20")

  def test_a_small_study_fills_its_table_and_finds_the_word(self):
    argv = ("--steps=60", "--eval_every=30", "--seeds=0", "--width=4", "--batch_size=20")
    stdout = self.command(
      *self.argv, *argv, "--noise_rates=0,0.2", "--learning_rates=0.05", "--method=ce,dm"
    )
    rows = [line.strip("| ").split(" | ") for line in stdout.splitlines() if line.startswith("|")]
    settings = [[f"{rate} %", "1", name] for rate in (0, 20) for name in ("ce", "dm")]
    self.assertEqual([row[:3] for row in rows[2:]], settings)
    self.assertGreater(float(rows[2][4]), 90)
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertEqual(summary[0]["method"], "ce")
    noisy = [summary[i]["numbers"]["realized_noise_rate"]["mean"] for i in (0, 2)]
    self.assertEqual(noisy[0], 0.0)
    self.assertAlmostEqual(noisy[1], 0.2, places=2)

  def test_the_study_goes_on_where_a_method_diverges(self):
    def train(plan, progress):
      if plan.config.methods == ("dm",):
        raise DivergedError("not finite at step 3")
      return {plan.config.methods[0]: _summary(0.5, 0.5)}

    with mock.patch.object(_command, "train", train):
      stdout = self.command(*self.argv, "--method=ce,dm", "--noise_rates=0", "--learning_rates=1")
    self.assertIn("| ce | 1 | 50.0", stdout)
    self.assertIn("| dm | - | diverged", stdout)

  def config(self, **fields):
    files = {"train_file": str(self.files[0]), "test_file": str(self.files[1])}
    return text_noisy.TextConfig(**files, **fields)

  def test_one_command_is_at_work_in_the_workdir_from_the_first_run_to_the_summary(self):
    config = self.config(methods=("ce",), validation_size=20, workdir=str(self.workdir))
    table, seen = text_noisy.table, []

    def refused(results):
      with self.assertRaisesRegex(UsageError, f"^--workdir: process .* at work in {self.workdir}"):
        text_noisy.run(config, (0.0,), (1.0,), (0.1,))
      seen.append(results)
      return table(results) if results else {"ce": _summary(0.5, 0.5)}

    train = lambda plan, progress: refused(None)
    with (
      mock.patch.object(_command, "train", train),
      mock.patch.object(text_noisy, "table", refused),
    ):
      text_noisy.run(config, (0.0,), (1.0,), (0.1,))
    self.assertLen(seen, 2)  # during training, and before the summary is written
    self.assertTrue((self.workdir / "summary.md").exists())

  def test_numbers_that_look_alike_have_folders_of_their_own(self):
    found = text_noisy.commands(self.config(methods=("ce",)), (0.0,), (1.0, 1.0000001), (0.1,))
    names = [text_noisy.pathlib.Path(one.workdir).name for one in found.values()]
    self.assertEqual(names, ["noise_0_ratio_1_rate_0.1", "noise_0_ratio_1.0000001_rate_0.1"])

  def test_minus_zero_is_zero(self):
    config = self.config(methods=("ce",), validation_size=20, workdir=str(self.workdir))
    (setting,) = text_noisy.plan(config, (-0.0,), (1.0,), (0.1,))
    self.assertIn("| 0 % | 1 | ce |", text_noisy.table({setting: _summary(0.5, 0.5)}))

  def test_imbalance_thins_out_a_class(self):
    config = self.config()
    found = text_noisy.commands(config, (0.0,), (1.0, 10.0), (0.1,))
    ratios = {setting.ratio: one.imbalance for setting, one in found.items()}
    self.assertEqual(ratios, {1.0: "none", 10.0: "step"})
    one = found[Setting(0.0, 10.0, 0.1, "ce")]
    task = text_noisy.JOB.make_task(
      text_noisy.dataclasses.replace(one, validation_size=20), text_noisy.load(one), 0
    )
    counts = task.class_counts("train")  # 240, less 20 trusted and 20 of validation
    self.assertEqual(counts, (100, 10))

  @parameterized.parameters(
    ("--train_file: expected both --train_file and --test_file", ["--train_file=a"]),
    ("--train_file: .*or --dataset", []),
    ("--train_file: .*or --dataset", ["--train_file=a", "--test_file=b", "--dataset=c"]),
    ("a: there is no such file|no such file", ["--train_file=a", "--test_file=b"]),
    ("--noise_rates: expected numbers in .*got 1.0", ["--dataset=x", "--noise_rates=1"]),
    ("--imbalances: expected numbers at least 1.*got 0.5", ["--dataset=x", "--imbalances=0.5"]),
    ("--learning_rates: .*got 0.1,0.1", ["--dataset=x", "--learning_rates=0.1,0.1"]),
    ("--learning_rates: expected numbers .*got 'fast'", ["--dataset=x", "--learning_rates=fast"]),
    ("--width: expected a number from 1 to 100000, got 0", ["--dataset=x", "--width=0"]),
    ("--max_length: expected a number from 1 to 100000, got 0", ["FILES", "--max_length=0"]),
    ("--dm_beta: .*got nan", ["FILES", "--dm_beta=nan"]),
    ("--method: expected at least one, got none", ["FILES", "--method="]),
    ("--method: expected each once, got ce,ce", ["FILES", "--method=ce,ce"]),
    ("--validation_size: expected at least 1, to choose", ["FILES", "--validation_size=0"]),
    # What only the last of several settings cannot do is told before the first of them runs.
    ("a ratio of 1000 leaves class 1", ["FILES", "--imbalances=1,1000"]),
    ("--reference: expected the folder .*got none", ["FILES", "--method=ce,jtt"]),
    (
      "--class_weights: expected 2 numbers.*got 3",
      ["FILES", "--method=ce,class_weights", "--class_weights=1,2,3"],
    ),
    # 100 and 5 examples are left at ratio 20, of 200.
    ("--batch_size: .* the 105 .*got 110", ["FILES", "--batch_size=110", "--imbalances=1,20"]),
    ("--dm_lam: .*at least 0.*got -1", ["FILES", "--dm_lam=-1"]),
  )
  def test_bad_flags_are_one_line(self, pattern, argv):
    given = [*self.argv, *argv[1:]] if argv[:1] == ["FILES"] else argv
    self.assert_refused(pattern, *given)


if __name__ == "__main__":
  absltest.main()
