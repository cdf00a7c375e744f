"""Methods: the recipes that `--method` names and the rules that `--rules` composes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Recipe(NamedTuple):
  """What a method trains on: a list of rules, and how many phases of what data."""

  rules: tuple[str, ...]
  source: str = "train"  # or "meta", the clean set
  finetunes: bool = False  # a second phase on the clean set


# Each rule is made of the options, the counts of the (noisy) training labels, and a seed.
RULES: dict[str, Callable[[RuleOptions, Sequence[int], int], WeightingRule]] = {
  "align": lambda options, counts, seed: rw.meta.align(),
  "class_balanced": lambda options, counts, seed: rw.rules.class_balanced(
    counts, options.class_balanced_beta
  ),
  "clip": lambda options, counts, seed: rw.rules.clip_weights(options.clip_max_weight),
  "focal": lambda options, counts, seed: rw.rules.focal(options.focal_gamma),
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
}

NEEDS_META_BATCH = frozenset({"align", "learning_to_reweight"})


def compose(
  names: Sequence[str], options: RuleOptions, counts: Sequence[int], seed: int
) -> WeightingRule:
  """Chains the named rules in the order given."""
  return optax.chain(*(RULES[name](options, counts, seed) for name in names))
