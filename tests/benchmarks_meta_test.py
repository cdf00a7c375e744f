"""The benchmark of the meta gradient: its counts by hand, its approximations, what it says."""

import contextlib
import importlib.util
import io
import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized

from benchmarks import _meta_cases, _meta_dial, _meta_report, meta
from experiments._errors import UsageError

BATCH, META = 100, 10
FIRST, OTHERS = 3072 * 128, 128 * 128 + 128 * 10  # multiply-adds of mlp's products, an example


def _by_hand(first, others, meta=1):
  """FLOPs of so many products with each matrix; the gradient of the meta batch is 2 and 3."""
  batch = first * FIRST + others * OTHERS
  return 2 * (BATCH * batch + meta * META * (2 * FIRST + 3 * OTHERS))


def _parsed(*arguments):
  values = flags.FlagValues()
  meta.define_flags(values)
  values(["meta", *arguments])
  return values


@pytest.mark.long
class CostTest(parameterized.TestCase):
  """The binary on a perceptron, run once for all tests."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      output = pathlib.Path(folder, "meta.jsonl")
      arguments = "--models=mlp --norm=none --meta_divisors=10 --num_timings=1 --peers=none"
      arguments += " --routes=ghost,split_forward,adamw_ghost --note=test"
      quiet = io.StringIO()
      with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(io.StringIO()):
        meta.main(_parsed(*arguments.split(), f"--output={output}"))
      cls.header, *rows = map(json.loads, output.read_text().splitlines())
      cls.text = output.with_suffix(".md").read_text()
    cls.printed = quiet.getvalue()
    cls.rows = {row["step"]: row for row in rows}

  @parameterized.parameters(
    # The first matrix is passed once less by every gradient: inputs need none.
    ("plain", 2, 3, 0),
    ("ghost", 1 + 1 + 1, 2 + 1 + 1, 1),  # a pass with cotangents, a push, a pull
    ("split_forward", 1 + 1 + 1, 1 + 2 + 2, 1),
    ("adamw_ghost", 3 + 1, 4 + 1, 1),  # and the pull of the gradient that AdamW is given
  )
  def test_products_are_those_of_the_derivation(self, step, first, others, num_meta):
    expected = _by_hand(first, others, num_meta)
    beyond = self.rows[step]["flops"] - expected
    # AdamW's update, twice, and its transpose take some operations for each parameter: less than a
    # pass over the batch, which would be one product more with each matrix.
    per_param = 80 * (FIRST + OTHERS) if step.startswith("adamw") else 0
    self.assertBetween(beyond, -0.01 * expected, 0.01 * expected + per_param)

  def test_ratios_are_to_the_plain_step_of_the_same_optimizer(self):
    for step, plain in (("split_forward", "plain"), ("adamw_ghost", "adamw_plain")):
      row, beside = self.rows[step], self.rows[plain]
      self.assertAlmostEqual(row["flops_ratio"], row["flops"] / beside["flops"])
      self.assertAlmostEqual(row["temp_ratio"], row["temp_bytes"] / beside["temp_bytes"])
      self.assertAlmostEqual(row["time_ratio_min"], row["seconds_min"] / beside["seconds_min"])

  def test_the_split_step_is_as_large_as_the_larger_of_its_programs(self):
    row = self.rows["split_forward"]
    self.assertLen(row["temp_bytes_of_programs"], 2)
    self.assertEqual(row["temp_bytes"], max(row["temp_bytes_of_programs"]))
    plain = self.rows["plain"]["temp_bytes"]
    self.assertAlmostEqual(row["temp_bound"], max(1.3, row["temp_bytes_of_programs"][0] / plain))

  def test_files_tell_how_they_were_made(self):
    self.assertEqual(self.header["versions"]["jax"], jax.__version__)
    self.assertStartsWith(self.header["command"], "python -m benchmarks.meta")
    self.assertIn(self.text, self.printed)
    self.assertIn("\n## mlp, float32, batch 100\n", self.text)
    self.assertIn("\n| adamw_ghost | 10 | ", self.text)
    self.assertIn("mlp, float32, split_forward, meta batch 10 of 100: ", self.text)
    self.assertIn("\n- Note: test\n", self.text)


class LawTest(parameterized.TestCase):
  @parameterized.parameters(
    ("forward", 100, 8 / 3),
    ("ghost", 100, 7 / 3),
    ("ghost", 10, 4.3 / 3),
    ("split_ghost", 10, 4.3 / 3),
    ("adamw_forward", 10, 7.3 / 3),
    ("adamw_ghost", 10, 5.3 / 3),
    ("nested", 10, None),
    ("plain", None, 1),
  )
  def test_plain_steps_that_a_step_is_worth(self, step, size, expected):
    self.assertEqual(_meta_cases.law(step, size, 100), expected)

  def test_a_virtual_step_more_costs_two_gradients_and_more(self):
    net = _meta_cases.make_net("mlp", "none", "float32")
    cases = _meta_cases.make_unrolled_cases(net, 20, 2, (2, 3))[1:]
    two, three = (
      case.step.lower(*jax.eval_shape(case.make_arguments)).cost_analysis()["flops"]
      for case in cases
    )
    gradient = 2 * 20 * (2 * FIRST + 3 * OTHERS)
    # Itself, again for its memory, and the derivative of it: as much again, or twice.
    self.assertBetween((three - two) / gradient, 2, 4)


@pytest.mark.long
class DialTest(absltest.TestCase):
  """The approximations on a perceptron in training, run once for all tests."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    setting = _meta_dial.Setting(
      model="mlp", norm=None, calibrate_at=1, windows=(3,), window_length=3, seeds=(0,),
      periods=(3,), layer_counts=(1,), last_layer=("Dense_2",), last_block=("Dense_1", "Dense_2"),
    )  # fmt: skip
    cls.rows = {row["approximation"]: row for row in _meta_dial.run(setting)}

  def test_less_of_the_net_is_less_work(self):
    ratio = lambda name: self.rows[name]["flops_ratio"]
    self.assertLess(1, ratio("last layer"))
    self.assertLess(ratio("last layer"), ratio("last block"))
    self.assertLess(ratio("last block"), ratio("exact"))

  def test_a_kept_direction_saves_the_meta_batch_of_two_steps_in_three(self):
    # In passes of the batch (products with the matrices past the first; the first is tiny here
    # too): exact 4 + 3 V / B, kept 4, plain 3.
    row = self.rows["stale, every 3 steps"]
    self.assertAlmostEqual(row["saved"], 2 / 3 * 0.6 / 1.6, delta=0.03)
    self.assertEqual(row["num_batches"], 2)  # of steps 3, 4, 5 the first has a meta batch

  def test_cosines_are_of_the_batches_in_the_window(self):
    self.assertEqual(self.rows["exact"]["cosine"], 1)
    for name in ("last layer", "last block", "learned, 1 layer", "exact, other meta batch"):
      row = self.rows[name]
      self.assertEqual(row["num_batches"], 3)
      self.assertBetween(row["cosine"], row["cosine_min"], 1)
    self.assertGreater(self.rows["last block"]["cosine"], 0.3)

  def test_the_layer_that_was_learned_is_named(self):
    self.assertContainsSubset(
      self.rows["learned, 1 layer"]["layers"][0], ("Dense_0", "Dense_1", "Dense_2")
    )


