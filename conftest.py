"""Names that docstring examples use without importing them, and the laws of the test run."""

import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Compile small programs a third faster; other versions do not know the flags, and stop at them.
  fast = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast}".strip()

# Tests start many processes; they need not compile our sources each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Nor does a product of small matrices need all cores, which other workers are on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reweight_jax as rw

jax.config.update("jax_numpy_rank_promotion", "raise")
# Commands keep compiled programs in a folder of the user: tests neither take nor leave any there.
jax.config.update("jax_enable_compilation_cache", False)
# Tests compile thousands of small programs and run each once: compile fast rather than well.
jax.config.update("jax_disable_most_optimizations", True)
# Each is kept as text too, and the more of these there are, the longer a further one takes: after a
# thousand twice as long. Names of JAX's own; a version without one of them is slower there.
_TEXTS = (
  ("jax._src.pjit", "_pjit_lower"),
  ("jax._src.interpreters.pxla", "_cached_lowering_to_hlo"),
  ("jax._src.interpreters.pxla", "_cached_compilation"),
)
# Programs are many long-lived objects, in which there is little garbage to look for.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _forget_texts_of_programs() -> Iterator[None]:
  """The programs themselves stay, for the tests of other files."""
  yield
  for module, name in _TEXTS:
    clear = getattr(getattr(sys.modules.get(module), name, None), "cache_clear", None)
    if clear:
      clear()


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict) -> None:
  doctest_namespace.update(jax=jax, jnp=jnp, np=np, optax=optax, rw=rw)
