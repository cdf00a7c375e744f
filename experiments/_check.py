"""The check that turns a configuration which cannot be run into one line."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import reweight_jax as rw
from experiments import _meta, _methods
from experiments._config import PROTOCOLS, Config
from experiments._errors import UsageError
from experiments._rule_options import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, DECAY, Range
from reweight_jax import data

SCHEDULES = ("constant", "cosine", "step")
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")

_COUNT = Range(lambda value: 1 <= value < 2**31, "in [1, 2^31)")
_COUNT_OR_0 = Range(lambda value: 0 <= value < 2**31, "in [0, 2^31)")

_RANGES: dict[str, Range] = {
  "noise_rate": BELOW_1,
  "imbalance_ratio": AT_LEAST_1,
  "meta_size": _COUNT,
  "validation_size": _COUNT_OR_0,
  "train_size": _COUNT,
  "batch_size": _COUNT,
  "meta_batch_size": _COUNT,
  "steps": _COUNT,
  "epochs": Range(lambda value: 0 < value <= 1e6, "above 0 and at most 1000000"),
  "finetune_steps": _COUNT,
  "learning_rate": ABOVE_0,
  "momentum": DECAY,
  "weight_decay": AT_LEAST_0,
  "label_smoothing": BELOW_1,
  "mixup": AT_LEAST_0,
  "defer_until": BELOW_1,
  "ema_decay": DECAY,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "keep": _COUNT,
  "chunk_steps": _COUNT,
  "virtual_steps": _COUNT,
  "meta_every": _COUNT,
  "parallel_seeds": _COUNT,
}


def check(config: Config) -> None:
  """Raises UsageError, one line, for the first setting that cannot be run."""
  is_path = config.dataset.endswith(".npz") or pathlib.Path(config.dataset).is_dir()
  if not (config.dataset and is_path):  # the empty path is the folder that one is in
    known = (*data.DATASETS, "a file FILE.npz", "a folder of class folders of images")
    _check_word("dataset", config.dataset, known)
  check_numbers(config)


def check_numbers(config: Config) -> None:
  """The same, whatever the data set is."""
  if config.rules and config.methods:
    raise UsageError("--rules: expected either --method or --rules, got both")
  _check_words(config)
  for flag, (is_good, expected) in _RANGES.items():
    _check_number(flag, getattr(config, flag), is_good, expected)
  _check_rule_options(config)
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
  _meta.check(config, _rules(config))


def _check_rule_options(config: Config) -> None:
  options = config.rule_options
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if "words" in field.metadata:
      _check_word(field.name, value, field.metadata["words"])
      continue
    for number in value if isinstance(value, tuple) else (value,):
      _check_number(field.name, number, *field.metadata["range"])
  for rule in _rules(config):
    needed = _methods.NEEDS_OPTIONS.get(rule)
    if needed and not getattr(options, needed):
      raise UsageError(f"--{needed}: expected a number for each class for {rule}, got none")
  if options.self_paced_form == "logarithmic" and options.self_paced_threshold >= 1:
    raise UsageError(
      "--self_paced_threshold: expected a number below 1 with --self_paced_form=logarithmic, got "
      f"{options.self_paced_threshold:g}"
    )
  for low, high in (("self_paced_low", "self_paced_high"), ("quantiles_low", "quantiles_high")):
    if getattr(options, low) >= getattr(options, high):
      raise UsageError(
        f"--{high}: expected a number above the {getattr(options, low):g} of --{low}, got "
        f"{getattr(options, high):g}"
      )
  by_nats = [rule for rule in config.rules if rule in _methods.IN_NATS]
  on_margins = sorted(_methods.ON_UNIT_MARGIN & _rules(config))
  if by_nats and on_margins:
    raise UsageError(
      f"--rules: {by_nats[0]} reads losses in nats, but {on_margins[0]} trains on margins, where "
      "its numbers mean nothing: leave one of them out"
    )
  mixed = config.label_smoothing or config.mixup
  has_loss = any(_methods.METHODS[name].loss for name in config.methods)
  if mixed and (has_loss or on_margins):
    raise UsageError(
      "--label_smoothing and --mixup go with losses on cross-entropy; methods on the margin "
      "(derivative manipulation, polynomial_tail) or with a loss of their own know no soft labels: "
      "leave them out"
    )


def _rules(config: Config) -> set[str]:
  """The rules of all methods that the configuration asks for."""
  if config.rules:
    return set(config.rules)
  return {rule for name in config.methods for rule in _methods.METHODS[name].rules}


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
    "virtual_optimizer": (_meta.VIRTUAL_OPTIMIZERS, [config.virtual_optimizer]),
    "meta_labels": (_meta.LABELS, [config.meta_labels]),
    "meta_loss": (_meta.LOSSES, [config.meta_loss]),
  }
  for flag, (choices, words) in known.items():
    for word in words:
      _check_word(flag, word, choices)
  if not config.noise.startswith("human:"):
    _check_word("noise", config.noise, (*data.NOISES, "human:KIND"))


def _check_word(flag: str, word: str | None, choices: Iterable[str]) -> None:
  if word is not None and word not in choices:
    raise UsageError(f"--{flag}: expected one of {', '.join(choices)}; got {word!r}")


def _check_number(flag: str, value: Any, is_good: Callable[[Any], bool], expected: str) -> None:
  if value is None:
    return
  if not is_good(value) or abs(value) == math.inf:
    raise UsageError(f"--{flag}: expected a number {expected}, got {value}")
  check_float32(flag, value)


def check_float32(flag: str, number: float) -> None:
  """Raises UsageError for NaN, infinities and what overflows or vanishes in float32."""
  limits = np.finfo(np.float32)
  if number and not float(limits.tiny) <= abs(number) <= float(limits.max):
    raise UsageError(f"--{flag}: expected numbers that float32 can hold, got {number:g}")
