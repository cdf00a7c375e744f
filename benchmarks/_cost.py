"""What a step costs: XLA's counts of its compiled programs, and wall time in interleaved rounds."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from experiments._errors import RunError


class Cost(NamedTuple):
  """What compiling tells."""

  flops: float
  bytes_accessed: float
  temp_bytes: int
  temp_bytes_of_programs: tuple[int, ...]  # the largest of them is the above
  compile_seconds: float  # tracing and lowering included
  call: Callable[..., Any]  # the step, ready to run


def measure(step: Callable[..., Any], shapes: Sequence[Any]) -> Cost:
  """Compiles a step for arguments of some shapes and reads what XLA says of its programs."""
  start = time.perf_counter()
  lowered = lower(step, shapes)
  programs = [program.compile() for program in lowered]
  seconds = time.perf_counter() - start
  counts = [program.cost_analysis() or {} for program in programs]
  temps = tuple(program.memory_analysis().temp_size_in_bytes for program in programs)
  return Cost(
    flops=sum(count.get("flops", 0) for count in counts),
    bytes_accessed=sum(count.get("bytes accessed", 0) for count in counts),
    temp_bytes=max(temps),
    temp_bytes_of_programs=temps,
    compile_seconds=seconds,
    call=programs[0] if hasattr(step, "lower") else step,
  )


def lower(step: Callable[..., Any], shapes: Sequence[Any]) -> list[Any]:
  """The lowered programs of a step: its own if it is jitted, else those of the jitted it calls."""
  if hasattr(step, "lower"):
    return [step.lower(*shapes)]
  programs = []
  for equation in jax.make_jaxpr(step)(*shapes).eqns:
    if "jaxpr" not in equation.params:
      raise RunError(f"expected a step that calls jitted functions alone, got {equation.primitive}")
    call = jax.extend.core.jaxpr_as_fun(equation.params["jaxpr"])
    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    programs.append(jax.jit(call).lower(*arguments))
  return programs


def flops_bound(name: str, meta_batch_size: int | None, batch_size: int) -> float | None:
  """The most FLOPs a step may need, in plain steps; None for steps that promise nothing.

  In units of one forward pass over the batch a gradient is 3. Route "forward" needs the pass (1), a
  push (2), a pull (2) and the gradient of the meta batch (3 V / B), so (5 + 3 V / B) / 3 plain
  steps. The bound is 1/30 above that: 2.70 at V = B, 1.80 at V = B / 10.
  """
  if meta_batch_size is None or name not in ("forward", "split"):
    return None
  return (5 + 3 * meta_batch_size / batch_size) / 3 + 1 / 30


def check_cost_analysis() -> None:
  """Raises RunError unless XLA counts two FLOPs per multiply-add, in products and convolutions.

  Where a backend hands such work to a library, its count may leave it out.
  """
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  convolve = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  images, kernel = shape(4, 10, 10, 16), shape(3, 3, 16, 32)
  probes = (
    ("product", jnp.dot, (shape(64, 128), shape(128, 32)), 2 * 64 * 128 * 32),
    ("convolution", convolve, (images, kernel), 2 * (4 * 8 * 8) * (3 * 3 * 16) * 32),
  )
  for name, fn, shapes, expected in probes:
    counted = measure(jax.jit(fn), shapes).flops
    if abs(counted / expected - 1) > 0.01:
      raise RunError(
        f"XLA's cost analysis on {jax.default_backend()} counts {counted:g} FLOPs in a {name} of "
        f"{expected:g}; run with JAX_PLATFORMS=cpu"
      )


def counts_flops() -> bool:
  """Whether XLA's counts can be relied on.

  Raises:
    RunError: if they cannot, and the backend is the one where they should be.
  """
  try:
    check_cost_analysis()
  except RunError:
    if jax.default_backend() == "cpu":
      raise
    return False  # the backend hands products to a library, whose work XLA does not count
  return True


def time_steps(num_timings: int, calls: Sequence[Callable[[], Any]]) -> np.ndarray:
  """Wall times `[calls, timings]`, taken in rounds of one run of every call, after one untimed."""
  seconds = np.zeros((len(calls), num_timings))
  if num_timings:
    for turn in range(-1, num_timings):
      for row, call in enumerate(calls):
        start = time.perf_counter()
        call()
        if turn >= 0:
          seconds[row, turn] = time.perf_counter() - start
  return seconds
