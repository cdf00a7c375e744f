"""When weights matter: the laws at a reduced size, the studies' parts, and the command.

At their full sizes the studies are run by the command alone, `--study=synthetic`: two minutes.
"""

import json

import numpy as np
from absl.testing import absltest, parameterized

from experiments import _errors, importance_weighting
from experiments.importance_studies import (
  byrd_lipton,
  cats_dogs,
  dual,
  finding,
  learned,
  linear,
  minima,
  nets,
  two_points,
)
from reweight_jax import data, margins
from tests import commands


class TwoPointsTest(parameterized.TestCase):
  def test_weights_are_forgotten_by_the_law(self):
    times = (1000, 20_000)
    for loss in (lambda m: two_points.jax.nn.softplus(-m), lambda m: two_points.jnp.exp(-m)):
      found = two_points.boundaries(loss, (4.0, 16.0), times)
      # a = log(1 + t sqrt(R) / (1 + R)) at step size 1/2: for R = 4 and t = 20,000 log 8001.
      self.assertAlmostEqual(found[1, 0], -np.log(4) / (2 * np.log(8001)), delta=0.002)
      self.assertAlmostEqual(found[1, 1], -np.log(16) / (2 * np.log(80_001 / 17)), delta=0.002)
      self.assertTrue((np.abs(found[1]) < np.abs(found[0])).all())

  def test_the_time_to_forget_is_a_power_of_the_ratio(self):
    # To be within eps of the middle takes about R^(1 / (2 eps)) steps, times (1 + R) / sqrt(R).
    for ratio, tolerance in ((4.0, 0.1), (16.0, 0.2)):
      time = (1 + ratio) / np.sqrt(ratio) * (ratio ** (1 / (2 * tolerance)) - 1)
      (place,) = two_points.forgotten((ratio,), (time,))[0]
      self.assertAlmostEqual(place, -tolerance)

  def test_a_polynomial_tail_keeps_the_boundary_where_the_weights_put_it(self):
    # k = 1, R = 8: r = 8^(1/3) = 2, so -(2 - 1) / (2 + 1); k = 2, R = 16: r = 16^(1/4) = 2.
    for power, ratio in ((1.0, 8.0), (2.0, 16.0)):
      found = two_points.boundaries(two_points.polynomial(power), (ratio,), (20_000, 40_000))
      np.testing.assert_allclose(found[:, 0], -1 / 3, atol=0.002)
      np.testing.assert_allclose(two_points.persistent((ratio,), power), [-1 / 3])


class LinearTest(absltest.TestCase):
  def test_every_weighting_turns_to_the_largest_margin(self):
    rows = margins.signed_rows(*linear.blobs(1))
    limit = margins.max_margin(rows).direction
    labels = linear.blobs(1)[1]
    weights = np.stack([linear.class_weights(labels, ratio) for ratio in (1.0, 10.0, 0.1)])
    lanes = np.stack([rows] * 3)
    early, late = linear.descent(lanes, weights, (300, 10_000), 1.0)
    ends = linear.loss_normalized(lanes, weights, 10_000)
    for one, other, end in zip(early, late, ends, strict=True):
      self.assertGreater(margins.cosine(other, limit), margins.cosine(one, limit))
      self.assertGreater(margins.cosine(end, limit), 0.9995)

  def test_where_classes_overlap_weights_shift_the_intercept_by_their_logarithm(self):
    moved = np.mean([minima.log_ratio_shifts((4.0, 16.0), seed, 10_000) for seed in (0, 1)], 0)
    np.testing.assert_allclose(moved[:, 1], np.log([4, 16]), rtol=0.01)
    np.testing.assert_allclose(moved[:, 0], 0, atol=0.1)

  def test_as_l2_weakens_the_angle_falls_and_times_the_length_it_stays(self):
    plain, weighted = minima.solutions(2, [10.0**-k for k in range(8)]).transpose(1, 0, 2)[:, 3:]
    angles = [np.arccos(margins.cosine(*pair)) for pair in zip(plain, weighted, strict=True)]
    self.assertTrue((np.diff(angles) < 0).all())
    products = (angles * np.linalg.norm(plain, axis=1))[-3:]
    self.assertLess(products.max() / products.min(), 1.25)

  def test_newton_finds_the_minimum(self):
    rows, weights = margins.signed_rows(*linear.blobs(3)), np.linspace(0.5, 1.5, 40)
    found = minima.minimizer(rows, weights, 1e-3, np.zeros(3))
    # The gradient, written as probabilities of the wrong label.
    wrong = 1 / (1 + np.exp(rows @ found))
    np.testing.assert_allclose(1e-3 * found, rows.T @ (weights * wrong) / 40, atol=1e-9)


