"""Names that docstring examples use without importing them, and the laws of the test run."""

import importlib.metadata
import os

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
# Tests compile thousands of small programs and run each once: compile fast rather than well.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict) -> None:
  doctest_namespace.update(jax=jax, jnp=jnp, np=np, optax=optax, rw=rw)
