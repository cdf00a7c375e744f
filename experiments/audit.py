"""Which labels of a data set look wrong? A ranked ledger, a report to look at, weights to train by.

    python -m experiments.audit --dataset=FOLDER_OR_FILE_OR_NAME --workdir=audit
    python -m experiments.audit --dataset=digits --corrupt=symmetric:0.1 --workdir=audit_digits

Reads a folder of class folders of images, an NPZ file or a data set by name; trains one network on
all examples and an ensemble whose members each see a part of them; and writes report.html, to be
looked at, ledger.csv and ledger.npz with every example by suspicion, gallery.png, scores.png, and
weights.npz, which `cifar_noisy` and others train by with --example_weights=FILE. The same command
goes on where it was stopped. --corrupt puts known noise in first and tells how well it is found.
Expected of the second command: AUROC above 0.99, in about a minute on two cores. Of 10,000 images
of 28 by 28 half an hour; 20 networks in all.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import reweight_jax as rw
from experiments import (
  _audit_config,
  _audit_data,
  _audit_ledger,
  _audit_report,
  _command,
  _errors,
  _flags,
  _measures,
  _parts,
  _progress,
  _workdir,
)
from experiments._audit_config import AuditConfig
from experiments._audit_data import Examples
from experiments._errors import UsageError
from reweight_jax import data, difficulty, runlog

SMALLEST_FOR = {"mlp": 0, "lenet": 17, "resnet8": 41}  # larger side of the images, by model
LEARNING_RATE_OF = {"mlp": 0.03, "lenet": 0.01}
DEFAULT = AuditConfig()
PASSES, MIN_STEPS, MAX_STEPS = 20, 300, 5000


class Plan(NamedTuple):
  """An audit that can be run: everything that can be wrong with it has been looked at."""

  config: AuditConfig
  examples: Examples
  model: str
  net: _measures.Net
  setting: _measures.Setting
  held_out: int  # networks that did not see an example, at the least


def plan(config: AuditConfig) -> Plan:
  """Reads the data and looks at everything that may be wrong; writes nothing.

  Raises:
    UsageError: for a setting that cannot be run.
    DataError: if the data cannot be read.
  """
  _audit_config.check(config)
  examples = _audit_data.load(config)
  num_examples, shape = len(examples.rows), examples.dataset.train_inputs.shape[1:]
  if shape[-1] not in (1, 3) or len(shape) != 3:
    raise UsageError(f"--dataset: expected images of 1 or 3 channels, got shape {list(shape)}")
  counts = np.bincount(examples.labels, minlength=examples.dataset.num_classes)
  if np.sum(counts > 0) < 2:
    raise UsageError(f"--dataset: expected at least 2 classes, got {np.sum(counts > 0)}")
  if (counts == 1).any():
    name = examples.dataset.class_names[int(np.argmax(counts == 1))]
    raise UsageError(
      f"--dataset: expected at least 2 examples of each class, got 1 of {name}: networks that do "
      "not see it cannot know its class; add some, leave it out, or raise --max_examples"
    )
  for flag, most in (("neighbors", num_examples - 1), ("batch_size", num_examples)):
    if getattr(config, flag) > most:
      raise UsageError(
        f"--{flag}: expected at most {most} with {num_examples} examples, got "
        f"{getattr(config, flag)}"
      )
  try:
    masks = difficulty.subset_masks(
      num_examples, config.members, keep=config.keep, seed=config.seed
    )
  except ValueError as error:
    raise UsageError(f"--members: {error}") from error
  side = max(shape[:2])
  model = config.model or [name for name, least in SMALLEST_FOR.items() if side >= least][-1]
  norm = config.norm or ("group" if "res" in model or "wrn" in model else None)
  try:
    module = rw.models.build(model, examples.dataset.num_classes, norm=norm)
  except ValueError as error:
    raise UsageError(f"--norm: {error}") from error
  steps = min(max(PASSES * num_examples // config.batch_size, MIN_STEPS), MAX_STEPS)
  setting = _measures.Setting(
    members=config.members,
    keep=config.keep,
    steps=config.steps or steps,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate or LEARNING_RATE_OF.get(model, 0.05),
    momentum=config.momentum,
    weight_decay=config.weight_decay,
    early_networks=0,
    snapshots=0,
    neighbors=config.neighbors,
    members_at_once=config.members_at_once,
  )
  held_out = int((~masks).sum(axis=0).min())
  return Plan(config, examples, model, _measures.make_net(module, shape), setting, held_out)


def run(config: AuditConfig) -> dict[str, Any]:
  """Audits a data set and writes the files.

  Returns:
    "ledger", its columns; "counts" of calls; "quality" of the measures, where the truth is known.

  Raises:
    UsageError: before anything is written, if a setting or the workdir does not fit.
    DataError: if the data cannot be read.
    DivergedError: if a network's params are not finite.
  """
  planned = plan(config)
  folder = config.path()
  with _command.at_work_in(folder):
    ledger = _audit_ledger.make(_measure(planned, folder), *_known(planned.examples))
    return _write(planned, folder, ledger)


def _known(examples: Examples) -> tuple[Any, ...]:
  ids = examples.dataset.train_ids[examples.rows]
  return examples.labels, examples.rows, ids, examples.true_labels


def _measure(planned: Plan, folder: pathlib.Path) -> _measures.Measured:
  """All scores, part by part in a folder of their own."""
  config, examples, setting = planned.config, planned.examples, planned.setting
  images = examples.dataset.train_inputs[examples.rows]
  inputs = np.asarray(rw.models.scale_uint8(images))
  embedding = _audit_data.small(inputs).reshape(len(inputs), -1)
  num_classes = examples.dataset.num_classes
  subject = _measures.Subject(inputs, examples.labels, num_classes, embedding)
  made_of = dataclasses.asdict(setting)
  made_of |= {"model": planned.model, "norm": config.norm, "seed": config.seed}
  made_of |= {"examples": _audit_data.digest(images, examples.labels)}
  parts = _parts.Parts(folder / "parts", made_of)
  with _progress.Progress(setting.total_steps()) as progress:
    found = _measures.measure(subject, planned.net, setting, config.seed, parts, progress)
    progress.end()
  return found


def _write(planned: Plan, folder: pathlib.Path, ledger: _audit_ledger.Ledger) -> dict[str, Any]:
  """All files but the parts, and what `run` returns."""
  config, examples, setting = planned.config, planned.examples, planned.setting
  dataset, names = examples.dataset, examples.dataset.class_names
  table = _audit_ledger.columns(ledger, names, examples.files)
  _audit_ledger.write(folder, table)
  ratio = _audit_ledger.weights(ledger, config.weights, len(dataset.train_ids))
  runlog.write_npz(folder / "weights.npz", {"index": dataset.train_ids, "ratio": ratio})
  quality = _audit_ledger.quality(ledger, config.top, setting)
  calls = _audit_ledger.call_quality(ledger)
  counts = {kind or "neither": int((ledger.kind == kind).sum()) for kind in ("noise", "rare", "")}
  story = _audit_report.Story(
    _title(planned),
    _facts(planned),
    dataclasses.asdict(config),
    _workdir.versions(),
    examples.files,
    quality,
    calls,
    _weights_in_words(config),
  )
  summary: dict[str, Any] = {
    "settings": story.settings,
    "facts": story.facts,
    "versions": story.versions,
  }
  summary |= {"counts": counts, "calls": calls, "quality": quality}
  runlog.write_json(folder / "summary.json", summary)
  _audit_report.draw(folder, ledger, dataset.train_inputs, names)
  _audit_report.write(folder, ledger, dataset.train_inputs, names, story, config.top)
  return {"ledger": table, "counts": counts, "calls": calls, "quality": quality, "story": story}


def _title(planned: Plan) -> str:
  config, noise = planned.config, ""
  if config.corrupt:
    noise = f" with {config.corrupt.replace(':', ' noise ')}"
  elif config.human_labels is not None:
    noise = f" with {config.noise}"
  return planned.examples.dataset.name + noise


def _facts(planned: Plan) -> dict[str, str]:
  """What was looked at, and how, in words."""
  config, examples, setting = planned.config, planned.examples, planned.setting
  looked_at, total = len(examples.rows), len(examples.dataset.train_labels)
  part = f"{looked_at} of {total}, as many of each class in proportion"
  facts = {"Examples": str(total) if looked_at == total else part}
  facts["Images"] = examples.size_in_words
  facts["Networks"] = (
    f"{setting.members} of {planned.model}, each trained for {setting.steps} steps of "
    f"{setting.batch_size} examples, on {100 * setting.keep:g} % of all, so that any one "
    f"was held out by at least {planned.held_out}; and one more, trained on all"
  )
  if examples.true_labels is not None:
    rate = float(np.mean(examples.true_labels != examples.labels))
    source = config.corrupt or config.noise
    facts["Wrong labels that are known"] = f"{100 * rate:.1f} %, by {source}"
  return facts


def _weights_in_words(config: AuditConfig) -> str:
  if config.weights == "drop":
    return "0 for what is called wrong, 1 for all else"
  return f"{config.weights.replace('_', ' ')} by score, largest to smallest 10, 1 on average"


def define_flags(values: flags.FlagValues) -> None:
  """The flags, with their defaults in their help."""

  def define(kind: Any, name: str, words: str, shown: Any = None) -> None:
    default = getattr(DEFAULT, name, None) if shown is None else shown
    ending = "" if default is None else f"; default {default}"
    kind(name, None, words + ending, flag_values=values)

  text, whole, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
  known = ", ".join(data.DATASETS)
  define(text, "dataset", f"one of {known}, a file FILE.npz, or a folder of class folders")
  define(text, "data_dir", "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  most = f"the most common, made smaller above {_audit_data.LARGEST_SIDE}"
  define(text, "image_size", "of a folder: HEIGHT,WIDTH or one number for both", most)
  define(whole, "max_examples", "look at so many, drawn by class; default all")
  define(text, "corrupt", "KIND:RATE of noise to put in, to test the tool, as symmetric:0.1")
  define(text, "noise", "human:KIND, labels of --human_labels in place of the data set's")
  define(text, "human_labels", "NPZ file of label vectors by original number, for human:KIND")
  define(text, "model", f"one of {', '.join(rw.models.MODELS)}; default by the images' size")
  define(text, "norm", "group or none; default the model's own, group for batch")
  define(whole, "members", "networks of the ensemble, each trained on a part of the examples")
  define(number, "keep", "that part, in (0, 1)")
  steps = f"{PASSES} passes over the examples, from {MIN_STEPS} to {MAX_STEPS} steps"
  define(whole, "steps", "steps of each network", steps)
  define(whole, "batch_size", "examples a step")
  define(number, "learning_rate", "of SGD; default by model")
  define(number, "momentum", "of SGD")
  define(number, "weight_decay", "L2 penalty's factor")
  define(whole, "neighbors", "nearest examples whose labels are looked at")
  define(whole, "members_at_once", "networks trained together and then saved")
  define(whole, "seed", "of everything random")
  define(whole, "top", "examples shown in the report's table")
  words = ", ".join(_audit_config.WEIGHTS)
  define(text, "weights", f"what weights.npz holds, by score one of {words}")
  define(text, "workdir", "folder of the results; default runs/audit_NAME")
  define(text, "compilation_cache", "folder of compiled programs, or none", "~/.cache/reweight_jax")
  flags.DEFINE_bool("deterministic", False, "bit for bit the same on a GPU", flag_values=values)


def config_of(values: flags.FlagValues) -> AuditConfig:
  """The configuration that the flags ask for."""
  given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  if "image_size" in given:
    sides = given["image_size"].split(",")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
      raise UsageError(
        "--image_size: expected HEIGHT,WIDTH or one number for both, such as 32; got "
        f"{given['image_size']!r}"
      )
    given["image_size"] = (int(sides[0]), int(sides[-1]))
  names = {field.name for field in dataclasses.fields(AuditConfig)}
  return AuditConfig(**{name: value for name, value in given.items() if name in names})


def main(values: flags.FlagValues) -> None:
  """Runs the audit and prints what it found."""
  config = config_of(values)
  _flags.apply_process_flags(values)
  found = run(config)
  story, counts = found["story"], found["counts"]
  total = sum(counts.values())
  print(f"{counts['noise']} of {total} labels of {story.title} look wrong, {counts['rare']} rare.")
  for name, words in story.facts.items():
    print(f"{name}: {words}")
  if found["quality"]:
    head, *rows = _audit_ledger.quality_rows(found["quality"], config.top)
    lines = [head, ["---"] * len(head), *rows]
    print("\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    calls = found["calls"]
    print(f"Called wrong: precision {calls['precision']:.3f}, recall {calls['recall']:.3f}.")
  print(f"To look at: {config.path() / 'report.html'}; weights: {config.path() / 'weights.npz'}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
