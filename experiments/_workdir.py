"""The workdir of a command: one setting, one folder a run, each with what it was made with."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

try:
  import fcntl
except ImportError:  # Windows: no lock
  fcntl = None  # type: ignore[assignment]

import flax
import jax
import optax

import reweight_jax as rw
from experiments import _methods
from experiments._config import ADDED, FILES, FILES_OF_METHODS, Config
from experiments._errors import UsageError
from experiments._rule_options import RuleOptions
from reweight_jax import runlog


def path_of(config: Config) -> pathlib.Path:
  """The workdir: the one given, or one under runs/ named after the setting."""
  if config.workdir:
    return pathlib.Path(config.workdir)
  digest = hashlib.sha256(json.dumps(config.setting(), sort_keys=True).encode()).hexdigest()[:8]
  short = config.title().replace(config.dataset, pathlib.Path(config.dataset).stem, 1)
  for old, new in ((", ", "_"), (" noise ", "_"), (" ", "_"), (":", "_"), ("/", "_")):
    short = short.replace(old, new)
  return pathlib.Path("runs", f"{short}_{digest}")


def run_folder(config: Config, name: str, seed: int) -> pathlib.Path:
  """The folder of one run."""
  return path_of(config) / name / f"seed_{seed}"


def run_folders(config: Config) -> dict[str, list[pathlib.Path]]:
  """Method -> the folders of its runs, in the order of the seeds."""
  return {
    name: [run_folder(config, name, seed) for seed in config.seeds] for name in config.run_names()
  }


def finished_folders(config: Config) -> dict[str, list[pathlib.Path]]:
  """Method -> the folders of all its finished runs; the command's methods first, seeds in order."""
  folders = [folder for folder in _all_folders(config) if (folder / "weights.npz").exists()]
  others = sorted({folder.parent.name for folder in folders} - set(config.run_names()))
  return {
    name: sorted((folder for folder in folders if folder.parent.name == name), key=seed_of)
    for name in (*config.run_names(), *others)
  }


def seed_of(folder: pathlib.Path) -> int:
  """The seed of a run's folder."""
  return int(folder.name.removeprefix("seed_"))


def check(config: Config) -> None:
  """Raises UsageError if the workdir holds another setting, what no command wrote, or, without
  resume, one of the runs.
  """
  asked = config.setting()
  own = {
    run_folder(config, name, seed): (name, seed)
    for name in config.run_names()
    for seed in config.seeds
  }
  if not config.resume and any(folder.exists() for folder in own):
    raise UsageError(
      f"--noresume: {next(folder for folder in own if folder.exists())} holds a run already; "
      "leave --noresume out to go on with it, delete that folder, or choose another --workdir"
    )
  # What a setting leaves out, or an older program did not know, has its default.
  default = type(config)().setting() | ADDED | vars(RuleOptions())
  for folder in sorted(_all_folders(config)):
    there = _config_there(folder)
    if there is None:
      continue
    setting, files = there
    here = _files(config, *own.get(folder, ()))
    # A file may have moved since; its name, which a data set is called by, and content count.
    both = files.keys() & here.keys()
    found = default | setting | {flag: pathlib.Path(files[flag]).name for flag in both}
    wanted = default | asked | {flag: pathlib.Path(here[flag]).name for flag in both}
    if found != wanted:
      difference = _difference(found, wanted)
      raise UsageError(
        f"--workdir: {folder} was made with another configuration: {difference}; "
        "choose another --workdir or delete that folder"
      )


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[None]:
  """Makes the folders of all runs, and keeps other commands out of the workdir meanwhile.

  Raises:
    UsageError: if the workdir does not fit, cannot be written, or another command is at work in it.
  """
  check(config)
  with contextlib.ExitStack() as stack:
    try:
      path_of(config).mkdir(parents=True, exist_ok=True)
      stack.enter_context(_locked(path_of(config)))
      for name, folders in run_folders(config).items():
        for seed, folder in zip(config.seeds, folders, strict=True):
          _make_folder(config, name, seed, folder)
    except OSError as error:
      raise UsageError(
        f"--workdir: cannot write to {error.filename} ({error.strerror}); choose another --workdir"
      ) from error
    yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the workdir's lock, which ends with the process, however it ends."""
  with open(workdir / ".lock", "a+", encoding="utf-8") as file:
    if fcntl is not None:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        raise UsageError(
          f"--workdir: {file.read().strip() or 'another process'} is at work in {workdir}; wait "
          "for it to end, or choose another --workdir"
        ) from error
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}")
      file.flush()
    yield


