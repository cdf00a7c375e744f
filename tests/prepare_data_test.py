"""Preparing data: what is there is used and packed; what is missing is said in one line."""

import contextlib
import io
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from experiments import _errors, prepare_data
from reweight_jax import data
from tests import data_sources_test


class PrepareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def run_command(self, name, npz=None):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
      prepare_data.run(name, self.root, npz)
    return stdout.getvalue()

  def test_a_prepared_folder_is_told_of_and_packed(self):
    data_sources_test._write(self.root, "mnist", data_sources_test._mnist_records())
    npz = self.root / "packed.npz"
    said = self.run_command("mnist", str(npz))
    self.assertIn("mnist is prepared in ", said)
    self.assertIn("mnist: 6 training and 3 test examples, 10 classes\n", said)
    packed, folder = data.load(npz), data.load("mnist", self.root)
    np.testing.assert_array_equal(packed.train_inputs, folder.train_inputs)
    np.testing.assert_array_equal(packed.test_labels, folder.test_labels)
    self.assertEqual(packed.class_names, folder.class_names)

  def test_without_tensorflow_it_says_what_to_install(self):
    with (
      mock.patch.dict(sys.modules, {"tensorflow": None}),
      self.assertRaisesRegex(_errors.UsageError, "needs TensorFlow once.*pip install tensorflow"),
    ):
      self.run_command("cifar100")
    self.assertEqual(list(self.root.iterdir()), [])

  def test_a_tfrecord_folder_gets_its_own_sentence(self):
    data_sources_test._write(self.root, "mnist", {}, file_format="tfrecord")
    with self.assertRaisesRegex(data.DataError, "are TFRecord.* in a new FOLDER"):
      self.run_command("mnist")

  def test_a_failing_download_is_one_line(self):
    with (
      mock.patch.dict(sys.modules, {"tensorflow": mock.Mock()}),
      mock.patch("tensorflow_datasets.builder", side_effect=OSError("no\nroute")),
      self.assertRaisesRegex(_errors.RunError, r"failed \(OSError: no"),
    ):
      self.run_command("mnist")

  @parameterized.parameters(
    ("svhn", None, "--dataset: expected one of mnist, .*; got 'svhn'"),
    ("digits", None, "--dataset: .*got 'digits'"),
    ("mnist", "file.zip", "--npz: expected a name that ends in .npz, got 'file.zip'"),
  )
  def test_bad_flags(self, name, npz, pattern):
    with self.assertRaisesRegex(_errors.UsageError, pattern):
      self.run_command(name, npz)


if __name__ == "__main__":
  absltest.main()
