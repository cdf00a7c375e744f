"""Difficulty: which examples are hard, why, and what weight that should give them.

Every measure is a pure function that returns one number for each example; larger is harder.

* `held_out`, from an `ensemble` of networks that have each seen a part of the data (`masks`): the
  generalization error of an example and its bias and variance, memorization, label issues.
* `dynamics`, from one training that `record_dynamics` watches.
* `scores` and `uncertainty`, from one forward pass; `gradients` and `saliency`, from backward ones.
* `neighbors`, from an embedding, without any training.

`two_axes` asks whether an example is hard because its label is wrong or because it is rare, and
`weighting` makes rules of scores, by the `modes` easy, hard, medium or two ends first.
"""

from reweight_jax.difficulty.confident import (
  confident_classes,
  confident_joint,
  label_issues,
  low_normalized_margin,
  low_self_confidence,
)
from reweight_jax.difficulty.dynamics import (
  OF_DYNAMICS,
  Dynamics,
  aleatoric,
  dynamics_of,
  final_el2n,
  final_loss,
  final_negative_margin,
  forgetting,
  incorrectness,
  init_dynamics,
  late_first_correct,
  late_learning,
  low_confidence,
  mean_loss,
  negative_margin_area,
  observe,
  record_dynamics,
  variability,
)
from reweight_jax.difficulty.ensemble import (
  FORMS,
  Members,
  member_chunks,
  predict_members,
  train_members,
)
from reweight_jax.difficulty.gradients import (
  gradient_norms,
  grand,
  self_influence,
)
from reweight_jax.difficulty.held_out import (
  OF_ENSEMBLE,
  BiasVariance,
  bias_variance,
  brier_bias_variance,
  held_out_error,
  held_out_probabilities,
  inconsistency,
  memorization,
)
from reweight_jax.difficulty.masks import (
  fold_masks,
  subset_masks,
)
from reweight_jax.difficulty.modes import (
  MODES,
  DifficultyMode,
  easy_first,
  flexible,
  hard_first,
  medium_first,
  two_ends_first,
  weights_of_difficulty,
)
from reweight_jax.difficulty.neighbors import (
  Neighbors,
  nearest_neighbors,
  neighbor_disagreement,
  neighbor_distance,
  nonprototypicality,
)
from reweight_jax.difficulty.saliency import (
  input_gradients,
  standardize_by_class,
  variance_of_gradients,
)
from reweight_jax.difficulty.scores import (
  class_rarity,
  cross_entropy,
  el2n,
  last_layer_grand,
  negative_margin,
  negative_normalized_margin,
)
from reweight_jax.difficulty.two_axes import (
  hardest,
  noise_or_rare,
)
from reweight_jax.difficulty.uncertainty import (
  bald,
  entropy,
  predictive_entropy,
  uncertainty_margin,
)
from reweight_jax.difficulty.weighting import (
  RefreshedDifficultyState,
  difficulty_weights,
  refreshed_difficulty_weights,
)

__all__ = [
  "FORMS",
  "MODES",
  "OF_DYNAMICS",
  "OF_ENSEMBLE",
  "BiasVariance",
  "DifficultyMode",
  "Dynamics",
  "Members",
  "Neighbors",
  "RefreshedDifficultyState",
  "aleatoric",
  "bald",
  "bias_variance",
  "brier_bias_variance",
  "class_rarity",
  "confident_classes",
  "confident_joint",
  "cross_entropy",
  "difficulty_weights",
  "dynamics_of",
  "easy_first",
  "el2n",
  "entropy",
  "final_el2n",
  "final_loss",
  "final_negative_margin",
  "flexible",
  "fold_masks",
  "forgetting",
  "gradient_norms",
  "grand",
  "hard_first",
  "hardest",
  "held_out_error",
  "held_out_probabilities",
  "inconsistency",
  "incorrectness",
  "init_dynamics",
  "input_gradients",
  "label_issues",
  "last_layer_grand",
  "late_first_correct",
  "late_learning",
  "low_confidence",
  "low_normalized_margin",
  "low_self_confidence",
  "mean_loss",
  "medium_first",
  "member_chunks",
  "memorization",
  "nearest_neighbors",
  "negative_margin",
  "negative_margin_area",
  "negative_normalized_margin",
  "neighbor_disagreement",
  "neighbor_distance",
  "noise_or_rare",
  "nonprototypicality",
  "observe",
  "predict_members",
  "predictive_entropy",
  "record_dynamics",
  "refreshed_difficulty_weights",
  "self_influence",
  "standardize_by_class",
  "subset_masks",
  "train_members",
  "two_ends_first",
  "uncertainty_margin",
  "variability",
  "variance_of_gradients",
  "weights_of_difficulty",
]
