"""What an audit is asked for."""

import dataclasses
import pathlib

import reweight_jax as rw
from experiments import _check, _task
from experiments._errors import UsageError
from experiments._rule_options import ABOVE_0, AT_LEAST_0, BELOW_1, Range
from reweight_jax import data, difficulty

WEIGHTS = (*difficulty.MODES, "drop")
_COUNT = Range(lambda value: 1 <= value < 2**31, "in [1, 2^31)")
_RANGES = {
  "members": _COUNT,
  "keep": Range(lambda value: 0 < value < 1, "in (0, 1)"),
  "steps": _COUNT,
  "batch_size": _COUNT,
  "learning_rate": ABOVE_0,
  "momentum": BELOW_1,
  "weight_decay": AT_LEAST_0,
  "neighbors": _COUNT,
  "members_at_once": _COUNT,
  "max_examples": _COUNT,
  "top": _COUNT,
  "seed": Range(lambda value: 0 <= value < 2**31, "in [0, 2^31)"),
}


@dataclasses.dataclass(frozen=True)
class AuditConfig:
  """One audit."""

  dataset: str = "digits"  # one of data.DATASETS, the path of an NPZ file or of a folder
  data_dir: str | None = None
  image_size: tuple[int, ...] | None = None  # None: the most common, at most LARGEST_SIDE
  max_examples: int | None = None  # None: all
  corrupt: str | None = None  # KIND:RATE
  noise: str = "none"  # or human:KIND
  human_labels: str | None = None
  model: str | None = None  # None: by the size of the images
  norm: str | None = None  # None: group for those that have a norm
  members: int = 20
  keep: float = 0.7
  steps: int | None = None  # None: PASSES over the examples
  batch_size: int = 100
  learning_rate: float | None = None  # None: by model
  momentum: float = 0.9
  weight_decay: float = 0.0
  neighbors: int = 10
  members_at_once: int = 5
  seed: int = 0
  top: int = 50
  weights: str = "easy_first"
  workdir: str | None = None

  def path(self) -> pathlib.Path:
    """The workdir."""
    return pathlib.Path(self.workdir or f"runs/audit_{pathlib.Path(self.dataset).stem}")


def check(config: AuditConfig) -> None:
  """Raises UsageError, one line, for the first flag that cannot be right, whatever the data."""
  for flag, (is_good, expected) in _RANGES.items():
    _check._check_number(flag, getattr(config, flag), is_good, expected)
  _check._check_word("model", config.model, rw.models.MODELS)
  _check._check_word("norm", config.norm, [norm for norm in rw.models.NORMS if norm != "batch"])
  _check._check_word("weights", config.weights, WEIGHTS)
  is_human = config.noise.startswith(_task.HUMAN)
  if config.noise != "none" and not is_human:
    raise UsageError(
      f"--noise: expected human:KIND, such as human:worse_label, or none; got {config.noise!r}. "
      "--corrupt=KIND:RATE draws noise"
    )
  if is_human != (config.human_labels is not None):
    raise UsageError(
      "--human_labels: expected the NPZ file that holds KIND, together with --noise=human:KIND; "
      f"got {config.human_labels} with --noise={config.noise}"
    )
  if is_human and config.corrupt:
    raise UsageError("--corrupt: expected either this or --noise=human:KIND, got both")
  if config.corrupt:
    parse_corrupt(config.corrupt)
  if config.image_size is not None and not pathlib.Path(config.dataset).is_dir():
    raise UsageError(
      f"--image_size goes with a folder of images, got --dataset={config.dataset}, whose images "
      "have one size"
    )


def parse_corrupt(text: str) -> tuple[str, float]:
  """The kind of noise and its rate, or UsageError."""
  kind, _, number = text.partition(":")
  known = [noise for noise in data.NOISES if noise != "none"]
  try:
    rate = float(number)
  except ValueError:
    rate = -1.0
  if kind not in known or not 0 < rate < 1:
    raise UsageError(
      f"--corrupt: expected KIND:RATE, such as symmetric:0.1, a kind of {', '.join(known)} and a "
      f"rate in (0, 1); got {text!r}"
    )
  return kind, rate
