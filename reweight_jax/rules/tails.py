"""Rules that change how a loss falls off with the margin, as `losses.persistent` does."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from reweight_jax._validate import check_number
from reweight_jax.losses import unit_margin
from reweight_jax.losses.persistent import ldam_margins, polynomial_tail_slope
from reweight_jax.rules._rule import of_the_label
from reweight_jax.types import Array, ScalarLike, WeightingRule


def polynomial_tail(power: ScalarLike = 1.0) -> WeightingRule:
  r"""Trains on the polynomially-tailed loss, under which class weights persist, on `unit_margin`.

  Made for the base loss `losses.unit_margin`, :math:`-m/2`: multiplies by :math:`2 |\varphi'(m)|`,
  which is :math:`2 \sigma(-m) / \log(1 + e^{-1})` for :math:`m \le 1` and :math:`2 k m^{-k-1}`
  beyond. Chain it with the weights that shall persist, such as `inverse_frequency`.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; exact and finite
  at any margin; the gradient of the step is that of `losses.polynomial_tail`; at most 6.39
  or 2k, whichever is larger.
  Edge cases: at margin 1 the weight jumps from 1.717 to :math:`2k`. On another base loss than
  `unit_margin` this is another method. Gradients of misfitted examples are 3.19 times those of
  cross-entropy, so lower the learning rate, above all under class weights. Relative to
  cross-entropy the weight would be :math:`|\varphi'(m)| (1 + e^m)`, which grows without bound: for
  that there is no rule.

  Args:
    power: :math:`k`, > 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if `power` is a Python number and not positive.

  Source: Wang, Chatterji, Haque, Hashimoto 2021, arXiv 2112.12986, the polynomially-tailed loss,
    differentiated.

  Example:
    >>> evidence = dict(logits=jnp.array([[2.0, 0.0]]), labels=jnp.array([0]))
    >>> print(polynomial_tail(1.0).update(jnp.ones(1), (), **evidence)[0])
    [0.5]
  """
  check_number("polynomial_tail: power", power, above=0)

  def factor(logits: Array, label: Array) -> Array:
    return 2 * polynomial_tail_slope(-2 * unit_margin(logits, label), power)

  return of_the_label(factor)


def ldam(counts: Sequence[int], max_margin: ScalarLike = 0.5) -> WeightingRule:
  r"""Trains on the label-distribution-aware margin loss of scale 1, exactly.

  Multiplies the gradient of cross-entropy by :math:`1 + (e^{\Delta_y} - 1) \sigma(m - \Delta_y)`,
  with :math:`m` the logarithm of the label's odds and :math:`\Delta_y = C / n_y^{1/4}`: from 1 for
  examples that are not fitted to :math:`e^{\Delta_y}`, a class weight, for those that are. So it
  fades with training as bounded weights do.

  Guarantees: padding stays at weight 0; permuting the batch permutes the weights; exact at any
  margin; the gradient of the step is that of `losses.ldam` with `scale=1`.
  Edge cases: `max_margin=0` changes nothing; with logits that are cosines times s give s times the
  margin in cosines, published 30 times 0.5. A label outside [0, classes) is clamped to the nearest.

  Args:
    counts: number of training examples of each class, at least 1.
    max_margin: margin of the rarest class, nats, >= 0.

  Returns:
    A rule needing evidence ``logits`` [batch, classes] float and ``labels`` [batch] int.

  Raises:
    ValueError: if a number is out of range; for a count it names the class.

  Source: Cao et al. 2019, arXiv 1906.07413, eqs. (12) and (13), differentiated.

  Example:
    >>> evidence = dict(logits=jnp.zeros((1, 2)), labels=jnp.array([1]))
    >>> print(ldam([16, 1], 1.0).update(jnp.ones(1), (), **evidence)[0] == 2 * jax.nn.sigmoid(1.0))
    [ True]
  """
  margin_of = ldam_margins("ldam", counts, max_margin)

  def factor(logits: Array, label: Array) -> Array:
    asked = margin_of(label, logits.dtype)
    # The odds' ratio (1 + e^m) / (1 + e^(m - asked)) without its overflow.
    return 1 + jnp.expm1(asked) * jax.nn.sigmoid(-2 * unit_margin(logits, label) - asked)

  return of_the_label(factor)
