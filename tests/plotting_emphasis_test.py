"""Pictures of emphasis densities: lines and dots by hand, odd densities, errors."""

import math
import warnings

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import integrate

from reweight_jax import densities, plotting

DOT = "largest: the emphasis mode"


class EmphasisDensitiesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter("error")
    self.figure = Figure(figsize=(6.4, 4.2), dpi=30)
    FigureCanvasAgg(self.figure)
    self.axes = self.figure.subplots()

  def plot(self, chosen, **options):
    """Draws and renders: some warnings and errors come only then."""
    plotting.emphasis_densities(self.axes, chosen, **options)
    self.figure.canvas.draw()

  def lines(self):
    """Of each density the probabilities and lengths drawn."""
    return [line.get_data() for line in self.axes.lines if line.get_marker() == "None"]

  def dots(self):
    """The places of the dots; that of the legend has none."""
    drawn = [line.get_xydata() for line in self.axes.lines if line.get_marker() == "o"]
    return [tuple(place) for places in drawn for place in places]

  def legend(self):
    return [text.get_text() for text in self.axes.get_legend().get_texts()]

  def test_lines_follow_the_formulas(self):
    chosen = [densities.mean_squared_error(), densities.exponential_of_beta(8.0, 0.5)]
    self.plot(chosen, normalized=False)
    (p, squared), (s, exponential) = self.lines()
    self.assertEqual((p[0], p[-1]), (0, 1))
    np.testing.assert_allclose(squared, 4 * p * (1 - p) ** 2, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(exponential, np.exp(8 * s**0.5 * (1 - s)), rtol=1e-9)
    self.assertEqual(self.legend(), ["mean squared error", "exponential of beta (8, 0.5)", DOT])

  def test_normalized_lines_are_divided_by_their_areas(self):
    # Areas by hand: of 4 p (1-p)^2, 4 (1/2 - 2/3 + 1/4) = 1/3; of 2 (1-p), 1; of 5, 5.
    chosen = {
      "squared": densities.mean_squared_error(),
      "plain": densities.cross_entropy(),
      "mine": lambda p: 5 + 0 * p,
    }
    self.plot(chosen)
    (p, squared), (s, plain), (_, mine) = self.lines()
    np.testing.assert_allclose(squared, 12 * p * (1 - p) ** 2, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(plain, 2 * (1 - s), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(mine, 1, rtol=1e-9)
    self.assertEqual(self.legend(), ["squared", "plain", "mine", DOT])

  def test_dots_mark_the_modes(self):
    lams = (0.5, 1.0, 2.0)
    chosen = [densities.exponential_of_beta(6.0, lam) for lam in lams]
    self.plot([*chosen, densities.cross_entropy(), densities.uniform()], normalized=False)
    *peaks, plain = self.dots()
    for lam, (p, height) in zip(lams, peaks, strict=True):
      self.assertAlmostEqual(p, lam / (lam + 1), delta=1e-5)
      self.assertAlmostEqual(height, math.exp(6 * lam**lam / (lam + 1) ** (lam + 1)), delta=1e-6)
    self.assertEqual(plain, (0, 2))  # and none on the flat line

  def test_flat_lines_have_no_dot_and_ten_lines_ten_looks(self):
    self.plot([densities.uniform()] * 10)
    self.assertEqual((self.dots(), self.legend()), ([], ["uniform"] * 10))
    self.assertLen({(line.get_color(), line.get_linestyle()) for line in self.axes.lines}, 10)

  def test_an_infinite_slope_at_zero_is_drawn_in_small_steps(self):
    self.plot([densities.exponential_of_beta(8.0, 0.1)])
    ((p, lengths),) = self.lines()
    # From 0 to the first of 500 even points it would jump by exp(8 * 0.002^0.1) - 1 = 73 of 300.
    self.assertLess(np.abs(np.diff(lengths)).max() / lengths.max(), 0.05)
    self.assertGreater(np.sum(p < 1e-3), 100)

  def test_unbounded_lines_leave_the_picture_at_the_top(self):
    self.plot([densities.beta(0.5, 0.5)])  # 1 / (pi sqrt(p (1-p)))
    ((p, lengths),) = self.lines()
    self.assertAlmostEqual(np.interp(0.5, p, lengths), 2 / math.pi, delta=1e-4)
    # Between 0.02 and 0.98 at most 1 / (pi 0.14) = 2.27; the legend takes at most 0.6 of the room.
    self.assertBetween(self.axes.get_ylim()[1], 2.2, 2.28 / 0.4)
    self.assertEqual((self.dots(), self.legend()), ([], ["beta (0.5, 0.5)"]))

  def test_the_legend_hides_no_line(self):
    self.plot([densities.cross_entropy(), densities.uniform()])
    box = self.axes.get_legend().get_window_extent().transformed(self.axes.transData.inverted())
    self.assertGreater(box.y0, 2)
    self.assertLess(box.y1, self.axes.get_ylim()[1])

  def test_weights_beyond_floats_are_drawn_normalized(self):
    # exp(4000 p (1-p)) is exp(1000) times a bell of variance 1 / 8000 around 1/2.
    sharp = densities.exponential_of_beta(4000.0, 1.0)
    self.plot([sharp])
    ((_, height),) = self.dots()
    self.assertAlmostEqual(height / math.sqrt(4000 / math.pi), 1, delta=1e-6)
    with self.assertRaisesRegex(ValueError, "float64 holds, got the logarithm 1e.03.*normalized"):
      self.plot([sharp], normalized=False)

  def test_narrow_peaks_have_area_one(self):
    self.plot([densities.exponential_of_beta(4e4, 1.0), densities.normal(4e6, 0.3)])
    for p, lengths in self.lines():
      self.assertAlmostEqual(integrate.trapezoid(lengths, p), 1, delta=0.01)

  @parameterized.named_parameters(
    ("none", [], ValueError, "at least one density, got none"),
    ("density_alone", densities.uniform(), TypeError, "got 'uniform' alone. Put it into a list"),
    ("number", [3.0], TypeError, "a list of reweight_jax.densities, got 3.0 in it"),
    ("named_number", {"a": 3.0}, TypeError, "functions of the probability, got 3.0 for 'a'"),
    ("nameless_function", [jnp.exp], TypeError, "got .* in it. Give functions of one's own a name"),
    (
      "negative_function",
      {"a": lambda p: p - 1},
      ValueError,
      "not negative on .*, got -1 at p = 0",
    ),
    (
      "not_a_number",
      [densities.Density("odd", lambda log_p, log_q: jnp.log(jnp.exp(log_q) - 0.5))],
      ValueError,
      "weights of at least 0, got NaN at p = .* from 'odd'",
    ),
    (
      "infinite_area",
      [densities.Density("1 / p", lambda log_p, log_q: -log_p)],
      ValueError,
      "expects densities of finite area, got '1 / p'",
    ),
    ("factory", {"a": densities.uniform}, TypeError, "got the factory uniform. Call it: uniform"),
  )
  def test_errors_say_what_was_expected(self, chosen, error, message):
    with self.assertRaisesRegex(error, message):
      plotting.emphasis_densities(self.axes, chosen)


if __name__ == "__main__":
  absltest.main()
