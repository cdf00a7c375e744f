"""The benchmark of the rules: that it forgets none, what it counts, and what it says."""

import contextlib
import functools
import io
import json
import pathlib
import tempfile
import typing
from unittest import mock

import jax
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

import reweight_jax as rw
from benchmarks import rules
from experiments import _errors
from experiments._errors import RunError

BATCH = 100
# Products of mlp, 3072-128-128-10: the first twice, its inputs need no gradient, the others thrice.
MLP_FLOPS = 2 * BATCH * (2 * 3072 * 128 + 3 * (128 * 128 + 128 * 10))
# What returns a rule, and yet is no row of the table.
OUTSIDE = {"weighting_rule": "makes a rule of a function: every row is made with it"}


@functools.cache
def _alone(name):
  return rules.count_alone(rules.RULES[name](), BATCH)["flops"]


def _parsed(*arguments):
  values = flags.FlagValues()
  rules.define_flags(values)
  values(["rules", *arguments])
  return values


def _row(name, flops, bound=rules.FLOPS_BOUND):
  return {"rule": name, "flops": flops, "bytes_accessed": 1.0, "flops_bound": bound}


class TableTest(parameterized.TestCase):
  def test_every_exported_rule_is_in_the_table(self):
    functions = {
      name: getattr(rw.rules, name) for name in rw.rules.__all__ if not name[0].isupper()
    }
    exported = {
      name
      for name, function in functions.items()
      if typing.get_type_hints(function)["return"] == rw.types.WeightingRule
    }
    self.assertContainsSubset({"focal", "normalize", "where_examples", *OUTSIDE}, exported)
    self.assertCountEqual(rules.RULES, exported - set(OUTSIDE))

  @parameterized.parameters(*rules.RULES)
  def test_rule_needs_no_meta_batch_and_few_flops(self, name):
    self.assertLess(_alone(name), (rules.FLOPS_BOUND - 1) * MLP_FLOPS)

  def test_a_rule_that_needs_a_meta_batch_has_no_place_in_the_table(self):
    with self.assertRaisesRegex(TypeError, "meta_alignment"):
      rules.count_alone(rw.meta.learning_to_reweight(), BATCH)

  def test_rules_alone_are_counted_as_by_hand(self):
    self.assertEqual(_alone("rectify"), BATCH)  # one maximum
    # A product and a sum, both masked; and one minus the share.
    self.assertEqual(_alone("mix_with_uniform"), 3 * BATCH + 1)
    # Each pair is compared, NaN put last (and, or), masked, made a number and added.
    np.testing.assert_allclose(_alone("large_loss"), 6 * BATCH**2, rtol=0.02)


