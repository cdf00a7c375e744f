"""Text data sets: token ids worked out by hand, small prepared folders, and every way to be wrong.

All files are written here, to a temporary folder.
"""

import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_generated_pb2

from reweight_jax import data


class TextTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_refused(self, pattern, call, error=data.DataError):
    with self.assertRaisesRegex(error, pattern) as raised:
      call()
    self.assertNotIn("\n", str(raised.exception))


class LinesTestCase(TextTestCase):
  def setUp(self):
    super().setUp()
    self.train, self.test = self.root / "films.v1.train", self.root / "films.test"

  def load(self, train, test="0 x\n", **options):
    for path, content in ((self.train, train), (self.test, test)):
      path.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    return data.load_lines(self.train, str(self.test), **options)


class LinesTest(LinesTestCase):
  def test_words_are_numbered_by_falling_count_then_alphabetically(self):
    # a occurs three times, b and c twice, d once: 2, 3, 4, 5. The test file's z is unknown.
    found = self.load("0 c a b\n1 a c b d a\n", "1 d z a\n0 z z z z z\n")
    np.testing.assert_array_equal(found.train_inputs, [[4, 2, 3, 0, 0], [2, 4, 3, 5, 2]])
    np.testing.assert_array_equal(found.test_inputs, [[5, 1, 2, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(found.train_labels, [0, 1])
    np.testing.assert_array_equal(found.test_labels, [1, 0])

  def test_names_numbers_and_types(self):
    found = self.load("2 c\n0 a\n1 b\n0 d\n")
    self.assertEqual((found.name, found.class_names), ("films", ("0", "1", "2")))
    self.assertEqual(found.num_classes, 3)
    np.testing.assert_array_equal(found.train_ids, [0, 1, 2, 3])
    arrays = [part for part in found if isinstance(part, np.ndarray)]
    self.assertLen(arrays, 5)
    self.assertEqual({array.dtype for array in arrays}, {np.dtype(np.int32)})

  def test_a_hidden_file_is_named_by_its_whole_name(self):
    self.train = self.root / ".train"
    self.assertEqual(self.load("0 a\n").name, ".train")

  def test_the_test_file_changes_no_training_id_and_no_width(self):
    train = "0 a b\n1 b\n"
    first, other = self.load(train, "0 q q q q a\n"), self.load(train, "1 b\n")
    np.testing.assert_array_equal(first.train_inputs, [[3, 2], [2, 0]])
    np.testing.assert_array_equal(other.train_inputs, first.train_inputs)
    np.testing.assert_array_equal(first.test_inputs, [[1, 1]])

  def test_a_corpus_agrees_with_numpy(self):
    rng = np.random.default_rng(0)
    texts = [
      [f"w{word}" for word in rng.geometric(0.1, rng.integers(1, 9)) % 30] for _ in range(50)
    ]
    lines = [f"{row % 2} {' '.join(words)}\n" for row, words in enumerate(texts)]
    found = self.load("".join(lines))
    words, counts = np.unique(np.concatenate(texts), return_counts=True)
    order = words[np.lexsort((words, -counts))]
    self.assertEqual(data.vocabulary_size(found), len(words) + 2)
    for row, text in zip(found.train_inputs, texts, strict=True):
      self.assertEqual(order[row[row > 0] - 2].tolist(), text)
      np.testing.assert_array_equal(row[len(text) :], 0)

  def test_capitals_are_read_as_small_letters(self):
    np.testing.assert_array_equal(self.load("0 The tHe É é\n").train_inputs, [[2, 2, 3, 3]])

  def test_a_cut_keeps_the_beginning_and_counts_only_what_is_kept(self):
    # Kept: b a, b. Of the cut words, c is unknown to the test text as well.
    found = self.load("0 b a c c c\n0 b\n", "0 c a b\n", max_length=2)
    np.testing.assert_array_equal(found.train_inputs, [[2, 3], [2, 0]])
    np.testing.assert_array_equal(found.test_inputs, [[1, 3]])

  def test_a_greater_length_pads(self):
    found = self.load("0 b a\n", "0 a\n", max_length=np.int64(4))
    np.testing.assert_array_equal(found.train_inputs, [[3, 2, 0, 0]])
    np.testing.assert_array_equal(found.test_inputs, [[2, 0, 0, 0]])

  def test_one_very_long_text_is_cut_and_told_and_no_other_is(self):
    # 400 texts of five words and one of 90: 4 times 5, where 99.5 % of the lengths end.
    lines, long = ["0 a b c d e"] * 400, "0 " + "a " * 89 + "z"
    with self.assertWarnsRegex(UserWarning, "at 20 tokens; .*line 401 has 90, while 99.5 .*most 5"):
      found = self.load("\n".join([*lines, long]), "0 z\n")
    self.assertEqual(found.train_inputs.shape, (401, 20))
    np.testing.assert_array_equal(found.train_inputs[400], [2] * 20)
    self.assertEqual(found.test_inputs[0, 0], 1)  # z is cut off, so it is unknown
    # A fiftieth of long texts is no accident, and a length asked for is what it is.
    self.assertEqual(self.load("\n".join(lines + [long] * 8)).train_inputs.shape[1], 90)
    self.assertEqual(self.load("\n".join([*lines, long]), max_length=80).train_inputs.shape[1], 80)

  def test_rare_words_are_unknown(self):
    found = self.load("0 a b c a c a\n", "0 c b\n", min_count=2)
    np.testing.assert_array_equal(found.train_inputs, [[2, 1, 3, 2, 3, 2]])
    np.testing.assert_array_equal(found.test_inputs, [[3, 1, 0, 0, 0, 0]])

  @parameterized.parameters((2, [1, 1, 1, 1, 1, 1], 2), (4, [2, 1, 3, 2, 3, 2], 4))
  def test_the_vocabulary_has_a_limit(self, limit, ids, size):
    found = self.load("0 a b c a c a\n", max_vocabulary=limit)
    np.testing.assert_array_equal(found.train_inputs, [ids])
    self.assertEqual(data.vocabulary_size(found), size)

  def test_only_line_feeds_end_lines_and_only_ascii_spaces_end_words(self):
    # 0x85 and 0xa0 are a line end and a space to `str.splitlines` and `str.split`.
    found = self.load(b"0 a\x85b 2\xa01\n1 a\t a\n")
    np.testing.assert_array_equal(found.train_inputs, [[4, 3], [2, 2]])
    self.assertLen(found.train_labels, 2)

  @parameterized.parameters("0 a b\r\n1 b\r\n", "0 a b\n1 b", " 0  a  b \n+1 b \n")
  def test_other_line_ends_and_more_spaces_change_nothing(self, content):
    found = self.load(content)
    np.testing.assert_array_equal(found.train_inputs, [[3, 2], [2, 0]])
    np.testing.assert_array_equal(found.train_labels, [0, 1])

  def test_the_encoding_is_that_asked_for(self):
    # As Latin-1 the bytes c3 89 and c3 a9 are the words ã\x89 and ã©.
    content = "0 É é\n".encode()
    np.testing.assert_array_equal(self.load(content, encoding="utf-8").train_inputs, [[2, 2]])
    np.testing.assert_array_equal(self.load(content).train_inputs, [[2, 3]])

  @parameterized.parameters("latin-1", "utf-8", "utf-8-sig")
  def test_a_byte_order_mark_is_no_part_of_the_text_and_tells_the_encoding(self, encoding):
    found = self.load("0 É é\n".encode("utf-8-sig"), encoding=encoding)
    np.testing.assert_array_equal(found.train_inputs, [[2, 2]])


class LinesMistakesTest(LinesTestCase):
  @parameterized.parameters(
    ("0 a\nb a\n", "films.v1.train, line 2: expected a whole number, a space .* got 'b a'"),
    ("0 a\n\n0 b\n", "train, line 2: expected a whole number, .* got ''"),
    ("0.5 a\n", "train, line 1: expected a whole number, .* got '0.5 a'"),
    ("0 a\n1_0 a\n", "train, line 2: expected a whole number"),
    ("0 a\n" + "9" * 5000 + " a\n", "train, line 2: expected a whole number"),
    ("\n", "train, line 1: expected a whole number"),
    ("0 a\n1 b\n-1 c\n", "train, line 3: expected a label of at least 0, got -1"),
    ("0 a\n1\n", "train, line 2: expected a text after the label 1, got none"),
    ("0 a\n1 \r\n", "train, line 2: expected a text after the label 1, got none"),
    ("0 a\n3 b\n1 c\n", "train, line 2: got label 3, but no line has label 2"),
    ("0 a\n1 b\n3 c\n", "train, line 3: got label 3, but no line has label 2"),
    ("1 a\n2 b\n", "train, line 1: got label 1, but no line has label 0"),
    ("", "train: expected one example a line, got an empty file"),
  )
  def test_mistakes_in_the_training_file(self, content, pattern):
    self.assert_refused(pattern, lambda: self.load(content))

  @parameterized.parameters(
    ("0 a\n1 b\n2 c\n7 a\n", "films.test, line 3: got label 2, which no training example has"),
    ("0 a\nb\n", "films.test, line 2: expected a whole number"),
    ("0 a\n-2 b\n", "films.test, line 2: .*at least 0, got -2"),
    ("0\n", "films.test, line 1: expected a text"),
    ("", "films.test: .*an empty file"),
  )
  def test_mistakes_in_the_test_file(self, content, pattern):
    self.assert_refused(pattern, lambda: self.load("0 a\n1 b\n", content))

  def test_a_test_file_may_lack_a_class(self):
    self.assertEqual(self.load("0 a\n1 b\n", "1 a\n").num_classes, 2)

  @parameterized.parameters(("utf-8", "e9"), ("ascii", "e9"))
  def test_bytes_of_another_encoding(self, encoding, byte):
    self.assert_refused(
      f"train, line 3: expected a text in {encoding}, got the byte 0x{byte}",
      lambda: self.load(b"0 a\n1 b\n0 caf\xe9 c\n", encoding=encoding),
    )

  @parameterized.parameters("latin-one", "hex")
  def test_an_encoding_that_is_none(self, encoding):
    self.assert_refused(
      f"an encoding such as 'utf-8', got '{encoding}'",
      lambda: self.load("0 a\n", encoding=encoding),
    )

  def test_missing_files_and_folders(self):
    self.train.write_text("0 a\n")
    self.assert_refused(
      "films.test: there is no such file", lambda: data.load_lines(self.train, self.test)
    )
    self.assert_refused(
      "cannot be read .Is a directory", lambda: data.load_lines(self.root, self.train)
    )

  @parameterized.parameters(
    ({"max_length": 0}, data.DataError, "max_length expects .* at least 1, got 0"),
    ({"min_count": 0}, data.DataError, "min_count expects .* at least 1, got 0"),
    ({"max_vocabulary": 1}, data.DataError, "max_vocabulary expects .* at least 2, got 1"),
    ({"max_length": 2.5}, TypeError, "max_length expects a whole number, got 2.5"),
    ({"min_count": None}, TypeError, "min_count expects a whole number, got None"),
    ({"max_vocabulary": True}, TypeError, "max_vocabulary expects a whole number, got True"),
  )
  def test_options_are_checked_before_files_are_read(self, options, error, pattern):
    missing = self.root / "missing"
    self.assert_refused(pattern, lambda: data.load_lines(missing, missing, **options), error)
    self.assert_refused(pattern, lambda: data.load_text("set", missing, **options), error)


class VocabularySizeTest(parameterized.TestCase):
  def dataset(self, train, test):
    rows = np.zeros(1, np.int32)
    return data.Dataset("set", np.array(train), rows, np.array(test), rows, ("0",), rows)

  @parameterized.parameters(
    ([[2, 5, 0]], [[3, 0, 0]], 6), ([[2]], [[7]], 8), ([[0]], [[0]], 2), ([[1]], [[0]], 2)
  )
  def test_one_more_than_the_largest_id_and_at_least_two(self, train, test, size):
    self.assertEqual(data.vocabulary_size(self.dataset(train, test)), size)

  @parameterized.parameters(([[0.5]], [[0]], "float64"), ([[0]], [[[0]]], r"shape \(1, 1, 1\)"))
  def test_inputs_that_are_no_ids(self, train, test, pattern):
    with self.assertRaisesRegex(data.DataError, f"set: expected token ids.*{pattern}"):
      data.vocabulary_size(self.dataset(train, test))


_FEATURE = "tensorflow_datasets.core.features."
_TEXT = {"text": {}, "pythonClassName": f"{_FEATURE}text_feature.Text"}
_LABEL = {
  "classLabel": {"numClasses": "2"},
  "pythonClassName": f"{_FEATURE}class_label_feature.ClassLabel",
}
_NUMBER = {
  "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
  "pythonClassName": f"{_FEATURE}tensor_feature.Tensor",
}


def _record(text, label, feature="text"):
  """One record as TensorFlow Datasets writes it; a number stands for an encoded text."""
  example = tf_example_generated_pb2.Example()
  if isinstance(text, int):
    example.features.feature[feature].int64_list.value.append(text)
  else:
    text = text if isinstance(text, bytes) else text.encode()
    example.features.feature[feature].bytes_list.value.append(text)
  example.features.feature["label"].int64_list.value.append(label)
  return example.SerializeToString()


def _write(root, name, rows, features=None, feature="text"):
  """Writes a prepared folder; `rows` maps the splits to texts and labels."""
  folder = pathlib.Path(root) / name / "1.0.0"
  folder.mkdir(parents=True)
  base, _, config = name.partition("/")
  splits = [
    {
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": split,
      "numBytes": "1",
      "shardLengths": [str(len(examples))],
    }
    for split, examples in rows.items()
  ]
  info = {"name": base, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
  info |= {"configName": config} if config else {}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  tree = {
    "featuresDict": {"features": features or {feature: _TEXT, "label": _LABEL}},
    "pythonClassName": f"{_FEATURE}features_dict.FeaturesDict",
  }
  (folder / "features.json").write_text(json.dumps(tree))
  for split, examples in rows.items():
    path = folder / f"{base}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for text, label in examples:
      writer.write(_record(text, label, feature))
    writer.close()
  return folder


_ROWS = {"train": [("a b a", 0), ("b c", 1)], "test": [("c d", 1)]}


class PreparedTest(TextTestCase):
  def test_a_configuration_comes_back_as_token_ids(self):
    _write(self.root, "reviews/plain", _ROWS)
    found = data.load_text("reviews/plain", self.root)
    # a and b occur twice, c once.
    np.testing.assert_array_equal(found.train_inputs, [[2, 3, 2], [3, 4, 0]])
    np.testing.assert_array_equal(found.test_inputs, [[4, 1, 0]])
    np.testing.assert_array_equal(found.train_labels, [0, 1])
    np.testing.assert_array_equal(found.test_labels, [1])
    np.testing.assert_array_equal(found.train_ids, [0, 1])
    self.assertEqual((found.name, found.class_names), ("reviews/plain", ("0", "1")))
    self.assertEqual((found.train_inputs.dtype, found.train_labels.dtype), (np.int32, np.int32))

  def test_words_apostrophes_marks_and_tags(self):
    # The second text spells the tokens of the first, each between spaces.
    first = "It's GREAT,<br /><br />isn't it? 'No' 9/10...9<BR>snake_case naïve"
    second = "it's great , isn't it ? ' no ' 9 / 10 . . . 9 snake _ case naïve"
    _write(self.root, "reviews", {"train": [(first, 0), (second, 1)], "test": [("a<b> b", 0)]})
    found = data.load_text("reviews", self.root)
    np.testing.assert_array_equal(found.train_inputs[0], found.train_inputs[1])
    self.assertEqual(found.train_inputs.shape, (2, len(second.split())))
    self.assertEqual(data.vocabulary_size(found), 2 + len(set(second.split())))
    np.testing.assert_array_equal(found.test_inputs[0, :6], [1, 1, 1, 1, 1, 0])

  def test_options_are_those_of_lines(self):
    _write(self.root, "reviews", {"train": [("a b b c c c", 0)], "test": [("c b a", 0)]})
    load = lambda **options: data.load_text("reviews", self.root, **options)
    found = load(min_count=2)
    np.testing.assert_array_equal(found.train_inputs, [[1, 3, 3, 2, 2, 2]])
    found = load(max_vocabulary=3)
    np.testing.assert_array_equal(found.test_inputs, [[2, 1, 1, 0, 0, 0]])
    found = load(max_length=3)
    np.testing.assert_array_equal(found.train_inputs, [[3, 2, 2]])
    np.testing.assert_array_equal(found.test_inputs, [[1, 2, 3]])

  def test_validation_stands_in_for_a_missing_test_split(self):
    rows = {"train": _ROWS["train"], "validation": [("b", 0)]}
    _write(self.root, "set", rows, feature="sentence")
    np.testing.assert_array_equal(data.load_text("set", self.root).test_inputs, [[3, 0, 0]])

  def test_validation_stands_in_for_hidden_labels_and_for_no_others(self):
    rows = {"train": _ROWS["train"], "validation": [("b", 0)], "test": [("a", -1), ("a", -1)]}
    _write(self.root, "hidden", rows)
    np.testing.assert_array_equal(data.load_text("hidden", self.root).test_inputs, [[3, 0, 0]])
    _write(self.root, "seen", rows | {"test": [("a", 1)]})
    np.testing.assert_array_equal(data.load_text("seen", self.root).test_inputs, [[2, 0, 0]])

  def test_a_text_without_a_token_is_one_unknown_word(self):
    rows = {"train": [("<br />", 0), ("a a", 1), ("", 1)], "test": [(" ", 1)]}
    _write(self.root, "set", rows)
    found = data.load_text("set", self.root)
    np.testing.assert_array_equal(found.train_inputs, [[1, 0], [2, 2], [1, 0]])
    np.testing.assert_array_equal(found.test_inputs, [[1, 0]])


class PreparedMistakesTest(TextTestCase):
  def assert_refused(self, pattern, name="set", root=None):
    super().assert_refused(f"^{name}: .*{pattern}", lambda: data.load_text(name, root or self.root))

  @parameterized.parameters(
    ({"train": [("a", 0), (b"\xe9", 1)]}, "row 1 of train: expected a text in utf-8.*byte 0xe9"),
    ({"train": [("a", 0), (7, 1)]}, "row 1 of train: expected a text, got none or numbers"),
    ({"train": [("a", 0), ("b", 2)]}, "labels from 0 to 1 in .*, got 2 in row 1 of train"),
    ({"train": [("a", 0)]}, "row 0 of test: got label 1, which no training example has"),
    ({"test": [("a", -1)]}, "labels from 0 to 1 in .*, got -1 in row 0 of test"),
    ({"test": None}, "has no test split"),
    ({"train": None}, "has no train split"),
  )
  def test_mistakes_in_the_examples(self, changes, pattern):
    rows = {split: part for split, part in (_ROWS | changes).items() if part}
    _write(self.root, "set", rows)
    self.assert_refused(pattern)

  @parameterized.parameters(
    ({"review": _TEXT, "label": _LABEL}, "features text or sentence,.* got label, review"),
    ({"text": _TEXT}, "and label with named classes,.* got text"),
    ({"text": _TEXT, "label": _NUMBER}, "and label with named classes"),
  )
  def test_data_of_another_kind(self, features, pattern):
    _write(self.root, "set", _ROWS, features)
    self.assert_refused(pattern)

  def test_a_missing_folder_says_how_to_prepare_it(self):
    self.assert_refused("there is no folder .*present: none.*`tfds build set --data_dir=FOLDER ")
    _write(self.root, "other", _ROWS)
    self.assert_refused("data sets present: other[.]")

  def test_a_name_without_its_configuration_is_told_of_them(self):
    for config in ("plain", "bytes"):
      _write(self.root, f"set/{config}", _ROWS)
    self.assert_refused("holds configurations .*name: set/bytes, set/plain[.]")

  def test_the_folder_of_one_configuration_names_the_one_above(self):
    folder = _write(self.root, "set/plain", _ROWS)
    for inside in (folder, folder.parent):
      self.assert_refused(f"Give the folder above it, {self.root}[.]", "set/plain", inside)

  def test_a_missing_file_and_a_damaged_one(self):
    folder = _write(self.root, "set", _ROWS)
    shard = folder / "set-test.array_record-00000-of-00001"
    shard.write_bytes(b"")
    self.assert_refused("cannot be read; it looks damaged or cut short")
    shard.unlink()
    self.assert_refused("set-test.array_record-00000-of-00001 is missing")
    (folder / "features.json").unlink()
    self.assert_refused("set/1.0.0 cannot be read")

  def test_a_folder_that_may_not_be_read(self):
    (self.root / "set").mkdir()
    denied = PermissionError(13, "Permission denied", str(self.root))
    with mock.patch.object(pathlib.Path, "iterdir", side_effect=denied):
      self.assert_refused(f"cannot read {self.root} .Permission denied")


if __name__ == "__main__":
  absltest.main()
