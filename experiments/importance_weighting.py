"""When do the weights of examples matter? Each claim is a study that can come out negative.

    python -m experiments.importance_weighting --study=all
    python -m experiments.importance_weighting --study=forgetting_law,weak_l2 --workdir=runs/two

Every study prints its claim, what it predicts, what was measured and a verdict, which is computed
from tolerances that stand in the study, and writes NAME.png and NAME.json, with all numbers, seeds,
flags and the commit. What they show together: docs/importance_weighting.md. Seeds are fixed: 8
problems for linear models, 3 for nets. The synthetic studies need no data, and about two minutes.

`byrd_lipton` trains small nets on cats against dogs of CIFAR-10 (prepared by
`experiments.prepare_data`), about forty minutes of one core; a run of it that was stopped goes
on where it was. Without the data `all` leaves it out and says so. On a GPU the sizes of the paper:

    python -m experiments.importance_weighting --study=byrd_lipton --byrd_lipton_images=5000 \
      --byrd_lipton_width=64 --byrd_lipton_epochs=1000 --byrd_lipton_test_images=2000 \
      --byrd_lipton_ratios=256,64,16,4,1,0.25,0.0625,0.015625,0.00390625
"""

import dataclasses
import pathlib
import platform
import textwrap
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from absl import flags

from experiments import _command, _errors, _flags, _pictures, _workdir
from experiments._errors import UsageError
from experiments.importance_studies import (
  band,
  byrd_lipton,
  cats_dogs,
  dual,
  learned,
  linear,
  minima,
  moons,
  two_points,
)
from experiments.importance_studies.finding import Finding
from reweight_jax import data, runlog
from reweight_jax.data import tfds_folder

SYNTHETIC: dict[str, Callable[[], Finding]] = {
  "forgetting_law": two_points.forgetting_law,
  "polynomial_tail": two_points.polynomial_tail,
  "direction_invariance": linear.direction_invariance,
  "non_separable": minima.non_separable,
  "weak_l2": minima.weak_l2,
  "dual_and_kl": dual.dual_and_kl,
  "homogeneous_mlp": moons.homogeneous_mlp,
  "regularization": moons.regularization,
  "logit_band": band.logit_band,
  "learned_weights": learned.learned_weights,
}
"""The studies that need no data, by name."""

ON_IMAGES = "byrd_lipton"
GROUPS = {"all": (*SYNTHETIC, ON_IMAGES), "synthetic": tuple(SYNTHETIC)}
ROOT = "runs/importance_weighting"
WIDEST = 1024  # channels
SIZES = {"byrd_lipton": (16.0, 7.0)}  # of figures, inches
OPTIONS = {
  "images": "training images of each class",
  "epochs": "passes over them",
  "batch_size": "images a step",
  "width": "channels of the first convolution",
  "test_images": "images of cats and dogs to test on, and as many of other classes",
  "learning_rate": "of SGD without momentum",
  "l2": "strength of L2 in the configuration l2",
}


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """What to run."""

  studies: tuple[str, ...] = ("all",)
  workdir: str = ROOT
  data_dir: str | None = None
  images: cats_dogs.Options = dataclasses.field(default_factory=cats_dogs.Options)


def check(config: StudyConfig) -> tuple[str, ...]:
  """The studies to run, each once, in the order of the list above.

  Raises:
    UsageError: for an unknown study, or an option that cannot be run.
  """
  known = (*SYNTHETIC, ON_IMAGES)
  for name in config.studies:
    if name not in known and name not in GROUPS:
      raise UsageError(
        f"--study: expected one or more of {', '.join([*GROUPS, *known])}; got {name!r}"
      )
  if not config.studies:
    raise UsageError(f"--study: expected one or more of {', '.join([*GROUPS, *known])}; got none")
  _check_images(config.images)
  asked = {name for given in config.studies for name in GROUPS.get(given, (given,))}
  return tuple(name for name in known if name in asked)


def _check_images(options: cats_dogs.Options) -> None:
  for name in OPTIONS:
    value, least = getattr(options, name), 0 if name == "l2" else 1
    is_good = value >= least if name != "learning_rate" else value > 0
    if not is_good or not np.isfinite(value):
      words = "a number > 0" if name == "learning_rate" else f"at least {least}"
      raise UsageError(f"--byrd_lipton_{name}: expected {words}, got {value}")
  if options.width > WIDEST:
    raise UsageError(f"--byrd_lipton_width: expected at most {WIDEST}, got {options.width}")
  if options.images > 5000:
    raise UsageError(
      f"--byrd_lipton_images: expected at most the 5000 of a class, got {options.images}"
    )
  if options.test_images > 2000:
    raise UsageError(
      f"--byrd_lipton_test_images: expected at most the 2000 there are, got {options.test_images}"
    )
  if options.batch_size > 2 * options.images:
    raise UsageError(
      f"--byrd_lipton_batch_size: expected at most the {2 * options.images} training images, got "
      f"{options.batch_size}"
    )
  whole = "whole and in [0, 2^31)"
  _command.check_numbers("byrd_lipton_seeds", options.seeds, lambda s: 0 <= s < 2**31, whole)
  words = "> 0, at least two of them, such as 16,1,0.0625"
  _command.check_numbers("byrd_lipton_ratios", options.ratios, lambda r: 0 < r < np.inf, words)
  if len(options.ratios) < 2:
    raise UsageError(f"--byrd_lipton_ratios: expected numbers {words}; got {options.ratios[0]:g}")
  wrong = [name for name in options.configurations if name not in cats_dogs.CONFIGURATIONS]
  if wrong or not options.configurations:
    raise UsageError(
      "--byrd_lipton_configurations: expected one or more of "
      f"{', '.join(cats_dogs.CONFIGURATIONS)}; got {wrong[0] if wrong else 'an empty list'}"
    )


