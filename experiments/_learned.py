"""Rules that learn from the meta batch, made of the options; what they need of the step."""

from typing import Any

import jax
import optax

import reweight_jax as rw
from experiments._rule_options import RuleOptions
from reweight_jax.types import WeightingRule

MOMENTUM = 0.9  # of SGD for the net, in all published settings

NAMES = ("class_aware_weight_net", "lilaw", "lilaw_meta_gradient", "meta_weight_net")
AT_PRESENT_WEIGHTS = frozenset(NAMES) - {"lilaw"}
"""The rules that look at a virtual step of the present weights, and so of some size."""


def make(name: str, options: RuleOptions, counts: tuple[int, ...], seed: int) -> WeightingRule:
  """The rule of a name; the seed draws the nets, and decides nothing of the compiled step."""
  if name in ("lilaw", "lilaw_meta_gradient"):
    tx = _decayed(options.lilaw_decay, optax.sgd(options.lilaw_learning_rate))
    make_rule = rw.meta.lilaw if name == "lilaw" else rw.meta.lilaw_meta_gradient
    alpha, beta, delta = options.lilaw_alpha, options.lilaw_beta, options.lilaw_delta
    return make_rule(tx, alpha=alpha, beta=beta, delta=delta)
  rate, decay = options.meta_weight_net_learning_rate, options.meta_weight_net_decay
  is_adam = options.meta_weight_net_optimizer == "adam"
  tx = _decayed(decay, optax.adam(rate) if is_adam else optax.sgd(rate, momentum=MOMENTUM))
  net: dict[str, Any] = {
    "hidden": options.meta_weight_net_hidden,
    "normalized": options.meta_weight_net_weights == "normalized",
    "key": jax.random.key(seed),
  }
  if name == "meta_weight_net":
    return rw.meta.meta_weight_net(tx, **net)
  groups = options.class_aware_groups
  return rw.meta.class_aware_weight_net(tx, counts, num_groups=groups, **net)


def _decayed(decay: float, tx: optax.GradientTransformation) -> optax.GradientTransformation:
  return optax.chain(optax.add_decayed_weights(decay), tx)
