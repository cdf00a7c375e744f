"""Text data sets as NumPy arrays of token ids: files of lines, TensorFlow Datasets' folders."""

import codecs
import collections
import math
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from reweight_jax.data.dataset import DataError, Dataset
from reweight_jax.data.sources import default_folder
from reweight_jax.data.tfds_folder import (
  damage_reported,
  find_folder,
  open_folder,
  read_labels,
  read_records,
)

_PADDING = 0
_UNKNOWN = 1
_FIRST_WORD = 2

_FEATURES = ("text", "sentence")
# One long text must not widen the arrays of all: past so many times the length that so many of the
# training texts keep within, texts are cut.
_FACTOR, _SHARE = 4, 0.995
_HIDDEN = -1  # the label of every test example of GLUE
# In ASCII terms: Latin-1's byte 0xa0, a space in Unicode, stands within words of SST-2.
_NOT_SPACE = re.compile(r"\S+", re.ASCII)
_LABEL = re.compile(r"[+-]?[0-9]{1,9}")
_TAG = re.compile(r"<br\s*/?>")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_")


def load_lines(
  train_path: str | os.PathLike[str],
  test_path: str | os.PathLike[str],
  *,
  max_length: int | None = None,
  min_count: int = 1,
  max_vocabulary: int = 50_000,
  encoding: str = "latin-1",
) -> Dataset:
  r"""Loads texts from two files of one example a line: a whole number, a space, the tokens.

  This is the form in which TREC and SST-2 are often passed on. Inputs are `[examples, length]`
  int32 token ids, lower-cased: 0 is padding, which follows the text, 1 the unknown word, and the
  words are numbered from 2 on by falling count, equal counts alphabetically. `length` is
  `max_length`, or else that of the longest training text, but at most 4 times the length that
  99.5 % of them keep within; where that cuts one, a warning says so.

  Guarantees: the vocabulary is that of the training file alone, as far as its texts are kept, so
  that every known word occurs in the training inputs; no example is left out or moved.
  Edge cases: longer texts lose their end, those of the test file too. With `min_count=1` no
  training text has the unknown word: the model never learns what to make of it. A file that begins
  with the byte order mark of UTF-8 is read as UTF-8, whatever the encoding asked for.

  Args:
    train_path: the file to learn from. The data set is named after it, up to the first dot.
    test_path: the file to test on.
    max_length: number of tokens a text is cut or padded to, at least 1; None as above.
    min_count: how often a word must occur in the training texts to be known, at least 1.
    max_vocabulary: the most ids there may be, padding and the unknown word included, at least 2.
    encoding: of both files.

  Returns:
    The data set. Its `class_names` are the labels' numbers as text, its `train_ids` the numbers of
    the lines, from 0.

  Raises:
    DataError: one line that names the file and the line (from 1), if a file cannot be read or is
      empty, a line has no label, a negative one or no text, the labels of the training file leave
      out a number, or the test file has others; or if an option is outside its range.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   train, test = pathlib.Path(folder, "films.train"), pathlib.Path(folder, "films.test")
    ...   _ = train.write_text("1 a good film\n0 not a good one , a bore\n")
    ...   _ = test.write_text("0 a bad film\n")
    ...   films = load_lines(train, test)
    >>> print(films.name, films.train_labels, vocabulary_size(films))
    films [1 0] 9
    >>> print(films.train_inputs)
    [[2 3 6 0 0 0 0]
     [7 2 3 8 4 2 5]]
    >>> print(films.test_inputs)
    [[2 1 6 0 0 0 0]]
  """
  options = _Options(max_length, min_count, max_vocabulary).checked()
  train, test = (
    _read_lines(pathlib.Path(path), encoding, max_length) for path in (train_path, test_path)
  )
  num_classes = _check_no_gap(train)
  names = tuple(str(label) for label in range(num_classes))
  file_name = pathlib.Path(train_path).name
  name = file_name.split(".")[0] or file_name
  return _numbered(name, train, test, names, options)


