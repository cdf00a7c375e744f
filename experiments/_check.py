"""The check that turns a configuration which cannot be run into one line."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import reweight_jax as rw
from experiments import _methods
from experiments._config import PROTOCOLS, Config
from experiments._errors import UsageError
from reweight_jax import data

SCHEDULES = ("constant", "cosine", "step")
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")

_AT_LEAST_0 = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_COUNT = (lambda value: 1 <= value < 2**31, "in [1, 2^31)")
_COUNT_OR_0 = (lambda value: 0 <= value < 2**31, "in [0, 2^31)")
_ABOVE_0 = (lambda value: value > 0, "above 0")
_SHARE = (lambda value: 0 <= value <= 1, "in [0, 1]")
_BELOW_1 = (lambda value: 0 <= value < 1, "in [0, 1)")

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "noise_rate": _BELOW_1,
  "imbalance_ratio": _AT_LEAST_1,
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
  "label_smoothing": _BELOW_1,
  "mixup": _AT_LEAST_0,
  "defer_until": _BELOW_1,
  "ema_decay": _BELOW_1,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "keep": _COUNT,
  "chunk_steps": _COUNT,
  "parallel_seeds": _COUNT,
  "focal_gamma": _AT_LEAST_0,
  "class_balanced_beta": _BELOW_1,
  "clip_max_weight": _ABOVE_0,
  "mix_share": _SHARE,
  "inverse_frequency_power": (math.isfinite, "that is finite"),
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
  if list(config.decay_at) != sorted(set(config.decay_at)) or not all(
    0 < share < 1 for share in config.decay_at
  ):
    raise UsageError(
      "--decay_at: expected increasing shares of the run, each in (0, 1), such as 0.5,0.75; "
      f"got {','.join(map(str, config.decay_at))}"
    )
  _check_pairs(config)


def check_protocol(name: str) -> None:
  """Raises UsageError unless there is a protocol of the name."""
  _check_word("protocol", name, PROTOCOLS)


def _check_pairs(config: Config) -> None:
  """Flags that contradict or need each other."""
  if config.steps is not None and config.epochs is not None:
    raise UsageError("--epochs: expected either --steps or --epochs, got both")
  if not config.takes_noise_rate() and config.noise_rate:
    raise UsageError(
      f"--noise={config.noise} goes with --noise_rate=0 or none, got {config.noise_rate}"
    )
  is_human = config.noise.startswith("human:")
  if is_human and not config.human_labels:
    raise UsageError(
      f"--human_labels: expected the NPZ file that holds {config.noise.removeprefix('human:')}, "
      "such as the one of CIFAR-10N; got none"
    )
  if config.human_labels and not is_human:
    raise UsageError(
      f"--human_labels goes with a --noise such as human:worse_label, got --noise={config.noise}"
    )
  if (config.imbalance == "none") != (config.imbalance_ratio == 1):
    raise UsageError(
      "--imbalance_ratio: expected above 1 with --imbalance=long_tail or step, and none without; "
      f"got {config.imbalance_ratio:g} with --imbalance={config.imbalance}"
    )
  if (config.meta_batch_size or 0) > config.meta_size:
    raise UsageError(
      f"--meta_batch_size: expected at most the {config.meta_size} examples of --meta_size, "
      f"got {config.meta_batch_size}"
    )


def _check_words(config: Config) -> None:
  known: dict[str, tuple[Iterable[str], Iterable[str | None]]] = {
    "method": (_methods.METHODS, config.methods),
    "rules": (_methods.RULES, config.rules),
    "imbalance": (data.IMBALANCES, [config.imbalance]),
    "augment": (rw.augment.AUGMENTS, [config.augment]),
    "model": (rw.models.MODELS, [config.model]),
    "norm": (rw.models.NORMS, [config.norm]),
    "dtype": (DTYPES, [config.dtype]),
    "precision": (PRECISIONS, [config.precision]),
    "schedule": (SCHEDULES, [config.schedule]),
    "route": (rw.meta.ROUTES, [config.route]),
  }
  for flag, (choices, words) in known.items():
    for word in words:
      _check_word(flag, word, choices)
  if not config.dataset.endswith(".npz"):
    _check_word("dataset", config.dataset, (*data.DATASETS, "a file FILE.npz"))
  if not config.noise.startswith("human:"):
    _check_word("noise", config.noise, (*data.NOISES, "human:KIND"))


def _check_word(flag: str, word: str | None, choices: Iterable[str]) -> None:
  if word is not None and word not in choices:
    raise UsageError(f"--{flag}: expected one of {', '.join(choices)}; got {word!r}")


def _check_number(flag: str, value: Any, is_good: Callable[[Any], bool], expected: str) -> None:
  if value is not None and not (is_good(value) and math.isfinite(value)):
    raise UsageError(f"--{flag}: expected a number {expected}, got {value}")
