"""The flags of an experiment's command, and the configuration that they ask for."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import flags

import reweight_jax as rw
from experiments import _check, _meta, _methods
from experiments._config import PROTOCOLS, Config, with_protocol
from experiments._errors import UsageError
from experiments._rule_options import RuleOptions
from reweight_jax import data

DEFAULT = Config(methods=("ce", "l2rw"))
"""The configuration of a command without flags."""


def define_flags(
  values: flags.FlagValues, default: Config = DEFAULT, without: Collection[str] = ()
) -> None:
  """The flags; one that is not given takes the protocol's value, else the default's.

  Args:
    values: where they are defined.
    default: the configuration of the command without flags.
    without: names of flags that the command does not have.
  """
  words = lambda known: f"one of {', '.join(known)}"
  text, whole, number = (
    functools.partial(_define, values, without, define)
    for define in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float)
  )
  text("protocol", f"a setting by name, {words(PROTOCOLS)}; flags beside it win")
  known = f"{words(data.DATASETS)}, a file FILE.npz, or a folder of images"
  text("dataset", known, default.dataset)
  text("data_dir", "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  text("method", f"list of {', '.join(_methods.METHODS)}; default {','.join(default.methods)}")
  text("rules", f"instead of --method, a chain of {', '.join(_methods.RULES)}")
  text("seeds", "list of whole numbers, one run each", ",".join(map(str, default.seeds)))
  text("noise", f"{words(data.NOISES)}, or human:KIND", default.noise)
  number("noise_rate", "share of the labels to corrupt, in [0, 1); default 0.45")
  text("human_labels", "NPZ file of label vectors by original number, for human:KIND")
  text("imbalance", f"of training and validation, {words(data.IMBALANCES)}", default.imbalance)
  number("imbalance_ratio", "largest class to smallest, at least 1", default.imbalance_ratio)
  whole("meta_size", "clean examples, stratified by class", default.meta_size)
  whole("validation_size", "noisy examples for selection", default.validation_size)
  whole("train_size", "training examples; default all that meta and validation leave")
  text("augment", f"{words(rw.augment.AUGMENTS)}; default paper for CIFAR, else none")
  text("model", f"{words(rw.models.MODELS)}; default by data set")
  text("norm", f"{words(rw.models.NORMS)}; default the model's own")
  text("dtype", f"of hidden layers, {words(_check.DTYPES)}", default.dtype)
  text("precision", f"of float32 products, {words(_check.PRECISIONS)}", default.precision)
  whole("batch_size", "training examples a step", default.batch_size)
  whole("meta_batch_size", "clean examples a step; default 20, or all of fewer")
  whole("steps", "steps of a run; default 600")
  number("epochs", "instead of --steps, passes over the training set")
  whole("finetune_steps", "steps on the clean set after ce", default.finetune_steps)
  number("learning_rate", "of SGD, a tenth of it fine-tunes; default by model, 0.1 for most")
  text("schedule", f"of the learning rate, {words(_check.SCHEDULES)}", default.schedule)
  text("decay_at", "shares of the run where schedule step takes a tenth", "0.5,0.75")
  number("momentum", "of SGD", default.momentum)
  number("weight_decay", "L2 penalty's factor, on kernels alone", default.weight_decay)
  number("label_smoothing", "share of the label spread over all classes", default.label_smoothing)
  number("mixup", "alpha of mixup; 0 is none", default.mixup)
  number("defer_until", "share of the run after which deferred methods act", default.defer_until)
  text("reference", "WORKDIR/METHOD of finished runs that rho, jtt and label_shift build on")
  text("importance_file", "NPZ file with arrays index and ratio, for importance_ratio")
  text("example_weights", "such a file, as audit writes it; alone it means --method=importance")
  number("ema_decay", "evaluate a moving average of the params; default none")
  text("route", f"to the meta-gradient, {words(rw.meta.ROUTES)}", default.route)
  text("virtual_optimizer", f"of the virtual step, {words(_meta.VIRTUAL_OPTIMIZERS)}; by method")
  whole("virtual_steps", "virtual steps on the batch, by --route=nested", default.virtual_steps)
  whole("meta_every", "steps between meta batches, for l2rw", default.meta_every)
  text("meta_layers", "of the meta-gradient: last, or a list of layers' names; default all")
  text("meta_labels", f"of the meta set, {words(_meta.LABELS)}", default.meta_labels)
  text("meta_loss", f"of the meta set, {words(_meta.LOSSES)}", default.meta_loss)
  whole("eval_every", "steps between evaluations", default.eval_every)
  whole("checkpoint_every", "steps between checkpoints", default.checkpoint_every)
  whole("keep", "newest checkpoints kept, beside the best one", default.keep)
  whole("chunk_steps", "steps in one program; default 1 on CPU, 100 elsewhere")
  whole("parallel_seeds", "seeds side by side; default 1 on CPU, elsewhere as many as fit")
  text("workdir", "folder of the results; default runs/SETTING")
  text("compilation_cache", "folder of compiled programs, or none", "~/.cache/reweight_jax")
  _define_rule_options(values, without, default.rule_options)
  switch = functools.partial(_define, values, without, flags.DEFINE_bool)
  switch("resume", "go on with runs that the workdir holds; else refuse it", default.resume)
  switch("pictures", "draw each run's plots", default.pictures)
  flags.DEFINE_bool(
    "deterministic", False, "bit for bit the same on a GPU, slower", flag_values=values
  )


def config_of(values: flags.FlagValues, default: Any = DEFAULT) -> Any:
  """The configuration that the flags ask for, of the default's type."""
  given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  if "protocol" in given:
    _check.check_protocol(given["protocol"])
  if "rules" in given:
    given.setdefault("methods", ())
  if "method" in given:
    given["methods"] = _split(given["method"])
  lists = [
    ("rules", str, ""),
    ("meta_layers", str, ""),
    ("seeds", int, "0,1"),
    ("decay_at", float, ".5"),
  ]
  lists += [(name, float, "0,2.5") for name in _option_lists()]
  for name, kind, example in lists:
    if name in given:
      given[name] = tuple(_parsed(name, part, kind, example) for part in _split(given[name]))
  _take_example_weights(given)
  for flag, other in (("epochs", "steps"), ("steps", "epochs")):
    if flag in given and other not in given:
      given[other] = None  # that of the protocol gives way
  given = with_protocol(given.get("protocol"), given)
  options = _fields_of(RuleOptions, given)
  given["rule_options"] = dataclasses.replace(default.rule_options, **options)
  return dataclasses.replace(default, **_fields_of(type(default), given))


