"""Methods that learn from the meta set, and the flags of the meta-gradient, on the command line."""

import dataclasses
import functools
import json
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from matplotlib.figure import Figure

import reweight_jax as rw
from experiments import (
  _flags,
  _learned,
  _meta,
  _methods,
  _model,
  _phases,
  _run,
  _weight_curve,
  _workdir,
  cifar_imbalanced,
  cifar_noisy,
)
from experiments._config import ADDED, Config
from experiments._errors import UsageError
from experiments._rule_options import RuleOptions
from reweight_jax import meta
from tests import commands, runs

_BINARY = types.SimpleNamespace(define_flags=_flags.define_flags, main=cifar_noisy.main)
LEARNED = ("meta_weight_net", "class_aware_weight_net", "lilaw", "lilaw_meta")


class CommandTest(commands.CommandTestCase):
  MODULE = _BINARY

  @parameterized.parameters(
    ("--virtual_steps: 2 virtual steps need --route=nested; got", "--virtual_steps=2"),
    ("--virtual_steps: .*got 0", "--virtual_steps=0"),
    ("--virtual_optimizer: expected one of none, training; got 'adam'", "--virtual_optimizer=adam"),
    (
      "--virtual_optimizer: meta_weight_net looks at a virtual step of some size",
      *("--method=l2rw,meta_weight_net", "--virtual_optimizer=none"),
    ),
    ("--meta_every: 2 keeps .* --route=nested has none", "--meta_every=2", "--route=nested"),
    ("--meta_every: lilaw learns .*; got 2", "--meta_every=2", "--method=ce,lilaw"),
    ("--meta_every: .*got 0", "--meta_every=0"),
    ("--meta_labels: expected one of clean, noisy; got 'wrong'", "--meta_labels=wrong"),
    ("--meta_labels=noisy goes with a --noise", "--meta_labels=noisy", "--noise=none"),
    ("--meta_labels: clean_only .* right", "--meta_labels=noisy", "--method=ce,clean_only"),
    ("--meta_loss: expected one of ce, mae, gce; got 'mse'", "--meta_loss=mse"),
    ("--meta_layers: .* such as Dense_0, Dense_1, Dense_2; got 'Dense'", "--meta_layers=Dense"),
    ("--route=ghost is not exact here: .*recorder", "--route=ghost", "--mixup=0.2"),
    ("--meta_weight_net_optimizer: .*got 'lion'", "--meta_weight_net_optimizer=lion"),
    ("--class_aware_groups: .*got 0", "--class_aware_groups=0"),
  )
  def test_what_does_not_go_together_is_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def test_a_net_and_scalars_train_and_the_net_leaves_its_curve(self):
    self._check_methods("class_aware_weight_net", "lilaw")

  @pytest.mark.long
  def test_each_method_trains_and_the_nets_leave_their_curve(self):
    self._check_methods(*LEARNED)

  def _check_methods(self, *methods):
    argv = ("--steps=2", "--nopictures", "--eval_every=2", "--noise=symmetric")
    stdout = self.command(f"--method={','.join(methods)}", *argv)
    for method in methods:
      self.assertIn(f"| {method} | ", stdout)
      curve = self.workdir / method / "seed_0" / _weight_curve.FILE
      self.assertEqual(curve.exists(), "net" in method)
    with np.load(curve.parents[2] / "class_aware_weight_net/seed_0" / curve.name) as arrays:
      self.assertLen(arrays["weight"], 3)
      self.assertEqual(set(arrays["group"]), {0, 1, 2})