class BoundTest(absltest.TestCase):
  def test_more_than_the_bound_is_named_and_no_number_is_no_pass(self):
    row = {"table": "base", "model": "a", "dtype": "float32", "batch_size": 100, "step": "ghost"}
    row |= {"meta_batch_size": 10, "flops_bound": 1.46, "flops_ratio": 1.46}
    rows = [row, row | {"flops_ratio": 1.47}, row | {"flops_ratio": float("nan")}]
    broken = _meta_report.broken_flops(rows)
    self.assertLen(broken, 2)
    self.assertEqual(
      broken[0],
      "a, float32, ghost, meta batch 10 of 100: 1.470 times the FLOPs of the plain step, bound "
      "1.46: DOES NOT HOLD",
    )

  def test_bounds_are_a_thirtieth_above_the_derivation_at_most(self):
    for (_, step), bounds in meta._FLOPS_BOUNDS.items():
      for divisor, bound in bounds.items():
        expected = _meta_cases.law(step, 100 // divisor, 100)
        self.assertBetween(bound - expected, 0, 0.04)

  def test_a_step_that_is_refused_has_a_reason(self):
    net = _meta_cases.make_net("resnet8", "batch", "float32")
    cases = _meta_cases.make_cases(net, 4, (4,), ("ghost",))
    rows, calls = meta._measure_cases(cases[1:], {"model": "resnet8", "dtype": "float32"}, str)
    self.assertEqual(calls, [None])
    self.assertStartsWith(rows[0]["reason"], "RefusedError: ")


class SettingTest(parameterized.TestCase):
  @parameterized.parameters(
    ("--models=vgg", "--models: .*; got 'vgg'"),
    ("--routes=fast", "--routes: .*; got 'fast'"),
    ("--dtypes=float16", "--dtypes: .*; got 'float16'"),
    ("--peers=keras", "--peers: .*; got 'keras'"),
    ("--batch_size=0", "--batch_size: expected at least 1, got 0"),
    ("--meta_divisors=10,0", "--meta_divisors: expected at least 1, got 0"),
    ("--meta_divisors=ten", "--meta_divisors: expected numbers such as 10,1; got 'ten'"),
    ("--num_timings=-1", "--num_timings: expected at least 0, got -1"),
    ("--norm=layer", "--norm: .*'layer'"),
    ("--nobase", "--nobase leaves nothing to do: add --steps or --dial"),
    ("--output=table.json", "--output: expected a name that ends in .jsonl"),
  )
  def test_a_bad_flag_is_a_usage_error(self, argument, message):
    with self.assertRaisesRegex(UsageError, message):
      meta.main(_parsed(argument))

  def test_the_encoder_reads_sequences_of_64_tokens(self):
    net = _meta_cases.make_net(meta._meta_cases.ENCODER, "group", "float32")
    batch = net.draw(1, 3)
    self.assertEqual(batch.inputs.shape, (3, 64))
    self.assertBetween(int(batch.inputs.min()), 1, 999)  # 0 would be padding
    self.assertEqual((net.module.num_blocks, net.module.width), (4, 128))


class PeerTest(absltest.TestCase):
  def test_the_libraries_weigh_as_double_backward_does(self):
    missing = [n for n in ("torch", "higher", "torchopt") if importlib.util.find_spec(n) is None]
    if missing:
      self.skipTest(f"needs {', '.join(missing)}")
    from benchmarks import _meta_peers, _torch_peer

    peer = _torch_peer.Peer("resnet8", "group", "float32", 6)
    _, expected = peer.weighted_step(4)
    for library in _meta_peers.LIBRARIES:
      module = _meta_peers.Module(peer)
      for _ in range(2):  # the module is as it was before
        _, found = _meta_peers.weighted_step(peer, module, library, 4)
        np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)


if __name__ == "__main__":
  absltest.main()
