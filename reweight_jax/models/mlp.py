"""A multilayer perceptron for vectors and small images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from reweight_jax.models.norm import NORMS, Norm
from reweight_jax.types import Array


class MLP(nn.Module):
  """Flattens the inputs, then Dense, norm, ReLU and dropout for each hidden width, then Dense.

  Hidden kernels start He normal, the logits' kernel as flax's default (LeCun normal), biases at 0.

  Guarantees: logits are float32 or wider; float64 inputs give float64 logits.
  Edge cases: ``hidden=()`` is a linear classifier. With ``dropout_rate`` above 0, training without
  a "dropout" key raises flax's ``InvalidRngError``.

  Attributes:
    num_classes: number of logits.
    hidden: width of each hidden layer.
    norm: one of `NORMS`.
    dropout_rate: probability that a hidden unit is dropped in training, in [0, 1).
    dtype: of the hidden computation, such as ``jnp.bfloat16``; the params stay float32.

  Raises:
    ValueError: if ``norm`` is unknown or ``dropout_rate`` is outside [0, 1).

  Example:
    >>> net = MLP(num_classes=3, hidden=(4,))
    >>> logits, _ = net.init_with_output(jax.random.key(0), jnp.ones((2, 5, 5, 1)), train=False)
    >>> print(logits.shape)
    (2, 3)
  """

  num_classes: int = 10
  hidden: Sequence[int] = (128, 128)
  norm: str = "none"
  dropout_rate: float = 0.0
  dtype: Any = None

  def __post_init__(self) -> None:
    if self.norm not in NORMS:
      raise ValueError(f"MLP expects norm in {NORMS}, got {self.norm!r}.")
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"MLP expects dropout_rate in [0, 1), got {self.dropout_rate}.")
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the logits `[batch, classes]` of inputs `[batch, ...]`."""
    features = inputs.reshape((inputs.shape[0], -1))
    for width in self.hidden:
      features = nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(
        features
      )
      features = nn.relu(Norm(self.norm, dtype=self.dtype)(features, train=train))
      features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
    return nn.Dense(self.num_classes)(features)
