"""Data sets with one known reason to be hard, or several at once, and who is hard for it."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from experiments._errors import UsageError
from reweight_jax import data

MADE_UP = "made_up"
"""The data set that is drawn here: its oracle, so the margin of each example, is known."""

NUMBERS: dict[str, tuple[float, float, str]] = {
  "symmetric": (0.15, 1, "share of labels made wrong, to any other class"),
  "pair": (0.15, 1, "the same, to the next class"),
  "asymmetric": (0.3, 1, "the same, to the class that the data set is known to confuse it with"),
  "background": (0.3, 1, "the same, all to one class"),
  "imbalance": (9, math.inf, "size of a frequent class to that of a rare one"),
  "margin": (0.15, 1, "share of examples nearest to the oracle's boundary, nothing changed"),
  "feature_noise": (0.15, 1, "share of inputs with Gaussian noise as large as they vary"),
  "region": (0.05, 1, "share of examples in a region where labels follow a rule of their own"),
  "mixed": (0.1, 1, "share of labels made wrong, beside imbalance and a region as above"),
}
"""Factor -> its default number, what that must be below, and what it means."""

NOISES = ("symmetric", "pair", "asymmetric", "background")
DIMENSIONS, NUM_FEATURES = 6, 311
_POOL = 20  # made-up points drawn for each one kept: enough for any balance of the classes


class Factor(NamedTuple):
  """A reason to be hard, and how much of it."""

  kind: str
  number: float

  def __str__(self) -> str:
    """As on the command line, and in the name of a folder, where no two may look alike."""
    short = f"{self.number:g}"
    return f"{self.kind}_{short if float(short) == self.number else repr(self.number)}"

  def number_of(self, kind: str) -> float:
    """The number of one of the reasons there; mixed, all but the noise have their defaults."""
    if self.kind == "mixed":
      return self.number if kind == "symmetric" else NUMBERS[kind][0]
    return self.number


class Problem(NamedTuple):
  """A training set, and for each question who of it is hard."""

  inputs: np.ndarray  # [examples, ...] float32, what the network sees
  labels: np.ndarray  # [examples] int32, as training sees them
  num_classes: int
  embedding: np.ndarray  # [examples, features], for neighbors
  hard: dict[str, np.ndarray]  # column -> [examples] bool; the first is the factor's own
  margin: np.ndarray | None  # [examples], of the oracle at the given label; None if not known


@dataclasses.dataclass
class _Sample:
  """Clean examples, and what is needed to make some of them hard."""

  points: np.ndarray  # [examples, ...]
  labels: np.ndarray
  num_classes: int
  place: np.ndarray  # [examples], along the direction at whose end the region lies
  own_labels: np.ndarray  # what the region's rule says
  logit: np.ndarray | None = None  # of the oracle, for class 1 against class 0
  directions: np.ndarray | None = None  # of random features; None: the points are the inputs


def parse(text: str, dataset: str) -> tuple[Factor, ...]:
  """The factors of a flag such as ``symmetric:0.4,margin``.

  Raises:
    UsageError: for an unknown factor, a number that is none or out of range, one given twice, or
      one that the data set cannot show.
  """
  found = []
  for part in filter(None, (part.strip() for part in text.split(","))):
    kind, _, number = part.partition(":")
    if kind not in NUMBERS:
      raise UsageError(f"--factors: expected some of {', '.join(NUMBERS)}; got {kind!r}")
    default, limit, words = NUMBERS[kind]
    least = 1 if kind == "imbalance" else 0
    try:
      value = float(number) if number else default
    except ValueError:
      value = math.nan
    if not least < value < limit:
      raise UsageError(
        f"--factors: {kind} expects a number above {least}"
        f"{'' if limit == math.inf else f' and below {limit:g}'} ({words}), such as "
        f"{kind}:{default:g}; got {number!r}"
      )
    if kind == "margin" and dataset != MADE_UP:
      raise UsageError(f"--factors: margin is known of --dataset={MADE_UP} alone; leave it out")
    found.append(Factor(kind, value))
  if not found or len(set(found)) < len(found):
    raise UsageError(f"--factors: expected at least one, each once; got {text!r}")
  return tuple(found)


def make(factor: Factor, dataset: data.Dataset | None, size: int, draw: int) -> Problem:
  """Draws examples and makes some of them hard.

  Guarantees: equal arguments give equal problems; only what was really changed, or is what the
  factor asks for, is called hard; without imbalance all factors of a draw start from the same
  examples.

  Args:
    factor: why, and how much.
    dataset: where images come from; None for made-up points.
    size: how many examples; imbalance may leave fewer of a data set.
    draw: seeds all of it.

  Raises:
    ValueError: of `data`, if the classes or the noise do not fit the data set.
    UsageError: if nothing, or everything, would be hard.
  """
  ratio = factor.number_of("imbalance") if factor.kind in ("imbalance", "mixed") else 1.0
  rng = np.random.default_rng([draw, 11])
  sample = _made_up(rng, size, ratio) if dataset is None else _images(dataset, rng, size, ratio)
  labels, hard = sample.labels, {}
  if factor.kind in ("region", "mixed"):
    hard["region"] = _furthest(sample.place, factor.number_of("region"))
    labels = np.where(hard["region"], sample.own_labels, labels)
    if factor.kind == "region":
      hard["region, other label"] = labels != sample.labels
  if ratio > 1:
    hard["imbalance"] = labels >= sample.num_classes // 2  # the rare ones of a step
  if factor.kind in (*NOISES, "mixed"):
    kind = "symmetric" if factor.kind == "mixed" else factor.kind
    flips = None
    if kind == "asymmetric":
      name, class_names = (dataset.name, dataset.class_names) if dataset else (MADE_UP, ())
      flips = data.asymmetric_flips(name, class_names)
    noisy = data.corrupt_labels(
      labels, sample.num_classes, kind, factor.number, np.random.default_rng([draw, 1]), flips=flips
    )
    labels, hard[kind] = noisy.labels, noisy.is_noisy
  if factor.kind == "feature_noise":
    hard["feature_noise"] = _with_noisy_points(sample, factor.number, draw)
  margin = None if sample.logit is None else np.where(labels == 1, sample.logit, -sample.logit)
  if factor.kind == "margin":
    assert margin is not None  # of made-up points alone
    hard["margin"] = _furthest(-np.abs(margin), factor.number)
  if factor.kind == "mixed":
    any_of = np.logical_or.reduce(list(hard.values()))
    hard = {"mixed, any": any_of} | {f"mixed, {name}": flags for name, flags in hard.items()}
  _check_both_kinds(factor, hard)
  # The margin of the clean oracle says nothing of labels that another rule gave.
  known = margin if factor.kind == "margin" else None
  return Problem(
    _inputs(sample),
    labels.astype(np.int32),
    sample.num_classes,
    sample.points.reshape(len(labels), -1),
    hard,
    known,
  )


def _made_up(rng: np.random.Generator, size: int, ratio: float) -> _Sample:
  """Points in six dimensions and two classes, cut by the sign of a random quadratic function."""
  pool = rng.standard_normal((_POOL * size, DIMENSIONS))
  logits, own = _quadratic(rng, pool), _quadratic(rng, pool)
  direction = rng.standard_normal(DIMENSIONS)
  directions = rng.standard_normal((DIMENSIONS + 1, NUM_FEATURES))
  rare = round(size / (1 + ratio))
  chosen = np.concatenate(
    [
      np.flatnonzero(logits <= 0)[: size - rare],
      np.flatnonzero(logits > 0)[:rare],
    ]
  )
  chosen = rng.permutation(chosen)
  return _Sample(
    pool[chosen],
    (logits > 0)[chosen].astype(np.int32),
    2,
    pool[chosen] @ direction,
    (own > 0)[chosen].astype(np.int32),
    logits[chosen],
    directions,
  )


def _quadratic(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
  """Twice a random linear function, plus a random quadratic one, less the median."""
  slope = rng.standard_normal(DIMENSIONS)
  form = rng.standard_normal((DIMENSIONS, DIMENSIONS))
  form += form.T
  linear = points @ (2 * slope / np.linalg.norm(slope))
  values = linear + ((points @ (form / np.linalg.norm(form))) * points).sum(1)
  return values - np.median(values)


def _images(dataset: data.Dataset, rng: np.random.Generator, size: int, ratio: float) -> _Sample:
  """Images as they are, or of the second half of the classes fewer."""
  labels, num_classes = dataset.train_labels, dataset.num_classes
  left = np.arange(len(labels))
  if ratio > 1:
    left = data.imbalanced_indices(labels, num_classes, "step", ratio, rng)
  chosen = np.sort(rng.choice(left, min(size, len(left)), replace=False))
  points = np.asarray(dataset.train_inputs[chosen], np.float32)
  if np.issubdtype(dataset.train_inputs.dtype, np.integer):
    points /= 255
  flat = points.reshape(len(points), -1)
  # Every class to the next on a random circle: all labels of the region change.
  circle = rng.permutation(num_classes)
  own = np.empty(num_classes, np.int32)
  own[circle] = np.roll(circle, 1)
  place = (flat - flat.mean(0)) @ rng.standard_normal(flat.shape[1]).astype(np.float32)
  return _Sample(points, labels[chosen].astype(np.int32), num_classes, place, own[labels[chosen]])


def _with_noisy_points(sample: _Sample, share: float, draw: int) -> np.ndarray:
  """Adds the noise; who got it."""
  rng = np.random.default_rng([draw, 2])
  size = len(sample.labels)
  chosen = np.zeros(size, bool)
  chosen[rng.choice(size, round(share * size), replace=False)] = True
  noise = rng.standard_normal(sample.points[chosen].shape) * sample.points.std()
  sample.points = sample.points.copy()
  sample.points[chosen] += noise.astype(sample.points.dtype)
  return chosen


def _inputs(sample: _Sample) -> np.ndarray:
  """Images as they are; of made-up points random features, half ReLU, half Fourier.

  Those have mean 0, and an example's squared length is 1 on average (less if ReLUs are dead).
  """
  if sample.directions is None:
    return sample.points.astype(np.float32)
  slopes, offsets = sample.directions[:-1], sample.directions[-1]
  along = sample.points @ slopes
  half = NUM_FEATURES // 2
  features = np.concatenate(
    [
      np.maximum(along[:, :half] / math.sqrt(DIMENSIONS) + offsets[:half], 0),
      np.cos(2 * along[:, half:] / math.sqrt(DIMENSIONS) + math.pi * offsets[half:]),
    ],
    axis=1,
  )
  features -= features.mean(0)
  spread = features.std(0)  # 0 where a ReLU is dead for all of a few points
  return (features / np.where(spread == 0, math.inf, spread) / math.sqrt(NUM_FEATURES)).astype(
    np.float32
  )


def _furthest(values: np.ndarray, share: float) -> np.ndarray:
  """True for an exact share of the examples, those of the largest values."""
  flags = np.zeros(len(values), bool)
  flags[np.argsort(-values, kind="stable")[: round(share * len(values))]] = True
  return flags


def _check_both_kinds(factor: Factor, hard: dict[str, Any]) -> None:
  for name, flags in hard.items():
    if flags.all() or not flags.any():
      raise UsageError(
        f"--factors: {factor.kind}:{factor.number:g} makes {flags.sum()} of {len(flags)} examples "
        f"hard ({name}), expected some but not all; choose another number or more examples"
      )
