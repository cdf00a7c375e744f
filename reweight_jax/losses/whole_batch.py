"""From the loss of one example to the losses of a batch, of its examples or of mixtures of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_number
from reweight_jax.losses.one_example import softmax_cross_entropy
from reweight_jax.types import (
  ApplyFn,
  Array,
  Batch,
  Key,
  ModelState,
  Outputs,
  Params,
  PerExampleLoss,
  ScalarLike,
)


def from_apply(
  apply_fn: ApplyFn,
  loss: Callable[[Any, Any], Array] = softmax_cross_entropy,
  *,
  train: bool = True,
) -> PerExampleLoss:
  """Builds the per-example loss of a batch from a model and the loss of one example.

  Guarantees: losses are `[batch]` and at least float32 even where the model computes in bfloat16
  (predictions are cast up before the loss); float64 stays float64.

  Args:
    apply_fn: `(params, model_state, inputs, key, train) -> (predictions, model_state)`.
      `models.linen_apply` and `models.nnx_apply` make one from a Flax module; for a stateless model
      it is one lambda that hands `model_state` back.
    loss: `(prediction, label) -> scalar` for one example. Both may be pytrees.
    train: passed on to the model. With True batch statistics and dropout are active.

  Returns:
    `(params, model_state, batch, key) -> Outputs`.

  Raises:
    ValueError: when called, if `loss` does not return one number an example.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> loss_fn = from_apply(linear, rw.losses.squared_error)
    >>> batch = rw.types.make_batch(jnp.eye(2), jnp.array([0.0, 2.0]))
    >>> print(loss_fn(jnp.zeros((2, 1)), (), batch, None).losses)
    [0. 2.]
  """

  def per_example_loss(
    params: Params, model_state: ModelState, batch: Batch, key: Key | None
  ) -> Outputs:
    predictions, new_state = apply_fn(params, model_state, batch.inputs, key, train)
    predictions = jax.tree.map(at_least_float32, predictions)
    losses = _one_each("from_apply", loss, predictions, batch.labels)
    return Outputs(losses, predictions, new_state)

  per_example_loss.recorder = getattr(apply_fn, "recorder", None)  # type: ignore[attr-defined]
  return per_example_loss


def mixup(
  apply_fn: ApplyFn,
  alpha: ScalarLike,
  loss: Callable[[Any, Any], Array] = softmax_cross_entropy,
) -> PerExampleLoss:
  r"""Builds a per-example loss for training on mixtures of two examples, fit for weighting.

  Mixture :math:`i` is :math:`\lambda x_i + (1 - \lambda) x_{\pi(i)}` with one random permutation
  :math:`\pi` and one :math:`\lambda \sim \text{Beta}(\alpha, \alpha)` a batch. Ordinary mixup gives
  mixture :math:`i` the labels of both ingredients. Here each label's terms are gathered with its
  own example,

  .. math:: \ell_i = \lambda\,\ell(f_i, y_i) + (1 - \lambda)\,\ell(f_{\pi^{-1}(i)}, y_i),

  with :math:`f_i` the prediction for mixture :math:`i`. The sum over the batch is that of ordinary
  mixup, and the weight of example :math:`i` scales all that its label teaches: a wrong label of
  weight 0 teaches nothing, though its input is still an ingredient. Exchanging :math:`\lambda` for
  :math:`1 - \lambda` and :math:`\pi` for its inverse gives the same mixtures, so the larger of the
  two is taken as :math:`\lambda`: `logits` are those of the mixture that is mostly example i.

  Guarantees: as `from_apply`. Padding is mixed with nothing, so that real examples never see it.
  Edge cases: the examples of a batch see each other: `per_example.grads` refuses this loss, push
  and pull are exact. A real example may be mixed with itself. A small `alpha` mixes little.

  Args:
    apply_fn: as in `from_apply`; called with `train=True`.
    alpha: > 0, the larger the nearer to halves.
    loss: `(prediction, label) -> scalar` for one example. Both may be pytrees.

  Returns:
    `(params, model_state, batch, key) -> Outputs`. Its inputs must be floating, so scale images of
    bytes *before*: bytes that `apply_fn` scales would be mixed without being scaled.

  Raises:
    ValueError: if `alpha` is a plain number and not positive; when called, without a key or with a
      single example.
    TypeError: when called, if an input is not floating (tokens cannot be mixed).

  Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018,
    arXiv 1710.09412, section 2. There labels are mixed, which for cross-entropy is the same.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> loss_fn = mixup(linear, 0.2, rw.losses.squared_error)
    >>> batch = rw.types.make_batch(jnp.ones((2, 1)), jnp.array([0.0, 2.0]))
    >>> print(loss_fn(jnp.ones((1, 1)), (), batch, jax.random.key(0)).losses)
    [0.5 0.5]
  """
  check_number("mixup: alpha", alpha, above=0)

  def per_example_loss(
    params: Params, model_state: ModelState, batch: Batch, key: Key | None
  ) -> Outputs:
    if key is None:
      raise ValueError("mixup expects a key to draw mixtures from, got None. Pass key=....")
    if batch.mask.shape[0] < 2:
      raise ValueError(
        "mixup expects two or more examples, got 1: it mixes the examples of a batch, so gradients "
        "of single examples do not exist. Use per_example.linearize, or from_apply."
      )
    _check_mixable(batch.inputs)
    mix_key, model_key = jax.random.split(key)
    share, partners = _draw_mixture(mix_key, alpha, batch.mask)

    def mix(own: Array) -> Array:
      wide = at_least_float32(own)
      lam = share.astype(wide.dtype)
      return (lam * wide + (1 - lam) * wide[partners]).astype(own.dtype)

    mixed = jax.tree.map(mix, batch.inputs)
    predictions, new_state = apply_fn(params, model_state, mixed, model_key, True)
    predictions = jax.tree.map(at_least_float32, predictions)
    as_partner = jnp.argsort(partners)  # the inverse: the mixture whose second ingredient is i
    others = jax.tree.map(lambda leaf: leaf[as_partner], predictions)
    first, second = (_one_each("mixup", loss, p, batch.labels) for p in (predictions, others))
    lam = share.astype(first.dtype)
    return Outputs(lam * first + (1 - lam) * second, predictions, new_state)

  return per_example_loss


def _draw_mixture(key: Key, alpha: ScalarLike, mask: Array) -> tuple[Array, Array]:
  """The larger share, and each example's partner; padding is its own partner."""
  share_key, order_key = jax.random.split(key)
  share = jax.random.beta(share_key, alpha, alpha)
  # Places of real examples, shuffled, over the same places in order; padding last in both.
  shuffled = jnp.argsort(jnp.where(mask, jax.random.uniform(order_key, mask.shape), 2))
  return jnp.maximum(share, 1 - share), shuffled[jnp.argsort(jnp.argsort(~mask))]


def _check_mixable(inputs: Any) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"mixup expects floating inputs, got {leaf.dtype} at inputs{jax.tree_util.keystr(path)}. "
        "Scale images of bytes before the loss; tokens cannot be mixed."
      )


def _one_each(name: str, loss: Callable[[Any, Any], Array], predictions: Any, labels: Any) -> Array:
  losses = jax.vmap(loss)(predictions, labels)
  if losses.ndim != 1:
    raise ValueError(
      f"{name} expects a loss of one example that returns a scalar; mapped over a batch of "
      f"{losses.shape[0]} it returned shape {losses.shape}. Sum or average inside the loss."
    )
  return at_least_float32(losses)
