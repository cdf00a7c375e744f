r"""Push and pull from one recorded pass, for models whose examples do not see each other.

The gradient of the weighted loss at a layer's output is, for such a model, that of the plain sum
with example i's part times :math:`w_i`. So one backward pass for the layer outputs alone, without
any weight gradient, and the recorded layer inputs serve every push and every pull: with
:math:`\delta` the cotangents of the outputs of :math:`f_\theta(x)`,

.. math:: push(d)_i = \sum_{layers} \langle \delta_i, \partial_\theta f(x)_i\,d \rangle, \quad
  pull(w) = \sum_{layers} (\partial_\theta f(x))^\top (w \delta).

A push costs one forward pass and a pull one pass of weight gradients, half of what they cost by
linearizing the whole model. The layers are found by a recorder, such as that of
`models.linen_apply`. Nothing is assumed of what they compute; what the identity does need is
checked, and a model that fails is refused by name (`RefusedError`): every use of every parameter
must be inside of a recorded call (`_uses`), every recorded output must have the batch on one axis
(`layers`), and on made-up values of six examples the result must equal an ordinary backward pass
(`_trial`). The last is evidence, no proof: examples that see each other for special values alone
(a rare token, a full expert) or from some batch size on are not noticed.
"""

import functools

import jax
import jax.numpy as jnp

from reweight_jax.ghost import _passes
from reweight_jax.ghost._trial import check_on_made_up_values
from reweight_jax.ghost._uses import check_every_use
from reweight_jax.ghost.layers import Layer, LayerCall, Recorder, RefusedError, Tap, plan
from reweight_jax.types import (
  Array,
  Batch,
  Key,
  Linearized,
  ModelState,
  Params,
  PerExampleLoss,
)

__all__ = ["LayerCall", "Recorder", "RefusedError", "Tap", "check", "grad_norms", "linearize"]


def linearize(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  recorder: Recorder | None = None,
) -> Linearized:
  """`per_example.linearize` by recorded layers.

  Args:
    loss_fn: per-example loss.
    params: pytree of floating arrays, dicts of dicts where the recorder's paths lead.
    model_state: the model's state, not differentiated.
    batch: the batch.
    key: JAX key for dropout and the like.
    recorder: what makes the layers seen; None for the loss's attribute `recorder`, which losses of
      `losses.from_apply` with `models.linen_apply` have.

  Returns:
    `Linearized(outputs, push, pull)`; parameters that no layer call uses get gradient 0.

  Raises:
    RefusedError: if the model is not computed exactly by this route, saying why.
  """
  params = jax.tree.map(jnp.asarray, params)
  recorder, layers = _checked(loss_fn, params, model_state, batch, key, recorder)
  outputs, tapes = _passes.record(recorder, layers, loss_fn, params, model_state, batch, key)
  return Linearized(
    outputs,
    functools.partial(_passes.push, tapes, params, outputs.losses),
    functools.partial(_passes.pull, tapes, params),
  )


def grad_norms(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  recorder: Recorder | None = None,
) -> Array:
  """`per_example.grad_norms` by recorded layers; arguments and errors as in `linearize`.

  Of Dense, Conv and Embed layers the norm comes from the layer's inputs and cotangents, by making
  each example's gradient or by Gram matrices of positions, whichever takes fewer operations.
  Gradients of one layer at most are in memory at once. With a `key` all examples share the one
  draw, as in `linearize`.

  Returns:
    `[batch]` norms in the losses' dtype; 0 for padding.
  """
  params = jax.tree.map(jnp.asarray, params)
  recorder, layers = _checked(loss_fn, params, model_state, batch, key, recorder, of_norms=True)
  outputs, tapes = _passes.record(recorder, layers, loss_fn, params, model_state, batch, key)
  return jnp.sqrt(_passes.squared_norms(tapes, params, outputs.losses))


def check(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  *,
  key: Key | None = None,
  recorder: Recorder | None = None,
) -> None:
  """Whether `linearize` would be exact, by arrays or shapes; arguments and errors are its own."""
  _checked(loss_fn, params, model_state, batch, key, recorder)


def _checked(
  loss_fn: PerExampleLoss,
  params: Params,
  model_state: ModelState,
  batch: Batch,
  key: Key | None,
  recorder: Recorder | None,
  of_norms: bool = False,
) -> tuple[Recorder, list[Layer]]:
  recorder = recorder or getattr(loss_fn, "recorder", None)
  if recorder is None:
    raise RefusedError(
      "the loss has no recorder of its model's layers; losses.from_apply(models.linen_apply(net)) "
      "has one"
    )
  problem = (loss_fn, params, model_state, batch, key)
  try:
    layers = plan(recorder, *problem)
    fingerprint = check_every_use(recorder, layers, *problem)
    check_on_made_up_values(recorder, fingerprint, *problem)
    if of_norms:
      check_on_made_up_values(recorder, fingerprint, *problem, of_norms=True)
  except RefusedError:
    raise
  except Exception as error:  # whatever the model raises on values and shapes of ours
    raise RefusedError(f"checking fails: {type(error).__name__}: {error}") from error
  return recorder, layers
