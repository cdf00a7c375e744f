"""The workdir of a command: one folder a run, each with the configuration that it belongs to."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
from typing import Any

import flax
import jax
import optax

import reweight_jax as rw
from experiments._config import Config
from experiments._errors import UsageError
from reweight_jax import runlog


def path_of(config: Config) -> pathlib.Path:
  """The workdir: the one given, or one under runs/ named after the setting."""
  if config.workdir:
    return pathlib.Path(config.workdir)
  digest = hashlib.sha256(json.dumps(setting(config), sort_keys=True).encode()).hexdigest()[:8]
  return pathlib.Path("runs", f"{config.dataset}_{config.noise}_{config.noise_rate:g}_{digest}")


def run_folder(config: Config, name: str, seed: int) -> pathlib.Path:
  """The folder of one run."""
  return path_of(config) / name / f"seed_{seed}"


def run_folders(config: Config) -> dict[str, list[pathlib.Path]]:
  """Method -> the folders of its runs, in the order of the seeds."""
  return {
    name: [run_folder(config, name, seed) for seed in config.seeds] for name in config.run_names()
  }


def setting(config: Config) -> dict[str, Any]:
  """What decides the numbers of a run, apart from method and seed; as JSON gives it back."""
  fields = dataclasses.asdict(config)
  for name in ("methods", "seeds", "rules", "workdir", "data_dir"):
    del fields[name]
  return json.loads(json.dumps(fields))


def prepare(config: Config) -> None:
  """Makes the folders of all runs, after checking that none belongs to another configuration.

  Raises:
    UsageError: if a folder holds another configuration, saying where they differ, or cannot be
      written.
  """
  asked = setting(config)
  folders = [folder for group in run_folders(config).values() for folder in group]
  try:
    for folder in folders:
      path = folder / "config.json"
      found = json.loads(path.read_text())["setting"] if path.exists() else asked
      if found != asked:
        raise UsageError(
          f"--workdir: {folder} holds another configuration: {_difference(found, asked)}; "
          "choose another --workdir or delete that folder"
        )
    for name, group in run_folders(config).items():
      for seed, folder in zip(config.seeds, group, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
          run = {"method": name, "seed": seed, "setting": asked, "versions": versions()}
          runlog.write_json(folder / "config.json", run)
  except OSError as error:
    raise UsageError(f"--workdir: cannot write to {error.filename} ({error.strerror})") from error
  except (ValueError, KeyError) as error:
    raise UsageError(f"--workdir: {path} is damaged; delete its folder") from error


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


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
  return ", ".join(
    f"{name} {found.get(name)} there, {asked.get(name)} here"
    for name in sorted(found.keys() | asked.keys())
    if found.get(name) != asked.get(name)
  )
