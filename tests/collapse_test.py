"""Warnings of a collapse: of what got worse, once, with the step."""

import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized

from experiments import (
  _collapse,
)
from tests import runs


class CollapseTest(parameterized.TestCase):
  def rows(self, *rows):
    names = ("largest_predicted_share", "validation_accuracy", "effective_sample_size")
    return [dict(zip(names, row, strict=True)) for row in rows]

  @parameterized.parameters(
    ("collapse: 99 % of the test", (0.2, 0.4, 20.0), (1.0, 0.6, 20.0), (0.99, 0.6, 20.0)),
    (None, (0.2, 0.4, 20.0), (0.99, 0.6, 20.0)),  # once may be a moment
    ("fell from 40 % to 5 %, chance is 10 %", (0.2, 0.4, 20.0), (0.3, 0.05, 20.0)),
    ("count as 1.5 examples", (0.2, 0.4, 20.0), (0.2, 0.4, 1.5)),
    ("collapse: 99 %", (0.2, None, 20.0), (0.99, None, 20.0), (0.99, None, 20.0)),
    (None, (0.99, 0.1, 20.0), (0.99, 0.1, 20.0)),  # it has yet to begin to learn
    (None, (0.2, 0.25, 20.0), (0.2, 0.1, 20.0)),  # validation was never far from chance
    (None, (0.2, 0.4, 20.0), (0.7, 0.6, 20.0)),  # plain training on background noise
    (None, (0.2, 0.4, 1.5), (0.2, 0.4, 1.5)),
    (None, (0.99, 0.1, 20.0)),
  )
  def test_warns_of_what_got_worse(self, pattern, *rows):
    found = _collapse.warning(self.rows(*rows), 10)
    if pattern is None:
      self.assertIsNone(found)
    else:
      self.assertIn(pattern, found)

  def test_warns_once(self):
    rows = self.rows((0.2, 0.4, 20.0), (0.99, 0.6, 20.0), (0.99, 0.05, 20.0))
    rows[1]["warning"] = "collapse"
    self.assertIsNone(_collapse.warning(rows, 10))


class CollapsingRunTest(runs.RunTestCase):
  def test_a_collapse_is_printed_with_the_step_and_logged(self):
    config = dataclasses.replace(runs.CONFIG, methods=("ce",), steps=40, eval_every=20)
    with mock.patch.object(_collapse, "warning", side_effect=[None, "collapse: so"]):
      stderr = self.train("run", config=config)
    self.assertEqual(stderr, f"warning: {self.root / 'run'}, step 40: collapse: so\n")
    self.assertEqual([row.get("warning") for row in self.rows("run")], [None, "collapse: so"])


if __name__ == "__main__":
  absltest.main()
