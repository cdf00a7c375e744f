"""The losses that methods train on in place of cross-entropy, made of options and class counts."""

import functools
from collections.abc import Callable

from experiments._rule_options import RuleOptions
from reweight_jax import losses
from reweight_jax.types import Array

Loss = Callable[[Array, Array], Array]

LOSSES: dict[str, Callable[[RuleOptions, tuple[int, ...]], Loss]] = {
  "ldam": lambda o, counts: losses.ldam(counts, o.ldam_max_margin, o.ldam_scale),
  "logit_adjustment": lambda o, counts: losses.logit_adjustment(counts, o.logit_adjustment_tau),
  "vector_scaling": lambda o, counts: losses.vector_scaling_for(
    counts, o.vector_scaling_gamma, o.vector_scaling_tau
  ),
}
"""Name -> the loss of one example, of the options and of how often each class trains."""


@functools.lru_cache(maxsize=64)  # equal arguments, one function: it is part of a compiled step
def make(name: str, options: RuleOptions, counts: tuple[int, ...]) -> Loss:
  """The loss of a name.

  Raises:
    ValueError: if it does not take its options or the counts, naming the class.
  """
  return LOSSES[name](options, counts)