class DualTest(absltest.TestCase):
  def test_the_gap_to_the_largest_margin_is_within_kl_over_steps(self):
    over = dual.gaps_over_bounds(60, 60, widths=(3,))
    self.assertEqual(over.shape, (1, 60, 60))
    self.assertLessEqual(over.max(), 1)
    self.assertGreater(over.max(), 0.02)

  def test_the_divergence_by_hand(self):
    found = dual.divergence(np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.25, 0.25, 0.5, 0.0]))
    self.assertAlmostEqual(found, np.log(2))

  def test_hard_first_is_ahead_of_uniform_and_that_of_easy_first(self):
    problems = [dual.problem(100 + seed, 60, 2) for seed in range(6)]
    ratios = dual.margin_ratios(problems, (200, 20_000))
    ends = [np.median(ratios[name][-1]) for name in dual.SCHEMES]
    self.assertEqual(ends, sorted(ends, reverse=True))
    self.assertGreater(np.median(ratios["dual"][0]), 0.98)


class NetTest(parameterized.TestCase):
  def test_the_effect_of_weights_fades_and_l2_keeps_it(self):
    free = nets.train((100, 6000), seeds=(0,))
    held = nets.train((3000,), seeds=(0,), l2=0.03)
    early, late = nets.gap(free.in_domain())
    self.assertGreater(early, 0.3)
    self.assertLess(late, 0.4 * early)
    self.assertGreater(nets.gap(held.in_domain())[0], 0.5)
    self.assertLess(held.train_accuracy[0, 0, 0], free.train_accuracy[1, 0, 0])

  def test_the_net_is_homogeneous_of_degree_two(self):
    params = {name: leaf[0] for name, leaf in nets.init(0, 1).items()}
    inputs = nets.moons(0, 20)[0].astype(np.float32)
    self.assertEqual(margins.homogeneity_degree(lambda p: nets.logits(p, inputs), params), 2)

  def test_coins_are_fair_and_each_of_its_own(self):
    coins = np.asarray(nets._coins(nets.jax.random.key(0), (200, 50)))
    self.assertEqual(set(np.unique(coins)), {0.0, 1.0})
    np.testing.assert_allclose(coins.mean(), 0.5, atol=0.03)  # six standard deviations
    self.assertLess(np.abs(coins.mean(0) - 0.5).max(), 0.2)
    self.assertLen(np.unique(coins, axis=0), 200)


class LearnedTest(absltest.TestCase):
  def test_bounded_learned_weights_end_at_the_largest_margin_and_free_ones_need_not(self):
    limit = margins.max_margin(margins.signed_rows(*linear.blobs(2))).direction
    bounded, free = (learned.ways(learned.RULES[i], (2,), (4000,)) for i in (1, 3))
    self.assertGreater(margins.cosine(bounded.params[-1, 0], limit), 0.998)
    self.assertLess(margins.cosine(free.params[-1, 0], limit), 0.99)
    self.assertLessEqual(bounded.ratio[-1, 0], 100 + 1e-6)
    self.assertEqual(free.ratio[-1, 0], np.inf)


