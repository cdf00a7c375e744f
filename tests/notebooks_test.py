"""The notebooks run, cell after cell, and show what they say."""

import json
import pathlib

from absl.testing import absltest

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


class NotebooksTest(absltest.TestCase):
  def test_the_quickstart_runs_and_reweighting_helps(self):
    cells = json.loads((NOTEBOOKS / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
      if cell["cell_type"] == "code":
        exec("".join(cell["source"]), names)
    self.assertGreater(names["accuracy"], names["plain_accuracy"] + 0.1)
    self.assertGreater(float(names["auroc"]), 0.8)


if __name__ == "__main__":
  absltest.main()
