"""Wrong labels against rare examples: the call by hand, and on a problem where each axis fails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from absl.testing import absltest
from scipy import spatial, special

from reweight_jax import metrics
from reweight_jax.difficulty import two_axes

NAN = float("nan")
CLASSES, FEATURES, NEIGHBORS = 3, 150, 10
_auroc = jax.jit(metrics.auroc)
_call = jax.jit(two_axes.noise_or_rare, static_argnames="hard_share")
_hardest = jax.jit(two_axes.hardest, static_argnames="share")


class HardestTest(absltest.TestCase):
  def test_the_share_is_rounded_up_and_ties_belong_to_it(self):
    error = np.array([0.1, 0.9, 0.8, 0.3, 0.8])
    for share, expected in ((0.2, [1]), (0.21, [1, 2, 4]), (0.4, [1, 2, 4]), (1.0, range(5))):
      result = _hardest(error, share)
      self.assertEqual(np.flatnonzero(result).tolist(), list(expected))

  def test_a_tenth_of_ten_is_one(self):
    self.assertEqual(int(_hardest(jnp.arange(10.0), 0.1).sum()), 1)

  def test_unknown_is_never_hard(self):
    result = _hardest(jnp.array([NAN, 1.0, 2.0, NAN]), 0.5)
    self.assertEqual(result.tolist(), [False, False, True, False])
    self.assertFalse(np.any(_hardest(jnp.full(4, NAN), 0.5)))

  def test_bad_arguments_are_one_line(self):
    with self.assertRaisesRegex(ValueError, "share"):
      two_axes.hardest(jnp.ones(3), 0.0)
    with self.assertRaisesRegex(ValueError, "vector"):
      two_axes.hardest(jnp.ones((3, 1)))


class VotesTest(absltest.TestCase):
  def test_the_votes_are_ranks_among_the_hard(self):
    # Examples 1 to 4 are hard. Error votes -1, -1/3, 1/3, 1; disagreement 1, 1/3, -1/3, -1 and
    # distance, turned round, 1, -1, 1/3, -1/3; their means.
    error = jnp.array([0.0, 0.6, 0.7, 0.8, 0.9, 0.1, 0.2, 0.3])
    disagreement = jnp.array([9.0, 0.9, 0.5, 0.4, 0.0, 9.0, 9.0, 9.0])
    distance = jnp.array([0.0, 1.0, 8.0, 2.0, 3.0, 0.0, 0.0, 99.0])
    result = _call(error, disagreement=disagreement, distance=distance, hard_share=0.5)
    expected = np.array([NAN, 1 / 3, -1 / 3, 1 / 9, -1 / 9, NAN, NAN, NAN])
    np.testing.assert_allclose(result, expected, rtol=1e-5)

  def test_memorization_leaves_the_error_of_those_that_trained_on_it(self):
    # Left are 0.5, 0, 0.25: the last example, though less hard than the second, is more like noise.
    result = _call(
      jnp.array([1.0, 0.75, 0.5]), memorization=jnp.array([0.5, 0.75, 0.25]), hard_share=1.0
    )
    np.testing.assert_allclose(result, [1, -1, 0], atol=1e-6)

  def test_an_example_without_one_of_the_numbers_is_not_called_and_casts_no_vote(self):
    result = _call(
      jnp.array([NAN, 0.5, 0.7, 0.9]), distance=jnp.array([1.0, 2.0, 3.0, NAN]), hard_share=1.0
    )
    np.testing.assert_allclose(result, [NAN, 0, 0, NAN], atol=1e-6)

  def test_bad_arguments_are_one_line(self):
    with self.assertRaisesRegex(ValueError, "an axis besides the error"):
      two_axes.noise_or_rare(jnp.ones(3))
    with self.assertRaisesRegex(ValueError, r"got shape \(2,\) of distance"):
      two_axes.noise_or_rare(jnp.ones(3), distance=jnp.ones(2))
    with self.assertRaisesRegex(ValueError, "share"):
      two_axes.noise_or_rare(jnp.ones(3), distance=jnp.ones(3), hard_share=2.0)


def _problem(rng, kind):
  """Three Gaussian classes, 15 % of them mislabeled, and 20 rare examples of the first."""
  directions = lambda count: (
    (v := rng.normal(size=(count, 10))) / np.linalg.norm(v, axis=1)[:, None]
  )
  classes, means = np.arange(600) % CLASSES, 3 * directions(CLASSES)
  inputs = means[classes] + rng.normal(size=(600, 10))
  chosen = rng.choice(np.flatnonzero(classes == 0), 20, replace=False)
  if kind == "scattered":
    inputs[chosen] = 5 * directions(20) + rng.normal(size=(20, 10))
  else:  # an island beside the second class
    inputs[chosen] = means[1] + 2.5 * directions(1) + 0.7 * rng.normal(size=(20, 10))
  is_rare = np.isin(np.arange(600), chosen)
  is_noisy = np.isin(np.arange(600), rng.choice(np.flatnonzero(~is_rare), 90, replace=False))
  shifts = rng.integers(1, CLASSES, size=600)
  return inputs, np.where(is_noisy, (classes + shifts) % CLASSES, classes), is_noisy, is_rare


def _error_and_memorization(rng, inputs, labels):
  """From ridge regressions on random features, each without 30 %, that fit nearly all labels."""
  first = rng.normal(size=(10, FEATURES)) / np.sqrt(10)
  features = np.maximum(inputs @ first + rng.uniform(-1, 1, FEATURES), 0) * np.sqrt(2 / FEATURES)
  features, targets = np.concatenate([features, np.ones((600, 1))], axis=1), np.eye(CLASSES)[labels]
  # Two rounds of ten members; each round leaves every example out three times.
  order = np.concatenate([rng.permutation(600) + 60 * np.arange(10)[:, None] for _ in range(2)])
  is_in = order % 600 < 420
  chances = np.zeros(is_in.shape)
  for member in range(len(is_in)):
    rows = features[is_in[member]]
    gram = rows.T @ rows / 420 + 1e-5 * np.eye(FEATURES + 1)
    solution = np.linalg.solve(gram, rows.T @ targets[is_in[member]] / 420)
    p = special.softmax(6 * features @ solution, axis=1)
    chances[member] = p[np.arange(600), labels]
  held_out = (chances * ~is_in).sum(0) / (~is_in).sum(0)
  return 1 - held_out, (chances * is_in).sum(0) / is_in.sum(0) - held_out


@functools.cache
@threadpoolctl.threadpool_limits.wrap(limits=1)  # threads that wait for one another take 100x
def _areas(kind):
  """AUROC of noise against rarity among the hard, a mean over five seeds, by axes."""
  areas = []
  for seed in range(5):
    rng = np.random.default_rng(seed)
    inputs, labels, is_noisy, is_rare = _problem(rng, kind)
    error, memorization = _error_and_memorization(rng, inputs, labels)
    between = spatial.distance.cdist(inputs, inputs) + np.diag(np.full(600, np.inf))
    nearest = np.argsort(between, axis=1)[:, :NEIGHBORS]
    distance = np.take_along_axis(between, nearest, axis=1).mean(axis=1)
    disagreement = (labels[nearest] != labels[:, None]).mean(axis=1)
    counted = np.asarray(_hardest(error)) & (is_noisy | is_rare)
    scores = {
      "error": error,
      "memorization": -memorization,
      "distance": -distance,
      "disagreement": disagreement,
      "neighbors": _call(error, disagreement=disagreement, distance=distance),
      "trained": _call(error, memorization=memorization, disagreement=disagreement),
    }
    areas.append({name: float(_auroc(score, is_noisy, counted)) for name, score in scores.items()})
  return {name: np.mean([area[name] for area in areas]) for name in areas[0]}


class SyntheticTest(absltest.TestCase):
  def test_two_axes_call_what_each_alone_misses_somewhere(self):
    worst = {
      name: min(_areas("scattered")[name], _areas("island")[name]) for name in _areas("island")
    }
    self.assertGreater(worst["neighbors"], 0.8)
    self.assertGreater(worst["trained"], 0.85)
    for name in ("error", "memorization", "distance", "disagreement"):
      self.assertLess(worst[name], 0.75, name)

  def test_distance_sees_what_is_scattered_and_is_blind_to_an_island(self):
    self.assertGreater(_areas("scattered")["distance"], 0.9)
    self.assertLess(_areas("island")["distance"], 0.5)

  def test_disagreement_sees_an_island_better_than_what_is_scattered(self):
    self.assertGreater(_areas("island")["disagreement"], _areas("scattered")["disagreement"] + 0.1)


if __name__ == "__main__":
  absltest.main()
