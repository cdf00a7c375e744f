"""Images in folders, one folder for each class, read with Pillow and brought to one size."""

import collections
import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from reweight_jax.data._imports import import_or_explain
from reweight_jax.data.dataset import DataError, Dataset

EXTENSIONS = (
  *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm"),
  *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""How the names of images end, in capitals or not; other files are not looked at."""
_WITHOUT_COLOR = ("1", "F", "I", "I;16", "I;16B", "I;16L", "L", "LA", "La")
_ROTATED = (5, 6, 7, 8)  # the orientations of EXIF that swap height and width


class ImageFolder(NamedTuple):
  """What a folder of images holds, known from the heads of the files; no pixel is read.

  Attributes:
    train_files: the images to learn from, by class and then by name: their order is that of the
      data set, and the place in it is the example's `train_ids`.
    train_labels: the number of each one's class.
    test_files: the images to test on, alike; none if there is no folder test/.
    test_labels: as `train_labels`.
    class_names: the names of the class folders, sorted.
    sizes: (height, width) -> how many images have it, the most common one first.
    has_color: whether any image has; if so all are read as RGB, else as shades of gray.
  """

  train_files: tuple[pathlib.Path, ...]
  train_labels: tuple[int, ...]
  test_files: tuple[pathlib.Path, ...]
  test_labels: tuple[int, ...]
  class_names: tuple[str, ...]
  sizes: dict[tuple[int, int], int]
  has_color: bool


def scan_image_folder(folder: str | os.PathLike[str]) -> ImageFolder:
  """Lists the images of `FOLDER/CLASS/`, or of `FOLDER/train/CLASS/` and `FOLDER/test/CLASS/`.

  Guarantees: the same order on every machine, by the files' names.
  Edge cases: images may lie in folders within a class folder; names that begin with a dot and files
  that are no images (`EXTENSIONS`) are not looked at, nor is what lies beside train/ and test/. Of
  equally common sizes the larger comes first.

  Args:
    folder: the folder.

  Returns:
    What it holds.

  Raises:
    DataError: one line, if there is no such folder or it cannot be read, it has no class folders,
      a class has no images or is in test/ alone, or an image cannot be opened, naming it.
    ImportError: if Pillow is not installed.

  Example:
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   for name in ("cat", "dog"):
    ...     pathlib.Path(folder, name).mkdir()
    ...     Image.new("RGB", (4, 3)).save(pathlib.Path(folder, name, "1.png"))
    ...   found = scan_image_folder(folder)
    >>> found.class_names, found.train_labels, found.sizes
    (('cat', 'dog'), (0, 1), {(3, 4): 2})
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise DataError(f"{root}: there is no such folder. Give one that holds a folder a class.")
  try:
    train, test = _splits(root)
  except OSError as error:
    raise DataError(
      f"{root}: cannot read {error.filename} ({error.strerror}). Check who may read that folder."
    ) from error
  names = tuple(train)
  unknown = sorted(set(test) - set(train))
  if unknown:
    raise DataError(f"{root}: test/ has a class {unknown[0]} that train/ lacks. Give it images.")
  files = [path for split in (train, test) for paths in split.values() for path in paths]
  heads = [_head(path) for path in files]
  sizes = collections.Counter(size for size, _ in heads)
  in_order = sorted(sizes.items(), key=lambda entry: (-entry[1], -entry[0][0] * entry[0][1]))
  labels = [
    tuple(names.index(name) for name, paths in split.items() for _ in paths)
    for split in (train, test)
  ]
  num_train = len(labels[0])
  return ImageFolder(
    tuple(files[:num_train]),
    labels[0],
    tuple(files[num_train:]),
    labels[1],
    names,
    dict(in_order),
    any(has_color for _, has_color in heads),
  )


def load_image_folder(
  folder: str | os.PathLike[str], image_size: Sequence[int] | None = None
) -> Dataset:
  """Reads a folder of class folders of images as a data set.

  Every image is brought to one size, its sides each by themselves, with a filter that averages what
  it makes smaller. Turned as its EXIF says; of more than one picture the first; 16 bits become 8;
  transparency is dropped.

  Guarantees: the same examples in the same order at every call; an image that has the size already
  is not resampled.
  Edge cases: shades of gray become RGB where any image has color. Without test/ the data set has no
  test examples.

  Args:
    folder: as for `scan_image_folder`.
    image_size: (height, width); None is the size that most of the images have.

  Returns:
    The data set, named after the folder, with rows as `train_ids`.

  Raises:
    DataError: as `scan_image_folder`; if an image is damaged, naming it, or sizes are no two whole
      numbers of at least 1.
    ImportError: if Pillow is not installed.

  Example:
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   for name in ("cat", "dog"):
    ...     pathlib.Path(folder, name).mkdir()
    ...     Image.new("L", (4, 3)).save(pathlib.Path(folder, name, "1.png"))
    ...   print(load_image_folder(folder, image_size=(2, 2)).train_inputs.shape)
    (2, 2, 2, 1)
  """
  found = scan_image_folder(folder)
  size = next(iter(found.sizes)) if image_size is None else tuple(image_size)
  if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
    raise DataError(f"image_size expects (height, width) of at least 1, got {image_size}.")
  read = functools.partial(_read, size=size, has_color=found.has_color)
  shape = (*size, 3 if found.has_color else 1)
  train, test = (
    np.array([read(path) for path in files], np.uint8).reshape(len(files), *shape)
    for files in (found.train_files, found.test_files)
  )
  return Dataset(
    pathlib.Path(folder).resolve().name,
    train,
    np.array(found.train_labels, np.int32),
    test,
    np.array(found.test_labels, np.int32),
    found.class_names,
    np.arange(len(train), dtype=np.int32),
  )


Classes = dict[str, list[pathlib.Path]]


def _splits(root: pathlib.Path) -> tuple[Classes, Classes]:
  """Class -> its images, of training and of test; classes by name."""
  if not any(_folders(root / "train")):
    return _classes(root), {}
  has_test = (root / "test").is_dir()
  return _classes(root / "train"), _classes(root / "test") if has_test else {}


def _classes(folder: pathlib.Path) -> Classes:
  found = {place.name: _images(place) for place in _folders(folder)}
  if not found:
    raise DataError(
      f"{folder}: expected a folder for each class, got {len(_images(folder))} images and no "
      "folder. Sort the images into folders named after their classes."
    )
  for name, images in found.items():
    if not images:
      raise DataError(
        f"{folder / name}: expected images of the class {name} ({', '.join(EXTENSIONS)}), got "
        "none. Add some, or remove the folder."
      )
  return found


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  if not folder.is_dir():
    return []
  return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
  """The images in a folder and the folders within it, by their names from there on."""
  found = []
  for place, folders, names in os.walk(folder, onerror=_raise):
    folders[:] = [name for name in folders if not name.startswith(".")]
    found += [
      pathlib.Path(place, name)
      for name in names
      if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    ]
  return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _raise(error: OSError) -> None:
  raise error


def _head(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
  """(height, width) as it will be shown, and whether there may be color."""
  with _opened(path) as image:
    sides = (image.width, image.height)
    is_rotated = image.getexif().get(0x0112) in _ROTATED
    has_color = image.mode not in _WITHOUT_COLOR
    if image.mode == "P":  # a palette may be one of grays
      colors = np.array(image.getpalette()).reshape(-1, 3)
      has_color = bool((colors != colors[:, :1]).any())
    return (sides if is_rotated else sides[::-1]), has_color


def _read(path: pathlib.Path, size: tuple[int, int], has_color: bool) -> np.ndarray:
  """The pixels, [height, width, channels] uint8."""
  images = import_or_explain("PIL.Image")
  with _opened(path) as opened:
    image = import_or_explain("PIL.ImageOps").exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
      image = images.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    image = image.convert("RGB" if has_color else "L")
    if image.size != size[::-1]:
      image = image.resize(size[::-1], images.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size, -1)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  """Opens an image; whatever goes wrong in the block is a DataError that names the file."""
  images = import_or_explain("PIL.Image")
  try:
    with images.open(path) as image:
      yield image
  except Exception as error:  # Pillow's plugins raise what they like on damaged files
    raise DataError(
      f"{path}: expected an image, which this is not or no longer is ({type(error).__name__}: "
      f"{error}). Remove it, or write it again."
    ) from error