class StoredSettingsTest(commands.CommandTestCase):
  MODULE = _BINARY

  def test_workdirs_of_before_these_flags_keep_their_names(self):
    for config in (Config(methods=("ce",)), cifar_imbalanced.DEFAULT):
      self.assertNoCommonElements(ADDED, config.setting())
    for name, default in ADDED.items():
      found = getattr(Config(), name)
      self.assertEqual(list(found) if isinstance(found, tuple) else found, default)

  def test_a_stored_setting_without_these_flags_is_that_of_their_defaults(self):
    config = Config(methods=("ce",), workdir=str(self.workdir))
    folder = _workdir.run_folder(config, "ce", 0)
    folder.mkdir(parents=True)
    stored = {"setting": {"noise": "pair", "meta_size": 20}}
    (folder / "config.json").write_text(json.dumps(stored))
    _workdir.check(config)
    given = {"meta_every": 3, "meta_layers": ("last",), "meta_loss": "gce", "route": "auto"}
    other = dataclasses.replace(config, **given)
    words = (
      r"meta_every 1 there, 3 here, meta_layers \[\] there, \['last'\] here, "
      "meta_loss ce there, gce here, route forward there"
    )
    with self.assertRaisesRegex(UsageError, words):
      _workdir.check(other)
    (folder / "config.json").write_text(json.dumps({"setting": other.setting()}))
    _workdir.check(other)
    with self.assertRaisesRegex(UsageError, "meta_every 3 there, 1 here"):
      _workdir.check(config)

  def test_each_flag_makes_a_setting_of_its_own(self):
    given = {
      "virtual_optimizer": "training",
      "virtual_steps": 2,
      "meta_every": 2,
      "meta_layers": ("last",),
      "meta_labels": "noisy",
      "meta_loss": "mae",
    }
    self.assertEqual(given.keys(), ADDED.keys())
    configs = [Config(methods=("ce",)), *(Config(methods=("ce",), **{k: given[k]}) for k in given)]
    self.assertLen({_workdir.path_of(config) for config in configs}, 7)


class MetaEveryTest(runs.RunTestCase):
  CONFIG = dataclasses.replace(runs.CONFIG, methods=("l2rw",), steps=7, meta_every=3)

  def programs(self, **given):
    """Of each program of a run: its steps, and whether it had meta batches."""
    config = dataclasses.replace(self.CONFIG, **given)
    made, found = self.make_run, []

    def watched(*args):
      run = made(*args)
      (phase,) = run.phases
      step = mock.Mock()
      for name in ("one", "chunk"):
        getattr(step, name).side_effect = functools.partial(call, phase, name)
      return run._replace(phases=[phase._replace(step=step)])

    def call(phase, name, carry, inputs, labels, indices, meta_indices, **kwargs):
      found.append((len(indices) if name == "chunk" else 1, meta_indices is not None))
      return getattr(phase.step, name)(carry, inputs, labels, indices, meta_indices, **kwargs)

    with mock.patch.object(self, "make_run", watched):
      self.train("watched", config=config)
    return found

  def test_steps_0_3_and_6_get_a_meta_batch_wherever_evaluations_cut(self):
    self.assertEqual(
      self.programs(eval_every=2, checkpoint_every=5),
      [(1, step in (0, 3, 6)) for step in range(7)],
    )

  @parameterized.parameters(
    # (chunk_steps, meta_every, steps done in the phase, steps left) -> steps, with meta batches.
    (100, 1, 0, 250, 100, True),
    (100, 1, 0, 99, 1, True),
    (100, 5, 0, 250, 1, True),
    (100, 5, 1, 250, 4, False),
    (100, 5, 1, 3, 1, False),
    (100, 5, 3, 250, 1, False),
    (2, 5, 1, 250, 2, False),
    (2, 5, 4, 250, 1, False),
    (100, 5, 10, 250, 1, True),
    (1, 5, 11, 250, 1, False),
  )
  def test_programs_do_not_reach_over_a_meta_batch(self, chunk, every, done, left, steps, has_meta):
    phase = mock.Mock(meta_every=every)
    schedule = mock.Mock(chunk_steps=chunk)
    self.assertEqual(_run._next_program(phase, schedule, done, left), (steps, has_meta))

  def test_interrupted_between_meta_batches_ends_bit_for_bit_as_undisturbed(self):
    self.train("whole", config=self.CONFIG)
    remaining = iter(range(6))  # the start, four steps and a row: between the steps 3 and 6

    def advance(steps, text):
      if next(remaining, None) is None:
        raise runs.KilledError

    with self.assertRaises(runs.KilledError):
      self.train("resumed", config=self.CONFIG, advance=advance)
    self.assertLess(self.carry("resumed", config=self.CONFIG).state.step, 7)
    self.train("resumed", config=self.CONFIG)
    self.assert_same_run("resumed", "whole", config=self.CONFIG)

  def test_other_methods_do_not_look_at_it(self):
    config = dataclasses.replace(self.CONFIG, methods=("ce",), meta_every=3)
    task, model = self.task, runs.linear_model()
    make = functools.partial(_phases.make_phases, model=model, name="ce", dataset=runs.dataset())
    (phase,), (plain,) = (
      make(one, task=task, seed=0)
      for one in (config, dataclasses.replace(config, meta_every=1, virtual_optimizer="training"))
    )
    self.assertEqual(phase.meta_every, 1)
    self.assertIs(phase.step, plain.step)


