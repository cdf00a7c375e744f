"""The laws of the house: what may import what."""

import ast
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

import reweight_jax

PACKAGE = pathlib.Path(reweight_jax.__file__).parent
ROOT = PACKAGE.parent
EDGES = ("runlog", "checkpointing", "data", "models", "plotting")
EDGE_PACKAGES = ("flax", "grain", "matplotlib", "orbax", "sklearn", "tensorflow_datasets", "tqdm")
CORE = (
  "types _validate _arrays _coupling _dataflow augment densities losses metrics margins ghost "
  "per_example rules meta difficulty ledger training sharding"
)
ORDER = (*CORE.split(), *EDGES)


def _modules_imported(path):
  """The modules that a file names in import statements, wherever they stand."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


class ImportsTest(parameterized.TestCase):
  def test_importing_the_package_loads_no_edge(self):
    code = (
      "import sys, reweight_jax as rw\n"
      f"print([name for name in {EDGE_PACKAGES!r} if name in sys.modules])\n"
      "rw.models; print('flax' in sys.modules)"
    )
    result = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    self.assertEqual(result.stdout.split("\n")[:2], ["[]", "True"])

  def test_the_core_names_no_package_of_the_edges(self):
    for path in PACKAGE.rglob("*.py"):
      if _room(path) not in EDGES:
        roots = {name.split(".")[0] for name in _modules_imported(path)}
        self.assertEmpty(roots & set(EDGE_PACKAGES), path)

  def test_arrows_point_down_the_list(self):
    for path in PACKAGE.rglob("*.py"):
      room = _room(path)
      if room == "__init__":
        continue
      self.assertIn(room, ORDER)
      for name in _modules_imported(path):
        parts = name.split(".")
        if parts[0] == "reweight_jax" and len(parts) > 1 and parts[1] in ORDER:
          self.assertLessEqual(ORDER.index(parts[1]), ORDER.index(room), f"{path} imports {name}")

  def test_data_knows_no_jax(self):
    for path in (PACKAGE / "data").glob("*.py"):
      self.assertNotIn("jax", {name.split(".")[0] for name in _modules_imported(path)}, path)

  def test_the_library_does_not_import_what_is_built_on_it(self):
    for path in PACKAGE.rglob("*.py"):
      roots = {name.split(".")[0] for name in _modules_imported(path)}
      self.assertEmpty(roots & {"experiments", "benchmarks", "tests", "absl"}, path)

  def test_flags_are_read_in_binaries_alone(self):
    for path in (ROOT / "experiments").glob("_*.py"):
      if path.name not in ("_errors.py", "_flags.py"):
        self.assertNotIn("absl.flags", set(_modules_imported(path)), path)

  def test_an_unknown_name_is_an_attribute_error(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'nonsense'"):
      _ = reweight_jax.nonsense


if __name__ == "__main__":
  absltest.main()
