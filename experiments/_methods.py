"""Methods: the recipes that `--method` names and the rules that `--rules` composes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import reweight_jax as rw
from experiments import _learned
from experiments._rule_options import RuleOptions
from reweight_jax import densities, difficulty, rules
from reweight_jax.densities import Density
from reweight_jax.types import WeightingRule


class Recipe(NamedTuple):
  """What a method trains on: a list of rules, and how many phases of what data."""

  rules: tuple[str, ...]
  source: str = "train"  # or "meta", the clean set
  finetunes: bool = False  # a second phase on the clean set
  sampler: str = "shuffled"  # "balanced": all classes alike; "undersampled": as the rarest, always
  is_deferred: bool = False  # rules and sampler wait for the end of the run
  loss: str = ""  # one of `_base_losses.LOSSES`; "": cross-entropy, or the margin if a rule says so


class Facts(NamedTuple):
  """What rules know of a seed's task and of its reference run; only what they need is filled in."""

  counts: tuple[int, ...] = ()  # how often each (noisy) training label comes
  num_classes: int = 0
  num_examples: int = 0
  examples: Any = None  # `_reference.Examples`: numbers by position in the data set
  epoch_steps: int = 1  # batches of one pass over the training set


_DENSITIES: dict[str, Callable[[RuleOptions], Density]] = {
  "imae_emphasis": lambda o: densities.improved_mean_absolute_error(o.imae_temperature),
  "normal_emphasis": lambda o: densities.normal(o.normal_beta, o.normal_mode),
  "beta_emphasis": lambda o: densities.beta(o.beta_alpha, o.beta_eta),
  "uniform_emphasis": lambda o: densities.uniform(),
  "cross_entropy_emphasis": lambda o: densities.cross_entropy(),
  "absolute_emphasis": lambda o: densities.mean_absolute_error(),
  "squared_emphasis": lambda o: densities.mean_squared_error(),
  "generalized_emphasis": lambda o: densities.generalized_cross_entropy(o.gce_q),
}


def _emphasis(density: Callable[[RuleOptions], Density], normalization: str | None) -> Any:
  def make(options: RuleOptions, facts: Facts, seed: int) -> WeightingRule:
    del facts, seed
    kind = normalization or options.dm_normalization
    return rules.emphasis(density(options), kind, options.dm_arithmetic)

  return make


def _exponential_emphasis(options: RuleOptions, facts: Facts, seed: int) -> WeightingRule:
  """With beta and lambda in its state, so that a study compiles one step for all of them."""
  del facts, seed
  kind, arithmetic = options.dm_normalization, options.dm_arithmetic
  rule = rules.exponential_emphasis(options.dm_beta, options.dm_lam, kind, arithmetic)
  if kind == "area":  # its integral needs plain numbers
    return rule
  injected = optax.inject_hyperparams(rules.exponential_emphasis, ("normalization", "arithmetic"))
  return injected(options.dm_beta, options.dm_lam, kind, arithmetic)


def _by_difficulty(mode: str) -> Any:
  def make(options: RuleOptions, facts: Facts, seed: int) -> WeightingRule:
    del seed
    return difficulty.refreshed_difficulty_weights(
      facts.num_examples,
      difficulty.OF_DYNAMICS[options.difficulty_measure],
      difficulty.MODES[mode](options.difficulty_ratio),
      every_steps=options.difficulty_every or facts.epoch_steps,
      burn_in_steps=round(options.difficulty_burn_in_epochs * facts.epoch_steps),
    )

  return make


def _label_shift(options: RuleOptions, facts: Facts, seed: int) -> WeightingRule:
  del options, seed
  try:
    return rules.label_shift(facts.examples.confusion, facts.examples.target_predictions)
  except ValueError as error:
    raise ValueError(
      f"--reference: {error} The confusions are those of its --validation_size examples, by their "
      "given labels: train it for more steps, or with more of them"
    ) from error


def _learning(name: str) -> Any:
  return lambda options, facts, seed: _learned.make(name, options, facts.counts, seed)


