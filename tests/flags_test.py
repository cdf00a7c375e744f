"""What flags mean: defaults, protocols, lists, schedules."""

import contextlib
import dataclasses
import io
import json
import signal
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from experiments import (
  _check,
  _config,
  _errors,
  _flags,
  _phases,
)
from tests import commands


class FlagsTest(parameterized.TestCase):
  def test_defaults_are_those_of_the_configuration(self):
    config = _flags.config_of(commands.flags_of())
    self.assertEqual(config, _config.Config(methods=("ce", "l2rw")))
    _check.check(config)

  def test_values_arrive(self):
    config = _flags.config_of(
      commands.flags_of("--seeds=3, 1", "--rules=focal,clip", "--focal_gamma=0.5", "--noise=none")
    )
    self.assertEqual((config.seeds, config.rules, config.methods), ((3, 1), ("focal", "clip"), ()))
    self.assertEqual((config.rule_options.focal_gamma, config.rate_of_noise()), (0.5, 0.0))

  def test_a_protocol_gives_values_and_flags_beside_it_win(self):
    config = _flags.config_of(commands.flags_of("--protocol=background", "--method=ce,random,l2rw"))
    self.assertEqual(
      (config.dataset, config.noise, config.noise_rate), ("cifar10", "background", 0.4)
    )
    self.assertEqual((config.batch_size, config.num_meta(), config.meta_size), (100, 100, 100))
    self.assertEqual((config.momentum, config.weight_decay, config.rate()), (0.9, 2e-4, 0.1))
    rates = _rates_of(config)
    for step, rate in ((0, 0.1), (39_999, 0.1), (40_001, 0.01), (59_999, 0.01), (79_999, 0.001)):
      self.assertAlmostEqual(float(rates(step)), rate, places=7)
    uniform = _flags.config_of(
      commands.flags_of("--protocol=uniform", "--noise_rate=0.2", "--steps=60")
    )
    self.assertEqual(
      (uniform.noise, uniform.noise_rate, uniform.meta_size), ("symmetric", 0.2, 1000)
    )
    for step, rate in ((39, 0.1), (41, 0.01), (49, 0.01), (51, 0.001)):
      self.assertAlmostEqual(float(_rates_of(uniform)(step)), rate, places=7)
    hundred = _flags.config_of(commands.flags_of("--protocol=background", "--dataset=cifar100"))
    self.assertEqual(hundred.meta_size, 1000)
    for name in _config.PROTOCOLS:
      _check.check(_flags.config_of(commands.flags_of(f"--protocol={name}")))

  def test_epochs_replace_the_steps_of_a_protocol(self):
    config = _flags.config_of(commands.flags_of("--protocol=background", "--epochs=2"))
    self.assertEqual(config.num_steps(44_900), 2 * 449)

  def test_steps_replace_the_epochs_of_a_protocol(self):
    config = _flags.config_of(commands.flags_of("--protocol=long_tail", "--steps=2"))
    _check.check(config)
    self.assertEqual(config.num_steps(44_900), 2)

  def test_cosine_ends_at_zero(self):
    config = _flags.config_of(
      commands.flags_of("--schedule=cosine", "--steps=100", "--learning_rate=0.2")
    )
    rates = _rates_of(config)
    found = [float(rates(step)) for step in (0, 50, 100)]
    np.testing.assert_allclose(found, [0.2, 0.1, 0], atol=1e-7)

  def test_setting_names_what_was_left_to_the_default(self):
    default = _config.Config(methods=("ce",))
    given = dataclasses.replace(default, model="mlp", steps=600, meta_batch_size=20, seeds=(1,))
    self.assertEqual(default.setting(), given.setting())
    self.assertEqual(json.loads(json.dumps(given.setting())), given.setting())
    self.assertEqual(dataclasses.replace(default, meta_size=7).num_meta(), 7)

  @parameterized.parameters(
    (_errors.RunError("a\nb"), 1, "a b"),
    (
      OSError(28, "No space left on device", "/x"),
      1,
      "no space left to write /x; free some, then the same command goes on from the last "
      "checkpoint",
    ),
    (FileNotFoundError(2, "No such file", "/x"), 1, "/x vanished during the run (No such file)"),
    (
      _errors.StoppedError(signal.SIGTERM, "at step 3 of /x"),
      143,
      "stopped by SIGTERM at step 3 of /x; the state is saved, the same command goes on from there",
    ),
    (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
    (ImportError("install it"), 2, "install it"),
  )
  def test_mistakes_become_one_line_and_a_status(self, error, status, line):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), self.assertRaises(SystemExit) as raised:
      _errors.exit_on_mistake(mock.Mock(side_effect=error))
    self.assertEqual((raised.exception.code, stderr.getvalue()), (status, f"error: {line}\n"))


def _rates_of(config):
  return _phases.make_rates(config.rate(), config.schedule, config.decay_at, config.num_steps(0))


if __name__ == "__main__":
  absltest.main()
