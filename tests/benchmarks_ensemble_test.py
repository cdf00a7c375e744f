"""The benchmark of an ensemble's forms: what it checks, and that it runs."""

from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from benchmarks import ensemble
from experiments._errors import UsageError


class EnsembleTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"nets": ("vgg",)}, "--nets: expected some of mlp_64, mlp_784, lenet; got 'vgg'"),
    ({"num_timings": 0}, "--num_timings: expected at least 1, got 0"),
    ({"output": "table.txt"}, "--output: expected a name that ends in .md"),
  )
  def test_what_cannot_be_run_is_refused_before_any_work(self, changes, message):
    with self.assertRaisesRegex(UsageError, message):
      ensemble.run(ensemble.Config(**changes))

  @pytest.mark.long
  def test_a_small_net_is_timed_in_both_forms(self):
    make, shape, _, _ = ensemble.NETS["mlp_64"]
    self.enter_context(mock.patch.dict(ensemble.NETS, {"tiny": (make, shape, 4, 2)}))
    row = ensemble.measure("tiny", ensemble.Config(("tiny",), num_timings=1, batch_size=10))
    self.assertEqual((row["members"], row["steps"], row["auto"]), (4, 2, "vmap"))
    self.assertGreater(row["one_by_one over vmap"], 0)
    self.assertIn("| tiny | 4 | 2 |", ensemble.table([row]))


if __name__ == "__main__":
  absltest.main()