# Each rule is made of the options, the facts of the task, and a seed.
RULES: dict[str, Callable[[RuleOptions, Facts, int], WeightingRule]] = {
  "align": lambda o, facts, seed: rw.meta.align(),
  "asymmetric_focal": lambda o, facts, seed: rules.asymmetric_focal(
    o.asymmetric_focal_gammas, o.asymmetric_focal_shifts or None
  ),
  "asymmetric_focal_transform": lambda o, facts, seed: rules.asymmetric_focal_transform(
    o.asymmetric_focal_gammas, o.asymmetric_focal_shifts or None
  ),
  "bootstrapped_confidence": lambda o, facts, seed: rules.bootstrapped_confidence(
    o.bootstrap_share, o.bootstrap_kind
  ),
  "class_balanced": lambda o, facts, seed: rules.class_balanced(
    facts.counts, o.class_balanced_beta
  ),
  "class_weights": lambda o, facts, seed: rules.class_weights(o.class_weights),
  "clip": lambda o, facts, seed: rules.clip_weights(o.clip_max_weight),
  "focal": lambda o, facts, seed: rules.focal(o.focal_gamma),
  "focal_transform": lambda o, facts, seed: rules.focal_transform(o.focal_gamma),
  "generalized_cross_entropy": lambda o, facts, seed: rules.generalized_cross_entropy(
    o.gce_q, truncate_at=o.gce_truncate_at
  ),
  "gradient_harmonizing": lambda o, facts, seed: rules.gradient_harmonizing(
    o.ghm_bins, o.ghm_decay
  ),
  "hard_mining": lambda o, facts, seed: rules.hard_mining(facts.num_classes),
  "importance_ratio": lambda o, facts, seed: rules.importance_ratio(
    facts.examples.ratios, power=o.importance_power
  ),
  "inverse_frequency": lambda o, facts, seed: rules.inverse_frequency(
    facts.counts, o.inverse_frequency_power
  ),
  "just_train_twice": lambda o, facts, seed: rules.just_train_twice(
    facts.examples.is_error, o.jtt_factor
  ),
  "label_shift": _label_shift,
  "large_loss": lambda o, facts, seed: rules.large_loss(o.large_loss_keep, o.select_of),
  "learning_to_reweight": lambda o, facts, seed: rw.meta.learning_to_reweight(),
  "loss_quantiles": lambda o, facts, seed: rules.loss_quantiles(
    o.quantiles_low, o.quantiles_high, o.select_of
  ),
  "mix_with_uniform": lambda o, facts, seed: rules.mix_with_uniform(o.mix_share),
  "normalize": lambda o, facts, seed: rules.normalize("mean", decay=o.normalize_decay),
  "polynomial_tail": lambda o, facts, seed: rules.polynomial_tail(o.polynomial_tail_power),
  "random_weights": lambda o, facts, seed: rules.random_weights(seed),
  "rectify": lambda o, facts, seed: rules.rectify(),
  "reducible_loss": lambda o, facts, seed: rules.reducible_loss(facts.examples.losses, o.rho_keep),
  "self_paced": lambda o, facts, seed: rules.self_paced(o.self_paced_threshold, o.self_paced_form),
  "self_paced_mixture": lambda o, facts, seed: rules.self_paced_mixture(
    o.self_paced_low, o.self_paced_high
  ),
  "small_loss": lambda o, facts, seed: rules.small_loss(o.small_loss_keep, o.select_of),
  "smooth_by_index": lambda o, facts, seed: rules.smooth_by_index(
    facts.num_examples, o.smooth_decay
  ),
  "super_loss": lambda o, facts, seed: rules.super_loss(
    o.super_loss_lam, threshold=o.super_loss_threshold, decay=o.super_loss_decay
  ),
  "symmetric_cross_entropy": lambda o, facts, seed: rules.symmetric_cross_entropy(
    o.sce_mu, o.sce_nu, o.sce_log_zero
  ),
  "taylor_cross_entropy": lambda o, facts, seed: rules.taylor_cross_entropy(o.taylor_order),
  "uniform": lambda o, facts, seed: rules.uniform(),
  "exponential_emphasis": _exponential_emphasis,
  **{name: _emphasis(density, None) for name, density in _DENSITIES.items()},
  **{name: _learning(name) for name in _learned.NAMES},
  **{name: _by_difficulty(name) for name in difficulty.MODES},
  # The losses themselves, without the normalization of derivative manipulation.
  "absolute_error": _emphasis(_DENSITIES["absolute_emphasis"], "none"),
  "squared_probability_error": _emphasis(_DENSITIES["squared_emphasis"], "none"),
}

