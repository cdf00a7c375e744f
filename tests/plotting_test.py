"""Pictures: what they show is what the numbers say; odd inputs are no errors and no warnings."""

import warnings

import jax
import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

import reweight_jax as rw
from reweight_jax import plotting
from reweight_jax.plotting.curves import COLORS


class PlottingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter("error")
    self.figure = Figure(dpi=30)
    FigureCanvasAgg(self.figure)
    self.axes = self.figure.subplots()
    rng = np.random.default_rng(0)
    self.is_noisy = rng.random(300) < 0.4
    self.weights = np.where(self.is_noisy, 0.5, 1.0) * rng.random(300)
    self.weights[:10] = np.nan

  def draw(self):
    """Renders the figure: some warnings and errors come only then."""
    self.figure.canvas.draw()

  def texts(self):
    return [text.get_text() for text in self.axes.texts]

  def legend(self):
    return [text.get_text() for text in self.axes.get_legend().get_texts()]

  def ticks(self, axis):
    return [tick.get_text() for tick in getattr(self.axes, f"get_{axis}ticklabels")()]


class CurvesTest(PlottingTest):
  def test_lines_are_means_and_nothing_is_above_100_but_the_legend(self):
    # Both seeds at 90 and 100 %: mean 95, from 90 to 100. The last step: 100.
    seeds = [([1, 2], [0.9, 1.0]), ([1, 2], [1.0, 1.0])]
    plotting.accuracy_curves(self.axes, {"ce": seeds, "l2rw": seeds[:1]})
    self.draw()
    np.testing.assert_allclose(self.axes.lines[0].get_ydata(), [95, 100])
    box = self.axes.get_legend().get_window_extent().transformed(self.axes.transData.inverted())
    self.assertGreaterEqual(box.y0, 100)
    ticks = self.axes.get_yticks()
    self.assertLessEqual(ticks.max(), 100)
    self.assertGreater(len(ticks), 2)
    self.assertEqual(self.legend(), ["ce", "l2rw"])

  def test_no_curves_are_no_error(self):
    plotting.accuracy_curves(self.axes, {})
    self.draw()


