"""Methods: the recipes that `--method` names and the rules that `--rules` composes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import reweight_jax as rw
from reweight_jax.types import WeightingRule


@dataclasses.dataclass(frozen=True)
class RuleOptions:
  """Numbers that rules take from flags, each named after its rule."""

  focal_gamma: float = 2.0
  class_balanced_beta: float = 0.999
  clip_max_weight: float = 5.0
  mix_share: float = 0.1
  normalize_decay: float | None = None
  inverse_frequency_power: float = 1.0

  def given(self) -> dict[str, Any]:
    """The numbers that are not the defaults: flag -> value."""
    default = RuleOptions()
    return {name: value for name, value in vars(self).items() if value != getattr(default, name)}


class Recipe(NamedTuple):
  """What a method trains on: a list of rules, and how many phases of what data."""

  rules: tuple[str, ...]
  source: str = "train"  # or "meta", the clean set
  finetunes: bool = False  # a second phase on the clean set
  sampler: str = "shuffled"  # or "balanced", all classes alike
  is_deferred: bool = False  # rules and sampler wait for the end of the run


# Each rule is made of the options, the counts of the (noisy) training labels, and a seed.
RULES: dict[str, Callable[[RuleOptions, Sequence[int], int], WeightingRule]] = {
  "align": lambda options, counts, seed: rw.meta.align(),
  "class_balanced": lambda options, counts, seed: rw.rules.class_balanced(
    counts, options.class_balanced_beta
  ),
  "clip": lambda options, counts, seed: rw.rules.clip_weights(options.clip_max_weight),
  "focal": lambda options, counts, seed: rw.rules.focal(options.focal_gamma),
  "inverse_frequency": lambda options, counts, seed: rw.rules.inverse_frequency(
    counts, options.inverse_frequency_power
  ),
  "learning_to_reweight": lambda options, counts, seed: rw.meta.learning_to_reweight(),
  "mix_with_uniform": lambda options, counts, seed: rw.rules.mix_with_uniform(options.mix_share),
  "normalize": lambda options, counts, seed: rw.rules.normalize(
    "mean", decay=options.normalize_decay
  ),
  "random_weights": lambda options, counts, seed: rw.rules.random_weights(seed),
  "rectify": lambda options, counts, seed: rw.rules.rectify(),
  "uniform": lambda options, counts, seed: rw.rules.uniform(),
}

METHODS: dict[str, Recipe] = {
  "ce": Recipe(("uniform",)),
  "random": Recipe(("random_weights", "normalize")),
  "clean_only": Recipe(("uniform",), source="meta"),
  "finetune": Recipe(("uniform",), finetunes=True),
  "l2rw": Recipe(("learning_to_reweight",)),
  "proportion": Recipe(("inverse_frequency",)),
  "proportion_deferred": Recipe(("inverse_frequency",), is_deferred=True),
  "class_balanced": Recipe(("class_balanced",)),
  "class_balanced_deferred": Recipe(("class_balanced",), is_deferred=True),
  "resample": Recipe(("uniform",), sampler="balanced"),
  "resample_deferred": Recipe(("uniform",), sampler="balanced", is_deferred=True),
}

NEEDS_COUNTS = frozenset({"class_balanced", "inverse_frequency"})
NEEDS_META_BATCH = frozenset({"align", "learning_to_reweight"})


def compose(
  names: Sequence[str], options: RuleOptions, counts: Sequence[int], seed: int, burn_in: int = 0
) -> WeightingRule:
  """Chains the named rules in the order given; they wait for `burn_in` steps."""
  rule = optax.chain(*(RULES[name](options, counts, seed) for name in names))
  return rw.rules.after_burn_in(rule, burn_in) if burn_in else rule
