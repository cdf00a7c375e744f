"""Which inputs of a function its results may depend on, by its jaxpr; nothing is computed."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex

_TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_NONE: frozenset[int] = frozenset()


def leaves_that_reach(jaxpr: Any, inputs: Sequence[int]) -> frozenset[int]:
  """Which of the inputs with these numbers a result may depend on; more rather than less."""
  chosen = set(inputs)
  sources = [frozenset([i]) if i in chosen else _NONE for i in range(len(jaxpr.invars))]
  return frozenset().union(*_reached(jaxpr, sources))


def _reached(jaxpr: Any, sources: Sequence[frozenset[int]]) -> list[frozenset[int]]:
  """Which of the sources each result may depend on; more rather than less."""
  known = dict(zip(jaxpr.invars, sources, strict=True))
  read = lambda atom: _NONE if isinstance(atom, jex.Literal) else known.get(atom, _NONE)
  for equation in jaxpr.eqns:
    given = [read(atom) for atom in equation.invars]
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if equation.primitive.name in _TRANSPARENT and len(inner.invars) == len(given):
      results = _reached(inner, given)
    else:
      results = [frozenset().union(*given)] * len(equation.outvars)
    known |= dict(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]
