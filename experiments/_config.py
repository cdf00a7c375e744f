"""The configuration of a command, and the check that turns a wrong one into one line."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import reweight_jax as rw
from experiments import _methods
from experiments._errors import UsageError
from reweight_jax import data

DEFAULT_STEPS = 600
DEFAULT_META_BATCH_SIZE = 20
DEFAULT_RULE_OPTIONS = _methods.RuleOptions()
MODEL_OF = {"digits": "mlp", "mnist": "lenet", "fashion_mnist": "lenet", "cifar10": "resnet20"}
# LeNet, without any norm, does not train at 0.1: its logits start too large.
LEARNING_RATE_OF = {"mlp": 0.1, "lenet": 0.02, "resnet8": 0.1, "resnet20": 0.1}


@dataclasses.dataclass(frozen=True)
class Config:
  """One command: a setting, and the methods and seeds to run in it."""

  dataset: str = "digits"
  methods: tuple[str, ...] = ()
  rules: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0,)
  noise: str = "pair"
  noise_rate: float = 0.45
  meta_size: int = 20
  validation_size: int = 200
  model: str | None = None  # None: MODEL_OF[dataset]
  norm: str | None = None  # None: the model's own
  batch_size: int = 100
  meta_batch_size: int | None = None  # None: DEFAULT_META_BATCH_SIZE, or all of a smaller meta set
  steps: int | None = None  # None: epochs, or DEFAULT_STEPS
  epochs: float | None = None
  finetune_steps: int = 200
  learning_rate: float | None = None  # None: LEARNING_RATE_OF[model]
  momentum: float = 0.0
  weight_decay: float = 0.0
  route: str = "forward"
  rule_options: _methods.RuleOptions = DEFAULT_RULE_OPTIONS
  eval_every: int = 50
  checkpoint_every: int = 1000
  workdir: str | None = None
  data_dir: str | None = None

  def num_steps(self, num_train: int) -> int:
    """Steps of a run over `num_train` training examples, fine-tuning not counted."""
    if self.epochs is None:
      return self.steps or DEFAULT_STEPS
    return max(1, round(self.epochs * (num_train // self.batch_size)))

  def num_meta(self) -> int:
    """Meta examples a step."""
    return self.meta_batch_size or min(DEFAULT_META_BATCH_SIZE, self.meta_size)

  def model_name(self) -> str:
    """The model, or that of the data set."""
    return self.model or MODEL_OF[self.dataset]

  def rate(self) -> float:
    """The learning rate, or that of the model."""
    return self.learning_rate or LEARNING_RATE_OF[self.model_name()]

  def run_names(self) -> tuple[str, ...]:
    """The names of the table's rows, which are folders too."""
    return ("+".join(self.rules),) if self.rules else self.methods

  def setting(self) -> dict[str, Any]:
    """What decides the numbers of a run, apart from method and seed: flag -> value, as in JSON."""
    fields = dataclasses.asdict(self)
    fields |= {"model": self.model_name(), "meta_batch_size": self.num_meta()}
    fields |= {"learning_rate": self.rate()}
    fields["steps"] = self.num_steps(0) if self.epochs is None else None
    for name in ("methods", "rules", "seeds", "checkpoint_every", "workdir", "data_dir"):
      del fields[name]
    return fields | fields.pop("rule_options")


_AT_LEAST_0 = (lambda value: value >= 0, "at least 0")
_COUNT = (lambda value: 1 <= value < 2**31, "in [1, 2^31)")
_COUNT_OR_0 = (lambda value: 0 <= value < 2**31, "in [0, 2^31)")
_ABOVE_0 = (lambda value: value > 0, "above 0")
_SHARE = (lambda value: 0 <= value <= 1, "in [0, 1]")
_BELOW_1 = (lambda value: 0 <= value < 1, "in [0, 1)")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "noise_rate": _BELOW_1,
  "meta_size": _COUNT,
  "validation_size": _COUNT_OR_0,
  "batch_size": _COUNT,
  "meta_batch_size": _COUNT,
  "steps": _COUNT,
  "epochs": _ABOVE_0,
  "finetune_steps": _COUNT,
  "learning_rate": _ABOVE_0,
  "momentum": _BELOW_1,
  "weight_decay": _AT_LEAST_0,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "focal_gamma": _AT_LEAST_0,
  "class_balanced_beta": _BELOW_1,
  "clip_max_weight": _ABOVE_0,
  "mix_share": _SHARE,
  "normalize_decay": _BELOW_1,
}


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  if config.rules and config.methods:
    raise UsageError("--rules: expected either --method or --rules, got both")
  _check_words(config)
  numbers = vars(config) | vars(config.rule_options)
  for flag, (is_good, expected) in _RANGES.items():
    _check_number(flag, numbers[flag], is_good, expected)
  for seed in config.seeds:
    _check_number("seeds", seed, *_COUNT_OR_0)
  for flag, values in (("seeds", config.seeds), ("method", config.run_names())):
    if not values:
      raise UsageError(f"--{flag}: expected at least one, got none")
    if len(set(values)) < len(values):
      raise UsageError(f"--{flag}: expected each once, got {','.join(map(str, values))}")
  if config.steps is not None and config.epochs is not None:
    raise UsageError("--epochs: expected either --steps or --epochs, got both")
  if config.noise == "none" and config.noise_rate:
    raise UsageError(f"--noise=none goes with --noise_rate=0, got {config.noise_rate}")
  if (config.meta_batch_size or 0) > config.meta_size:
    raise UsageError(
      f"--meta_batch_size: expected at most the {config.meta_size} examples of --meta_size, "
      f"got {config.meta_batch_size}"
    )


def _check_words(config: Config) -> None:
  known: dict[str, tuple[Iterable[str], Iterable[str | None]]] = {
    "dataset": (data.DATASETS, [config.dataset]),
    "method": (_methods.METHODS, config.methods),
    "rules": (_methods.RULES, config.rules),
    "noise": (data.NOISES, [config.noise]),
    "model": (rw.models.MODELS, [config.model]),
    "norm": (rw.models.NORMS, [config.norm]),
    "route": (rw.meta.ROUTES, [config.route]),
  }
  for flag, (choices, words) in known.items():
    for word in words:
      if word is not None and word not in choices:
        raise UsageError(f"--{flag}: expected one of {', '.join(choices)}; got {word!r}")


def _check_number(flag: str, value: Any, is_good: Callable[[Any], bool], expected: str) -> None:
  if value is not None and not (is_good(value) and math.isfinite(value)):
    raise UsageError(f"--{flag}: expected a number {expected}, got {value}")
