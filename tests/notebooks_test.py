"""The notebooks run, cell after cell, and show what they say."""

import json
import pathlib

from absl.testing import absltest

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


def run(name):
  """Runs the code cells of a notebook; the names they leave behind."""
  cells = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
  names = {}
  for cell in cells:
    if cell["cell_type"] == "code":
      exec("".join(cell["source"]), names)
  return names


class NotebooksTest(absltest.TestCase):
  def test_the_quickstart_runs_and_reweighting_helps(self):
    names = run("quickstart.ipynb")
    self.assertGreater(names["accuracy"], names["plain_accuracy"] + 0.1)
    self.assertGreater(float(names["auroc"]), 0.8)

  def test_importance_weighting_runs_and_shows_what_it_says(self):
    names = run("importance_weighting.ipynb")
    self.assertAlmostEqual(names["forgotten"][-1], names["law"][-1], delta=0.002)
    self.assertAlmostEqual(names["kept"][-1], names["limit"], delta=0.002)
    self.assertGreater(min(line[-1] for line in names["cosines"].values()), 0.999)
    places = names["places"]
    self.assertAlmostEqual(places["positives five times"], places["all examples"])
    self.assertGreater(places["3 of 20 positives, mean of 6"], places["all examples"] + 0.1)
    self.assertLess(places["positives' margins / 4"], places["all examples"] - 0.1)
    self.assertGreater(names["half_gap"][0], 0.1)
    self.assertLess(names["half_gap"][-1], 0.02)
    self.assertLess(names["bands"][-1], 0.02)


if __name__ == "__main__":
  absltest.main()
