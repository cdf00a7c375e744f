"""Every augmented image is one that a person would cut out by hand, and all of those occur."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw

PADDINGS = {"paper": (2, "constant"), "standard": (4, "reflect")}
HEIGHT, WIDTH, CHANNELS = 12, 10, 2


@functools.cache
def jitted(kind, flips=True):
  return jax.jit(lambda images, key: rw.augment.augment(images, key, kind, flips=flips))


def photo(dtype=np.uint8):
  """One image without two equal pixels, so that each window and its mirror image differ."""
  return np.arange(1, 1 + HEIGHT * WIDTH * CHANNELS).reshape(HEIGHT, WIDTH, CHANNELS).astype(dtype)


def admissible(image, kind):
  """Windows by (row, column, mirrored), cut with NumPy slices."""
  padding, mode = PADDINGS[kind]
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
  offsets = range(2 * padding + 1)
  windows = {}
  for row in offsets:
    for column in offsets:
      window = padded[row : row + HEIGHT, column : column + WIDTH]
      windows[window.tobytes()] = (row, column, False)
      windows[window[:, ::-1].tobytes()] = (row, column, True)
  return windows


class AugmentTest(parameterized.TestCase):
  @parameterized.parameters("paper", "standard")
  def test_results_are_exactly_the_windows_of_the_padded_image_and_their_mirror_images(self, kind):
    windows = admissible(photo(), kind)
    num_offsets = {"paper": 25, "standard": 81}[kind]
    self.assertLen(windows, 2 * num_offsets)
    # 4000 draws: some one of 162 windows stays unseen with probability 162 exp(-4000/162) < 1e-8.
    images = jnp.asarray(np.broadcast_to(photo(), (4000, HEIGHT, WIDTH, CHANNELS)))
    results = np.asarray(jitted(kind)(images, jax.random.key(0)))
    self.assertEqual(results.dtype, np.uint8)
    drawn = [windows[image.tobytes()] for image in results]  # a foreign image is a KeyError
    self.assertEqual(set(drawn), set(windows.values()))
    # Rows, columns and flips are uniform and uncorrelated: bounds at five standard errors.
    rows, columns, mirrored = np.array(drawn, float).T
    spread = np.sqrt((np.sqrt(num_offsets) ** 2 - 1) / 12)
    for offsets in (rows, columns):
      middle = PADDINGS[kind][0]
      self.assertAlmostEqual(offsets.mean(), middle, delta=5 * spread / np.sqrt(4000))
    self.assertAlmostEqual(mirrored.mean(), 0.5, delta=5 * 0.5 / np.sqrt(4000))
    correlations = np.corrcoef([rows, columns, mirrored])[np.triu_indices(3, 1)]
    self.assertLess(np.abs(correlations).max(), 5 / np.sqrt(4000))

  @parameterized.parameters("paper", "standard")
  def test_without_flips_no_image_is_mirrored_and_the_offsets_stay(self, kind):
    windows = admissible(photo(), kind)
    images = jnp.asarray(np.broadcast_to(photo(), (4000, HEIGHT, WIDTH, CHANNELS)))
    plain = np.asarray(jitted(kind, flips=False)(images, jax.random.key(0)))
    maybe = np.asarray(jitted(kind)(images, jax.random.key(0)))
    for one, other in zip(plain[:200], maybe[:200], strict=True):
      *offset, mirrored = windows[one.tobytes()]
      self.assertFalse(mirrored)
      self.assertEqual(offset, list(windows[other.tobytes()][:2]))

  def test_each_example_keeps_its_place(self):
    # Example i holds the values 10 i + 1 ... 10 i + 9 only, and padding 0.
    values = 10 * np.arange(20)[:, None, None, None] + 1 + np.arange(9).reshape(1, 3, 3, 1)
    results = np.asarray(jitted("paper")(jnp.asarray(values, jnp.uint8), jax.random.key(1)))
    self.assertGreater(results.reshape(20, -1).max(1).min(), 0)
    for i, image in enumerate(results):
      self.assertLessEqual(set(image[image > 0] // 10), {i})

  @parameterized.product(kind=("paper", "standard"), dtype=(jnp.float32, jnp.bfloat16, jnp.uint8))
  def test_dtype_and_shape_stay(self, kind, dtype):
    images = jax.ShapeDtypeStruct((3, 7, 9, 1), dtype)
    result = jax.eval_shape(jitted(kind), images, jax.random.key(0))
    self.assertEqual((result.shape, result.dtype), (images.shape, images.dtype))

  def test_a_constant_image_stays_under_reflection_even_a_tiny_one(self):
    images = jnp.asarray(np.array([7, 200], np.uint8).repeat(6).reshape(2, 2, 3, 1))
    np.testing.assert_array_equal(jitted("standard")(images, jax.random.key(2)), images)

  def test_bytes_and_floats_are_augmented_alike_by_the_same_key(self):
    images = np.broadcast_to(photo(), (50, HEIGHT, WIDTH, CHANNELS))
    bytes_, floats, raw = (
      np.asarray(jitted("paper")(jnp.asarray(images, dtype), key), np.float32)
      for dtype, key in (
        (jnp.uint8, jax.random.key(3)),
        (jnp.float32, jax.random.key(3)),
        (jnp.uint8, jax.random.PRNGKey(3)),
      )
    )
    np.testing.assert_array_equal(bytes_, floats)
    np.testing.assert_array_equal(bytes_, raw)

  def test_under_vmap_each_seed_gets_what_it_would_get_alone(self):
    images = jnp.asarray(np.broadcast_to(photo(), (50, HEIGHT, WIDTH, CHANNELS)))
    keys = jax.random.split(jax.random.key(4), 2)
    both = jax.jit(jax.vmap(jitted("paper"), in_axes=(None, 0)))(images, keys)
    np.testing.assert_array_equal(both[1], jitted("paper")(images, keys[1]))
    self.assertFalse(np.array_equal(both[0], both[1]))

  def test_none_returns_the_images_without_a_key(self):
    images = photo()[None]
    np.testing.assert_array_equal(rw.augment.augment(images, None, "none"), images)

  @parameterized.parameters(
    ((1, 4, 4, 1), "cutout", "one of none, paper, standard; got 'cutout'"),
    ((4, 4, 1), "paper", r"got shape \(4, 4, 1\)"),
  )
  def test_a_bad_argument_is_refused_in_one_line(self, shape, kind, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      rw.augment.augment(jnp.zeros(shape), jax.random.key(0), kind)
    self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
  absltest.main()
