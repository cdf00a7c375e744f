"""Label noise with exact counts: how many labels are redrawn is decided, only which is drawn."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from reweight_jax.data.splits import apportion, check_labels, draw_per_class

NOISES = ("none", "symmetric", "symmetric_inclusive", "pair", "asymmetric", "background")
"""The kinds of noise that `corrupt_labels` knows."""


class NoisyLabels(NamedTuple):
  """Corrupted labels and what really changed.

  Attributes:
    labels: `[examples]` int32, what training sees.
    is_noisy: `[examples]` bool, True where the label differs from the original one. A label that
      was redrawn and came out the same is not noisy.
    realized_rate: the share of noisy labels.
  """

  labels: np.ndarray
  is_noisy: np.ndarray
  realized_rate: float


def corrupt_labels(
  labels: np.ndarray,
  num_classes: int,
  noise: str,
  noise_rate: float,
  rng: np.random.Generator,
  *,
  flips: Mapping[int, int] | None = None,
) -> NoisyLabels:
  r"""Redraws the labels of an exact share of every class.

  Of the :math:`n_c` examples of class :math:`c`, `noise_rate` :math:`\cdot\, n_c` are selected
  (rounded down or up, so that the total is the rounded share of all examples). With :math:`K`
  classes a selected label :math:`c` becomes

  * `symmetric`: uniform over the other classes; all selected labels are wrong.
  * `symmetric_inclusive`: uniform over all classes, the true one too; in expectation
    `noise_rate` :math:`(K-1)/K` of all labels are wrong.
  * `pair`: :math:`c+1 \bmod K`; all selected labels are wrong.
  * `asymmetric`: the class that `flips` gives for it; classes that it does not name stay clean, so
    `noise_rate` is that of the classes which flip, and the realized rate of all labels is lower.
  * `background`: one class :math:`b`, the first thing drawn from `rng`, so that sets corrupted with
    equal generators share it. Selected examples of class
    :math:`b` keep their label, so exactly the selected examples of the other classes are wrong:
    for balanced classes `noise_rate` :math:`(K-1)/K` of all labels.

  Guarantees: the number of selected examples of a class is its share rounded down or up, so at
  rates below one half no class loses its majority to luck (a class of a few examples may lose it
  to rounding); the input is not changed; equal generators give equal labels.
  Edge cases: rate 0 and the noise `none` return the labels as they are; a class so small that its
  share rounds to 0 stays clean.

  Args:
    labels: `[examples]` integers, the clean labels.
    num_classes: how many classes there are, at least 2 unless the noise is `none`.
    noise: one of `NOISES`.
    noise_rate: share of each class that is selected, in [0, 1). `none` takes 0 only.
    rng: draws the examples and their new labels.
    flips: for `asymmetric`, class -> another class; `asymmetric_flips` has those of the field.

  Returns:
    The corrupted labels, which of them are wrong, and the share of those.

  Raises:
    ValueError: for an unknown noise, a rate outside [0, 1), `flips` that are missing, not asked for
      or no flips, or labels that are not a vector of integers below `num_classes`.

  Source: `symmetric` and `background`: UniformFlip and BackgroundFlip of Ren, Zeng, Yang, Urtasun,
  "Learning to Reweight Examples for Robust Deep Learning", 2018, arXiv 1803.09050, sec. 4.2;
  `symmetric_inclusive`: uniform noise of Shu et al., "Meta-Weight-Net", 2019, arXiv 1902.07379;
  `pair`: pair flipping of Han et al., "Co-teaching", 2018, arXiv 1804.06872; `asymmetric`: Patrini
  et al., "Making Deep Neural Networks Robust to Label Noise", 2017, arXiv 1609.03683.

  Example:
    >>> noisy = corrupt_labels(np.arange(20) % 2, 2, "pair", 0.3, np.random.default_rng(0))
    >>> print(noisy.is_noisy.sum(), noisy.realized_rate)
    6 0.3
  """
  if noise not in NOISES:
    raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}.")
  if not 0 <= noise_rate < 1:
    raise ValueError(f"noise_rate must lie in [0, 1), got {noise_rate}.")
  if noise == "none" and noise_rate:
    raise ValueError(
      f"noise 'none' takes noise_rate 0, got {noise_rate}. Choose a noise or rate 0."
    )
  if noise != "none" and num_classes < 2:
    raise ValueError(f"noise {noise!r} needs at least 2 classes, got {num_classes}.")
  labels = check_labels(labels, num_classes)
  flips = _checked_flips(noise, flips, num_classes)
  # Departs from the papers, which select examples regardless of class (Ren et al.: an exact share
  # of all examples; Shu et al. and Han et al.: each example with a probability).
  background = int(rng.integers(num_classes))
  class_counts = np.bincount(labels, minlength=num_classes)
  if flips:
    class_counts = np.where([label in flips for label in range(num_classes)], class_counts, 0)
  selected = draw_per_class(labels, apportion(noise_rate * class_counts, rng), rng)
  noisy = labels.copy()
  noisy[selected] = _redraw(labels[selected], num_classes, noise, background, flips, rng)
  is_noisy = noisy != labels
  return NoisyLabels(noisy, is_noisy, float(is_noisy.mean()))


def _checked_flips(
  noise: str, flips: Mapping[int, int] | None, num_classes: int
) -> Mapping[int, int]:
  if (noise == "asymmetric") != bool(flips):
    raise ValueError(
      "flips go with noise 'asymmetric', which needs them (asymmetric_flips has those of the "
      f"field); got noise {noise!r} and flips {flips}."
    )
  for source, target in (flips or {}).items():
    if source == target or not (0 <= source < num_classes and 0 <= target < num_classes):
      raise ValueError(
        f"flips must lead from one class below {num_classes} to another, got {source} -> {target}."
      )
  return flips or {}


def _redraw(
  labels: np.ndarray,
  num_classes: int,
  noise: str,
  background: int,
  flips: Mapping[int, int],
  rng: np.random.Generator,
) -> np.ndarray:
  """The new labels of the selected examples."""
  if noise == "symmetric":
    # Steps 1 to K-1 around the circle of classes reach every class but the one they start from.
    return (labels + rng.integers(1, num_classes, labels.shape)) % num_classes
  if noise == "symmetric_inclusive":
    return rng.integers(num_classes, size=labels.shape)
  if noise == "pair":
    return (labels + 1) % num_classes
  if noise == "asymmetric":
    return np.array([flips[label] for label in labels.tolist()], np.int32)
  if noise == "background":
    return np.full_like(labels, background)
  return labels
