"""Pictures of studies: where lines and error bars lie, and what the axes say."""

import pathlib
import warnings
from unittest import mock

import numpy as np
from absl.testing import absltest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import _pictures


class StudyPicturesTest(absltest.TestCase):
  def draw(self, draw, *args):
    """The figure that a function would save, rendered without a warning, and its first axes."""
    with warnings.catch_warnings(), mock.patch.object(_pictures, "_save") as save:
      warnings.simplefilter("error")
      draw(pathlib.Path("unused.png"), *args)
      (figure, _, _), _ = save.call_args
      figure.set_dpi(30)
      FigureCanvasAgg(figure).draw()
    return figure, figure.axes[0]

  def lines(self, axes):
    """Of each line the places and heights of its points, and the two ends of each bar."""
    found = []
    for bars in axes.containers:
      line, _, (segments,) = bars.lines
      ends = np.array(segments.get_segments())
      np.testing.assert_allclose(ends[:, 0, 0], line.get_xdata())
      found.append((*line.get_data(), ends[:, :, 1]))
    return found

  def test_classes_go_by_falling_count_and_bars_end_at_0_and_100(self):
    # Of the first method class 1 has 100 and 90 %: mean 95, standard deviation 10 / sqrt(2).
    runs = [
      {"counts": [3, 90], "accuracy_by_class": accuracies} for accuracies in ([0, 1], [0.04, 0.9])
    ]
    other = [{"counts": [3, 90], "accuracy_by_class": [0.5, 0.7]}]
    args = ({"ce": runs, "l2rw": other}, "title", ["cat", "dog"])
    figure, axes = self.draw(_pictures.draw_class_accuracy, *args)
    (x, y, ends), (other_x, other_y, other_ends) = self.lines(axes)
    np.testing.assert_allclose(y, [95, 2])
    np.testing.assert_allclose(ends, [[95 - 50**0.5, 100], [0, 2 + 8**0.5]])
    np.testing.assert_allclose(other_y, [70, 50])
    np.testing.assert_allclose(other_ends, [[70, 70], [50, 50]])  # one run has no spread
    # Half the gap between classes is shared by the lines, around the tick.
    np.testing.assert_allclose(x, [-0.125, 0.875])
    np.testing.assert_allclose(other_x, [0.125, 1.125])
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    self.assertEqual(ticks, ["dog\n90", "cat\n3"])
    self.assertEqual([text.get_text() for text in figure.legends[0].get_texts()], ["ce", "l2rw"])

  def test_errors_go_by_the_logarithm_of_the_falling_share(self):
    number = lambda mean, std: {"last": {"mean": mean, "std": std}}
    summaries = {
      0.99: {"ce": number(0.9, 0.2), "l2rw": number(0.95, None)},
      0.9: {"ce": number(0.98, 0.01), "l2rw": number(0.99, None)},
    }
    _, axes = self.draw(_pictures.draw_error_curves, summaries)
    (x, y, ends), (other_x, other_y, _) = self.lines(axes)
    np.testing.assert_allclose(y, [2, 10])
    np.testing.assert_allclose(ends, [[1, 3], [0, 30]], atol=1e-9)
    np.testing.assert_allclose(other_y, [1, 5])
    np.testing.assert_allclose((x + other_x) / 2, [np.log(10), np.log(100)])
    self.assertEqual([tick.get_text() for tick in axes.get_xticklabels()], ["10", "1"])


if __name__ == "__main__":
  absltest.main()
