"""The study of emphasis modes: settings, winners, the command on digits."""

import json

import pytest
from absl.testing import absltest, parameterized

from experiments import _check, _command, _methods, _phases, emphasis_modes
from experiments._config import Config
from experiments._errors import DivergedError, UsageError
from experiments._rule_options import RuleOptions
from tests import commands, runs


def _results(best, validation=None):
  """Numbers of all settings: accuracy 0.5, but for the settings given; validation is all alike."""
  names = [*emphasis_modes.BASELINES]
  names += [f"lam_{lam:g}_beta_{b:g}" for lam, betas in emphasis_modes.BETAS.items() for b in betas]
  number = lambda name: {"mean": best.get(name, 0.5), "std": 0.01}
  on_validation = lambda name: {"mean": (validation or {}).get(name, 0.4), "std": 0.01}
  return {
    name: {column: number(name) for column in emphasis_modes.COLUMNS}
    | {"last_validation": on_validation(name)}
    for name in names
  }


class StudyTest(parameterized.TestCase):
  def test_every_rate_has_all_settings_in_folders_of_their_own(self):
    found = emphasis_modes.commands(Config(methods=("dm",), workdir="x"), (0.0, 0.4))
    self.assertLen(found, 2 * (16 + 4))
    self.assertLen({config.workdir for config in found.values()}, 2 * (16 + 1))
    one = found[0.4, "lam_2_beta_24"]
    self.assertEqual((one.rule_options.dm_lam, one.rule_options.dm_beta), (2.0, 24.0))
    self.assertEqual((one.noise, one.noise_rate), ("symmetric", 0.4))
    self.assertEqual(found[0.0, "gce"].methods, ("gce",))
    for config in found.values():
      _check.check(config)

  def test_a_run_is_named_with_its_numbers(self):
    found = emphasis_modes.commands(emphasis_modes.DEFAULT, (0.4,))
    title = "fashion_mnist, symmetric noise 0.4"
    self.assertEqual(found[0.4, "ce"].title(), title)
    self.assertEqual(found[0.4, "lam_0.5_beta_8"].title(), f"{title}, lambda 0.5, beta 8")

  def test_the_best_setting_and_the_best_baseline(self):
    results = {0.4: _results({"lam_0.5_beta_8": 0.7, "lam_2_beta_16": 0.8, "gce": 0.75})}
    self.assertIn(
      "\nlast step: noise 0.4: lam 2 beta 16 80.0 %, gce 75.0 %.",
      emphasis_modes.verdict(results),
    )
    self.assertIn("| lam 2 beta 16 | 80.0 ± 1.0 / 80.0 ± 1.0 / 80.0", emphasis_modes.table(results))

  def test_a_setting_is_chosen_on_validation_and_judged_on_test(self):
    results = _results({"lam_2_beta_16": 0.8, "ce_dn": 0.6}, {"lam_1_beta_8": 0.45, "ce_dn": 0.45})
    self.assertIn(
      "noise 0.4: lam 1 beta 8 50.0 %, ce_dn 60.0 %.", emphasis_modes.verdict({0.4: results})
    )

  def test_what_diverged_is_told_and_never_chosen(self):
    results = _results({"lam_2_beta_16": 0.8}) | {"lam_2_beta_16": None, "ce": None}
    verdict = emphasis_modes.verdict({0.4: results, 0.6: dict.fromkeys(results)})
    self.assertIn(
      "noise 0.4: lam 0 beta 0.5 50.0 %, ce_dn 50.0 %; noise 0.6: all diverged", verdict
    )
    self.assertEndsWith(verdict, "noise 0.6: all diverged, all diverged.")
    self.assertIn("| lam 2 beta 16 | diverged |", emphasis_modes.table({0.4: results}))


