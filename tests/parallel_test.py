"""Which seeds train side by side: as many as asked for or as fit, of one compiled step."""

import dataclasses
from unittest import mock

import jax
from absl.testing import absltest

from experiments import _evaluation, _lane, _parallel, _phases
from tests import runs


class ParallelTest(runs.RunTestCase):
  def setUp(self):
    super().setUp()
    digits = runs.dataset()
    self.setup = _lane.Setup(
      jax.device_put(digits.train_inputs),
      digits.train_ids,
      _evaluation.padded(digits.test_inputs, digits.test_labels),
      runs.linear_model().predict,
      _phases.make_schedule(runs.CONFIG),
      print,
    )

  def sizes(self, config, num_seeds=5):
    tasks = [runs.make_task(seed, noise=config.noise) for seed in range(num_seeds)]
    made = [self.make_run(f"run_{seed}", config, task, seed) for seed, task in enumerate(tasks)]
    groups = list(_parallel.groups(config, made, self.setup))
    self.assertEqual([run.seed for group in groups for run in group], list(range(num_seeds)))
    return [len(group) for group in groups]

  def test_groups_have_the_size_asked_for_and_keep_the_order(self):
    self.assertEqual(self.sizes(dataclasses.replace(runs.CONFIG, parallel_seeds=2)), [2, 2, 1])

  def test_on_cpu_seeds_go_one_by_one(self):
    self.assertEqual(self.sizes(runs.CONFIG, 3), [1, 1, 1])

  def test_runs_of_other_compiled_steps_stand_alone(self):
    # Class counts are part of this rule's step, and differ between seeds.
    config = dataclasses.replace(
      runs.CONFIG, methods=(), rules=("class_balanced",), parallel_seeds=3, noise="symmetric"
    )
    self.assertEqual(self.sizes(config, 3), [1, 1, 1])

  def test_elsewhere_as_many_as_memory_takes(self):
    run = self.make_run("run_0", runs.CONFIG)
    need = _parallel._bytes_of_a_run(run, self.setup)
    carry = _lane.begin(run, 0, self.setup.schedule)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(carry) if hasattr(leaf, "nbytes"))
    self.assertGreater(need, 1.9 * state)
    device = mock.Mock()
    device.memory_stats.return_value = {"bytes_limit": 10 * need, "bytes_in_use": 5 * need}
    with (
      mock.patch.object(jax, "default_backend", return_value="gpu"),
      mock.patch.object(jax, "devices", return_value=[device]),
    ):
      # 0.8 of five times what one run needs.
      self.assertEqual(_parallel._default_size([run] * 9, self.setup), 4)
      device.memory_stats.return_value = {"bytes_limit": need, "bytes_in_use": need}
      self.assertEqual(_parallel._default_size([run] * 9, self.setup), 1)


if __name__ == "__main__":
  absltest.main()