def load_text(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  max_length: int | None = None,
  min_count: int = 1,
  max_vocabulary: int = 50_000,
) -> Dataset:
  r"""Loads a text data set of TensorFlow Datasets from a prepared folder, without TensorFlow.

  Token ids, vocabulary and options are those of `load_lines`. Texts are lower-cased and `<br />`
  tags dropped; a token is a run of letters and digits, with the apostrophes inside it, or one
  punctuation mark.

  Guarantees: the same examples in the same order at every call; nothing is downloaded.
  Edge cases: the validation split is the test set if there is no test split or if all its labels
  are hidden (-1), as in GLUE. A text without a token is read as one unknown word. Long texts widen
  the arrays of all: set `max_length` for reviews.

  Args:
    name: of a data set that has the features `text` or `sentence`, and `label`; with its
      configuration if it has any, such as "imdb_reviews/plain_text".
    data_dir: the folder that holds one folder per data set, as TensorFlow Datasets writes it, in
      the `array_record` format. None means the variable `TFDS_DATA_DIR`, or if that is not set
      `~/tensorflow_datasets`.
    max_length: as of `load_lines`.
    min_count: as of `load_lines`.
    max_vocabulary: as of `load_lines`.

  Returns:
    The data set, named `name`. Its `train_ids` are the rows.

  Raises:
    DataError: one line, if the folder is missing, of another format, damaged or of another kind of
      data, or the test examples have a class that no training example has; or if an option is
      outside its range.
    ImportError: if a package that reading needs is not installed.

  Example:
    >>> load_text("imdb_reviews/plain_text", "/nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    reweight_jax.data.dataset.DataError: imdb_reviews/plain_text: the data folder /nowhere does ...
  """
  options = _Options(max_length, min_count, max_vocabulary).checked()
  try:
    folder = find_folder(name, default_folder(data_dir))
  except OSError as error:
    raise DataError(
      f"{name}: cannot read {error.filename} ({error.strerror}). Check who may read that folder."
    ) from error
  train, test, class_names = _read_prepared(name, folder, max_length)
  return _numbered(name, train, test, class_names, options)


def vocabulary_size(dataset: Dataset) -> int:
  """The number of token ids that a model of a text data set needs: one more than the largest.

  Args:
    dataset: from `load_lines` or `load_text`.

  Returns:
    At least 2: padding and the unknown word have ids of their own in every data set.

  Raises:
    DataError: if the inputs are no token ids.

  Example:
    >>> ids, labels = np.array([[2, 3, 0]], np.int32), np.zeros(1, np.int32)
    >>> vocabulary_size(rw.data.Dataset("mine", ids, labels, ids, labels, ("0",), labels))
    4
  """
  largest = _UNKNOWN
  for inputs in (dataset.train_inputs, dataset.test_inputs):
    if inputs.ndim != 2 or not np.issubdtype(inputs.dtype, np.integer):
      raise DataError(
        f"{dataset.name}: expected token ids, [examples, length] whole numbers, got {inputs.dtype} "
        f"of shape {inputs.shape}. Load texts with load_lines or load_text."
      )
    largest = max(largest, int(inputs.max(initial=_UNKNOWN)))
  return 1 + largest


class _Texts(NamedTuple):
  """The examples of a split, and how errors call the place of one of them."""

  tokens: list[list[str]]
  labels: np.ndarray
  place: Callable[[int], str]


class _Options(NamedTuple):
  """The options that both loaders have."""

  max_length: int | None
  min_count: int
  max_vocabulary: int

  def checked(self) -> "_Options":
    """The options, or an error in one line."""
    for option, value, least in zip(self._fields, self, (1, 1, _FIRST_WORD), strict=True):
      if option == "max_length" and value is None:
        continue
      if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{option} expects a whole number, got {value!r}.")
      if value < least:
        raise DataError(f"{option} expects a whole number of at least {least}, got {value}.")
    return self


def _read_lines(path: pathlib.Path, encoding: str, max_length: int | None) -> _Texts:
  """The examples of a file, texts cut to the length, or a DataError that names the line."""
  place = lambda row: f"{path}, line {row + 1}"
  tokens, labels = [], []
  for row, line in enumerate(_decoded(path, encoding)):
    words = _NOT_SPACE.findall(line.lower())
    if not words or not _LABEL.fullmatch(words[0]):
      raise DataError(
        f"{place(row)}: expected a whole number, a space and a text, such as '0 a good film', got "
        f"{line[:40]!r}. Put the label first, and one example on each line."
      )
    if int(words[0]) < 0:
      raise DataError(
        f"{place(row)}: expected a label of at least 0, got {words[0]}. Number the classes from 0."
      )
    if len(words) == 1:
      raise DataError(
        f"{place(row)}: expected a text after the label {words[0]}, got none. Leave the line out."
      )
    labels.append(int(words[0]))
    tokens.append(_kept(words[1:], max_length))
  return _Texts(tokens, np.array(labels, np.int32), place)


def _decoded(path: pathlib.Path, encoding: str) -> list[str]:
  """The lines of a file; only a line feed ends one, where `str.splitlines` knows ten more."""
  try:
    content = path.read_bytes()
  except FileNotFoundError as error:
    raise DataError(f"{path}: there is no such file. Give the path of a file of lines.") from error
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}). Give a readable file.") from error
  if not content:
    raise DataError(f"{path}: expected one example a line, got an empty file. Write it again.")
  if content.startswith(codecs.BOM_UTF8):
    content, encoding = content.removeprefix(codecs.BOM_UTF8), "utf-8"
  try:
    return content.decode(encoding).removesuffix("\n").split("\n")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{path}, line {1 + content.count(10, 0, error.start)}: expected a text in {encoding}, got "
      f"the byte 0x{content[error.start]:02x} ({error.reason}). Pass the file's own encoding."
    ) from error
  except LookupError as error:
    raise DataError(f"{path}: expected an encoding such as 'utf-8', got {encoding!r}.") from error


