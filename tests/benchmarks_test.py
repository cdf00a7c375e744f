"""The benchmark of the step: what it counts, and that the counts are those of the formulas."""

import importlib.util
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import absltest, parameterized

import reweight_jax as rw
from benchmarks import _cases, _cost, _report, step
from experiments._errors import RunError, UsageError
from reweight_jax import training

BATCH, META = 100, 20
INPUTS, HIDDEN, CLASSES = 256, 512, 256


def _dense_apply(params, state, inputs, key, train):
  del key, train
  return jnp.tanh(inputs @ params["first"]) @ params["second"], state


LOSS_FN = rw.losses.from_apply(_dense_apply)
TX = optax.sgd(0.1)


def _dense_flops(make_step, rule, with_meta):
  """FLOPs of a step of a net of two matrices, in multiply-adds of its first and second product."""

  def arguments():
    params = {"first": jnp.zeros((INPUTS, HIDDEN)), "second": jnp.zeros((HIDDEN, CLASSES))}
    state = training.init_train_state(params, (), rule, TX, key=jax.random.key(0), batch_size=BATCH)
    batch, meta_batch = (
      rw.types.make_batch(jnp.zeros((size, INPUTS)), jnp.zeros(size, jnp.int32))
      for size in (BATCH, META)
    )
    return (state, batch, meta_batch) if with_meta else (state, batch)

  return _cost.measure(make_step, jax.eval_shape(arguments)).flops


def _by_hand(first, second, meta_first=0, meta_second=0):
  """FLOPs of so many products with each matrix, on batch and meta batch: 2 m n k each."""
  batch = first * BATCH * INPUTS * HIDDEN + second * BATCH * HIDDEN * CLASSES
  meta = meta_first * META * INPUTS * HIDDEN + meta_second * META * HIDDEN * CLASSES
  return 2 * (batch + meta)


class DenseTest(parameterized.TestCase):
  """A gradient passes each matrix three times, the first one twice: inputs need no gradient."""

  def test_plain_step_is_one_gradient_as_written_out(self):
    plain = optax.with_extra_args_support(optax.identity())

    def mean_loss(params, batch):
      logits, _ = _dense_apply(params, (), batch.inputs, None, True)
      return rw.losses.softmax_cross_entropy(logits, batch.labels).mean()

    @jax.jit
    def written_out(state, batch):
      loss, grads = jax.value_and_grad(mean_loss)(state.params, batch)
      return jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), loss

    made = jax.jit(training.make_train_step(LOSS_FN, plain, TX))
    counted, expected = (_dense_flops(f, plain, with_meta=False) for f in (made, written_out))
    np.testing.assert_allclose(counted, expected, rtol=0.01)
    np.testing.assert_allclose(counted, _by_hand(2, 3), rtol=0.02)

  @parameterized.parameters("forward", "split")
  def test_forward_step_is_a_pass_a_push_a_pull_and_a_meta_gradient(self, form):
    rule = rw.meta.learning_to_reweight()
    make = training.make_split_train_step if form == "split" else training.make_train_step
    made = make(LOSS_FN, rule, TX)
    counted = _dense_flops(made if form == "split" else jax.jit(made), rule, with_meta=True)
    expected = _by_hand(1 + 1 + 1, 1 + 2 + 2, meta_first=2, meta_second=3)
    np.testing.assert_allclose(counted, expected, rtol=0.02)

  def test_xla_counts_products_and_convolutions_as_by_hand(self):
    _cost.check_cost_analysis()

  def test_a_step_that_computes_outside_of_its_jitted_calls_is_refused(self):
    with self.assertRaisesRegex(RunError, "jitted functions alone, got mul"):
      _cost.lower(lambda x: 2 * x, [jax.ShapeDtypeStruct((), jnp.float32)])


