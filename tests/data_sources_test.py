"""Sources: digits, small prepared folders written here, the real ones, and every way to be wrong.

One class reads MNIST from the folder in `TFDS_DATA_DIR` and is skipped without it.
"""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2

from reweight_jax.data import DATASETS, DataError, load

_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}


def _record(image, label, record_id=None, coarse_label=None, encoded=None):
  """One record as TensorFlow Datasets writes it."""
  if encoded is None:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "PNG")
    encoded = stream.getvalue()
  example = tf_example_generated_pb2.Example()
  example.features.feature["image"].bytes_list.value.append(encoded)
  example.features.feature["label"].int64_list.value.append(label)
  if coarse_label is not None:
    example.features.feature["coarse_label"].int64_list.value.append(coarse_label)
  if record_id:
    example.features.feature["id"].bytes_list.value.append(record_id.encode())
  return example.SerializeToString()


def _write(root, name, records, version="3.0.1", file_format="array_record", promised=None):
  """Writes a prepared folder; `promised` overrides what dataset_info.json says of the splits."""
  folder = pathlib.Path(root) / name / version
  folder.mkdir(parents=True)
  counts = {split: len(rows) for split, rows in records.items()} | (promised or {})
  splits = [
    {
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": split,
      "numBytes": "1",
      "shardLengths": [str(count)] if count else [],
    }
    for split, count in counts.items()
  ]
  info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  feature = "tensorflow_datasets.core.features."
  shape = {"dimensions": [str(size) for size in _SHAPES[name]]}
  features = {
    "image": {
      "image": {"dtype": "uint8", "shape": shape},
      "pythonClassName": f"{feature}image_feature.Image",
    },
    "label": {
      "classLabel": {"numClasses": "10"},
      "pythonClassName": f"{feature}class_label_feature.ClassLabel",
    },
  }
  if name.startswith("cifar"):
    features["id"] = {"text": {}, "pythonClassName": f"{feature}text_feature.Text"}
  tree = {
    "featuresDict": {"features": features},
    "pythonClassName": f"{feature}features_dict.FeaturesDict",
  }
  (folder / "features.json").write_text(json.dumps(tree))
  for split, rows in records.items():
    writer = array_record_module.ArrayRecordWriter(str(_shard(folder, split)), "group_size:1")
    for row in rows:
      writer.write(row)
    writer.close()
  return folder


def _shard(folder, split):
  return folder / f"{folder.parent.name}-{split}.array_record-00000-of-00001"


def _images(name, count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, *_SHAPES[name]), np.uint8)


def _mnist_records(train=6, test=3):
  return {
    "train": [_record(image, row % 10) for row, image in enumerate(_images("mnist", train))],
    "test": [_record(image, 9 - row) for row, image in enumerate(_images("mnist", test, 1))],
  }


class SourcesTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_refused(self, pattern, name="mnist", root=None):
    with self.assertRaisesRegex(DataError, pattern) as raised:
      load(name, root or self.root)
    self.assertNotIn("\n", str(raised.exception))
    self.assertStartsWith(str(raised.exception), name)