def _take_example_weights(given: dict[str, Any]) -> None:
  """The file of --example_weights is that of importance ratios, and asks for their method."""
  path = given.pop("example_weights", None)
  if path is None:
    return
  if "importance_file" in given:
    raise UsageError("--example_weights: expected this or --importance_file, got both")
  if "methods" not in given:
    given["methods"] = ("importance",)
  names = {*given["methods"], *given.get("rules", ())}
  if not names & {"importance", *_methods.NEEDS_RATIOS}:
    raise UsageError(
      "--example_weights: expected the method importance, or the rule importance_ratio, to read "
      f"them, got {', '.join(sorted(names))}; add it, or leave --method and --rules out"
    )
  given["importance_file"] = path


def numbers(flag: str, text: str) -> tuple[float, ...]:
  """The numbers of a flag that lists them.

  Raises:
    UsageError: if one of them is no number, or none that float32 can hold.
  """
  found = tuple(_parsed(flag, part, float, "0.5,0.9") for part in _split(text))
  for number in found:
    _check.check_float32(flag, number)
  return found


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
  """The whole numbers of a flag that lists them.

  Raises:
    UsageError: if one of them is none.
  """
  return tuple(_parsed(flag, part, int, "0,1") for part in _split(text))


def apply_process_flags(values: flags.FlagValues) -> None:
  """Sets up JAX for the process: the cache of compiled programs, deterministic operations.

  Must be called before JAX has started a backend.
  """
  if values.deterministic:
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  folder = values.compilation_cache or "~/.cache/reweight_jax"
  if folder == "none" or jax.config.values["jax_compilation_cache_dir"]:
    return
  place = pathlib.Path(folder).expanduser()
  try:
    place.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    if values.compilation_cache:
      raise UsageError(
        f"--compilation_cache: cannot write to {place} ({error.strerror}); "
        "give another folder, or none"
      ) from error
    return  # a home that cannot be written to is no reason not to train
  jax.config.update("jax_compilation_cache_dir", str(place))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _define_rule_options(
  values: flags.FlagValues, without: Collection[str], default: RuleOptions
) -> None:
  """A flag for each number of a rule; which method or rule reads it is told by its name."""
  for field in dataclasses.fields(RuleOptions):
    value, known = getattr(default, field.name), field.metadata
    define: Any = flags.DEFINE_float
    if "words" in known or field.name in _option_lists():
      define = flags.DEFINE_string
    elif isinstance(value, int):
      define = flags.DEFINE_integer
    words = f", one of {', '.join(known['words'])}" if "words" in known else ""
    shown = value if field.name not in _option_lists() else None
    _define(values, without, define, field.name, known["help"] + words, shown)


def _option_lists() -> list[str]:
  fields = dataclasses.fields(RuleOptions)
  return [field.name for field in fields if isinstance(field.default, tuple)]


def _define(
  values: flags.FlagValues,
  without: Collection[str],
  define: Any,
  name: str,
  help_text: str,
  default: Any = None,
) -> None:
  if name in without:
    return
  # Without a value of its own a flag can tell whether it was given.
  shown = "" if default is None else f"; default {default}"
  define(name, None, help_text + shown, flag_values=values)


def _fields_of(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
  names = {field.name for field in dataclasses.fields(kind)}
  return {name: value for name, value in given.items() if name in names}


def _split(text: str) -> tuple[str, ...]:
  return tuple(part.strip() for part in text.split(",") if part.strip())


def _parsed(flag: str, text: str, kind: Any, example: str) -> Any:
  try:
    return kind(text)
  except ValueError as error:
    kinds = "whole numbers" if kind is int else "numbers"
    raise UsageError(f"--{flag}: expected {kinds} such as {example}; got {text!r}") from error