def _make_folder(config: Config, name: str, seed: int, folder: pathlib.Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / "config.json").exists():
    setting, files = config.setting(), _files(config, name, seed)
    run = {"method": name, "seed": seed, "setting": setting, "files": files}
    runlog.write_json(folder / "config.json", run | {"versions": versions()})


def _files(config: Config, name: str | None = None, seed: int = 0) -> dict[str, str]:
  """Flag -> path and digest of the files that every run reads, and those of one run if named.

  What cannot be read is left out: whoever needs it says so in its own words.
  """
  rules = set() if name is None else set(config.rules or _methods.METHODS[name].rules)
  flags = [flag for flag in FILES if flag != "dataset" or config.dataset.endswith(".npz")]
  flags += ["importance_file"] if rules & _methods.NEEDS_RATIOS else []
  flags += ["reference"] if rules & _methods.NEEDS_REFERENCE else []
  found = {}
  for flag in flags:
    path = getattr(config, flag, None)
    if not path:
      continue
    parts = [path]
    if flag == "reference":
      run = pathlib.Path(path, f"seed_{seed}")
      parts = [str(run / name) for name in ("weights.npz", "predictions.npz")]
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
      stats = [os.stat(part) for part in parts]
      digests = [
        _digest(part, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        for part, stat in zip(parts, stats, strict=True)
      ]
      found[flag] = f"{os.path.abspath(path)} (sha256 {'+'.join(digests)})"
  return found


@functools.lru_cache  # a study looks at the same files many times
def _digest(path: str, *version: int) -> str:
  """The first 16 digits of a file's SHA-256."""
  del version
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, str | None]:
  """What the run was made with; the commit is None outside a git checkout."""
  root = pathlib.Path(__file__).parent.parent
  try:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    commit = None
  modules = {"reweight_jax": rw, "jax": jax, "flax": flax, "optax": optax}
  return {name: module.__version__ for name, module in modules.items()} | {"commit": commit}


def _all_folders(config: Config) -> list[pathlib.Path]:
  """The folders of the workdir's runs, those of earlier commands too."""
  found = path_of(config).glob("*/seed_*")
  return [folder for folder in found if folder.name.removeprefix("seed_").isdecimal()]


def _config_there(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]] | None:
  """The setting and the files that a run's folder was made with; None if nothing was run there."""
  path = folder / "config.json"
  # A kill may leave a folder before its config.json, but never checkpoints without one.
  if not path.exists() and not any((folder / name).exists() for name in ("checkpoints", "plots")):
    return None
  try:
    found = json.loads(path.read_text())
    setting = dict(found["setting"])
    files = {flag: str(file) for flag, file in dict(found.get("files", {})).items()}
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise UsageError(
      f"--workdir: expected the configuration of a run in {path}, which is missing or damaged; "
      f"choose another --workdir or delete the folder {folder}"
    ) from error
  for flag in FILES_OF_METHODS:  # an older program compared them like all others
    setting.pop(flag, None)
  return setting, files


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
  return ", ".join(
    f"{name} {found.get(name)} there, {asked.get(name)} here"
    for name in sorted(found.keys() | asked.keys())
    if found.get(name) != asked.get(name)
  )
