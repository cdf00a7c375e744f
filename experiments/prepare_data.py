"""How do I get the data that the experiments read?

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.prepare_data --dataset=cifar10 --npz=cifar10.npz

Downloads a data set and prepares it with tensorflow-datasets as array_record files, which are read
without TensorFlow ever after; preparing itself needs TensorFlow and the network, once, and some
minutes. With --npz the prepared data set is packed into one file for machines that have no
tensorflow-datasets; `--dataset=FILE.npz` of the experiments reads it.
"""

import os
import pathlib
from typing import Any

from absl import flags

from experiments import _errors
from experiments._errors import RunError, UsageError
from reweight_jax import data
from reweight_jax.data import tfds_folder

PREPARED = tuple(tfds_folder.IMAGE_SHAPES)


def run(name: str, root: pathlib.Path, npz: str | None) -> None:
  """Prepares a data set below `root` unless it is there, and packs it if asked to.

  Raises:
    UsageError: for an unknown data set, a folder that holds it in another format, or without
      TensorFlow.
    RunError: if the download or the preparation fails.
  """
  if name not in PREPARED:
    raise UsageError(f"--dataset: expected one of {', '.join(PREPARED)}; got {name!r}")
  if npz and pathlib.Path(npz).suffix != ".npz":
    raise UsageError(f"--npz: expected a name that ends in .npz, got {npz!r}")
  if _is_prepared(name, root):
    print(f"{name} is prepared in {root}")
  else:
    _prepare(name, root)
  dataset = data.load(name, root)
  sizes = f"{len(dataset.train_labels)} training and {len(dataset.test_labels)} test examples"
  print(f"{name}: {sizes}, {dataset.num_classes} classes")
  if npz:
    data.save_npz(npz, dataset)
    print(f"packed into {npz}, {os.path.getsize(npz) / 1e6:.0f} MB")


def _is_prepared(name: str, root: pathlib.Path) -> bool:
  """Whether the data set is there; one of another format is the user's to decide about."""
  if not (root / name).is_dir() or not any((root / name).iterdir()):
    return False
  tfds_folder.find_folder(name, root)
  return True


def _prepare(name: str, root: pathlib.Path) -> None:
  print(
    f"Preparing {name} in {root}: needs TensorFlow, the network and some minutes, once.", flush=True
  )
  try:
    import tensorflow  # noqa: F401
  except ImportError as error:
    raise UsageError(
      f"preparing {name} needs TensorFlow once, which cannot be imported ({error}); "
      "pip install tensorflow, here or on another machine, whose prepared folder may be copied"
    ) from error
  import tensorflow_datasets as tfds

  try:
    builder: Any = tfds.builder(name, data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
  except Exception as error:  # the network, the server, the disk: every kind
    raise RunError(
      f"preparing {name} in {root} failed ({type(error).__name__}: {str(error)[:200]}); mend that "
      "and run the same command again"
    ) from error


def define_flags(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string("dataset", None, f"one of {', '.join(PREPARED)}", flag_values=values)
  flags.DEFINE_string(
    "data_dir",
    None,
    "folder to prepare it in; default $TFDS_DATA_DIR or ~/tensorflow_datasets",
    flag_values=values,
  )
  flags.DEFINE_string("npz", None, "file to pack it into", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Prepares what the flags ask for."""
  if values.dataset is None:
    raise UsageError(f"--dataset: expected one of {', '.join(PREPARED)}; got none")
  run(values.dataset, data.default_folder(values.data_dir), values.npz)


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
