"""The audit: what it finds in digits and in a folder, its files, its errors, its stops."""

import base64
import csv
import html.parser
import io
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from PIL import Image
from sklearn import metrics

from experiments import (
  _audit_ledger,
  _flags,
  _parts,
  _reference,
  audit,
  cifar_noisy,
)
from experiments._errors import UsageError
from reweight_jax import data
from tests import commands

SMALL = (
  *("--members=18", "--members_at_once=9", "--steps=60", "--batch_size=50", "--learning_rate=0.1"),
  *("--neighbors=5", "--top=20"),
)
DIGITS = ("--dataset=digits", "--max_examples=200", "--corrupt=symmetric:0.1", *SMALL)


class Page(html.parser.HTMLParser):
  """What stands in a report; a tag that is not closed is an error."""

  VOID = ("meta", "img", "br")

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.images, self.words = [], [], [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    assert not {"href", "srcset", "onload"} & given.keys(), given
    self.tags.append(tag)
    if tag == "img":
      self.images.append(given["src"])
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, words):
    self.words.append(words)


def _read_ledger(folder):
  with np.load(folder / "ledger.npz") as arrays:
    return dict(arrays)


class DigitsTest(parameterized.TestCase):
  """One audit, looked at from all sides."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "audit"
    cls.argv = (f"--workdir={cls.folder}", "--compilation_cache=none", *DIGITS)
    status, cls.stdout, stderr = commands.run(audit, *cls.argv)
    assert status == 0, stderr
    cls.ledger = _read_ledger(cls.folder)
    cls.digits = data.load("digits")

  def test_wrong_labels_come_first(self):
    is_wrong = self.ledger["is_wrong"]
    self.assertEqual((len(is_wrong), is_wrong.sum()), (200, 20))
    self.assertGreater(metrics.roc_auc_score(is_wrong, self.ledger["score"]), 0.9)
    self.assertGreater(is_wrong[:20].mean(), 0.5)  # 0.1 by chance
    called = self.ledger["kind"] == "noise"
    self.assertGreater(is_wrong[called].mean(), 0.5)
    right = self.ledger["suggested_label"] == self.ledger["true_label"]
    self.assertGreater(right[is_wrong].mean(), 0.5)

  def test_the_ledger_is_ranked_and_knows_the_examples_by_their_own_numbers(self):
    self.assertTrue((np.diff(self.ledger["score"]) <= 0).all())
    np.testing.assert_array_equal(self.ledger["rank"], np.arange(1, 201))
    self.assertLen(set(self.ledger["index"].tolist()), 200)
    label_of = dict(zip(self.digits.train_ids.tolist(), self.digits.train_labels, strict=True))
    true = [label_of[index] for index in self.ledger["index"].tolist()]
    np.testing.assert_array_equal(self.ledger["true_label"], true)
    for name in _audit_ledger.MEASURES:
      self.assertTrue(np.isfinite(self.ledger[name]).all(), name)

  def test_the_suggestion_is_the_likeliest_class_of_the_held_out_members(self):
    parts = [self.folder / "parts" / f"members_{which}.npz" for which in ("000_008", "009_017")]
    probs = np.exp(np.concatenate([np.load(part)["log_probs"] for part in parts]).astype(float))
    planned = audit.plan(audit.config_of(self.values()))
    ids = self.digits.train_ids[planned.examples.rows].tolist()
    place = ids.index(self.ledger["index"][7])
    masks = audit.difficulty.subset_masks(200, 18, keep=0.7, seed=0)
    mean = probs[~masks[:, place], place].mean(axis=0)
    self.assertEqual(self.ledger["suggested_label"][7], mean.argmax())
    self.assertAlmostEqual(self.ledger["suggested_probability"][7], mean.max(), places=5)
    given = self.ledger["given_label"][7]
    margin = mean[given] - np.delete(mean, given).max()
    self.assertAlmostEqual(self.ledger["low_normalized_margin"][7], (1 - margin) / 2, places=5)

  def values(self):
    values = flags.FlagValues()
    audit.define_flags(values)
    values(("audit", *self.argv))
    return values

  def test_the_csv_says_the_same(self):
    with (self.folder / "ledger.csv").open(newline="") as file:
      rows = list(csv.DictReader(file))
    self.assertEqual(list(rows[0]), list(self.ledger))
    self.assertEqual([int(row["index"]) for row in rows], self.ledger["index"].tolist())
    self.assertEqual([row["kind"] for row in rows], self.ledger["kind"].tolist())
    np.testing.assert_allclose(
      [float(row["score"]) for row in rows], self.ledger["score"], rtol=1e-5
    )
    votes = [float(row["noise_or_rare"] or "nan") for row in rows]
    np.testing.assert_allclose(votes, self.ledger["noise_or_rare"], rtol=1e-5, atol=1e-7)

  def test_the_quality_printed_is_that_of_the_ledger(self):
    is_wrong = self.ledger["is_wrong"]
    for name in ("score", "held_out_error", "neighbor_disagreement"):
      line = next(line for line in self.stdout.splitlines() if line.startswith(f"| {name} |"))
      expected = metrics.roc_auc_score(is_wrong, self.ledger[name])
      self.assertAlmostEqual(float(line.split("|")[2]), expected, delta=0.0006)
    share = 100 * is_wrong[:20].mean()
    self.assertIn(f"| {share:.0f} % | 19 |", self.stdout)  # 18 members and one
    called = self.ledger["kind"] == "noise"
    words = f"Called wrong: precision {is_wrong[called].mean():.3f}"
    self.assertIn(words, self.stdout)
    self.assertIn(f"{called.sum()} of 200 labels of digits with symmetric noise 0.1", self.stdout)
    self.assertIn("Wrong labels that are known: 10.0 %", self.stdout)
    self.assertIn("Examples: 200 of 1300", self.stdout)

  def test_the_report_needs_no_other_file_and_shows_the_first_examples(self):
    text = (self.folder / "report.html").read_text()
    page = Page(text)
    self.assertNotRegex(text, "https?://|url\\(|<script|<link|@import")
    self.assertLen(page.images, 20 + 2)
    for source in page.images:
      kind, _, content = source.partition(",")
      self.assertEqual(kind, "data:image/png;base64")
      Image.open(io.BytesIO(base64.b64decode(content))).verify()
    thumbnail = Image.open(io.BytesIO(base64.b64decode(page.images[1].partition(",")[2])))
    place = self.digits.train_ids.tolist().index(self.ledger["index"][0])
    np.testing.assert_array_equal(
      np.asarray(thumbnail), self.digits.train_inputs[place].squeeze(-1)
    )
    for words in (str(self.ledger["index"][0]), "corrupt", "symmetric:0.1", "reweight_jax"):
      self.assertIn(words, page.words)

  def test_weights_hold_every_training_example_and_fall_with_the_score(self):
    with np.load(self.folder / "weights.npz") as arrays:
      index, ratio = arrays["index"], arrays["ratio"]
    np.testing.assert_array_equal(index, self.digits.train_ids)
    weight_of = dict(zip(index.tolist(), ratio.tolist(), strict=True))
    seen = np.array([weight_of.pop(number) for number in self.ledger["index"].tolist()])
    self.assertEqual(set(weight_of.values()), {1.0})
    self.assertTrue((np.diff(seen) >= 0).all())  # the most suspicious first
    self.assertAlmostEqual(seen[-1] / seen[0], 10.0, places=3)
    self.assertAlmostEqual(seen.mean(), 1.0, places=5)

  def test_weights_train_by_their_flag(self):
    path = str(self.folder / "weights.npz")
    values = flags.FlagValues()
    _flags.define_flags(values)
    values(("cifar_noisy", f"--example_weights={path}", "--noise=none"))
    config = _flags.config_of(values)
    self.assertEqual((config.methods, config.importance_file), (("importance",), path))
    task = cifar_noisy._command.IMAGES.make_task(config, self.digits, 0)
    found = _reference.read(config, self.digits, task, 0, ratios=True, reference=False)
    with np.load(path) as arrays:  # its order is that of the data set
      np.testing.assert_allclose(found.ratios[task.train], arrays["ratio"][task.train])

  def test_what_is_called_wrong_can_be_dropped_without_training_anew(self):
    with (
      tempfile.TemporaryDirectory() as folder,
      mock.patch.object(audit._measures, "_of_one_training", side_effect=AssertionError),
      mock.patch.object(audit.difficulty, "train_members", side_effect=AssertionError),
      mock.patch.multiple(audit._audit_report, draw=mock.DEFAULT, write=mock.DEFAULT),
    ):
      work = pathlib.Path(folder)
      (work / "parts").symlink_to(self.folder / "parts", target_is_directory=True)
      status, _, stderr = commands.run(audit, *self.argv, f"--workdir={work}", "--weights=drop")
      self.assertEqual(status, 0, stderr)
      with np.load(work / "weights.npz") as arrays:
        dropped = arrays["index"][arrays["ratio"] == 0]
        self.assertEqual(set(arrays["ratio"].tolist()), {0.0, 1.0})
    called = self.ledger["index"][self.ledger["kind"] == "noise"]
    self.assertEqual(set(dropped.tolist()), set(called.tolist()))

  def test_a_stopped_audit_goes_on_to_the_same_ledger_bit_for_bit(self):
    kept = _parts.Parts.kept

    def stopping(parts, name, make):
      if name == "members_009_017":
        raise KeyboardInterrupt
      return kept(parts, name, make)

    with tempfile.TemporaryDirectory() as folder:
      work = pathlib.Path(folder)
      argv = (*self.argv, f"--workdir={work}")
      with mock.patch.object(_parts.Parts, "kept", stopping):
        status, _, stderr = commands.run(audit, *argv)
      self.assertEqual(status, 130)
      self.assertEqual(stderr.splitlines()[-1].partition(":")[0], "error")
      self.assertFalse((work / "ledger.npz").exists())
      times = {path.name: path.stat().st_mtime_ns for path in (work / "parts").glob("*.npz")}
      self.assertLen(times, 3)  # neighbors, the one training, the first members
      with mock.patch.multiple(audit._audit_report, draw=mock.DEFAULT, write=mock.DEFAULT):
        self.assertEqual(commands.run(audit, *argv)[0], 0)
      for name, time in times.items():
        self.assertEqual((work / "parts" / name).stat().st_mtime_ns, time, name)
      found = _read_ledger(work)
      self.assertEqual(
        (work / "ledger.csv").read_bytes(), (self.folder / "ledger.csv").read_bytes()
      )
    for name, column in self.ledger.items():
      np.testing.assert_array_equal(found[name], column, name)

  def test_a_workdir_of_another_setting_is_refused(self):
    status, _, stderr = commands.run(audit, *self.argv, "--keep=0.6")
    self.assertEqual(status, 2)
    self.assertRegex(stderr, "^error: --workdir: .* holds results of keep 0.7, not 0.6; choose")
    other = [argument.replace("0.1", "0.2") for argument in self.argv]
    other[other.index("--learning_rate=0.2")] = "--learning_rate=0.1"
    self.assertRegex(commands.run(audit, *other)[2], "holds results of examples [0-9a-f]{16}, not")


def _save(folder, name, pixels, size=None):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(pixels, np.uint8))
  (image.resize(size) if size else image).save(path)


class FolderTest(commands.CommandTestCase):
  MODULE = audit

  def test_an_image_in_the_wrong_folder_is_found(self):
    # As many digits as above, 20 of each, so that all is compiled.
    images, digits = self.root / "figures", data.load("digits")
    names = ["<b>zero", *map(str, range(1, 10))]
    for label, name in enumerate(names):
      rows = np.flatnonzero(digits.train_labels == label)[:20]
      for number, row in enumerate(rows):
        folder, size = f"{name}/{number:02d}", None
        if (label, number) == (3, 0):
          folder, size = "5/stray", (16, 24)
        _save(images, f"{folder}.png", digits.train_inputs[row].squeeze(-1), size)
    stdout = self.command(f"--dataset={images}", *SMALL)
    self.assertIn("Images: 8 high, 8 wide, read from 2 sizes, most of them 8 high, 8 wide", stdout)
    ledger = _read_ledger(self.workdir)
    self.assertEqual((ledger["path"][0], ledger["kind"][0]), ("5/stray.png", "noise"))
    self.assertEqual((ledger["given"][0], ledger["suggested"][0]), ("5", "3"))
    # Classes and files by name: digits before <, so 1 to 5 come first, and the stray one last.
    self.assertEqual(ledger["index"][0], 20 + 20 + 19 + 20 + 20)
    self.assertNotIn("is_wrong", ledger)
    text = (self.workdir / "report.html").read_text()
    page = Page(text)
    self.assertNotIn("<b>zero", text)
    self.assertIn("&lt;b&gt;zero", text)
    self.assertIn("5/stray.png", page.words)
    self.assertNotRegex(text, "How well it finds")


class RefusalTest(commands.CommandTestCase):
  MODULE = audit

  def save(self, **arrays):
    rng = np.random.default_rng(0)
    both = {"train_labels": np.arange(60) % 3, "test_labels": np.arange(3)}
    both |= {
      f"{split}_inputs": rng.integers(0, 256, (len(both[f"{split}_labels"]), 4, 4, 1), np.uint8)
      for split in ("train", "test")
    }
    np.savez(self.root / "own.npz", **(both | arrays))
    return f"--dataset={self.root / 'own.npz'}"

  @parameterized.parameters(
    ("--members: .* 12 members .* hold some out by 3. 17 members would do", "--members=12"),
    ("--members: expected a number in \\[1", "--members=0"),
    ("--keep: expected a number in \\(0, 1\\), got 1.0", "--keep=1"),
    ("--neighbors: expected at most 59 with 60 examples, got 60", "--neighbors=60"),
    ("--batch_size: expected at most 60 with 60 examples, got 61", "--batch_size=61"),
    ("--model: expected one of .*; got 'resnet'", "--model=resnet"),
    ("--norm: expected one of .*; got 'batch'", "--norm=batch"),
    ("--norm: build: lenet has no normalization", "--norm=group", "--model=lenet"),
    ("--weights: expected one of easy_first, .*drop; got 'all'", "--weights=all"),
    ("--corrupt: expected KIND:RATE, .*got 'symmetric'", "--corrupt=symmetric"),
    ("--corrupt: expected KIND:RATE, .*got 'other:0.1'", "--corrupt=other:0.1"),
    ("--corrupt: expected KIND:RATE, .*got 'pair:1'", "--corrupt=pair:1"),
    ("--noise: expected human:KIND, .*got 'pair'. --corrupt", "--noise=pair"),
    ("--human_labels: expected the NPZ file .*got None with", "--noise=human:worse_label"),
    ("--corrupt: expected either", "--corrupt=pair:0.1", "--noise=human:x", "--human_labels=y"),
    ("--image_size goes with a folder", "--image_size=8"),
    ("--image_size: expected HEIGHT,WIDTH .*got '8x8'", "--image_size=8x8"),
    ("y.npz: there is no such file", "--noise=human:x", "--human_labels=y.npz"),
  )
  def test_a_flag_that_cannot_be_is_refused(self, pattern, *argv):
    self.assert_refused(pattern, self.save(), "--batch_size=10", *argv)

  def test_data_that_cannot_be_audited_is_refused(self):
    floats = np.full((60, 4, 4, 1), np.nan, np.float32)
    for pattern, arrays in (
      ("own.npz: expected a train_id of its own", {"train_ids": np.zeros(60, int)}),
      ("expected train_labels to be 60 whole numbers, got float64", {"train_labels": np.ones(60)}),
      ("expected train_inputs to be uint8 .* got float32", {"train_inputs": floats}),
      ("expected at least 2 classes, got 1", {"train_labels": np.ones(60, int)}),
      ("2 examples of each class, got 1 of 7", {"train_labels": np.array([7] + [0, 1] * 29 + [1])}),
    ):
      self.assert_refused(pattern, self.save(**arrays), "--batch_size=10")
    self.assert_refused("--corrupt: .*asymmetric", self.save(), "--corrupt=asymmetric:0.2")

  def test_a_folder_that_cannot_be_audited_is_refused(self):
    folder = self.root / "images"
    self.assert_refused("load expects one of .* got '.*images'", f"--dataset={folder}")
    folder.mkdir()
    self.assert_refused("images: expected a folder for each class", f"--dataset={folder}")
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
      _save(folder, name, np.zeros((6, 6)))
    self.assert_refused("got 1 of dog", f"--dataset={folder}")
    (folder / "dog" / "2.png").write_bytes(b"no image")
    self.assert_refused("dog/2.png: expected an image", f"--dataset={folder}")

  def test_training_flags_that_do_not_read_the_weights_are_refused(self):
    def config(*argv):
      values = flags.FlagValues()
      _flags.define_flags(values)
      values(("cifar_noisy", "--example_weights=w.npz", *argv))
      return _flags.config_of(values)

    self.assertEqual(config("--method=ce,importance").methods, ("ce", "importance"))
    self.assertEqual(config("--rules=importance_ratio,normalize").importance_file, "w.npz")
    for argv in (["--method=ce"], ["--rules=normalize"], ["--importance_file=v.npz"]):
      with self.assertRaisesRegex(UsageError, "^--example_weights: expected"):
        config(*argv)


if __name__ == "__main__":
  absltest.main()
