"""Data: images and texts, label noise, disjoint splits and resumable batches, all in NumPy.

Nothing here knows JAX. Arrays go to the device when a step is called with them. Reading needs
packages that `import reweight_jax` does not: they are imported when a data set is loaded.
"""

from reweight_jax.data.batching import balanced_batch_indices, batch_indices, batches
from reweight_jax.data.dataset import DataError, Dataset
from reweight_jax.data.flips import asymmetric_flips
from reweight_jax.data.human import human_labels
from reweight_jax.data.image_folder import ImageFolder, load_image_folder, scan_image_folder
from reweight_jax.data.imbalance import IMBALANCES, imbalanced_indices, undersampled_indices
from reweight_jax.data.noise import NOISES, NoisyLabels, corrupt_labels
from reweight_jax.data.packed import read_npz, save_npz
from reweight_jax.data.sources import DATASETS, default_folder, load
from reweight_jax.data.splits import Split, assert_disjoint, split_indices
from reweight_jax.data.text import load_lines, load_text, vocabulary_size

__all__ = [
  "DATASETS",
  "IMBALANCES",
  "NOISES",
  "DataError",
  "Dataset",
  "ImageFolder",
  "NoisyLabels",
  "Split",
  "assert_disjoint",
  "asymmetric_flips",
  "balanced_batch_indices",
  "batch_indices",
  "batches",
  "corrupt_labels",
  "default_folder",
  "human_labels",
  "imbalanced_indices",
  "load",
  "load_image_folder",
  "load_lines",
  "load_text",
  "read_npz",
  "save_npz",
  "scan_image_folder",
  "split_indices",
  "undersampled_indices",
  "vocabulary_size",
]
