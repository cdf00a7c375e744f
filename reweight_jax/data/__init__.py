"""Data: sources of images, label noise, disjoint splits and resumable batches, all in NumPy.

Nothing here knows JAX. Arrays go to the device when a step is called with them. Reading needs
packages that `import reweight_jax` does not: they are imported when a data set is loaded.
"""

from reweight_jax.data.batching import batch_indices, batches
from reweight_jax.data.dataset import DataError, Dataset
from reweight_jax.data.noise import NOISES, NoisyLabels, corrupt_labels
from reweight_jax.data.sources import DATASETS, load
from reweight_jax.data.splits import Split, assert_disjoint, split_indices

__all__ = [
  "DATASETS",
  "NOISES",
  "DataError",
  "Dataset",
  "NoisyLabels",
  "Split",
  "assert_disjoint",
  "batch_indices",
  "batches",
  "corrupt_labels",
  "load",
  "split_indices",
]