def run(config: StudyConfig) -> dict[str, Finding]:
  """Runs the studies and writes what they found, each as soon as it is done.

  Raises:
    UsageError: before anything runs, if an option or the workdir does not fit.
    DataError: if `byrd_lipton` was asked for by name and its data cannot be read.
  """
  names, root = check(config), pathlib.Path(config.workdir)
  findings: dict[str, Finding] = {}
  seconds: dict[str, float] = {}
  left_out = _missing_data(config) if ON_IMAGES in names else None
  if left_out:
    names = tuple(name for name in names if name != ON_IMAGES)
  with _command.at_work_in(root):
    for name in names:
      print(f"\n## {name}", flush=True)
      start = time.monotonic()
      if name == ON_IMAGES:
        found = byrd_lipton.study(config.images, config.data_dir, root / "byrd_lipton_runs")
      else:
        found = SYNTHETIC[name]()
      seconds[name], findings[name] = time.monotonic() - start, found
      print(f"{found.text()}\n({seconds[name]:.0f} s)", flush=True)
      _write(root, config, name, found, seconds[name])
    if left_out:
      print(f"\n## {ON_IMAGES}\nnot run: {left_out}")
    runlog.write_text(root / "summary.md", table(findings))
  return findings


def _missing_data(config: StudyConfig) -> str | None:
  """Why `all` leaves out the study on images; raises if that was asked for by name."""
  try:
    tfds_folder.find_folder("cifar10", data.default_folder(config.data_dir))
  except data.DataError as error:
    if ON_IMAGES in config.studies:
      raise
    return str(error)
  return None


def _write(
  root: pathlib.Path, config: StudyConfig, name: str, found: Finding, seconds: float
) -> None:
  asked: dict[str, Any] = {"study": config.studies}
  if name == ON_IMAGES:
    options = dataclasses.asdict(config.images)
    asked |= {f"byrd_lipton_{flag}": value for flag, value in options.items()}
  others = {"numpy": np.__version__, "scipy": scipy.__version__}
  made = {
    "flags": asked,
    "seconds": round(seconds, 1),
    "versions": _workdir.versions() | others,  # with the commit
    "python": platform.python_version(),
  }
  runlog.write_json(root / f"{name}.json", {"study": name, **found.record(), **made})
  figure = _pictures._figure(*SIZES.get(name, (7.5, 5)))
  found.draw(figure)
  title = f"{found.claim} ({found.verdict})"
  width = 80 if name not in SIZES else 150
  _pictures._save(figure, root / f"{name}.png", textwrap.fill(title, width))


def table(findings: dict[str, Finding]) -> str:
  """Name, claim and verdict of every study, as Markdown."""
  lines = ["| study | claim | verdict |", "| --- | --- | --- |"]
  lines += [f"| {name} | {found.claim} | {found.verdict} |" for name, found in findings.items()]
  return "\n".join(lines) + "\n"


def define_flags(values: flags.FlagValues) -> None:
  """The flags of the command; one that is not given takes the default."""
  text = lambda name, value, words: flags.DEFINE_string(name, value, words, flag_values=values)
  names = ", ".join([*GROUPS, *SYNTHETIC, ON_IMAGES])
  text("study", "all", f"list of {names}")
  text("workdir", ROOT, "folder of the results")
  text("data_dir", None, "folder of tensorflow-datasets; default $TFDS_DATA_DIR")
  text("compilation_cache", "~/.cache/reweight_jax", "folder of compiled programs, or none")
  flags.DEFINE_bool("deterministic", False, "bit for bit the same on a GPU", flag_values=values)
  default = cats_dogs.Options()
  for name, words in OPTIONS.items():
    value = getattr(default, name)
    define = flags.DEFINE_integer if isinstance(value, int) else flags.DEFINE_float
    define(f"byrd_lipton_{name}", value, words, flag_values=values)
  ratios = ",".join(f"{ratio:g}" for ratio in default.ratios)
  text("byrd_lipton_ratios", ratios, "list of weights dog:cat")
  seeds = ",".join(map(str, default.seeds))
  text("byrd_lipton_seeds", seeds, "of images, initial params and batches, a run of all for each")
  text("byrd_lipton_configurations", ",".join(default.configurations), "what is compared")


def config_of(values: flags.FlagValues) -> StudyConfig:
  """The configuration that the flags ask for."""
  options: dict[str, Any] = {name: values[f"byrd_lipton_{name}"].value for name in OPTIONS}
  images = cats_dogs.Options(
    **options,
    ratios=_flags.numbers("byrd_lipton_ratios", values.byrd_lipton_ratios),
    seeds=_flags.whole_numbers("byrd_lipton_seeds", values.byrd_lipton_seeds),
    configurations=_flags._split(values.byrd_lipton_configurations),
  )
  return StudyConfig(_flags._split(values.study), values.workdir or ROOT, values.data_dir, images)


def main(values: flags.FlagValues) -> None:
  """Runs the studies and prints their verdicts."""
  config = config_of(values)
  check(config)
  _flags.apply_process_flags(values)
  findings = run(config)
  print(f"\n{table(findings)}\nFiles: {config.workdir}")


if __name__ == "__main__":
  _errors.run_binary(define_flags, main)