class HistogramsTest(PlottingTest):
  def widths(self):
    """Of each histogram over training, in the order of drawing, its bars' widths; signed."""
    drawn = [patch.get_data() for patch in self.axes.patches if isinstance(patch, StepPatch)]
    return [values - baseline for values, _, baseline in drawn]

  def strips(self):
    """Widths of the bars of zeros."""
    bars = [bar for bars in self.axes.containers for bar in bars]
    return [abs(bar.get_width()) for bar in bars if bar.get_fill()]

  def test_bars_of_one_window_add_to_the_examples_seen(self):
    plotting.weight_histogram(self.axes, self.weights, self.is_noisy, num_bins=4)
    heights = [sum(bar.get_height() for bar in bars) for bars in self.axes.containers]
    num_wrong = int(self.is_noisy[10:].sum())
    self.assertEqual(heights, [290 - num_wrong, num_wrong])

  def test_halves_have_the_counts_of_their_group(self):
    # Two bins, [0, 2) and [2, 4]: correct labels 1 and 4 of them, wrong ones 2 and 0.
    weights = np.array([1, 3, 3, 4, 1, 1, 0, 0, np.nan, 4.0])
    is_noisy = np.array([False] * 4 + [True] * 5 + [False])
    plotting.weight_histograms(self.axes, [("a", weights)], is_noisy, num_bins=2)
    left, right = self.widths()
    np.testing.assert_allclose(left / left.min(), [1 / 4, 1])
    # Each half is scaled to its own fullest bin and grows to its own side.
    np.testing.assert_allclose(right / -left.min(), [1, 0])

  def test_strips_are_as_wide_as_the_share_of_zeros(self):
    weights = np.array([0, 0, 1, 2, 0, 3, np.nan, 1.0])
    is_noisy = np.array([True, True, True, True, False, False, False, False])
    windows = {"1 to 10": weights, "11 to 20": weights * 0}
    plotting.weight_histograms(self.axes, windows, is_noisy)
    self.assertEqual(self.texts(), ["33", "100", "50", "100"])
    self.assertEqual(self.ticks("x"), ["1 to 10", "11 to 20"])
    strips = self.strips()
    np.testing.assert_allclose(np.divide(strips, strips[1]), [1 / 3, 1, 1 / 2, 1])
    self.draw()

  def test_medians_count_zeros(self):
    weights = np.array([0, 0, 5, 1, 2, 9.0])
    is_noisy = np.arange(6) < 3
    plotting.weight_histograms(self.axes, [("a", weights), ("b", weights + 1)], is_noisy)
    medians = {line.get_label(): list(line.get_ydata()) for line in self.axes.lines}
    self.assertEqual(medians["median of correct labels"], [2, 3])
    self.assertEqual(medians["median of wrong labels"], [0, 1])

  def test_legend_has_the_colors_and_counts_of_the_groups(self):
    plotting.weight_histograms(self.axes, [("a", self.weights)], self.is_noisy)
    num_wrong = int(self.is_noisy.sum())
    patches = {
      text: handle.get_facecolor()[:3]
      for text, handle in zip(self.legend(), self.axes.get_legend().legend_handles, strict=True)
      if isinstance(handle, Rectangle)
    }
    self.assertEqual(
      patches,
      {
        f"correct labels ({300 - num_wrong})": to_rgb(COLORS[0]),
        f"wrong labels ({num_wrong})": to_rgb(COLORS[1]),
      },
    )

  def test_nearly_all_or_none_is_not_rounded_to_all_or_none(self):
    few, most = np.zeros(1000), np.ones(1000)
    few[0], most[0] = 1, 0
    plotting.weight_histograms(self.axes, [("few", few), ("most", most)], None)
    self.assertEqual(self.texts(), [">99", "<1"])

  def test_weights_beyond_the_top_are_kept_and_the_axis_says_so(self):
    # Two bins, [0, 1.5) and [1.5, 3]; one weight of 201 lies beyond the 99th percentile.
    weights = np.repeat([1.0, 3.0], 100)
    plotting.weight_histograms(self.axes, [("a", weights)], None, num_bins=2)
    self.assertEqual(self.ticks("y")[-1], "3")
    self.axes.clear()
    plotting.weight_histograms(self.axes, [("a", np.append(weights, 50))], None, num_bins=2)
    self.assertEqual(self.ticks("y")[-1], "\N{GREATER-THAN OR EQUAL TO} 3")
    (widths,) = self.widths()
    np.testing.assert_allclose(widths[0] / widths[1], 100 / 101)

  def test_many_windows_keep_at_most_twelve_names_and_no_numbers(self):
    windows = [(f"{i}", self.weights) for i in range(13)]
    plotting.weight_histograms(self.axes, windows, None)
    self.assertEqual(self.ticks("x"), [f"{i}" for i in range(0, 13, 2)])
    self.assertEmpty(self.texts())

  @parameterized.parameters("unknown", "clean", "wrong", "unseen", "constant", "zero", "none")
  def test_odd_weights_are_no_errors(self, case):
    weights, is_noisy = self.weights, self.is_noisy
    if case == "unknown":
      is_noisy = None
    elif case in ("clean", "wrong"):
      is_noisy = np.full(300, case == "wrong")
    elif case == "unseen":
      weights = np.full(300, np.nan)
    elif case in ("constant", "zero"):
      weights = np.full(300, float(case == "constant"))
    windows = [] if case == "none" else [("1", weights), ("2", weights)]
    plotting.weight_histograms(self.axes, windows, is_noisy)
    plotting.weight_histogram(Figure().subplots(), weights, is_noisy, num_bins=4)
    self.draw()

  def test_other_lengths_are_errors(self):
    with self.assertRaisesRegex(ValueError, "weights of 'b' expects .*300.*got shape .2"):
      plotting.weight_histograms(self.axes, [("b", np.ones(2))], self.is_noisy)


