"""Scores of an embedding against scikit-learn, NumPy and hand-made constellations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn.neighbors import NearestNeighbors

from reweight_jax.difficulty import neighbors

LINE = np.array([[0.0], [1.0], [3.0], [10.0], [11.0], [14.0]])


def _by_sklearn(embedding, k, metric):
  found = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(embedding)
  distances, indices = found.kneighbors()  # of the fitted points, without themselves
  return indices, distances


class NearestNeighborsTest(parameterized.TestCase):
  @parameterized.product(metric=neighbors.METRICS, chunk=(7, 1000))
  def test_are_those_of_scikit_learn(self, metric, chunk):
    embedding = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    embedding[5] = 0  # no direction: cosine distance 1, there as here
    found = neighbors.nearest_neighbors(embedding, 4, metric=metric, chunk=chunk)
    indices, distances = _by_sklearn(embedding.astype(np.float64), 4, metric)
    of_others = np.arange(40) != (5 if metric == "cosine" else -1)  # all ties for that one
    np.testing.assert_array_equal(found.indices[of_others], indices[of_others])
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5, atol=1e-6)

  @parameterized.parameters((1.0, 1e5), (1e-25, 0.0), (1e25, 0.0))
  def test_survive_an_offset_and_any_scale(self, scale, offset):
    embedding = np.random.default_rng(1).normal(size=(40, 3))
    indices, distances = _by_sklearn(embedding, 4, "euclidean")
    # Squares of 1e5 have an absolute error of 1000 in float32, those of 1e-25 and 1e25 no value.
    found = neighbors.nearest_neighbors(embedding * scale + offset, 4, chunk=7)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances / np.float32(scale), distances, rtol=1e-5)

  def test_copies_are_neighbors_at_distance_0_and_ties_go_to_the_lower_index(self):
    embedding = np.array([[0.3, 1], [7, 7.1], [0.3, 1], [0.3, 1]], np.float32)
    found = neighbors.nearest_neighbors(embedding, 2)
    np.testing.assert_array_equal(found.indices, [[2, 3], [0, 2], [0, 3], [0, 2]])
    self.assertEqual(found.distances[np.array([0, 2, 3])].tolist(), [[0, 0]] * 3)

  def test_float64_is_kept_where_it_is_enabled(self):
    embedding = np.array([[0.0], [1e-6], [3e-6], [1.0]])
    with jax.enable_x64(True):
      found = neighbors.nearest_neighbors(embedding, 1)
    self.assertEqual(found.distances.dtype, np.float64)
    np.testing.assert_array_equal(found.indices[:, 0], [1, 0, 1, 2])
    np.testing.assert_allclose(found.distances[:, 0], [1e-6, 1e-6, 2e-6, 1 - 3e-6], rtol=1e-9)

  def test_nothing_larger_than_a_chunk_of_rows_is_made_of_60_000_examples(self):
    of_chunk = functools.partial(neighbors._nearest_of, size=512, k=10, metric="euclidean")
    traced = jax.make_jaxpr(of_chunk)(jax.ShapeDtypeStruct((60_000, 128), jnp.float32), 0)
    (call,) = traced.eqns
    sizes = [out.aval.size for eqn in call.params["jaxpr"].eqns for out in eqn.outvars]
    self.assertEqual(max(sizes), 512 * 60_000)


class NeighborDisagreementTest(parameterized.TestCase):
  def test_is_the_share_of_neighbors_with_another_label(self):
    # Two nearest by position: 1 3, 0 3, 1 0, 11 14, 10 14, 11 10.
    labels = np.array([5, 5, 7, 7, 7, 5])
    scores = neighbors.neighbor_disagreement(LINE, labels, k=2)
    self.assertEqual(scores.tolist(), [0.5, 0.5, 1.0, 0.5, 0.5, 1.0])

  def test_wrong_labels_in_clusters_score_highest(self):
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    embedding = 20 * np.eye(3)[classes] + rng.normal(size=(60, 3))
    labels = classes.copy()
    labels[:6] = (labels[:6] + 1) % 3  # 2 of the 20 of each class
    scores = np.asarray(neighbors.neighbor_disagreement(embedding, labels, k=5))
    self.assertGreaterEqual(scores[:6].min(), 0.8)  # but the other wrong one, all disagree
    self.assertLessEqual(scores[6:].max(), 0.4)


class NeighborDistanceTest(parameterized.TestCase):
  def test_is_the_mean_distance_and_largest_where_examples_are_rare(self):
    scores = neighbors.neighbor_distance(LINE, k=2)
    np.testing.assert_allclose(scores, [2, 1.5, 2.5, 2.5, 2, 3.5], rtol=1e-6)


class NonprototypicalityTest(parameterized.TestCase):
  def test_is_the_distance_to_the_mean_of_the_others_of_the_class(self):
    labels = np.array([9, 9, 9, 4, 4, 2])
    scores = neighbors.nonprototypicality(LINE, labels)
    np.testing.assert_allclose(scores, [2, 0.5, 2.5, 1, 1, np.nan])

  @parameterized.parameters(*neighbors.METRICS)
  def test_equals_a_loop_over_examples(self, metric):
    rng = np.random.default_rng(0)
    embedding, labels = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    scores = neighbors.nonprototypicality(embedding, labels, metric=metric)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    for i in range(20):
      others = (labels == labels[i]) & (np.arange(20) != i)
      if metric == "cosine":
        expected = 1 - unit(embedding[i]) @ unit(unit(embedding[others]).mean(axis=0))
      else:
        expected = np.linalg.norm(embedding[i] - embedding[others].mean(axis=0))
      self.assertAlmostEqual(float(scores[i]), expected, places=5)

  def test_without_a_direction_the_cosine_distance_is_1(self):
    # The others of the first cancel out; those of the second are the first and a row of zeros.
    embedding = np.array([[0.1, 0.3], [3.0, 0.0], [-3.0, 0.0], [0, 2.0], [0, 0]])
    scores = neighbors.nonprototypicality(embedding, np.array([0, 0, 0, 1, 1]), metric="cosine")
    self.assertEqual(scores[np.array([0, 3, 4])].tolist(), [1, 1, 1])


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"k": 6}, "neighbor_disagreement: k expects fewer than the number of examples, 6, got 6"),
    ({"k": 0}, "neighbor_disagreement: k expects a whole number >= 1, got 0"),
    ({"chunk": 0}, "neighbor_disagreement: chunk expects a whole number >= 1, got 0"),
    ({"metric": "l1"}, "neighbor_disagreement: metric expects one of euclidean, cosine; got 'l1'"),
    ({"labels": np.zeros(5, int)}, r"label for each of 6 examples, got int64 of shape \(5,\)"),
    ({"labels": np.zeros(6)}, r"integer label for each of 6 examples, got float64"),
    ({"embedding": np.zeros((6, 2, 2))}, r"\[examples, features\], got shape \(6, 2, 2\). Flatten"),
    ({"embedding": np.zeros((0, 2))}, r"\[examples, features\], got shape \(0, 2\)"),
  )
  def test_is_refused_in_the_name_of_the_function_called(self, changed, message):
    given = {"embedding": LINE, "labels": np.zeros(6, int), "k": 2, **changed}
    with self.assertRaisesRegex(ValueError, message) as caught:
      neighbors.neighbor_disagreement(**given)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(np.nan, np.inf)
  def test_the_first_example_that_is_not_finite_is_named(self, value):
    embedding = np.where(np.arange(6)[:, None] >= 4, value, LINE).astype(np.float32)
    labels, message = np.zeros(6, int), r"infinity for example 4 \(2 such"
    with self.assertRaisesRegex(ValueError, "neighbor_distance expects a finite.*" + message):
      neighbors.neighbor_distance(embedding, 2)
    with self.assertRaisesRegex(ValueError, "nonprototypicality expects a finite.*" + message):
      neighbors.nonprototypicality(embedding, labels)


if __name__ == "__main__":
  absltest.main()