def _kept(tokens: Sequence[str], max_length: int | None) -> list[str]:
  """The tokens that are not cut off; equal ones share memory, of which reviews would need much."""
  return list(map(sys.intern, tokens[:max_length]))


def _check_no_gap(train: _Texts) -> int:
  """The number of classes, or a DataError if a training file leaves one out."""
  present = np.unique(train.labels)
  missing = np.flatnonzero(present != np.arange(len(present)))
  if missing.size:
    row = int(np.argmax(train.labels > missing[0]))
    raise DataError(
      f"{train.place(row)}: got label {train.labels[row]}, but no line has label {missing[0]}. "
      "Number the classes from 0, without a gap."
    )
  return len(present)


def _read_prepared(
  name: str, folder: pathlib.Path, max_length: int | None
) -> tuple[_Texts, _Texts, tuple[str, ...]]:
  """The training and test examples of a version folder, and the names of the classes."""
  builder = open_folder(name, folder)
  with damage_reported(name, folder):
    features = dict(builder.info.features)
    splits = [split for split in ("test", "validation") if split in builder.info.splits]
  feature = next((known for known in _FEATURES if known in features), None)
  if feature is None or not hasattr(features.get("label"), "names"):
    raise DataError(
      f"{name}: expected the features text or sentence, and label with named classes, in {folder}, "
      f"got {', '.join(sorted(features))}. Give another data set."
    )
  class_names = tuple(features["label"].names)

  def texts(split: str, records: list[Any]) -> _Texts:
    place = lambda row: f"{name}: {folder}, row {row} of {split}"
    labels = read_labels(name, folder, split, records, len(class_names))
    tokens = [
      _kept(_tokens(record[feature].bytes_list.value, place(row)), max_length)
      for row, record in enumerate(records)
    ]
    return _Texts(tokens, labels, place)

  train = texts("train", read_records(name, folder, builder, "train"))
  for split in splits or ["test"]:
    records = read_records(name, folder, builder, split)
    if any(_HIDDEN not in record["label"].int64_list.value for record in records):
      break
  return train, texts(split, records), class_names


def _tokens(values: Sequence[bytes], place: str) -> list[str]:
  """The tokens of a text as a record holds it."""
  if not values:
    raise DataError(f"{place}: expected a text, got none or numbers. Give another configuration.")
  try:
    text = values[0].decode()
  except UnicodeDecodeError as error:
    raise DataError(
      f"{place}: expected a text in utf-8, got the byte 0x{values[0][error.start]:02x} "
      f"({error.reason}). Prepare the data set again."
    ) from error
  return _TOKEN.findall(_TAG.sub(" ", text.lower())) or [""]  # the empty word is no word's name


def _numbered(
  name: str,
  train: _Texts,
  test: _Texts,
  class_names: tuple[str, ...],
  options: _Options,
) -> Dataset:
  """The data set of token ids."""
  strange = np.flatnonzero(~np.isin(test.labels, train.labels))
  if strange.size:
    raise DataError(
      f"{test.place(int(strange[0]))}: got label {test.labels[strange[0]]}, which no training "
      "example has. Leave it out, or add training examples."
    )
  length = options.max_length or _length(name, train)
  counts = collections.Counter(token for tokens in train.tokens for token in tokens[:length])
  counts.pop("", None)
  words = sorted((-count, word) for word, count in counts.items() if count >= options.min_count)
  ids = {
    word: _FIRST_WORD + rank
    for rank, (_, word) in enumerate(words[: options.max_vocabulary - _FIRST_WORD])
  }
  train_inputs, test_inputs = (_padded(part.tokens, ids, length) for part in (train, test))
  rows = np.arange(len(train.labels), dtype=np.int32)
  return Dataset(name, train_inputs, train.labels, test_inputs, test.labels, class_names, rows)


def _length(name: str, train: _Texts) -> int:
  """The length of the longest training text, unless it is far longer than nearly all others."""
  lengths = np.array([len(tokens) for tokens in train.tokens])
  longest, usual = int(lengths.max()), float(np.quantile(lengths, _SHARE))
  length = min(longest, math.ceil(_FACTOR * usual))
  if length < longest:
    warnings.warn(
      f"{name}: texts are cut at {length} tokens; {train.place(int(lengths.argmax()))} has "
      f"{longest}, while {100 * _SHARE:g} % have at most {usual:g}. Set max_length to choose.",
      stacklevel=4,
    )
  return length


def _padded(texts: Sequence[Sequence[str]], ids: dict[str, int], length: int) -> np.ndarray:
  """The token ids of texts, `[examples, length]` int32."""
  padded = np.full((len(texts), length), _PADDING, np.int32)
  for row, tokens in enumerate(texts):
    known = [ids.get(token, _UNKNOWN) for token in tokens[:length]]
    padded[row, : len(known)] = known
  return padded
