r"""Rules that learn their factors by the meta-gradient: one engine for all of them.

A rule with learned factors :math:`V_\Theta` weighs example i by :math:`w_i V_\Theta(i)`. The
virtual step moves the model's parameters along :math:`\sum_i v_i(\Theta) \nabla \ell_i`, with
:math:`v_i = w_i V_\Theta(i) / n`, and :math:`\Theta` follows the gradient of the meta loss there.
By the chain rule that gradient is :math:`-\sum_i a_i \, \partial v_i / \partial \Theta`, with
the alignment :math:`a` taken at :math:`v(\Theta)`: one transposed pass through the small function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reweight_jax._arrays import num_real
from reweight_jax.rules import normalize
from reweight_jax.rules._rule import times
from reweight_jax.types import Array, MetaAlignment, Params, WeightingRule


class LearnedWeightsState(NamedTuple):
  """State of a rule that learns: its parameters and those of its optimizer."""

  params: Params
  opt_state: Any


def learned_weights(
  factors: Callable[..., Array],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  normalized: bool = False,
) -> WeightingRule:
  r"""Multiplies by factors whose parameters learn from the meta batch, by the exact gradient.

  In each step :math:`\Theta` takes one step of its optimizer against the derivative of the meta
  loss after a virtual step with the weights :math:`w_i V_\Theta(i) / n`, and the weights that
  go out are those of the new :math:`\Theta`. Losses and logits are constants to the factors.

  Unlike in `learning_to_reweight` the length of the virtual step matters: give
  `training.make_train_step` a `virtual_optimizer`, as published SGD at the learning rate of the
  model, or training's own optimizer. The split step cannot serve this rule.

  Guarantees: padding stays at weight 0, and what stands there is zeroed before the factors see it;
  permuting the batch permutes the weights. Parameters and optimizer state are in the rule's state,
  so that they are saved and restored with it.
  Edge cases: where the alignment is all 0, only momentum and decay of `tx` move the parameters.
  Normalized, a batch whose weights are all 0 stays so and teaches nothing.

  Args:
    factors: pure ``factors(params, *, evidence..., **unused) -> [batch]`` of factors >= 0, which
      names what it reads: ``losses``, ``logits``, ``labels``, ``indices``, ``mask``.
    params: pytree of floats to start from; they take the dtype of the weights.
    tx: optax optimizer of the parameters; its learning rate is the meta learning rate.
    normalized: whether the weights are rescaled as by `rules.normalize`, which the gradient goes
      through, so that the parameters learn about relative weights alone. The weights that come in
      must not be negative then.

  Returns:
    A rule needing evidence ``meta_alignment``, ``mask`` and what `factors` names.

  Raises:
    TypeError: if a leaf of `params` is not floating, naming it.
    ValueError: when the rule is used, if `factors` does not return one number an example.

  Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", 2019,
    arXiv 1902.07379, algorithm 1 and eqs. (3) to (5), for any function instead of the net.

  Example:
    >>> milder = lambda strength, *, losses, **unused: 1 / (1 + strength * losses)
    >>> rule = learned_weights(milder, 0.0, optax.sgd(2.0))
    >>> evidence = dict(losses=jnp.array([0.0, 1.0]), mask=jnp.ones(2, bool))
    >>> harmful = lambda at=None: jnp.array([0.0, -1.0])
    >>> state = rule.init(jnp.ones(2))
    >>> weights, state = rule.update(jnp.ones(2), state, meta_alignment=harmful, **evidence)
    >>> print(state.params, weights)
    1.0 [1.  0.5]
  """
  _check_params(params)

  def init(weights: Array) -> LearnedWeightsState:
    # A copy, so that donating the state does not take the arrays of the caller.
    start = jax.tree.map(lambda leaf: jnp.array(leaf, weights.dtype), params)
    return LearnedWeightsState(start, tx.init(start))

  def update(
    updates: Array,
    state: LearnedWeightsState,
    params: Params = None,
    *,
    meta_alignment: MetaAlignment,
    mask: Array,
    **evidence: Any,
  ) -> tuple[Array, LearnedWeightsState]:
    del params
    shown = {"mask": mask, **evidence, **_zero_at_padding(mask, evidence)}

    def weigh(theta: Params) -> Array:
      weights = times(updates, _check_factors(factors(theta, **shown), updates))
      if not normalized:
        return weights
      return normalize("mean").update(weights, optax.EmptyState(), mask=mask)[0]

    weights, transpose = jax.vjp(weigh, state.params)
    size = num_real(mask, updates.dtype)
    alignment = meta_alignment(at=jax.lax.stop_gradient(weights / size))
    state = descend(tx, transpose(-alignment.astype(updates.dtype) / size)[0], state)
    return weigh(state.params), state

  return optax.GradientTransformationExtraArgs(init, update)


def learned_params(rule_state: Any) -> Params:
  """The parameters that a rule has learned, wherever in a chain it stands.

  Args:
    rule_state: state of a rule, such as ``train_state.rule_state``.

  Returns:
    The parameters of the one learned rule in it.

  Raises:
    ValueError: if the state holds none, or several.

  Source: none; it reads the state.

  Example:
    >>> rule = optax.chain(rw.rules.focal(), rw.meta.lilaw(optax.sgd(5e-3)))
    >>> print(learned_params(rule.init(jnp.ones(2))).alpha)
    10.0
  """
  is_state = lambda node: isinstance(node, LearnedWeightsState)
  found = [node for node in jax.tree.leaves(rule_state, is_leaf=is_state) if is_state(node)]
  if len(found) != 1:
    raise ValueError(
      f"learned_params expects the state of one rule that learns, got {len(found)} of them. "
      "Hand over the part of the state that belongs to the rule."
    )
  return found[0].params


def descend(
  tx: optax.GradientTransformation, grads: Params, state: LearnedWeightsState
) -> LearnedWeightsState:
  """One step of the rule's optimizer."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  return LearnedWeightsState(optax.apply_updates(state.params, updates), opt_state)


def _zero_at_padding(mask: Array, evidence: dict[str, Any]) -> dict[str, Any]:
  """Losses, logits and labels with 0 at padding: a NaN there would reach every gradient."""

  def clean(leaf: Array) -> Array:
    real = mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
    return jnp.where(real, leaf, jnp.zeros_like(leaf))

  names = {"losses", "logits", "labels"} & evidence.keys()
  return jax.tree.map(clean, {name: evidence[name] for name in names})


def _check_factors(factors: Array, weights: Array) -> Array:
  if jnp.shape(factors) != weights.shape:
    raise ValueError(
      f"learned_weights expects one factor for each example, shape {weights.shape}, got shape "
      f"{jnp.shape(factors)} from its function. Return [batch]."
    )
  return factors


def _check_params(params: Params) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"learned_weights expects floating params, got {dtype} at "
        f"params{jax.tree_util.keystr(path)}. Close over what is not learned."
      )