class StepTest(runs.RunTestCase):
  def weights_of(self, **given):
    config = dataclasses.replace(
      runs.CONFIG, methods=("l2rw",), steps=2, eval_every=2, augment="none", **given
    )
    self.train("run", config=config)
    found = self.weights("run")["last_weight"]
    (self.root / "run").rename(self.root / f"run_{len(list(self.root.iterdir()))}")
    return found

  def test_flags_reach_the_step(self):
    plain = self.weights_of()
    # The momentum of the first step moves the second one's virtual step.
    self.assertGreater(_apart(self.weights_of(virtual_optimizer="training"), plain), 1e-3)
    self.assertGreater(_apart(self.weights_of(meta_layers=("bias",)), plain), 1e-3)

  def test_the_virtual_step_is_training_s_own_where_its_size_counts(self):
    config = Config()
    for name in _learned.NAMES:
      default = "none" if name == "lilaw" else "training"
      self.assertEqual(_meta.virtual_optimizer(config, {name}), default)
    self.assertEqual(_meta.virtual_optimizer(config, {"learning_to_reweight"}), "none")
    given = Config(virtual_optimizer="training")
    self.assertEqual(_meta.virtual_optimizer(given, {"learning_to_reweight"}), "training")

  def test_layers_are_chosen_by_whole_names(self):
    config = Config(meta_layers=("last", "Dense_0/bias"))
    model = _model.make_model("mlp", 10, None)
    self.assertEqual(_meta.layers(config, model, runs.dataset()), ("Dense_2", "Dense_0/bias"))
    names = ("Dense_1", "block/conv")
    is_below = {name: _meta.is_below(name, names) for name in (
      "Dense_1", "Dense_1/kernel", "Dense_10/kernel", "block/conv/kernel", "block/bias"
    )}  # fmt: skip
    self.assertEqual(list(is_below.values()), [True, True, False, True, False])

  def test_last_needs_recorded_layers(self):
    config = Config(meta_layers=("last",))
    with self.assertRaisesRegex(UsageError, "--meta_layers: last is not known .*name the layers"):
      _meta.layers(config, runs.linear_model(), runs.dataset())

  def test_the_route_that_auto_picks_is_told(self):
    config = Config(route="auto")
    pick = lambda model: _meta.route(config, model.loss_fn, model, runs.dataset())
    route, note = pick(runs.linear_model())
    self.assertEqual(route, "forward")
    self.assertRegex(note, "^route forward, since the loss has no recorder")
    model = _model.make_model("mlp", 10, None)
    self.assertIsNotNone(model.loss_fn.recorder)
    with mock.patch.object(_meta.per_example, "pick_route", return_value=("ghost", "of this")):
      self.assertEqual(pick(model), ("ghost", "route ghost, since of this"))


