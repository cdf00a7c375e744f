"""Difficulty from training dynamics: the scores of what a run showed of each example.

`record_dynamics` keeps the record while training goes on; the measures here are functions of it,
one number for each example, of which larger is harder. An example never seen has NaN, not 0.
A *sighting* is one batch that held the example, most often one an epoch.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from reweight_jax.difficulty._record import (
  Dynamics,
  dynamics_of,
  init_dynamics,
  observe,
  record_dynamics,
)
from reweight_jax.types import Array

__all__ = [
  "OF_DYNAMICS",
  "Dynamics",
  "Measure",
  "aleatoric",
  "dynamics_of",
  "final_el2n",
  "final_loss",
  "final_negative_margin",
  "forgetting",
  "incorrectness",
  "init_dynamics",
  "late_first_correct",
  "late_learning",
  "low_confidence",
  "mean_loss",
  "negative_margin_area",
  "observe",
  "record_dynamics",
  "variability",
]

Measure: TypeAlias = Callable[[Dynamics], Array]
"""`(dynamics) -> [examples]`, larger is harder, NaN where never seen."""


def final_loss(dynamics: Dynamics) -> Array:
  """The loss at the last sighting, nats: training's own loss, whatever it is.

  Of little use once a network has memorized its data; then all are small.

  Source: the small-loss criterion, Han et al., "Co-teaching", 2018, arXiv 1804.06872, section 2.
  """
  return _where_seen(dynamics, dynamics.last_loss)


def mean_loss(dynamics: Dynamics) -> Array:
  """The mean loss over the sightings, nats: it remembers how late an example was fitted.

  Source: Huang et al., "O2U-Net: A Simple Noisy Label Detection Approach for Deep Neural Networks",
    2019 (there less the epoch's mean and in cycles of the learning rate).
  """
  return _where_seen(dynamics, dynamics.mean_loss)


def low_confidence(dynamics: Dynamics) -> Array:
  r"""1 less the mean probability of the given label, :math:`1 - \frac1T \sum_t p_t`; in [0, 1].

  Source: Swayamdipta et al., "Dataset Cartography", 2020, arXiv 2009.10795, section 2.1.
  """
  return _where_seen(dynamics, dynamics.mean_error_probability)


def variability(dynamics: Dynamics) -> Array:
  r"""The standard deviation over the sightings of the label's probability; in [0, 1/2].

  Divided by :math:`T`, not :math:`T - 1`: after one sighting it is 0. Large is ambiguous rather
  than hard: an example that was never learned has little.

  Source: Swayamdipta et al. 2020, arXiv 2009.10795, section 2.1.
  """
  times = jnp.maximum(dynamics.times_seen, 1).astype(dynamics.sum_squares.dtype)
  return _where_seen(dynamics, jnp.sqrt(dynamics.sum_squares / times))


def aleatoric(dynamics: Dynamics) -> Array:
  r"""The mean of :math:`p_t (1 - p_t)` over the sightings: uncertainty of the data; in [0, 1/4].

  Small for the easy and for the never learned; with `low_confidence` it tells the three groups.

  Source: Seedat et al., "Data-IQ", 2022, arXiv 2210.13043, section 3.
  """
  return _where_seen(dynamics, dynamics.mean_variance)


def incorrectness(dynamics: Dynamics) -> Array:
  """The share of the sightings at which the answer was wrong: 1 less correctness; in [0, 1].

  Source: Swayamdipta et al. 2020, arXiv 2009.10795, section 2.1, correctness; as learning speed in
    Jiang et al., "Characterizing Structural Regularities of Labeled Data in Overparameterized
    Models", 2021, arXiv 2002.03206.
  """
  return _share(dynamics, dynamics.times_seen - dynamics.times_correct)


def late_learning(dynamics: Dynamics) -> Array:
  """When an example was learned for good: the share of the sightings up to its last wrong answer.

  0 if every answer was right, 1 if the last one is wrong, as of an example never learned.

  Source: the first iteration after which all answers are right, Baldock, Maennel, Neyshabur, "Deep
    Learning Through the Lens of Example Difficulty", 2021, arXiv 2106.09647, section 1.
    # Departs from it: over the number of sightings, so that one seen less often compares.
  """
  return _share(dynamics, dynamics.last_wrong)


def late_first_correct(dynamics: Dynamics) -> Array:
  """The share of the sightings before the first right answer; 1 if there was none.

  Source: the first learning event of Toneva et al. 2019 (as `forgetting`), section 3.
  """
  never = dynamics.first_correct == 0
  return _share(dynamics, jnp.where(never, dynamics.times_seen, dynamics.first_correct - 1))


def forgetting(dynamics: Dynamics) -> Array:
  """How often a right answer was followed by a wrong one; an example never learned is the hardest.

  The never learned get the largest number of sightings of any example, which no count of
  forgetting reaches: finite, where the paper says infinite. Needs batches: hardly anything is
  forgotten in full-batch training.

  Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network
    Learning", 2019, arXiv 1812.05159, section 3.
  """
  never = dynamics.times_correct == 0
  counts = jnp.where(never, jnp.max(dynamics.times_seen), dynamics.times_forgotten)
  return _where_seen(dynamics, counts.astype(dynamics.mean_loss.dtype))


def negative_margin_area(dynamics: Dynamics) -> Array:
  r"""Minus the area under the margin, :math:`-\frac1T \sum_t (z_y - \max_{c \ne y} z_c)`.

  Source: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking",
    2020, arXiv 2001.10528, eqs. (1) and (2).
  """
  return _where_seen(dynamics, -dynamics.mean_margin)


def final_negative_margin(dynamics: Dynamics) -> Array:
  """Minus the margin at the last sighting, `scores.negative_margin`."""
  return _where_seen(dynamics, -dynamics.last_margin)


def final_el2n(dynamics: Dynamics) -> Array:
  """The length of the error at the last sighting, `scores.el2n`: published early in training.

  Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", 2021, arXiv 2107.07075,
    section 2 (there the mean over several networks).
  """
  return _where_seen(dynamics, dynamics.last_el2n)


OF_DYNAMICS: dict[str, Measure] = {
  "final_loss": final_loss,
  "mean_loss": mean_loss,
  "low_confidence": low_confidence,
  "variability": variability,
  "aleatoric": aleatoric,
  "incorrectness": incorrectness,
  "late_learning": late_learning,
  "late_first_correct": late_first_correct,
  "forgetting": forgetting,
  "negative_margin_area": negative_margin_area,
  "final_negative_margin": final_negative_margin,
  "final_el2n": final_el2n,
}
"""The measures of training dynamics by name."""


def _where_seen(dynamics: Dynamics, score: Array) -> Array:
  return jnp.where(dynamics.times_seen > 0, score, jnp.nan)


def _share(dynamics: Dynamics, sightings: Array) -> Array:
  dtype = dynamics.mean_loss.dtype
  seen = jnp.maximum(dynamics.times_seen, 1).astype(dtype)
  return _where_seen(dynamics, sightings.astype(dtype) / seen)
