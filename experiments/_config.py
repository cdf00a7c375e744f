"""The configuration of a command, and the check that turns a wrong one into one line."""

import dataclasses
from typing import Any

import reweight_jax as rw
from experiments import _methods
from experiments._errors import UsageError
from reweight_jax import data

DEFAULT_STEPS = 600
DEFAULT_RULE_OPTIONS = _methods.RuleOptions()


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
  model: str | None = None
  norm: str | None = None
  batch_size: int = 100
  meta_batch_size: int = 20
  steps: int | None = None  # None: epochs, or DEFAULT_STEPS
  epochs: float | None = None
  finetune_steps: int = 200
  learning_rate: float = 0.1
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

  def run_names(self) -> tuple[str, ...]:
    """The names of the table's rows, which are folders too."""
    return ("+".join(self.rules),) if self.rules else self.methods


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  _check_word("dataset", config.dataset, data.DATASETS)
  for method in config.methods:
    _check_word("method", method, _methods.METHODS)
  for rule in config.rules:
    _check_word("rules", rule, _methods.RULES)
  if config.rules and config.methods:
    raise UsageError("--rules: expected either --method or --rules, got both")
  if not config.run_names():
    raise UsageError("--method: expected at least one method, got none")
  _check_word("noise", config.noise, data.NOISES)
  if config.model is not None:
    _check_word("model", config.model, rw.models.MODELS)
  if config.norm is not None:
    _check_word("norm", config.norm, rw.models.NORMS)
  _check_word("route", config.route, rw.meta.ROUTES)
  _check_range("noise_rate", config.noise_rate, 0 <= config.noise_rate < 1, "in [0, 1)")
  if config.noise == "none" and config.noise_rate:
    raise UsageError(f"--noise=none goes with --noise_rate=0, got {config.noise_rate}")
  sizes = ("meta_size", "batch_size", "meta_batch_size")
  for name in (*sizes, "finetune_steps", "eval_every", "checkpoint_every"):
    _check_range(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
  _check_range("validation_size", config.validation_size, config.validation_size >= 0, "at least 0")
  _check_range("learning_rate", config.learning_rate, config.learning_rate > 0, "above 0")
  _check_range("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
  _check_range("weight_decay", config.weight_decay, config.weight_decay >= 0, "at least 0")
  if config.steps is not None:
    _check_range("steps", config.steps, config.steps >= 1, "at least 1")
  if config.steps is not None and config.epochs is not None:
    raise UsageError("--epochs: expected either --steps or --epochs, got both")
  if config.epochs is not None:
    _check_range("epochs", config.epochs, config.epochs > 0, "above 0")
  for name, values in (("seeds", config.seeds), ("method", config.run_names())):
    if len(set(values)) < len(values):
      raise UsageError(f"--{name}: expected each once, got {','.join(map(str, values))}")


def _check_word(flag: str, word: str, known: Any) -> None:
  if word not in known:
    raise UsageError(f"--{flag}: expected one of {', '.join(known)}; got {word!r}")


def _check_range(flag: str, value: Any, is_good: bool, expected: str) -> None:
  if not is_good:
    raise UsageError(f"--{flag}: expected a number {expected}, got {value}")