class SharedStepTest(runs.RunTestCase):
  def test_settings_that_differ_in_beta_and_lambda_share_a_compiled_step(self):
    def phase(**options):
      config = Config(methods=("dm",), rule_options=RuleOptions(**options))
      model = runs.linear_model()
      return _phases.make_phases(config, model, "dm", runs.dataset(), self.task, 0)[0]

    one, other = phase(dm_beta=8.0, dm_lam=0.5), phase(dm_beta=1.0, dm_lam=0.0)
    self.assertIs(one.step, other.step)
    self.assertIsNot(one.step, phase(dm_normalization="none").step)
    # ... and yet weigh differently: their numbers are in the state.
    hyperparams = [made.rule.init(runs.np.ones(2))[0].hyperparams for made in (one, other)]
    self.assertEqual([float(h["beta"]) for h in hyperparams], [8.0, 1.0])
    self.assertEqual([float(h["lam"]) for h in hyperparams], [0.5, 0.0])
    self.assertIn("exponential_emphasis", _methods.RULES)


class CommandTest(commands.CommandTestCase):
  MODULE = emphasis_modes

  @parameterized.parameters(
    ("--noise_rates: expected numbers in .*got 1.5", "--noise_rates=1.5"),
    ("--noise_rates: .*each once.*got 0.2,0.2", "--noise_rates=0.2,0.2"),
    ("--dm_beta: no such flag", "--dm_beta=3"),
    ("--mixup: no such flag", "--mixup=1"),
    ("--label_smoothing: no such flag", "--label_smoothing=0.1"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def test_the_study_goes_on_where_a_setting_diverges(self):
    def train(plan, progress):
      with self.assertRaisesRegex(UsageError, "at work in"), _command.at_work_in(self.workdir):
        pass
      (name,) = plan.config.methods
      if name == "gce" or plan.config.rule_options.dm_lam == 1.0:
        raise DivergedError("not finite at step 3")
      return {name: _results({})["ce"]}

    argv = ("--dataset=digits", "--train_size=100", "--validation_size=20", "--noise_rates=0.4")
    with (
      absltest.mock.patch.object(emphasis_modes, "BETAS", {0.0: (1.0, 2.0), 1.0: (8.0,)}),
      absltest.mock.patch.object(_command, "train", train),
    ):
      stdout = self.command(*argv)
    self.assertIn("| lam 1 beta 8 | diverged |", stdout)
    self.assertIn("| gce | diverged |", stdout)
    self.assertIn("| lam 0 beta 2 | 50.0", stdout)
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertIsNone(summary["0.4"]["gce"])
    self.assertTrue((self.workdir / "modes.png").exists())

  def test_the_legend_of_one_noise_rate_is_whole(self):
    figures = []
    save = lambda figure, path, title: figures.append(figure)
    with absltest.mock.patch.object(emphasis_modes._pictures, "_save", save):
      emphasis_modes.draw(self.root / "modes.png", {0.4: _results({})})
    (figure,) = figures
    figure.draw_without_rendering()
    box, (width, height) = figure.legends[0].get_window_extent(), figure.get_size_inches()
    self.assertBetween(box.x0, 0, box.x1)
    self.assertLessEqual(box.x1, width * figure.dpi)
    self.assertLessEqual(box.y1, height * figure.dpi)

  @pytest.mark.long
  def test_a_small_study_writes_table_numbers_and_figure(self):
    argv = ("--dataset=digits", "--train_size=100", "--validation_size=20", "--steps=2")
    argv += ("--eval_every=2", "--checkpoint_every=100", "--chunk_steps=1", "--parallel_seeds=1")
    argv += ("--seeds=0", "--noise_rates=0.4")
    with absltest.mock.patch.object(emphasis_modes, "BETAS", {0.0: (1.0,), 1.0: (8.0,)}):
      stdout = self.command(*argv)
    self.assertIn("| lam 1 beta 8 | ", stdout)
    self.assertIn("last step: noise 0.4: lam ", stdout)
    summary = json.loads((self.workdir / "summary.json").read_text())
    self.assertLen(summary["0.4"], 4 + 2)
    self.assertTrue((self.workdir / "modes.png").exists())


if __name__ == "__main__":
  absltest.main()