@pytest.mark.long
class ResNetTest(absltest.TestCase):
  """The binary on a small net, without norm for faster compiling, run once for all tests."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    values = flags.FlagValues()
    step.define_flags(values)
    with tempfile.TemporaryDirectory() as folder:
      output = pathlib.Path(folder, "step.json")
      arguments = "--models=resnet8 --norm=none --batch_sizes=10 --meta_batch_sizes=10 --peers=none"
      arguments += (
        f" --routes=forward,nested,split,vmapped --num_timings=0 --output={output} --note=test"
      )
      values(["step", *arguments.split()])
      step.main(values)
      cls.result = json.loads(output.read_text())
      cls.table = output.with_suffix(".md").read_text()
    cls.rows = {row["step"]: row for row in cls.result["rows"]}

  def test_forward_and_split_follow_the_formula(self):
    for name in ("forward", "split"):
      np.testing.assert_allclose(self.rows[name]["flops_ratio"], (5 + 3) / 3, rtol=0.03)

  def test_nested_needs_more_than_forward(self):
    self.assertGreater(self.rows["nested"]["flops"], 1.1 * self.rows["forward"]["flops"])

  def test_split_needs_less_memory_than_forward(self):
    self.assertLess(self.rows["split"]["temp_bytes"], 0.7 * self.rows["forward"]["temp_bytes"])

  def test_file_tells_how_it_was_made(self):
    self.assertEqual(self.result["flags"]["models"], ["resnet8"])
    self.assertEqual(self.result["flags"]["meta_batch_sizes"], [10])
    self.assertEqual(self.result["note"], "test")
    self.assertEqual(self.result["versions"]["jax"], jax.__version__)
    self.assertIn("CPU cores", self.result["device"])

  def test_table_has_a_row_for_each_step_and_a_line_for_each_bound(self):
    for name in ("plain", "forward", "nested", "split", "vmapped"):
      self.assertIn(f"\n| {name} | ", self.table)
    self.assertEqual(self.table.count("bound 2.70: holds"), 2)

  def test_a_broken_bound_is_named(self):
    row = self.rows["forward"] | {"flops_ratio": 2.71}
    self.assertEmpty(_report.broken_bounds(self.result["rows"]))
    broken = _report.broken_bounds([self.rows["plain"], row])
    self.assertLen(broken, 1)
    self.assertIn("resnet8, forward, meta batch 10 of 10: 2.710", broken[0])


class SettingTest(parameterized.TestCase):
  @parameterized.parameters((100, 2.70), (10, 1.80))
  def test_bounds_at_a_batch_of_100(self, meta_batch_size, bound):
    self.assertAlmostEqual(_cost.flops_bound("forward", meta_batch_size, 100), bound)

  def test_meta_batch_is_the_batch_and_a_tenth_of_it_by_default(self):
    self.assertEqual(step.Config().meta_sizes(100), (100, 10))
    self.assertEqual(step.Config().meta_sizes(1), (1,))

  @parameterized.parameters(
    ({"models": ("resnet8", "vgg")}, "--models: .*; got 'vgg'"),
    ({"routes": ("ghost",)}, "--routes: .*; got 'ghost'"),
    ({"dtype": "float16"}, "--dtype: .*; got 'float16'"),
    ({"precision": "low"}, "--precision: .*; got 'low'"),
    ({"peers": "keras"}, "--peers: .*; got 'keras'"),
    ({"models": ("lenet",), "norm": "batch"}, "--norm: .*lenet has no normalization"),
    ({"norm": "layer"}, "--norm: .*; got 'layer'"),
    ({"batch_sizes": (0,)}, "--batch_sizes: expected at least 1, got 0"),
    ({"meta_batch_sizes": (5, -1)}, "--meta_batch_sizes: expected at least 1, got -1"),
    ({"num_timings": -1}, "--num_timings: expected at least 0, got -1"),
  )
  def test_a_bad_setting_is_a_usage_error(self, fields, message):
    with self.assertRaisesRegex(UsageError, message):
      step.check(step.Config(**fields))

  def test_output_is_checked_before_the_work(self):
    for path in ("table.md", "no_such_folder/table.json"):
      with self.assertRaisesRegex(UsageError, "--output: expected"):
        _report.check_output(path)

  def test_rounds_interleave_the_cases_and_leave_out_the_first(self):
    calls = []
    named = [lambda name=name: calls.append(name) for name in "ab"]
    self.assertEqual(_cost.time_steps(2, named).shape, (2, 2))
    self.assertEqual("".join(calls), "ababab")


class PeerTest(absltest.TestCase):
  """The step in PyTorch is the same step."""

  def test_losses_and_weights_of_the_peer_are_ours(self):
    if importlib.util.find_spec("torch") is None:
      self.skipTest("needs torch")
    from benchmarks import _torch_peer

    for norm in ("batch", "group", "none"):
      peer = _torch_peer.Peer("resnet8", norm, "float32", 6)
      net = _cases.build("resnet8", norm, "float32")
      params, model_state = _cases.random_variables(net)
      loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
      batch, meta_batch = _cases.random_batch(1, 6), _cases.random_batch(2, 4)
      expected = rw.meta.example_weights(loss_fn, params, model_state, batch, meta_batch)
      _, found = peer.weighted_step(4)
      np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)
      logits = loss_fn(params, model_state, batch, None).logits
      theirs = peer.logits(peer.params, peer.batch[0]).detach().numpy()
      np.testing.assert_allclose(theirs, logits, atol=1e-3)


if __name__ == "__main__":
  absltest.main()