class FindingTest(parameterized.TestCase):
  def test_one_check_that_fails_is_a_verdict(self):
    good, bad = finding.at_most("a", 1, 2), finding.near("b", 1.1, 1.0, 0.05)
    make = lambda *checks: finding.Finding("c", "p", "m", checks, {}, lambda figure: None)
    self.assertEqual(make(good).verdict, "holds")
    self.assertEqual(make(good, bad).verdict, "does not hold")
    self.assertEqual(make().verdict, "does not hold")
    self.assertIn("b: 1.1, asked 1 +- 0.05  <-- no", make(good, bad).text())

  def test_a_number_that_is_none_fails_every_check(self):
    nan = float("nan")
    for check in (finding.near("a", nan, 0, 1), finding.at_most("a", nan, 0)):
      self.assertFalse(check.holds)
    self.assertFalse(finding.at_least("a", nan, 0).holds)


class CatsAndDogsTest(absltest.TestCase):
  def test_class_weights_average_one_and_have_the_ratio(self):
    labels = np.array([0, 0, 0, 1])
    # Cats 1 and dogs 5, which sum to 8 over three cats and a dog; halved, to 4.
    np.testing.assert_allclose(cats_dogs.class_weights(labels, 5.0), [0.5, 2.5])
    np.testing.assert_allclose(cats_dogs.class_weights(labels[:2], 5.0), [1, 5])

  def test_weights_and_undersampling_move_the_share_called_dog(self):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12).astype(np.int32)
    # Dogs are light, cats are dark, everything else lies between.
    level = np.select([labels == 5, labels == 3], [200, 50], 125)[:, None, None, None]
    images = np.clip(level + rng.normal(size=(120, 32, 32, 3)) * 20, 0, 255).astype(np.uint8)
    names = tuple("abcdefghij")
    dataset = data.Dataset("made", images, labels, images, labels, names, np.arange(120))
    options = cats_dogs.Options(images=8, epochs=6, batch_size=4, width=2, test_images=20)
    drawn = cats_dogs.Images(dataset, options, seed=0)
    cats, even, dogs = (
      cats_dogs.train(drawn, options, "undersampling", ratio) for ratio in (0.125, 1.0, 8.0)
    )
    self.assertLen(even["in_domain"], len(options.eval_epochs()))
    self.assertEqual(even["test_accuracy"][-1], 1.0)
    self.assertLess(cats["in_domain"][0], dogs["in_domain"][0])
    cats, dogs = (cats_dogs.train(drawn, options, "none", ratio) for ratio in (1 / 16, 16.0))
    self.assertLess(cats["in_domain"][0], dogs["in_domain"][0])

  def test_a_run_that_diverges_is_named_and_has_no_verdict(self):
    logits = lambda *unused: np.array([[0.0, 1.0], [np.nan, 0.0]])
    with self.assertRaisesRegex(_errors.DivergedError, "^none, seed 0: the logits are not finite"):
      cats_dogs._called_dog(logits, absltest.mock.Mock(), "none, seed 0", np.zeros(2))

  def test_the_verdict_is_that_of_the_spreads(self):
    options = cats_dogs.Options(epochs=2, ratios=(16.0, 0.0625))

    def run(first, last):
      off = np.array([-0.3, 0.1, 0.2]) * np.sign(last - 0.5)  # of the seeds; on average right
      shares = np.stack([np.full(3, first), last + off], 1)
      return {"in_domain": shares, "out_of_domain": shares}

    def spread(last):
      return {16.0: run(0.9, 0.5 + last / 2), 0.0625: run(0.1, 0.5 - last / 2)}

    def verdict(**others):
      return byrd_lipton.finding(options, runs | others).verdict

    faded, little, kept = spread(0.08), spread(0.14), spread(0.22)
    names = ("l2", "undersampling", "polynomial_tail")
    runs = {"none": faded, "dropout": faded, "batch_norm": little, **dict.fromkeys(names, kept)}
    self.assertEqual(verdict(), "holds")
    self.assertEqual(verdict(none=kept), "does not hold")
    # Above 0.05, 0.1 or even 0.2, but no more than without anything.
    self.assertEqual(verdict(batch_norm=spread(0.1)), "does not hold")
    for name in names:
      self.assertEqual(verdict(**{name: spread(0.16)}), "does not hold", name)
    # Without runs of none to compare with, the spread itself.
    del runs["none"]
    self.assertEqual(verdict(), "holds")
    self.assertEqual(verdict(batch_norm=spread(0.04)), "does not hold")
    self.assertEqual(verdict(l2=spread(0.19)), "does not hold")
    self.assertEqual(verdict(l2=spread(0.21)), "holds")