class MetaSetTest(parameterized.TestCase):
  def test_a_noisy_meta_set_is_as_wrong_as_training_and_changes_nothing_else(self):
    digits = runs.dataset()
    clean, noisy = (
      runs.make_task(noise="symmetric", noise_rate=0.4, meta_size=50, meta_labels=labels)
      for labels in ("clean", "noisy")
    )
    self.assertEqual(clean.is_noisy[clean.meta].sum(), 0)
    self.assertEqual(noisy.is_noisy[noisy.meta].sum(), 20)
    np.testing.assert_array_equal(
      noisy.is_noisy[noisy.meta], noisy.labels[noisy.meta] != digits.train_labels[noisy.meta]
    )
    for part in ("train", "validation"):
      places = getattr(noisy, part)
      np.testing.assert_array_equal(places, getattr(clean, part))
      np.testing.assert_array_equal(noisy.labels[places], clean.labels[places])

  def test_robust_meta_losses(self):
    # Of even logits over 4 classes p is 1/4: 1 - p, and (1 - p^q) / q with q = 1/2.
    apply_fn = lambda params, state, inputs, key, train: (inputs @ params, state)
    model = _model.from_apply(apply_fn, lambda key, inputs: (jnp.zeros((2, 4)), ()))
    batch = rw.types.make_batch(jnp.ones((1, 2)), jnp.array([3]))
    for name, expected in (("mae", 0.75), ("gce", 1.0)):
      config = Config(meta_loss=name, rule_options=RuleOptions(gce_q=0.5))
      loss_fn = _meta.meta_loss_fn(config, model)
      self.assertIs(loss_fn, _meta.meta_loss_fn(config, model))
      outputs = loss_fn(jnp.zeros((2, 4)), (), batch, None)
      np.testing.assert_allclose(outputs.losses, [expected], rtol=1e-6)
    self.assertIs(_meta.meta_loss_fn(Config(), model), model.meta_loss_fn)
    with self.assertRaisesRegex(UsageError, "--meta_loss: expected ce for this model, got mae"):
      _meta.meta_loss_fn(Config(meta_loss="mae"), runs.linear_model())


class RulesTest(parameterized.TestCase):
  def test_options_of_the_nets_arrive(self):
    options = RuleOptions(
      meta_weight_net_hidden=7,
      meta_weight_net_weights="plain",
      meta_weight_net_optimizer="adam",
      meta_weight_net_learning_rate=0.25,
      meta_weight_net_decay=0.0,
      class_aware_groups=2,
    )
    facts = _methods.Facts((9, 8, 1), 3, 18)
    rules = [
      _methods.compose((name,), options, facts, 0)
      for name in ("meta_weight_net", "class_aware_weight_net")
    ]
    nets = [meta.learned_params(rule.init(jnp.ones(2))) for rule in rules]
    self.assertEqual([net[-1].kernel.shape for net in nets], [(7, 1), (7, 2)])

    @jax.jit
    def update(state):
      evidence = {"losses": jnp.ones(2), "mask": np.ones(2, bool)}
      return rules[0].update(
        jnp.ones(2), state, meta_alignment=lambda at: jnp.array([1.0, 2.0]), **evidence
      )

    weights, state = update(rules[0].init(jnp.ones(2)))
    # Adam's first step has the length of its rate.
    moved = meta.learned_params(state)[-1].bias - nets[0][-1].bias
    np.testing.assert_allclose(np.abs(moved), 0.25, rtol=1e-4)
    self.assertLess(float(weights.max()), 1)  # plain: the sigmoid's own

  def test_seeds_draw_other_nets(self):
    kernels = [
      meta.learned_params(_learned.make("meta_weight_net", RuleOptions(), (), seed).init(
        jnp.ones(1)
      ))[0].kernel for seed in (0, 1)
    ]  # fmt: skip
    self.assertGreater(_apart(*kernels), 0.1)

  def test_lilaw_starts_where_it_is_told(self):
    options = RuleOptions(lilaw_alpha=1.0, lilaw_beta=3.0, lilaw_delta=5.0)
    for name in ("lilaw", "lilaw_meta_gradient"):
      state = _methods.compose((name,), options, _methods.Facts(), 0).init(jnp.ones(1))
      self.assertEqual(list(map(float, meta.learned_params(state))), [1.0, 3.0, 5.0])


