"""The command: bad flags are one line and write nothing; files; --rules."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import tempfile

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized
from PIL import Image

import reweight_jax as rw
from experiments import (
  _base_losses,
  _check,
  _config,
  _errors,
  _flags,
  _methods,
  _model,
  _phases,
  _reference,
  _rule_options,
  _task,
  _workdir,
  cifar_noisy,
)
from reweight_jax import data, runlog
from tests import commands

_OF_OPTAX = "of an optimizer, which takes any number"
_TINY = ("--steps=4", "--eval_every=2", "--checkpoint_every=2")


def _command(*argv):
  """Runs a command line in this process: its exit status, stdout and stderr."""
  stdout, stderr, status = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    try:
      _errors.exit_on_mistake(lambda: cifar_noisy.main(commands.flags_of(*argv)))
    except SystemExit as stop:
      status = stop.code
  return status, stdout.getvalue(), stderr.getvalue()


def _digests(root):
  """Every file below a folder, with its content and its time."""
  return {
    path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


class CommandTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = self.root / "work"

  def assert_refused(self, pattern, *argv, status=2):
    found, stdout, stderr = _command(f"--workdir={self.workdir}", *argv)
    self.assertEqual((found, stdout), (status, ""), stderr)
    self.assertRegex(stderr, f"^error: .*{pattern}.*\n$")
    self.assertEqual(stderr.count("\n"), 1)


class BadFlagsTest(CommandTestCase):
  @parameterized.parameters(
    (
      "--dataset: expected one of digits, .*cifar100, a file FILE.npz, a folder .*; got 'svhn'",
      "--dataset=svhn",
    ),
    ("--method: expected one of ce, .*l2rw, .*; got 'mwn'", "--method=ce,mwn"),
    ("--noise: expected one of none, .*; got 'pairs'", "--noise=pairs"),
    ("--model: expected one of mlp, .*; got 'vgg'", "--model=vgg"),
    ("--norm: expected one of batch, .*; got 'layer'", "--norm=layer"),
    ("--rules: expected one of align, .*; got 'focus'", "--rules=focus,normalize"),
    ("--route: expected one of nested, .*; got 'ghostly'", "--route=ghostly"),
    ("lenet has no normalization; leave norm out", "--model=lenet", "--norm=batch"),
    (r"--noise_rate: expected a number in \[0, 1\), got 1.0", "--noise_rate=1"),
    (r"--noise_rate: expected a number in \[0, 1\), got -0.1", "--noise_rate=-0.1"),
    (r"--noise_rate: expected a number in \[0, 1\), got nan", "--noise_rate=nan"),
    ("--noise=none goes with --noise_rate=0 .*got 0.2", "--noise=none", "--noise_rate=0.2"),
    ("--noise=human:worse goes with", "--noise=human:worse", "--noise_rate=0.2"),
    ("--human_labels: expected the NPZ file that holds worse_label", "--noise=human:worse_label"),
    ("--human_labels goes with a --noise such as human:", "--human_labels=labels.npz"),
    ("labels.npz", "--noise=human:worse", "--human_labels=labels.npz"),
    ("asymmetric.*digits|digits.*asymmetric", "--noise=asymmetric"),
    ("--imbalance: expected one of none, .*got 'log'", "--imbalance=log"),
    ("--imbalance_ratio: .* got 1 with --imbalance=step", "--imbalance=step"),
    ("--imbalance_ratio: .* got 10 with --imbalance=none", "--imbalance_ratio=10"),
    ("--imbalance_ratio: expected a number at least 1, got 0.5", "--imbalance_ratio=0.5"),
    ("--protocol: expected one of .*, long_tail, quick; got 'slow'", "--protocol=slow"),
    ("--augment: expected one of none, .*got 'auto'", "--augment=auto"),
    ("--dtype: expected one of float32, .*got 'float16'", "--dtype=float16"),
    ("--precision: expected one of default, .*got 'low'", "--precision=low"),
    ("--schedule: expected one of constant, .*got 'linear'", "--schedule=linear"),
    ("--decay_at: expected increasing shares .*got 0.7,0.5", "--decay_at=0.7,0.5"),
    ("--decay_at: expected increasing shares .*got 0.5,1.0", "--decay_at=0.5,1"),
    ("--decay_at: expected numbers .*got 'half'", "--decay_at=half"),
    ("--label_smoothing: .*got 1.0", "--label_smoothing=1"),
    ("--mixup: .*got -1.0", "--mixup=-1"),
    ("--ema_decay: .*got 1.0", "--ema_decay=1"),
    ("--parallel_seeds: .*got 0", "--parallel_seeds=0"),
    ("--chunk_steps: .*got 0", "--chunk_steps=0"),
    ("--keep: .*got 0", "--keep=0"),
    ("no-such.npz", "--dataset=no-such.npz"),
    ("--meta_size: .*got 0", "--meta_size=0"),
    ("meta_size.* 1300 examples.*Lower", "--meta_size=1300"),
    ("a meta set of 1290 needs .*Lower meta_size", "--meta_size=1290", "--validation_size=0"),
    ("--validation_size: .*got -1", "--validation_size=-1"),
    ("validation_size must leave some of the 1300", "--validation_size=1280"),
    ("--batch_size: .*got -5", "--batch_size=-5"),
    ("--batch_size: expected at most the 1080 training examples, got 1081", "--batch_size=1081"),
    ("--meta_batch_size: .*got 0", "--meta_batch_size=0"),
    ("--meta_batch_size: expected at most the 20 .*got 21", "--meta_batch_size=21"),
    ("--eval_every: .*got 0", "--eval_every=0"),
    ("--checkpoint_every: .*got -1", "--checkpoint_every=-1"),
    ("--finetune_steps: .*got 0", "--finetune_steps=0"),
    ("--steps: .*got 0", "--steps=0"),
    ("--steps: .*got 1000000000000", "--steps=1000000000000"),
    ("--epochs: expected a number above 0 and at most 1000000, got nan", "--epochs=nan"),
    ("--epochs: expected a number above 0 and at most 1000000, got inf", "--epochs=inf"),
    ("--epochs: expected either --steps or --epochs", "--epochs=1", "--steps=4"),
    ("--rules: expected either --method or --rules", "--rules=focal", "--method=ce"),
    ("--method: expected at least one", "--method="),
    ("--method: expected at least one", "--rules=,"),
    ("--method: expected each once, got ce,ce", "--method=ce,ce"),
    ("--seeds: expected whole numbers .*got 'a'", "--seeds=0,a"),
    ("--seeds: expected whole numbers .*got '1.5'", "--seeds=1.5"),
    ("--seeds: .*got -1", "--seeds=-1"),
    ("--seeds: .*got 4294967296", "--seeds=4294967296"),
    ("--seeds: expected each once, got 0,1,0", "--seeds=0,1,0"),
    ("--seeds: expected at least one, got none", "--seeds="),
    ("--learning_rate: expected a number above 0, got nan", "--learning_rate=nan"),
    ("--learning_rate: expected a number above 0, got inf", "--learning_rate=inf"),
    ("--learning_rate: expected a number above 0, got 0.0", "--learning_rate=0"),
    (
      "--learning_rate: expected numbers that float32 can hold, got 1e[+]39",
      "--learning_rate=1e39",
    ),
    ("--mixup: expected numbers that float32 can hold, got 1e-300", "--mixup=1e-300"),
    ("--beta_alpha: expected numbers that float32 can hold, got 1e[+]300", "--beta_alpha=1e300"),
    ("--momentum: .*got 1.0", "--momentum=1"),
    (r"--momentum: .* in \[0, 1\), in float32 too, got 0.99999999", "--momentum=0.99999999"),
    ("--smooth_decay: .* in float32 too, got 0.99999999", "--smooth_decay=0.99999999"),
    ("--rules: self_paced reads losses in nats, .*margins", "--rules=absolute_error,self_paced"),
    ("--rules: super_loss reads losses in nats", "--rules=super_loss,clip,exponential_emphasis"),
    ("--weight_decay: .*got -1.0", "--weight_decay=-1"),
    ("--class_balanced_beta: .*got 1.5", "--class_balanced_beta=1.5"),
    ("--focal_gamma: .*got -1.0", "--focal_gamma=-1"),
    ("--mix_share: .*got 2.0", "--mix_share=2"),
    ("--clip_max_weight: .*got 0.0", "--clip_max_weight=0"),
    ("--normalize_decay: .*got 1.0", "--normalize_decay=1"),
    ("--metod: no such flag; --help lists", "--metod=ce"),
    ("--steps: expected an integer, got 'many'", "--steps=many"),
    ("--noise_rate: expected a number, got 'high'", "--noise_rate=high"),
    ("Missing value for flag --seeds", "--seeds"),
    ("--name=value; got the argument 'ce'", "ce"),
  )
  def test_one_line_status_2_and_nothing_written(self, pattern, *argv):
    self.assert_refused(pattern, *argv)
    self.assertFalse(self.workdir.exists())

  @parameterized.parameters("inf", "nan", "1e+39")
  def test_a_list_of_numbers_is_blamed_by_its_own_name(self, number):
    with self.assertRaisesRegex(
      _errors.UsageError, f"^--rates: .* can hold, got {re.escape(number)}$"
    ):
      _flags.numbers("rates", f"0.1,{number}")

  def test_confusions_that_tell_no_shift_name_the_reference_and_its_validation(self):
    for confusion, cause in (
      ([[4, 2], [0, 0]], "class 1 is never predicted"),
      ([[4, 0], [2, 0]], "class 1 has no examples"),
      ([[4, 2], [4, 2]], "some classes are not told apart"),
      ([[0, 0], [0, 0]], "not all 0"),
    ):
      examples = _reference.Examples(
        confusion=np.array(confusion, float), target_predictions=np.ones(2)
      )
      facts = _methods.Facts((1, 1), 2, 4, examples)
      with self.assertRaisesRegex(ValueError, f"^--reference: .*{cause}.* --validation_size ex"):
        _methods.compose(("label_shift",), _rule_options.RuleOptions(), facts, 0)

  @parameterized.named_parameters(
    ("missing", None, "does not exist"),
    ("empty", {}, "no folder .*/mnist; data sets present: none"),
    ("corrupt", {"dataset_info.json": "{"}, "dataset_info.json is not valid JSON"),
    ("tfrecord", {"dataset_info.json": '{"fileFormat": "tfrecord"}'}, "are TFRecord"),
  )
  def test_data_folder(self, files, pattern):
    folder = self.root / "data"
    if files is not None:
      folder.mkdir()
    for name, text in (files or {}).items():
      path = folder / "mnist" / "3.0.1" / name
      path.parent.mkdir(parents=True)
      path.write_text(text)
    self.assert_refused(f"mnist: .*{pattern}", "--dataset=mnist", f"--data_dir={folder}")
    self.assertFalse(self.workdir.exists())

  def test_workdir_below_a_file(self):
    (self.root / "file").touch()
    self.workdir = self.root / "file" / "work"
    self.assert_refused("--workdir: cannot write to .*file/work.*Not a directory")

  def test_ranges_are_those_of_the_rules(self):
    outside = {
      "asymmetric_focal_gammas": ((1.0, -1.0), "asymmetric_focal"),
      "asymmetric_focal_shifts": ((0.0, -0.1), "asymmetric_focal"),
      "beta_alpha": (0, "beta_emphasis"),
      "beta_eta": (0, "beta_emphasis"),
      "bootstrap_kind": ("warm", "bootstrapped_confidence"),
      "bootstrap_share": (1.1, "bootstrapped_confidence"),
      "class_aware_groups": (0, "class_aware_weight_net"),
      "class_balanced_beta": (1.5, "class_balanced"),
      "class_weights": ((1.0, -1.0), "class_weights"),
      "clip_max_weight": (0, "clip"),
      "difficulty_burn_in_epochs": (-1, "hard_first"),
      "difficulty_every": (-1, "easy_first"),
      "difficulty_measure": ("luck", _OF_OPTAX),
      "difficulty_ratio": (0.5, "medium_first"),
      "dm_arithmetic": ("sloppy", "exponential_emphasis"),
      "dm_beta": (float("nan"), "exponential_emphasis"),
      "dm_lam": (-0.5, "exponential_emphasis"),
      "dm_normalization": ("sum", "exponential_emphasis"),
      "focal_gamma": (-1, "focal"),
      "gce_q": (2, "generalized_cross_entropy"),
      "gce_truncate_at": (1, "generalized_cross_entropy"),
      "ghm_bins": (0, "gradient_harmonizing"),
      "ghm_decay": (1, "gradient_harmonizing"),
      "imae_temperature": (float("inf"), "imae_emphasis"),
      "importance_power": (-1, "importance_ratio"),
      "inverse_frequency_power": (float("nan"), "inverse_frequency"),
      "jtt_factor": (-1, "just_train_twice"),
      "large_loss_keep": (0, "large_loss"),
      "ldam_max_margin": (-1, "ldam"),
      "ldam_scale": (0, "ldam"),
      "lilaw_alpha": (float("nan"), "lilaw"),
      "lilaw_beta": (float("inf"), "lilaw_meta_gradient"),
      "lilaw_decay": (-1, _OF_OPTAX),
      "lilaw_delta": (float("nan"), "lilaw"),
      "lilaw_learning_rate": (0, _OF_OPTAX),
      "logit_adjustment_tau": (float("nan"), "logit_adjustment"),
      "meta_weight_net_decay": (-1, _OF_OPTAX),
      "meta_weight_net_hidden": (0, "meta_weight_net"),
      "meta_weight_net_learning_rate": (0, _OF_OPTAX),
      "meta_weight_net_optimizer": ("lion", _OF_OPTAX),
      "meta_weight_net_weights": ("half", _OF_OPTAX),
      "mix_share": (2, "mix_with_uniform"),
      "normal_beta": (float("inf"), "normal_emphasis"),
      "normal_mode": (-1, "normal_emphasis"),
      "normalize_decay": (1, "normalize"),
      "polynomial_tail_power": (0, "polynomial_tail"),
      "quantiles_high": (1.5, "loss_quantiles"),
      "quantiles_low": (-0.5, "loss_quantiles"),
      "rho_keep": (0, "reducible_loss"),
      "sce_log_zero": (0, "symmetric_cross_entropy"),
      "sce_mu": (-1, "symmetric_cross_entropy"),
      "sce_nu": (-1, "symmetric_cross_entropy"),
      "select_of": ("set", "small_loss"),
      "self_paced_form": ("soft", "self_paced"),
      "self_paced_high": (0.5, "self_paced_mixture"),
      "self_paced_low": (0, "self_paced_mixture"),
      "self_paced_threshold": (0, "self_paced"),
      "small_loss_keep": (1.5, "small_loss"),
      "smooth_decay": (1, "smooth_by_index"),
      "super_loss_decay": (1, "super_loss"),
      "super_loss_lam": (0, "super_loss"),
      "super_loss_threshold": (float("nan"), "super_loss"),
      "taylor_order": (0, "taylor_cross_entropy"),
      "vector_scaling_gamma": (-1, "vector_scaling"),
      "vector_scaling_tau": (float("inf"), "vector_scaling"),
    }
    fields = dataclasses.fields(_rule_options.RuleOptions)
    self.assertEqual(list(outside), [field.name for field in fields])
    examples = _reference.Examples(np.ones(4), np.ones(4, bool), np.eye(2), np.ones(2), np.ones(4))
    facts = _methods.Facts((1, 1), 2, 4, examples)
    for name, (value, rule) in outside.items():
      given = {"asymmetric_focal_gammas": (1.0, 1.0), name: value}
      options = _rule_options.RuleOptions(**given)
      with self.subTest(name):
        if rule in _base_losses.LOSSES:
          with self.assertRaises(ValueError):
            _base_losses.make(rule, options, (1, 1))
        elif rule != _OF_OPTAX:
          with self.assertRaises(ValueError):
            _methods.compose((rule,), options, facts, 0)
        with self.assertRaisesRegex(_errors.UsageError, f"--{name}: "):
          _check.check(_config.Config(methods=("ce",), rule_options=options))

  def test_every_rule_can_be_made_and_is_part_of_a_method_or_shapes_one(self):
    options = _rule_options.RuleOptions(
      asymmetric_focal_gammas=(0.0, 1.0), class_weights=(1.0, 2.0)
    )
    examples = _reference.Examples(np.ones(4), np.ones(4, bool), np.eye(2), np.ones(2), np.ones(4))
    facts = _methods.Facts((1, 1), 2, 4, examples)
    for name in _methods.RULES:
      _methods.compose((name,), options, facts, 0)
    shaping = {"align", "clip", "mix_with_uniform", "rectify", "smooth_by_index"}
    used = {rule for recipe in _methods.METHODS.values() for rule in recipe.rules}
    self.assertEqual(used | shaping, set(_methods.RULES))
    losses = {recipe.loss for recipe in _methods.METHODS.values() if recipe.loss}
    self.assertEqual(losses, set(_base_losses.LOSSES))


class FolderTest(CommandTestCase):
  def test_a_folder_without_test_images_is_refused(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), "pets")
    for label in ("cat", "dog"):
      (folder / label).mkdir(parents=True)
      for number in range(2):
        Image.fromarray(np.full((4, 4), 60 * number, np.uint8)).save(
          folder / label / f"{number}.png"
        )
    self.assert_refused("--dataset: .*pets has no test images; put some", f"--dataset={folder}")


class WorkdirTest(CommandTestCase):
  def test_life_of_a_workdir(self):
    run = functools.partial(_command, f"--workdir={self.workdir}", *_TINY)
    status, stdout, stderr = run("--method=ce")
    self.assertEqual((status, stderr.count("\n")), (0, 1))
    self.assertIn("| ce | ", stdout)
    self.assert_layout(self.workdir / "ce" / "seed_0", "ce", 0)
    first = _digests(self.workdir / "ce")

    with self.subTest("a finished run is not run again"):
      status, again, stderr = run("--method=ce")
      self.assertEqual((status, again), (0, stdout))
      self.assertRegex(stderr, "^digits, pair noise 0.45, ce, seed 0: finished before\n$")
      self.assertEqual(_digests(self.workdir / "ce"), first)

    with self.subTest("without resume it is refused"):
      self.assert_refused("--noresume: .*ce/seed_0 holds a run already", *_TINY, "--noresume")
      self.assertEqual(_digests(self.workdir / "ce"), first)

    with self.subTest("other methods and seeds are added"):
      rules = "--rules=learning_to_reweight,clip"
      self.assertEqual(run(rules, "--seeds=10", "--nopictures")[0], 0)
      self.assertEqual(_digests(self.workdir / "ce"), first)
      name = "learning_to_reweight+clip"
      self.assert_layout(self.workdir / name / "seed_10", name, 10, pictures=())
      summary = json.loads((self.workdir / "summary.json").read_text(), parse_constant=self.fail)
      self.assertEqual(list(summary["methods"]), [name, "ce"])
      self.assertEqual([runs["seeds"] for runs in summary["methods"].values()], [[10], [0]])
      self.assertIn("| ce | ", (self.workdir / "summary.md").read_text())

    with self.subTest("another configuration is refused, with the difference"):
      before = _digests(self.workdir)
      self.assert_refused("eval_every 2 there, 50 here, steps 4 there, 8 here; ", "--steps=8")
      argv = ("--method=finetune", *_TINY, "--focal_gamma=3")
      self.assert_refused("configuration: focal_gamma 2.0 there, 3.0 here; ", *argv)
      self.assertEqual(_digests(self.workdir), before)

    path = self.workdir / "ce" / "seed_0" / "config.json"
    for text in ("{", "[]", '{"setting": 3}', "{}", None):
      with self.subTest("a damaged config.json is refused", text=text):
        path.unlink() if text is None else path.write_text(text)
        self.assert_refused("seed_0/config.json, which is missing or damaged; choose", *_TINY)

  def assert_layout(self, folder, method, seed, pictures=("run", "confusion", "images")):
    names = ["checkpoints", "config.json", "metrics.jsonl", *(["plots"] if pictures else [])]
    names += ["predictions.npz", "weights.npz", "windows"]
    self.assertEqual(sorted(path.name for path in folder.iterdir()), names)
    for picture in pictures:
      self.assertEqual((folder / "plots" / f"{picture}.png").read_bytes()[1:4], b"PNG")
    config = json.loads((folder / "config.json").read_text())
    self.assertEqual((config["method"], config["seed"]), (method, seed))
    self.assertEqual(config["versions"]["jax"], jax.__version__)
    self.assertEqual([row["step"] for row in runlog.read_rows(folder / "metrics.jsonl")], [2, 4])
    task = _make_task(seed)
    with np.load(folder / "weights.npz") as entries:
      self.assertEqual({name: entries[name].shape for name in entries}, dict.fromkeys(
        ("index", "given_label", "is_noisy", "mean_weight", "last_weight", "last_loss",
         "last_prediction"), (1080,)))  # fmt: skip
      np.testing.assert_array_equal(entries["index"], data.load("digits").train_ids[task.train])
      np.testing.assert_array_equal(entries["given_label"], task.labels[task.train])

  def test_a_second_command_on_the_workdir_is_refused_while_the_first_is_at_work(self):
    config = dataclasses.replace(_config.Config(methods=("ce",)), workdir=str(self.workdir))
    with _workdir.prepared(config):
      before = _digests(self.workdir)
      self.assert_refused(r"--workdir: process \d+ on .* is at work in .*; wait", "--method=ce")
      self.assertEqual(_digests(self.workdir), before)
    with _workdir.prepared(config):
      pass

  def test_diverging_run_fails_with_the_step_and_status_1(self):
    argv = ("--method=ce", "--learning_rate=1e38", *_TINY)
    self.assert_refused("not finite (at|after) step [12]; .*Lower --learning_rate", *argv, status=1)


class RulesTest(parameterized.TestCase):
  def test_rules_are_the_chain_in_the_order_given(self):
    config = _flags.config_of(commands.flags_of("--rules=class_balanced,focal,normalize"))
    self.assertEqual(config.run_names(), ("class_balanced+focal+normalize",))
    task = _make_task(0)
    model = _model.make_model("mlp", 10, None)
    (phase,) = _phases.make_phases(
      config, model, config.run_names()[0], data.load("digits"), task, 0
    )
    counts = np.bincount(task.labels[task.train]).tolist()
    expected = optax.chain(
      rw.rules.class_balanced(counts, 0.999), rw.rules.focal(2.0), rw.rules.normalize("mean")
    )
    rng = np.random.default_rng(0)
    evidence = {
      "logits": rng.normal(size=(6, 10)).astype(np.float32),
      "labels": np.arange(6),
      "losses": np.ones(6, np.float32),
      "indices": np.arange(6),
      "mask": np.array([True] * 5 + [False]),
    }
    start = evidence["mask"].astype(np.float32)
    found, wanted = (
      rule.update(start, rule.init(start), **evidence)[0] for rule in (phase.rule, expected)
    )
    np.testing.assert_array_equal(found, wanted)
    self.assertAlmostEqual(float(found.sum()), 5, places=5)

  def test_rule_that_needs_the_meta_batch_gets_it(self):
    config = _flags.config_of(commands.flags_of("--rules=align,rectify,normalize", *_TINY))
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
      summary = cifar_noisy.run(dataclasses.replace(config, workdir=root, pictures=False))
    self.assertGreater(summary["align+rectify+normalize"]["zero_weight_share"]["mean"], 0)


@functools.cache
def _make_task(seed):
  return _task.make_task(_config.Config(), data.load("digits"), seed)


if __name__ == "__main__":
  absltest.main()