class CommandTest(commands.CommandTestCase):
  MODULE = importance_weighting

  @parameterized.parameters(
    ("--study: expected one or more of all, synthetic, .*got 'focal'", "--study=focal"),
    ("--study: expected .*got none", "--study="),
    ("--byrd_lipton_images: expected at least 1, got 0", "--byrd_lipton_images=0"),
    ("--byrd_lipton_images: expected at most the 5000", "--byrd_lipton_images=5001"),
    ("--byrd_lipton_width: expected at most 1024", "--byrd_lipton_width=1000000000"),
    ("--deterministic: expected true or false, got 'x'", "--deterministic=x"),
    ("--byrd_lipton_batch_size: .* 400 training images", "--byrd_lipton_batch_size=500"),
    ("--byrd_lipton_learning_rate: .*> 0, got 0.0", "--byrd_lipton_learning_rate=0"),
    ("--byrd_lipton_seeds: expected whole numbers such as .*'x'", "--byrd_lipton_seeds=x"),
    ("--byrd_lipton_seeds: expected .*once; got 1,1", "--byrd_lipton_seeds=1,1"),
    ("--byrd_lipton_ratios: .*got 1", "--byrd_lipton_ratios=1"),
    ("--byrd_lipton_ratios: .*got 2.0,-1.0", "--byrd_lipton_ratios=2,-1"),
    ("--byrd_lipton_ratios: expected numbers such as .*'x'", "--byrd_lipton_ratios=x"),
    ("--byrd_lipton_configurations: .*got l1", "--byrd_lipton_configurations=l1"),
    ("cifar10: the data folder .* does not exist", "--study=byrd_lipton", "--data_dir=/nowhere"),
    ("--studies: no such flag", "--studies=all"),
  )
  def test_bad_flags_are_one_line(self, pattern, *argv):
    self.assert_refused(pattern, *argv)

  def test_a_study_writes_its_numbers_and_its_figure(self):
    stdout = self.command("--study=weak_l2")
    self.assertIn("\nclaim: L2 brings weights back", stdout)
    self.assertIn("\nverdict: holds\n", stdout)
    record = json.loads((self.workdir / "weak_l2.json").read_text())
    self.assertEqual(record["verdict"], "holds")
    self.assertLen(record["numbers"]["angles"], len(linear.SEEDS))
    self.assertEqual(record["numbers"]["seeds"], list(linear.SEEDS))
    self.assertEqual(record["flags"], {"study": ["weak_l2"]})
    self.assertIn("commit", record["versions"])
    self.assertTrue((self.workdir / "weak_l2.png").exists())
    self.assertIn("| weak_l2 | L2 brings", (self.workdir / "summary.md").read_text())

  def test_all_goes_on_without_the_images_and_says_so(self):
    quick = {"non_separable": minima.non_separable}
    with absltest.mock.patch.object(importance_weighting, "SYNTHETIC", quick):
      groups = {"all": ("non_separable", "byrd_lipton")}
      with absltest.mock.patch.object(importance_weighting, "GROUPS", groups):
        stdout = self.command(f"--data_dir={self.root / 'none'}")
    self.assertIn("## byrd_lipton\nnot run: cifar10: the data folder", stdout)
    self.assertIn("| non_separable | Where classes overlap", stdout)


if __name__ == "__main__":
  absltest.main()