class RocTest(PlottingTest):
  def test_area_is_the_auroc_of_the_weights_seen(self):
    seen = np.isfinite(self.weights)
    expected = float(jax.jit(rw.metrics.auroc)(self.weights[seen], ~self.is_noisy[seen]))
    plotting.weight_roc(self.axes, {"l2rw": (self.weights, self.is_noisy)})
    self.assertEqual(self.legend()[0], f"l2rw: AUROC {expected:.3f} (10 never seen)")

  def test_curve_goes_through_the_shares_above_each_threshold(self):
    # From the heaviest down: correct, wrong, correct and wrong tied at 0.
    weights, is_noisy = np.array([3, 2, 0, 0.0]), np.array([False, True, False, True])
    plotting.weight_roc(self.axes, {"a": (weights, is_noisy)})
    points = self.axes.lines[0].get_xydata().tolist()
    self.assertEqual(points, [[0, 0], [0, 50], [50, 50], [100, 100]])
    # Of the four pairs: 3 > 2, 3 > 0, 0 < 2, and a tie.
    self.assertEqual(self.legend()[0], "a: AUROC 0.625")

  def test_constant_weights_are_chance(self):
    plotting.weight_roc(self.axes, {"ce": (np.ones(300), self.is_noisy)})
    self.assertEqual(self.legend(), ["ce: AUROC 0.500", "chance: 0.500"])

  def test_one_kind_of_label_has_no_curve_and_says_so(self):
    weights = np.array([1.0, 2.0])
    curves = {
      "a": (weights, np.array([False, False])),
      "b": (weights, np.array([True, True])),
      "c": (np.full(2, np.nan), np.array([True, False])),
    }
    plotting.weight_roc(self.axes, curves)
    expected = ["a: only correct labels", "b: only wrong labels", "c: no labels (2 never seen)"]
    self.assertEqual(self.legend()[:3], expected)
    self.draw()

  def test_other_lengths_are_errors(self):
    with self.assertRaisesRegex(ValueError, "is_noisy expects .*'a'.*got shape .3"):
      plotting.weight_roc(self.axes, {"a": (np.ones(2), np.zeros(3, bool))})


class ConfusionTest(PlottingTest):
  def test_confusions_are_percent_of_the_true_class(self):
    labels, predictions = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    plotting.confusion_matrix(self.axes, labels, predictions, ("cat", "dog", "never"))
    shown = {text.get_position(): text.get_text() for text in self.axes.texts}
    # (predicted, true)
    self.assertEqual(shown, {(0, 0): "75", (1, 0): "25", (1, 1): "100"})
    drawn = self.axes.images[0].get_array()
    np.testing.assert_array_equal(drawn[:2], [[75, 25, 0], [0, 100, 0]])
    self.assertTrue(np.ma.getmaskarray(drawn)[2].all())
    self.assertEqual(self.ticks("y"), ["cat", "dog", "never"])
    names = self.axes.get_xlabel(), self.axes.get_ylabel()
    self.assertEqual(names, ("predicted class", "true class"))
    self.draw()

  def test_numbers_contrast_with_their_cells(self):
    # Rows of 5 to 95 %, hence cells of every color.
    labels = np.repeat(np.arange(10), 100)
    predictions = np.where(np.arange(1000) % 100 < labels * 10 + 5, labels, (labels + 1) % 10)
    plotting.confusion_matrix(self.axes, labels, predictions, list("abcdefghij"))
    image = self.axes.images[0]
    self.assertLen(self.axes.texts, 20)
    for text in self.axes.texts:
      column, row = text.get_position()
      cell = image.cmap(image.norm(image.get_array()[int(row), int(column)]))
      letters = to_rgb(text.get_color())
      dark, light = sorted((_luminance(cell) + 0.05, _luminance(letters) + 0.05))
      self.assertGreater(light / dark, 4.5)  # WCAG 2.1, success criterion 1.4.3

  def test_a_hundred_classes_are_named_in_part_and_have_no_numbers(self):
    labels = np.arange(100)
    plotting.confusion_matrix(self.axes, labels, labels, [f"class {i}" for i in labels])
    self.assertEmpty(self.texts())
    self.assertEqual(self.ticks("x"), [f"class {i}" for i in range(0, 100, 5)])

  def test_a_single_class_is_no_error(self):
    plotting.confusion_matrix(self.axes, np.zeros(3, int), np.zeros(3, int), ["cat"])
    self.assertEqual(self.texts(), ["100"])

  def test_no_examples_are_no_error(self):
    plotting.confusion_matrix(self.axes, np.zeros(0, int), np.zeros(0, int), ("cat", "dog"))
    self.assertEmpty(self.texts())

  def test_classes_without_a_name_are_errors(self):
    with self.assertRaisesRegex(ValueError, "predictions expects classes from 0 to 1, got 2"):
      plotting.confusion_matrix(self.axes, np.array([0]), np.array([2]), ("cat", "dog"))