class PreparedFolderTest(SourcesTestCase):
  def test_images_and_labels_come_back_as_written(self):
    _write(self.root, "mnist", _mnist_records())
    mnist = load("mnist", self.root)
    np.testing.assert_array_equal(mnist.train_inputs, _images("mnist", 6))
    np.testing.assert_array_equal(mnist.test_inputs, _images("mnist", 3, 1))
    np.testing.assert_array_equal(mnist.train_labels, range(6))
    np.testing.assert_array_equal(mnist.test_labels, [9, 8, 7])
    np.testing.assert_array_equal(mnist.train_ids, range(6))
    self.assertEqual((mnist.name, mnist.num_classes), ("mnist", 10))
    self.assertEqual((mnist.train_labels.dtype, mnist.train_ids.dtype), (np.int32, np.int32))

  def test_ids_of_cifar10_are_original_positions(self):
    images = _images("cifar10", 3)
    train = [
      _record(images[row], row, f"train_{number:05}") for row, number in enumerate((7, 0, 4))
    ]
    _write(self.root, "cifar10", {"train": train, "test": train})
    cifar10 = load("cifar10", self.root)
    np.testing.assert_array_equal(cifar10.train_ids, [7, 0, 4])
    np.testing.assert_array_equal(cifar10.train_inputs, images)

  def test_cifar100_has_its_hundred_fine_classes(self):
    images = _images("cifar100", 4)
    rows = [
      _record(image, label, f"train_{row}", coarse_label=7)
      for row, (image, label) in enumerate(zip(images, (99, 0, 50, 3), strict=True))
    ]
    folder = _write(self.root, "cifar100", {"train": rows, "test": rows[:1]}, version="3.0.2")
    path = folder / "features.json"
    features = json.loads(path.read_text())
    label = features["featuresDict"]["features"]["label"]
    features["featuresDict"]["features"]["label"] = json.loads(
      json.dumps(label).replace('"10"', '"100"')
    )
    features["featuresDict"]["features"]["coarse_label"] = json.loads(
      json.dumps(label).replace('"10"', '"20"')
    )
    path.write_text(json.dumps(features))
    found = load("cifar100", self.root)
    np.testing.assert_array_equal(found.train_inputs, images)
    np.testing.assert_array_equal(found.train_labels, [99, 0, 50, 3])
    self.assertEqual(found.num_classes, 100)

  def test_jpeg_pixels_are_those_of_pillow_and_a_cut_one_is_damage(self):
    stream = io.BytesIO()
    Image.fromarray(_images("cifar10", 1)[0]).save(stream, "JPEG", quality=75)
    whole = stream.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    rows = [_record(None, 3, "train_00000", encoded=whole)]
    _write(self.root, "cifar10", {"train": rows, "test": rows})
    np.testing.assert_array_equal(load("cifar10", self.root).train_inputs[0], expected)
    for cut in (len(whole) // 2, 20):
      shutil.rmtree(self.root / "cifar10")
      rows = [_record(None, 3, "train_00000", encoded=whole[:cut])]
      _write(self.root, "cifar10", {"train": rows, "test": rows})
      self.assert_refused("looks damaged or cut short", name="cifar10")

  def test_newest_version_is_read(self):
    _write(self.root, "mnist", _mnist_records(train=2), version="3.0.9")
    _write(self.root, "mnist", _mnist_records(train=4), version="3.0.10")
    self.assertLen(load("mnist", self.root).train_labels, 4)

  def test_folder_is_taken_from_the_variable_then_from_home(self):
    _write(self.root, "mnist", _mnist_records())
    with mock.patch.dict(os.environ, {"TFDS_DATA_DIR": str(self.root)}):
      self.assertLen(load("mnist").train_labels, 6)
    _write(self.root / "tensorflow_datasets", "mnist", _mnist_records(train=2))
    with mock.patch.dict(os.environ, {"TFDS_DATA_DIR": "", "HOME": str(self.root)}):
      self.assertLen(load("mnist").train_labels, 2)

  def test_reading_is_silent_and_does_not_load_tensorflow(self):
    _write(self.root, "mnist", _mnist_records())
    program = (
      "import sys\nfrom reweight_jax import data\n"
      f"data.load('mnist', {str(self.root)!r})\n"
      "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))


class WrongPlaceTest(SourcesTestCase):
  def test_unknown_name(self):
    with self.assertRaisesRegex(DataError, "digits, mnist.*'svhn'"):
      load("svhn", self.root)

  def test_missing_folder(self):
    self.assert_refused("/nowhere does not exist.*prepare_data --dataset=mnist", root="/nowhere")

  def test_file_instead_of_folder(self):
    (self.root / "file").touch()
    self.assert_refused("expected a folder, got the file .*/file", root=self.root / "file")

  def test_absent_data_set_says_what_is_there(self):
    _write(self.root, "cifar10", {})
    self.assert_refused(
      "no folder .*/mnist; data sets present: cifar10.*prepare_data --dataset=mnist"
    )

  def test_empty_data_set_folder(self):
    (self.root / "mnist").mkdir()
    self.assert_refused("/mnist is empty; data sets present: none")

  def test_no_version_folder(self):
    (self.root / "mnist" / "3.0.1.incomplete_AB12").mkdir(parents=True)
    self.assert_refused("/mnist holds no version folder")

  def test_folder_of_one_data_set_names_its_parent(self):
    folder = _write(self.root, "mnist", _mnist_records())
    self.assert_refused(f"single data set. Give the folder above it, {self.root}[.]", root=folder)
    self.assert_refused(f"Give the folder above it, {self.root}[.]", root=folder.parent)

  def test_no_dataset_info(self):
    (_write(self.root, "mnist", {}) / "dataset_info.json").unlink()
    self.assert_refused("/mnist/3.0.1 has no dataset_info.json")

  @parameterized.parameters("{", "[]", "")
  def test_broken_dataset_info(self, text):
    (_write(self.root, "mnist", {}) / "dataset_info.json").write_text(text)
    self.assert_refused("dataset_info.json is not valid JSON")

  def test_tfrecord_says_how_to_prepare_again(self):
    _write(self.root, "mnist", {}, file_format="tfrecord")
    self.assert_refused("3.0.1 are TFRecord.*experiments.prepare_data.*needs TensorFlow")

  def test_old_folder_without_a_format_is_tfrecord(self):
    folder = _write(self.root, "mnist", {})
    (folder / "dataset_info.json").write_text('{"name": "mnist"}')
    self.assert_refused("are TFRecord")

  def test_other_format(self):
    _write(self.root, "mnist", {}, file_format="riegeli")
    self.assert_refused("expected array_record files in .*3.0.1, got the format 'riegeli'")

  def test_folder_that_may_not_be_read(self):
    (self.root / "mnist").mkdir()
    denied = PermissionError(13, "Permission denied", str(self.root))
    with mock.patch.object(pathlib.Path, "iterdir", side_effect=denied):
      self.assert_refused(f"cannot read {self.root} .Permission denied")


class DamagedFilesTest(SourcesTestCase):
  def test_missing_shard(self):
    folder = _write(self.root, "mnist", _mnist_records())
    _shard(folder, "test").unlink()
    self.assert_refused("mnist-test.array_record-00000-of-00001 is missing")

  def test_missing_features(self):
    (_write(self.root, "mnist", _mnist_records()) / "features.json").unlink()
    self.assert_refused("/mnist/3.0.1 cannot be read")

  def test_missing_split(self):
    records = _mnist_records()
    _write(self.root, "mnist", {"train": records["train"]})
    self.assert_refused("/mnist/3.0.1 has no test split")

  def test_empty_split(self):
    _write(self.root, "mnist", _mnist_records(), promised={"train": 0})
    self.assert_refused("train split is empty")

  @parameterized.named_parameters(
    ("truncated", lambda data: data[: len(data) // 2]),
    ("end missing", lambda data: data[:-10]),
    ("empty", lambda data: b""),
    ("other content", lambda data: bytes(len(data))),
    ("one byte wrong", lambda data: data[:1000] + bytes([data[1000] ^ 255]) + data[1001:]),
  )
  def test_damaged_shard_is_named(self, damage):
    folder = _write(self.root, "mnist", _mnist_records(train=200))
    shard = _shard(folder, "train")
    shard.write_bytes(damage(shard.read_bytes()))
    self.assert_refused("/mnist/3.0.1.* cannot be read; it looks damaged or cut short")

  @parameterized.parameters(5, 7)
  def test_other_number_of_examples_than_promised(self, promised):
    _write(self.root, "mnist", _mnist_records(), promised={"train": promised})
    self.assert_refused(f"expected {promised} examples in .*mnist-train.*, got 6")

  def test_image_of_another_shape(self):
    records = _mnist_records()
    records["train"][4] = _record(np.zeros((28, 27), np.uint8), 1)
    _write(self.root, "mnist", records)
    self.assert_refused(r"shape \(28, 28, 1\).*got uint8 \(28, 27, 1\) in row 4 of train")

  def test_image_of_16_bits(self):
    records = _mnist_records()
    records["test"][2] = _record(np.zeros((28, 28), np.uint16), 1)
    _write(self.root, "mnist", records)
    self.assert_refused("got uint16 .* in row 2 of test")

  def test_record_that_is_no_example(self):
    records = _mnist_records()
    records["train"][1] = b"not a record"
    _write(self.root, "mnist", records)
    self.assert_refused("/mnist/3.0.1 cannot be read")

  @parameterized.parameters(-1, 10)
  def test_label_outside_the_classes(self, label):
    records = _mnist_records()
    records["train"][3] = _record(_images("mnist", 1)[0], label)
    _write(self.root, "mnist", records)
    self.assert_refused(f"labels from 0 to 9 in .*, got {label} in row 3 of train")

  @parameterized.parameters("train_00001", "train", "00002")
  def test_repeated_or_malformed_ids(self, record_id):
    image = _images("cifar10", 1)[0]
    train = [_record(image, 0, "train_00001"), _record(image, 0, record_id)]
    _write(self.root, "cifar10", {"train": train, "test": train})
    self.assert_refused("distinct ids such as train_16399", name="cifar10")


class MissingPackageTest(SourcesTestCase):
  @parameterized.parameters(
    ("digits", "sklearn.datasets"), ("mnist", "tensorflow_datasets"), ("mnist", "PIL.Image")
  )
  def test_message_says_what_to_install(self, name, module):
    _write(self.root, "mnist", _mnist_records())
    with (
      mock.patch.dict(sys.modules, {module: None}),
      self.assertRaisesRegex(ImportError, f"needs {module}.*reweight_jax.experiments.") as raised,
    ):
      load(name, self.root)
    self.assertNotIn("\n", str(raised.exception))


@absltest.skipUnless(
  os.environ.get("TFDS_DATA_DIR"), "reads MNIST: set TFDS_DATA_DIR to its folder"
)
class RealMnistTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # The 10000 test images stand in for the training set as well: all 70000 would take 20 seconds.
    real = pathlib.Path(os.environ["TFDS_DATA_DIR"]).expanduser() / "mnist" / "3.0.1"
    with tempfile.TemporaryDirectory() as root:
      folder = pathlib.Path(root) / "mnist" / "3.0.1"
      folder.mkdir(parents=True)
      info = (real / "dataset_info.json").read_text()
      (folder / "dataset_info.json").write_text(info.replace('"60000"', '"10000"'))
      shutil.copy(real / "features.json", folder)
      for split in ("train", "test"):
        _shard(folder, split).symlink_to(_shard(real, "test").resolve())
      cls.mnist = load("mnist", root)

  def test_class_counts_are_those_of_mnist(self):
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(self.mnist.test_labels), counts)
    np.testing.assert_array_equal(np.bincount(self.mnist.train_labels), counts)

  def test_pixel_statistics_are_those_of_mnist(self):
    self.assertAlmostEqual(self.mnist.test_inputs.mean() / 255, 0.1325, places=4)
    self.assertAlmostEqual(self.mnist.test_inputs.std() / 255, 0.3105, places=4)


class NamesTest(absltest.TestCase):
  def test_data_sets(self):
    self.assertEqual(DATASETS, ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100"))


if __name__ == "__main__":
  absltest.main()
