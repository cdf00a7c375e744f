"""Pictures: what they show is what the numbers say; odd inputs are no errors."""

import warnings

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import reweight_jax as rw
from reweight_jax import plotting


class PlottingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter("error")
    self.figure = Figure()
    FigureCanvasAgg(self.figure)
    self.axes = self.figure.subplots()
    rng = np.random.default_rng(0)
    self.is_noisy = rng.random(300) < 0.4
    self.weights = np.where(self.is_noisy, 0.5, 1.0) * rng.random(300)
    self.weights[:10] = np.nan

  def tearDown(self):
    self.figure.canvas.draw()
    super().tearDown()

  def texts(self):
    return [text.get_text() for text in self.axes.texts]

  def legend(self):
    return [text.get_text() for text in self.axes.get_legend().get_texts()]

  def test_roc_area_is_the_auroc_of_the_weights_seen(self):
    seen = np.isfinite(self.weights)
    expected = float(rw.metrics.auroc(self.weights[seen], ~self.is_noisy[seen]))
    plotting.weight_roc(self.axes, {"l2rw": (self.weights, self.is_noisy)})
    self.assertEqual(self.legend()[0], f"l2rw: area {expected:.3f}")

  def test_roc_of_one_kind_of_label_says_so(self):
    plotting.weight_roc(self.axes, {"ce": (self.weights, np.zeros(300, bool))})
    self.assertEqual(self.legend()[0], "ce: one kind of label alone")

  def test_confusions_are_percent_of_the_true_class(self):
    labels, predictions = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    plotting.confusion_matrix(self.axes, labels, predictions, ("cat", "dog", "never"))
    self.assertEqual(self.texts(), ["75", "25", "100"])
    self.assertEqual(next(tick.get_text() for tick in self.axes.get_yticklabels()), "cat")
    self.assertEqual((self.axes.get_xlabel(), self.axes.get_ylabel()),
                     ("predicted class", "true class"))  # fmt: skip

  def test_a_hundred_classes_are_named_in_part_and_have_no_numbers(self):
    labels = np.arange(100)
    plotting.confusion_matrix(self.axes, labels, labels, [f"class {i}" for i in labels])
    self.assertEqual(self.texts(), [])
    self.assertLen(self.axes.get_xticks(), 20)

  def test_histograms_over_training_tell_the_share_of_zeros(self):
    weights = np.array([0, 0, 1, 2, 0, 3, np.nan, 1.0])
    is_noisy = np.array([True, True, True, True, False, False, False, False])
    plotting.weight_histograms(
      self.axes, [("1 to 10", weights), ("11 to 20", weights * 0)], is_noisy
    )
    ticks = [tick.get_text() for tick in self.axes.get_xticklabels()]
    self.assertEqual(ticks, ["1 to 10\n33 % / 50 %", "11 to 20\n100 % / 100 %"])

  @parameterized.parameters("unknown", "unseen", "constant", "none")
  def test_odd_weights_are_no_errors(self, case):
    weights, is_noisy = self.weights, self.is_noisy
    if case == "unknown":
      is_noisy = None
    elif case == "unseen":
      weights = np.full(300, np.nan)
    elif case == "constant":
      weights = np.ones(300)
    windows = [] if case == "none" else [("1", weights), ("2", weights)]
    plotting.weight_histograms(self.axes, windows, is_noisy)
    plotting.weight_histogram(self.axes, weights, is_noisy)

  def test_gallery_shows_the_extremes_of_each_class_in_order(self):
    weights = np.array([0.5, np.nan, 0.1, 3.0, 2.0, 0.2, 7.0])
    labels = np.array([0, 0, 0, 0, 0, 0, 2])
    true = np.array([0, 0, 1, 0, 0, 2, 2])
    images = np.zeros((7, 4, 4, 3), np.uint8)
    plotting.weight_gallery(
      self.axes, images, labels, weights, ("cat", "dog", "bird"),
      is_noisy=labels != true, true_labels=true, per_class=2,
    )  # fmt: skip
    shown = [text for text in self.texts() if text]
    # The smallest two, the largest two; one image alone is not shown twice.
    self.assertEqual(shown, ["0.1", "dog", "0.2", "bird", "2", "3", "7"])
    self.assertLen(self.axes.images, 5)
    self.assertEqual([tick.get_text() for tick in self.axes.get_yticklabels()], ["cat", "bird"])

  def test_gallery_of_many_classes_shows_ten_and_says_so(self):
    labels = np.arange(12)
    plotting.weight_gallery(
      self.axes, np.zeros((12, 2, 2, 1), np.uint8), labels, labels / 12, list("abcdefghijkl")
    )
    self.assertLen(self.axes.images, 10)
    self.assertIn("10 of 12 classes", self.axes.get_title())


if __name__ == "__main__":
  absltest.main()
