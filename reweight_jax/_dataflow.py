"""Which inputs of a function its results may depend on, by its jaxpr; nothing is computed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

_TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_NONE: frozenset[int] = frozenset()


def leaves_that_reach(fn: Callable[..., Any], args: Sequence[Any], *, of: int) -> frozenset[int]:
  """Numbers of the leaves of argument `of` that a result may depend on; more rather than less."""
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  before, own = (len(jax.tree.leaves(part)) for part in (tuple(args[:of]), args[of]))
  sources = [_NONE] * before + [frozenset([i]) for i in range(own)]
  sources += [_NONE] * (len(jaxpr.invars) - len(sources))
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