class WeightCurveTest(commands.CommandTestCase):
  def test_between_the_quantiles(self):
    # Losses 0, 1, ..., 100: the quantiles are 5 and 95. The tent rises 45 and falls 45.
    losses, loss = np.arange(101.0), np.array([0.0, 50.0, 100.0])
    curves = {"falling": [1.0, 0.5, 0.0], "rising": [0.0, 0.5, 1.0], "tent": [0.0, 1.0, 0.0]}
    found = {
      name: _weight_curve.at_quantiles({"loss": loss, "weight": np.array([weights])}, losses)
      for name, weights in curves.items()
    }
    self.assertEqual([row["low"] for row in found.values()], [5, 5, 5])
    self.assertEqual([row["high"] for row in found.values()], [95, 95, 95])
    shares = [found[name]["rising"] for name in curves]
    np.testing.assert_allclose(shares, [0, 1, 0.5], atol=1e-6)
    np.testing.assert_allclose(found["falling"]["weight_low"], 0.95)
    np.testing.assert_allclose(found["falling"]["weight_high"], 0.05)

  def test_file_holds_a_curve_for_each_group_and_no_other_rule_leaves_one(self):
    self.workdir.mkdir()
    losses, counts = np.array([0.5, 4.0]), (50, 5, 48)
    plain = _methods.compose(("focal",), RuleOptions(), _methods.Facts(), 0).init(jnp.ones(1))
    scalars = _learned.make("lilaw", RuleOptions(), (), 0).init(jnp.ones(1))
    for state in (plain, scalars):
      _weight_curve.write(self.workdir, state, losses, counts)
      self.assertEqual(list(self.workdir.iterdir()), [])
    options = RuleOptions(class_aware_groups=2)
    state = _learned.make("class_aware_weight_net", options, counts, 0).init(jnp.ones(1))
    _weight_curve.write(self.workdir, state, losses, counts)
    with np.load(self.workdir / _weight_curve.FILE) as arrays:
      self.assertEqual((arrays["loss"][0], arrays["loss"][-1]), (0, 4))
      self.assertEqual(arrays["group"].tolist(), [1, 0, 1])
      (kernel, bias), (last, last_bias) = meta.learned_params(state)
      # The net at loss 4, in NumPy.
      hidden = np.maximum(4 * np.asarray(kernel[0]) + bias, 0)
      expected = 1 / (1 + np.exp(-(hidden @ last + last_bias)))
      np.testing.assert_allclose(arrays["weight"][:, -1], expected, rtol=1e-5)

  def test_picture_has_a_line_for_each_group_and_both_kinds_of_labels_behind(self):
    axes = Figure().subplots()
    curve = {
      "loss": np.array([0.0, 1.0, 2.0]),
      "weight": np.array([[1.0, 0.5, 0.0], [0.2, 0.3, 0.4]]),
      "group": np.array([1, 0, 0]),
    }
    losses, labels = np.array([0.0, 2, 2, 2]), np.array([0, 0, 1, 2])
    is_noisy = np.array([False, True, True, False])
    _weight_curve.draw(axes, curve, losses, labels, is_noisy)
    self.assertEqual([line.get_label() for line in axes.lines], ["classes of 1", "classes of 2"])
    for line, weights in zip(axes.lines, curve["weight"], strict=True):
      np.testing.assert_array_equal(line.get_ydata(), weights)
    (behind,) = (one for one in axes.figure.axes if one is not axes)
    heights = np.array([[bar.get_height() for bar in bars] for bars in behind.containers])
    self.assertEqual((heights[:, 0].tolist(), heights[:, -1].tolist()), ([1, 0], [1, 2]))
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    self.assertEqual(texts[2:], ["correct labels (2)", "wrong labels (2)"])


def _apart(one, other):
  return float(np.nanmax(np.abs(np.asarray(one) - np.asarray(other))))


if __name__ == "__main__":
  absltest.main()
