"""The numbers that rules take from flags: one field a flag, named after its rule."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from reweight_jax import difficulty, losses


class Range(NamedTuple):
  """Which values are right, and how to say so."""

  holds: Callable[[Any], bool]
  words: str


AT_LEAST_0 = Range(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Range(lambda value: value >= 1, "at least 1")
FROM_1 = Range(lambda value: 1 <= value <= 1000, "from 1 to 1000")
FROM_0 = Range(lambda value: 0 <= value <= 1000, "from 0 to 1000")
COUNT_OR_0 = Range(lambda value: 0 <= value < 2**31, "in [0, 2^31)")
ABOVE_0 = Range(lambda value: value > 0, "above 0")
BELOW_0 = Range(lambda value: value < 0, "below 0")
SHARE = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
SHARE_ABOVE_0 = Range(lambda value: 0 < value <= 1, "in (0, 1]")
BELOW_1 = Range(lambda value: 0 <= value < 1, "in [0, 1)")
# At a decay that rounds to 1 nothing would ever move.
DECAY = Range(
  lambda value: 0 <= value < 1 and float(np.float32(value)) < 1, "in [0, 1), in float32 too"
)
FINITE = Range(math.isfinite, "that is finite")


def _number(default: float | None, range_: Range, help_text: str) -> Any:
  return dataclasses.field(default=default, metadata={"help": help_text, "range": range_})


def _word(default: str, words: Sequence[str], help_text: str) -> Any:
  return dataclasses.field(default=default, metadata={"help": help_text, "words": tuple(words)})


def _list(help_text: str) -> Any:
  return dataclasses.field(default=(), metadata={"help": help_text, "range": AT_LEAST_0})


@dataclasses.dataclass(frozen=True)
class RuleOptions:
  """What rules take, with their defaults; a flag's help and its range stand beside each."""

  asymmetric_focal_gammas: tuple[float, ...] = _list("an exponent for each class")
  asymmetric_focal_shifts: tuple[float, ...] = _list("a shift for each class; default none")
  beta_alpha: float = _number(2.0, ABOVE_0, "of the rule beta_emphasis")
  beta_eta: float = _number(2.0, ABOVE_0, "of the rule beta_emphasis")
  bootstrap_kind: str = _word("hard", ("hard", "soft"), "of the rule bootstrapped_confidence")
  bootstrap_share: float = _number(0.8, SHARE, "what a contradicted label keeps")
  class_aware_groups: int = _number(3, FROM_1, "sizes of classes of class_aware_weight_net")
  class_balanced_beta: float = _number(0.999, BELOW_1, "of the rule class_balanced")
  class_weights: tuple[float, ...] = _list("a factor for each class")
  clip_max_weight: float = _number(5.0, ABOVE_0, "largest weight of the rule clip")
  difficulty_burn_in_epochs: float = _number(1.0, FROM_0, "before their first weights")
  difficulty_every: int = _number(0, COUNT_OR_0, "steps from weights to new ones; 0: an epoch's")
  difficulty_measure: str = _word(
    "mean_loss", tuple(difficulty.OF_DYNAMICS), "what easy_first, hard_first and others weigh by"
  )
  difficulty_ratio: float = _number(10.0, AT_LEAST_1, "largest of their weights over the smallest")
  dm_arithmetic: str = _word("exact", losses.ARITHMETICS, "of derivative manipulation")
  dm_beta: float = _number(8.0, FINITE, "sharpness of exponential_emphasis, the method dm")
  dm_lam: float = _number(0.5, AT_LEAST_0, "lambda of the same: mode at lambda / (lambda + 1)")
  dm_normalization: str = _word("batch", losses.NORMALIZATIONS, "of derivative manipulation")
  focal_gamma: float = _number(2.0, AT_LEAST_0, "exponent of focal and focal_transform")
  gce_q: float = _number(0.7, SHARE, "of generalized cross-entropy")
  gce_truncate_at: float = _number(0.0, BELOW_1, "probability at which it is cut off; 0 is none")
  ghm_bins: int = _number(30, FROM_1, "of the rule gradient_harmonizing")
  ghm_decay: float = _number(0.75, DECAY, "of its moving histogram")
  imae_temperature: float = _number(8.0, FINITE, "of the method imae")
  importance_power: float = _number(1.0, AT_LEAST_0, "exponent of importance_ratio")
  inverse_frequency_power: float = _number(1.0, FINITE, "exponent of inverse_frequency")
  jtt_factor: float = _number(20.0, AT_LEAST_0, "weight of the reference run's errors")
  large_loss_keep: float = _number(0.5, SHARE_ABOVE_0, "share that the rule large_loss keeps")
  ldam_max_margin: float = _number(0.5, AT_LEAST_0, "of the rarest class, in units of the logits")
  ldam_scale: float = _number(1.0, ABOVE_0, "of logits and margins in ldam; 30 is for cosines")
  lilaw_alpha: float = _number(10.0, FINITE, "of the easy, in lilaw; where it starts")
  lilaw_beta: float = _number(2.0, FINITE, "of the hard, alike")
  lilaw_decay: float = _number(1e-4, AT_LEAST_0, "weight decay of these three numbers")
  lilaw_delta: float = _number(6.0, FINITE, "of the undecided, alike")
  lilaw_learning_rate: float = _number(5e-3, ABOVE_0, "of SGD for the three numbers")
  logit_adjustment_tau: float = _number(1.0, FINITE, "share of the log priors added to logits")
  meta_weight_net_decay: float = _number(5e-4, AT_LEAST_0, "weight decay of the weight nets")
  meta_weight_net_hidden: int = _number(100, FROM_1, "width of their hidden layer")
  meta_weight_net_learning_rate: float = _number(1e-3, ABOVE_0, "of their optimizer")
  meta_weight_net_optimizer: str = _word("sgd", ("sgd", "adam"), "SGD has momentum 0.9")
  meta_weight_net_weights: str = _word(
    "normalized", ("normalized", "plain"), "to mean 1 in each batch, or as the net says"
  )
  mix_share: float = _number(0.1, SHARE, "uniform share of mix_with_uniform")
  normal_beta: float = _number(8.0, FINITE, "sharpness of normal_emphasis")
  normal_mode: float = _number(0.5, AT_LEAST_0, "mode of normal_emphasis")
  normalize_decay: float | None = _number(
    None, DECAY, "moving average of normalize; default each batch"
  )
  polynomial_tail_power: float = _number(1.0, ABOVE_0, "of the tail; on margins, not in nats")
  quantiles_high: float = _number(0.9, SHARE_ABOVE_0, "upper quantile of loss_quantiles")
  quantiles_low: float = _number(0.1, BELOW_1, "lower quantile of loss_quantiles")
  rho_keep: float = _number(0.1, SHARE_ABOVE_0, "share that the rule reducible_loss keeps")
  sce_log_zero: float = _number(-4.0, BELOW_0, "log 0 of symmetric cross-entropy")
  sce_mu: float = _number(0.1, AT_LEAST_0, "its share of cross-entropy")
  sce_nu: float = _number(1.0, AT_LEAST_0, "its share of reverse cross-entropy")
  select_of: str = _word("batch", ("batch", "class"), "what selections by loss select from")
  self_paced_form: str = _word("hard", ("hard", "linear", "logarithmic"), "of the rule self_paced")
  self_paced_high: float = _number(2.0, ABOVE_0, "loss from which self_paced_mixture gives 0")
  self_paced_low: float = _number(1.0, ABOVE_0, "loss up to which it gives 1")
  self_paced_threshold: float = _number(2.0, ABOVE_0, "of the rule self_paced, nats")
  small_loss_keep: float = _number(0.5, SHARE_ABOVE_0, "share that the rule small_loss keeps")
  smooth_decay: float = _number(0.9, DECAY, "of the rule smooth_by_index")
  super_loss_decay: float = _number(0.9, DECAY, "of its running threshold")
  super_loss_lam: float = _number(1.0, ABOVE_0, "lambda of the rule super_loss, nats")
  super_loss_threshold: float | None = _number(
    None, FINITE, "its threshold, nats; default the running mean loss"
  )
  taylor_order: int = _number(2, FROM_1, "terms of Taylor cross-entropy")
  vector_scaling_gamma: float = _number(0.2, AT_LEAST_0, "power of the counts that scales logits")
  vector_scaling_tau: float = _number(1.0, FINITE, "share of the log priors added to logits")

  def given(self) -> dict[str, Any]:
    """The values that are not the defaults: flag -> value, as in JSON."""
    default = RuleOptions()
    return {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in vars(self).items()
      if value != getattr(default, name)
    }
