"""Folders of images: which files are read as what, and what is said of those that cannot be."""

import contextlib
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from reweight_jax import data


class ImageFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "pets"
    self.root.mkdir()

  def save(self, name, pixels, **options):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path

  def gray(self, name, value, height=2, width=3):
    return self.save(name, np.full((height, width), value, np.uint8))

  def test_rows_go_by_class_and_name_and_are_the_ids(self):
    for name, value in (
      ("dog/b.png", 3),
      ("cat/z.png", 2),
      ("cat/deep/a.bmp", 1),
      ("dog/B.PNG", 4),
    ):
      self.gray(name, value)
    (self.root / "dog" / "notes.txt").write_text("no image")
    (self.root / "dog" / ".hidden.png").write_text("no image")
    (self.root / ".git").mkdir()
    found = data.load(self.root)
    self.assertEqual((found.name, found.class_names), ("pets", ("cat", "dog")))
    self.assertEqual(found.train_labels.tolist(), [0, 0, 1, 1])
    self.assertEqual(found.train_inputs[:, 0, 0, 0].tolist(), [1, 2, 4, 3])
    self.assertEqual(found.train_ids.tolist(), [0, 1, 2, 3])
    self.assertEqual(found.train_inputs.shape, (4, 2, 3, 1))
    self.assertEqual((found.train_labels.dtype, found.train_ids.dtype), (np.int32, np.int32))
    self.assertEqual((found.test_inputs.shape, found.test_labels.shape), ((0, 2, 3, 1), (0,)))
    files = data.scan_image_folder(self.root).train_files
    self.assertEqual([path.name for path in files], ["a.bmp", "z.png", "B.PNG", "b.png"])

  def test_train_and_test_folders_share_their_classes(self):
    for split, name, value in (
      ("train", "b", 1), ("train", "a", 2), ("train", "c", 3), ("test", "c", 4), ("test", "a", 5)
    ):  # fmt: skip
      self.gray(f"{split}/{name}/1.png", value)
    found = data.load(str(self.root))
    self.assertEqual(found.class_names, ("a", "b", "c"))
    self.assertEqual(found.train_inputs[:, 0, 0, 0].tolist(), [2, 1, 3])
    self.assertEqual(found.test_inputs[:, 0, 0, 0].tolist(), [5, 4])
    self.assertEqual(found.test_labels.tolist(), [0, 2])

  def test_a_class_may_be_called_train(self):
    for name in ("train", "bus"):
      self.gray(f"{name}/1.png", 0)
    self.assertEqual(data.load(self.root).class_names, ("bus", "train"))

  def test_the_most_common_size_wins_and_of_equally_common_ones_the_larger(self):
    self.gray("a/1.png", 9, 4, 6)
    self.gray("a/2.png", 9, 5, 5)
    self.gray("b/1.png", 9, 5, 5)
    self.assertEqual(data.scan_image_folder(self.root).sizes, {(5, 5): 2, (4, 6): 1})
    found = data.load_image_folder(self.root)
    self.assertEqual(found.train_inputs.shape, (3, 5, 5, 1))
    np.testing.assert_array_equal(found.train_inputs, 9)
    self.assertEqual(
      data.load_image_folder(self.root, image_size=(3, 7)).train_inputs.shape[1:], (3, 7, 1)
    )
    self.gray("b/2.png", 9, 4, 6)
    self.assertEqual(next(iter(data.scan_image_folder(self.root).sizes)), (5, 5))  # 25 > 24

  def test_what_is_made_smaller_is_averaged_and_what_fits_is_left_alone(self):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    self.save("a/1.png", board.astype(np.uint8))
    self.save("b/1.png", board.astype(np.uint8))
    np.testing.assert_array_equal(data.load(self.root).train_inputs[0, :, :, 0], board)
    small = data.load_image_folder(self.root, image_size=(8, 8)).train_inputs
    np.testing.assert_allclose(small, 127.5, atol=3)  # one pixel of each 8 by 8 would be 0 or 255

  def test_channels_become_alike(self):
    color = np.zeros((2, 2, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    self.save("a/1.png", color)
    self.gray("a/2.png", 7, 2, 2)
    transparent = np.concatenate([color, np.full((2, 2, 1), 128, np.uint8)], axis=-1)
    self.save("b/1.png", transparent)
    self.save("b/2.png", np.full((2, 2), 7 * 256 + 5, np.uint16))
    self.save("b/3.png", np.array([[True, False], [False, True]]))
    found = data.load(self.root).train_inputs
    self.assertEqual(found.shape, (5, 2, 2, 3))
    self.assertEqual(
      found[:, 0, 0].tolist(), [[10, 20, 30], [7] * 3, [10, 20, 30], [7] * 3, [255] * 3]
    )

  def test_a_palette_of_grays_has_no_color(self):
    self.gray("a/1.gif", 100)
    self.gray("b/1.png", 100)
    found = data.scan_image_folder(self.root)
    self.assertFalse(found.has_color)
    np.testing.assert_array_equal(data.load(self.root).train_inputs, 100)
    image = Image.new("P", (3, 2))
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(self.root / "a" / "2.gif")
    self.assertTrue(data.scan_image_folder(self.root).has_color)

  @parameterized.parameters("png", "webp")
  def test_a_photograph_is_turned_as_its_exif_says(self, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    pixels = np.zeros((2, 4), np.uint8)
    pixels[0, 0] = 255  # comes to the upper right
    self.save(f"a/1.{kind}", pixels, exif=exif, lossless=True)
    self.save(f"b/1.{kind}", pixels, exif=exif, lossless=True)
    found = data.load(self.root).train_inputs[0, :, :, 0]
    self.assertEqual(found.shape, (4, 2))
    self.assertEqual(np.argwhere(found).tolist(), [[0, 1]])

  def assert_refused(self, pattern, **options):
    with self.assertRaisesRegex(data.DataError, pattern) as caught:
      data.load_image_folder(self.root, **options)
    self.assertNotIn("\n", str(caught.exception))

  def test_a_folder_without_class_folders_is_refused(self):
    self.assert_refused("pets: expected a folder for each class, got 0 images and no folder")
    self.gray("1.png", 0)
    self.assert_refused("got 1 images and no folder. Sort")

  def test_classes_that_cannot_be_learned_or_tested_are_refused(self):
    self.gray("train/cat/1.png", 0)
    (self.root / "train" / "dog").mkdir()
    self.assert_refused("train/dog: expected images of the class dog .* got none")
    self.gray("train/dog/1.png", 0)
    self.gray("test/fox/1.png", 0)
    self.assert_refused("test/ has a class fox that train/ lacks")

  @parameterized.parameters(0, 10, 60)
  def test_a_damaged_image_is_named(self, num_bytes):
    self.gray("cat/1.png", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    path = self.save("dog/7.png", pixels)
    path.write_bytes(path.read_bytes()[:num_bytes])
    self.assert_refused("dog/7.png: expected an image, which this is not or no longer is")

  def test_sizes_that_are_none_are_refused(self):
    self.gray("cat/1.png", 0)
    for size in ((0, 2), (3,), (2.0, 2)):
      self.assert_refused("image_size expects", image_size=size)

  def test_what_is_no_data_set_at_all_is_told(self):
    with self.assertRaisesRegex(data.DataError, "or a folder of class folders of images, got"):
      data.load(self.root / "nothing")
    with self.assertRaisesRegex(data.DataError, "there is no such folder"):
      data.load_image_folder(self.root / "nothing")

  def test_a_data_set_known_by_name_is_not_looked_for_as_a_folder(self):
    self.enterContext(contextlib.chdir(self.root))
    (self.root / "digits").mkdir()
    self.assertEqual(data.load("digits").train_inputs.shape, (1300, 8, 8, 1))


if __name__ == "__main__":
  absltest.main()