class BinaryTest(absltest.TestCase):
  """The binary on a small net, run once for all tests: two steps are compiled."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      output = pathlib.Path(folder, "rules.json")
      arguments = "--model=mlp --rules=exponential_emphasis --num_timings=1 --note=test"
      with contextlib.redirect_stdout(io.StringIO()) as printed:
        rules.main(_parsed(*arguments.split(), f"--output={output}"))
      cls.result = json.loads(output.read_text())
      cls.table = output.with_suffix(".md").read_text()
    cls.printed = printed.getvalue()
    cls.plain, cls.row = cls.result["rows"]

  def test_plain_step_is_the_products_of_the_net(self):
    np.testing.assert_allclose(self.plain["flops"], MLP_FLOPS, rtol=0.01)

  def test_the_gap_is_about_the_rule_alone_or_less(self):
    # What rule and loss both compute, XLA computes once; what it fuses twice, it may repeat.
    self.assertBetween(self.row["flops"] - self.plain["flops"], 0, 1.2 * self.row["alone_flops"])
    gap = (self.row["flops"] - self.plain["flops"]) / self.plain["flops"]
    self.assertAlmostEqual(self.row["gap_percent"], 100 * gap)

  def test_the_lowered_program_counts_the_same(self):
    config = rules.Config(model="mlp", rules=("exponential_emphasis",), count="lowered")
    for lowered, compiled in zip(rules.run(config), self.result["rows"], strict=True):
      self.assertEqual(lowered["rule"], compiled["rule"])
      np.testing.assert_allclose(lowered["flops"], compiled["flops"], rtol=1e-3)
      np.testing.assert_allclose(lowered["flops_ratio"], compiled["flops_ratio"], rtol=2e-4)

  def test_plain_step_is_the_measure_of_time_too(self):
    self.assertEqual(self.plain["time_ratio"], 1)
    self.assertAlmostEqual(
      self.row["time_ratio"], self.row["seconds"] / self.plain["seconds"], places=6
    )

  def test_files_tell_how_they_were_made(self):
    self.assertEqual(self.result["flags"]["model"], "mlp")
    self.assertEqual(self.result["versions"]["jax"], jax.__version__)
    self.assertStartsWith(self.result["command"], "python -m benchmarks.rules")
    self.assertIn(self.table, self.printed)
    self.assertIn("\n- Note: test\n", self.table)
    self.assertIn("\n| plain | cross_entropy | 0.169 | 1.000 | - | ", self.table)
    self.assertIn("\n| exponential_emphasis | unit_margin | 0.169 | 1.000 | 1.03 | ", self.table)
    self.assertIn("1.03 times the plain FLOPs: holds for all 1\n", self.table)


class BoundTest(absltest.TestCase):
  def test_more_flops_than_the_bound_are_named_and_no_number_is_no_pass(self):
    rows = [_row("plain", 100.0), _row("a", 103.0), _row("b", 103.1), _row("c", float("nan"))]
    broken = rules.broken_bounds(rules.add_ratios(rows))
    self.assertLen(broken, 2)
    self.assertEqual(broken[0], "b: 1.0310 times the plain step, bound 1.03")
    self.assertStartsWith(broken[1], "c: nan times")

  def test_a_broken_bound_is_printed_and_a_run_error(self):
    values = _parsed("--model=mlp", "--rules=rectify", "--count=lowered")
    with (
      mock.patch.object(rules, "FLOPS_BOUND", 0.99),
      contextlib.redirect_stdout(io.StringIO()) as printed,
      self.assertRaisesRegex(RunError, "rectify: 1.0000 times the plain step, bound 0.99"),
    ):
      rules.main(values)
    self.assertIn("DOES NOT HOLD for rectify", printed.getvalue())


class SettingTest(parameterized.TestCase):
  def test_derivative_manipulation_stands_on_the_unit_margin_the_others_on_cross_entropy(self):
    for name, loss in (
      ("emphasis", rw.losses.unit_margin),
      ("focal", rw.losses.softmax_cross_entropy),
    ):
      with mock.patch.object(rw.losses, "from_apply", wraps=rw.losses.from_apply) as made:
        rules.make_case("mlp", 2, name)
      self.assertIs(made.call_args.args[1], loss)

  @parameterized.parameters(
    ("--model=vgg", "--model: .*; got 'vgg'"),
    ("--rules=focal,learning_to_reweight", "--rules: .*; got 'learning_to_reweight'"),
    ("--count=guessed", "--count: expected one of compiled, lowered; got 'guessed'"),
    ("--batch_size=0", "--batch_size: expected at least 1, got 0"),
    ("--num_timings=-1", "--num_timings: expected at least 0, got -1"),
    ("--output=table.md", "--output: expected a name that ends in .json"),
  )
  def test_a_bad_flag_is_one_line_and_status_2(self, argument, message):
    values = _parsed(argument)
    with contextlib.redirect_stderr(io.StringIO()) as errors, self.assertRaises(SystemExit) as end:
      _errors.exit_on_mistake(lambda: rules.main(values))
    self.assertEqual(end.exception.code, 2)
    self.assertRegex(errors.getvalue(), f"^error: {message}.*\n$")


if __name__ == "__main__":
  absltest.main()