class GalleryTest(PlottingTest):
  def test_extremes_of_each_class_stand_in_order(self):
    weights = np.array([0.5, np.nan, 0.1, 3.0, 2.0, 0.2, 7.0])
    labels = np.array([0, 0, 0, 0, 0, 0, 2])
    true = np.array([0, 0, 1, 0, 0, 2, 2])
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    plotting.weight_gallery(
      self.axes, images, labels, weights, ("cat", "dog", "bird"),
      is_noisy=labels != true, true_labels=true, per_class=2,
    )  # fmt: skip
    # The smallest two, the largest two; one image alone is not shown twice.
    self.assertEqual(self.texts(), ["0.1", "dog", "0.2", "bird", "2", "3", "7"])
    shown = [int(image.get_array()[0, 0, 0]) for image in self.axes.images]
    self.assertEqual(shown, [2, 5, 4, 3, 6])
    lefts = [image.get_extent()[0] for image in self.axes.images]
    self.assertEqual(lefts[:4], sorted(lefts[:4]))
    self.assertEqual(self.ticks("y"), ["cat", "bird"])
    self.draw()

  def test_only_wrong_labels_have_the_frame_of_wrong_labels(self):
    is_noisy = np.array([True, False, True, False])
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, int)
    plotting.weight_gallery(
      self.axes, images, labels, np.arange(4.0), ["cat"], is_noisy=is_noisy, per_class=2
    )
    frames = [to_rgb(frame.get_edgecolor()) == to_rgb(COLORS[1]) for frame in self.axes.patches]
    self.assertEqual(frames, [True, False, True, False])
    self.assertEqual(self.texts(), ["0", "1", "2", "3"])  # No true classes, no names.

  def test_few_images_are_halved(self):
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, int)
    plotting.weight_gallery(self.axes, images, labels, np.arange(3.0), ["cat"], per_class=4)
    lefts = [image.get_extent()[0] for image in self.axes.images]
    # Two from the left, one at the far right, in the eighth column behind the gap.
    np.testing.assert_allclose(lefts, [0, 1, 7.3])

  def test_of_many_classes_the_ten_lightest_are_shown(self):
    labels = np.arange(12)
    weights = (labels + 6) % 12 / 12.0  # Classes 4 and 5 are the heaviest.
    plotting.weight_gallery(
      self.axes, np.zeros((12, 2, 2, 1), np.uint8), labels, weights, list("abcdefghijkl")
    )
    self.assertEqual(self.ticks("y"), list("abcdghijkl"))
    self.assertIn("the 10 of 12 classes of lowest mean weight", self.axes.get_title())

  @parameterized.parameters(
    ([2, 2, 3, 3], True),
    ([0, 0, 0, 0], True),
    ([2, 2 + 1e-6, 3, np.nan], True),
    ([2, 2, 3, 4], False),
  )
  def test_where_weights_are_equal_in_every_class_the_title_says_so(self, weights, is_equal):
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 1, 1])
    plotting.weight_gallery(self.axes, images, labels, np.array(weights), ["cat", "dog"])
    words = "all mean weights are equal" if is_equal else "smallest mean weights on the left"
    self.assertIn(words, self.axes.get_title())

  def test_long_names_keep_their_ends(self):
    images = np.zeros((2, 2, 2, 1), np.uint8)
    names = ["thirteen_long", "a class of number 1"]
    plotting.weight_gallery(self.axes, images, np.arange(2), np.ones(2), names)
    self.assertEqual(self.ticks("y"), ["thirteen_long", "a clas\N{HORIZONTAL ELLIPSIS}mber 1"])

  def test_no_image_seen_is_no_error(self):
    images = np.zeros((2, 2, 2, 3), np.uint8)
    plotting.weight_gallery(self.axes, images, np.zeros(2, int), np.full(2, np.nan), ["cat"])
    self.assertEmpty(self.axes.images)
    self.draw()

  @parameterized.parameters(
    (np.zeros((2, 2, 2, 3), np.float32), 0, 5, "uint8 .*got float32"),
    (np.zeros((2, 2, 2, 4), np.uint8), 0, 5, "channels.*2, 2, 2, 4"),
    (np.zeros((2, 12), np.uint8), 0, 5, "height, width"),
    (np.zeros((3, 2, 2, 1), np.uint8), 0, 5, "labels expects .*images"),
    (np.zeros((2, 2, 2, 1), np.uint8), 1, 5, "labels expects classes from 0 to 0, got 1"),
    (np.zeros((2, 2, 2, 1), np.uint8), 0, 0, "per_class expects a number >= 1"),
  )
  def test_wrong_arguments_are_errors(self, images, label, per_class, message):
    labels = np.full(2, label)
    with self.assertRaisesRegex(ValueError, message):
      plotting.weight_gallery(self.axes, images, labels, np.ones(2), ["cat"], per_class=per_class)


def _luminance(color):
  """Relative luminance of sRGB, WCAG 2.1."""
  rgb = np.asarray(color[:3])
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  return float(linear @ [0.2126, 0.7152, 0.0722])


if __name__ == "__main__":
  absltest.main()
