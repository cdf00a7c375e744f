"""What a net makes of its inputs before the last layer: an embedding of the data set."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from reweight_jax.types import Array, ModelState, Params


def linen_features(
  module: nn.Module,
) -> Callable[[Params, ModelState, Any], tuple[Array, Array]]:
  """Makes a function that returns a module's logits and what its last Dense layer was given.

  Args:
    module: a linen module called as ``module(inputs, train=...)``, with at least one Dense layer,
      the one called last making the logits.

  Returns:
    ``(params, model_state, inputs) -> (logits [batch, classes], features [batch, width])``, in
    evaluation mode; pure, and jittable. It raises ValueError if no Dense layer is called.

  Example:
    >>> from reweight_jax.models import MLP, init_linen
    >>> net = MLP(num_classes=3, hidden=(4,))
    >>> params, state = init_linen(net, jnp.ones((1, 5)), jax.random.key(0))
    >>> logits, features = linen_features(net)(params, state, jnp.ones((2, 5)))
    >>> print(logits.shape, features.shape)
    (2, 3) (2, 4)
  """

  def features_fn(params: Params, model_state: ModelState, inputs: Any) -> tuple[Array, Array]:
    given: list[Array] = []

    def intercept(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
      if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
        given.append(args[0])
      return call_next(*args, **kwargs)

    with nn.intercept_methods(intercept):
      logits: Any = module.apply({"params": params, **dict(model_state)}, inputs, train=False)
    if not given:
      raise ValueError(
        f"linen_features expects a module with a Dense layer, {type(module).__name__} calls none."
      )
    return logits, given[-1].reshape((given[-1].shape[0], -1))

  return features_fn