METHODS: dict[str, Recipe] = {
  "ce": Recipe(("uniform",)),
  "random": Recipe(("random_weights", "normalize")),
  "clean_only": Recipe(("uniform",), source="meta"),
  "finetune": Recipe(("uniform",), finetunes=True),
  "l2rw": Recipe(("learning_to_reweight",)),
  # Factors that learn from the meta set.
  "meta_weight_net": Recipe(("meta_weight_net",)),
  "class_aware_weight_net": Recipe(("class_aware_weight_net",)),
  "lilaw": Recipe(("lilaw",)),
  "lilaw_meta": Recipe(("lilaw_meta_gradient",)),
  # Derivative manipulation: the length of an example's gradient, chosen.
  "dm": Recipe(("exponential_emphasis",)),
  "imae": Recipe(("imae_emphasis",)),
  "uniform_dn": Recipe(("uniform_emphasis",)),
  "normal_dn": Recipe(("normal_emphasis",)),
  "beta_dn": Recipe(("beta_emphasis",)),
  "ce_dn": Recipe(("cross_entropy_emphasis",)),
  "mae_dn": Recipe(("absolute_emphasis",)),
  "mse_dn": Recipe(("squared_emphasis",)),
  "gce_dn": Recipe(("generalized_emphasis",)),
  # Losses of the label's probability.
  "mae": Recipe(("absolute_error",)),
  "mse": Recipe(("squared_probability_error",)),
  "gce": Recipe(("generalized_cross_entropy",)),
  "sce": Recipe(("symmetric_cross_entropy",)),
  "taylor_ce": Recipe(("taylor_cross_entropy",)),
  "focal": Recipe(("focal",)),
  "focal_loss": Recipe(("focal_transform",)),
  "asymmetric_focal": Recipe(("asymmetric_focal",)),
  "asymmetric_focal_loss": Recipe(("asymmetric_focal_transform",)),
  "bootstrapped": Recipe(("bootstrapped_confidence",)),
  # By the loss.
  "self_paced": Recipe(("self_paced",)),
  "self_paced_mixture": Recipe(("self_paced_mixture",)),
  "small_loss": Recipe(("small_loss", "normalize")),
  "large_loss": Recipe(("large_loss", "normalize")),
  "trimmed": Recipe(("loss_quantiles", "normalize")),
  "super_loss": Recipe(("super_loss",)),
  "ghm": Recipe(("gradient_harmonizing",)),
  # By a difficulty that the run itself records.
  "easy_first": Recipe(("easy_first",)),
  "hard_first": Recipe(("hard_first",)),
  "medium_first": Recipe(("medium_first",)),
  "two_ends_first": Recipe(("two_ends_first",)),
  # By another run (--reference) or a file.
  "rho": Recipe(("reducible_loss", "normalize")),
  "jtt": Recipe(("just_train_twice",)),
  "label_shift": Recipe(("label_shift",)),
  "importance": Recipe(("importance_ratio",)),
  # By class.
  "class_weights": Recipe(("class_weights",)),
  "proportion": Recipe(("inverse_frequency",)),
  "proportion_deferred": Recipe(("inverse_frequency",), is_deferred=True),
  "class_balanced": Recipe(("class_balanced",)),
  "class_balanced_deferred": Recipe(("class_balanced",), is_deferred=True),
  "resample": Recipe(("uniform",), sampler="balanced"),
  "resample_deferred": Recipe(("uniform",), sampler="balanced", is_deferred=True),
  "undersample": Recipe(("uniform",), sampler="undersampled"),
  "hard_mining": Recipe(("hard_mining", "normalize")),
  # By class, through the logits; and the loss under which weights persist, for chains with them.
  "ldam": Recipe(("uniform",), loss="ldam"),
  "logit_adjustment": Recipe(("uniform",), loss="logit_adjustment"),
  "vector_scaling": Recipe(("uniform",), loss="vector_scaling"),
  "polynomial_tail": Recipe(("polynomial_tail",)),
}

NEEDS_META_BATCH = frozenset({"align", "learning_to_reweight", *_learned.NAMES})
NEEDS_COUNTS = frozenset({"class_aware_weight_net", "class_balanced", "inverse_frequency"})
NEEDS_REFERENCE = frozenset({"just_train_twice", "label_shift", "reducible_loss"})
NEEDS_RATIOS = frozenset({"importance_ratio"})
ON_UNIT_MARGIN = frozenset(
  {
    *("exponential_emphasis", *_DENSITIES, "absolute_error", "squared_probability_error"),
    "polynomial_tail",
  }
)
"""The rules whose base loss is the unit margin."""

FIXED = frozenset(
  {
    *("class_balanced", "class_weights", "importance_ratio", "inverse_frequency"),
    *("just_train_twice", "label_shift"),
  }
)
"""The rules whose weights are given before the run and stay."""
FIXED_OR_SHAPING = FIXED | {"clip", "mix_with_uniform", "normalize", "rectify", "uniform"}

IN_NATS = frozenset({"reducible_loss", "self_paced", "self_paced_mixture", "super_loss"})
"""The rules whose numbers are losses in nats, those of cross-entropy."""

NEEDS_OPTIONS = {
  "asymmetric_focal": "asymmetric_focal_gammas",
  "asymmetric_focal_transform": "asymmetric_focal_gammas",
  "class_weights": "class_weights",
}
"""Rule -> the option without which it cannot be made."""


def compiled_options(names: Sequence[str], options: RuleOptions) -> RuleOptions:
  """The options that a compiled step knows: without those that live in the rules' states."""
  if "exponential_emphasis" in names and options.dm_normalization != "area":
    return dataclasses.replace(options, dm_beta=RuleOptions.dm_beta, dm_lam=RuleOptions.dm_lam)
  return options


def compose(
  names: Sequence[str], options: RuleOptions, facts: Facts, seed: int, burn_in: int = 0
) -> WeightingRule:
  """Chains the named rules in the order given; they wait for `burn_in` steps."""
  rule = optax.chain(*(RULES[name](options, facts, seed) for name in names))
  return rules.after_burn_in(rule, burn_in) if burn_in else rule
