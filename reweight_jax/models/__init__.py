"""Models: small Flax nets, and the way from any Flax module to a plain function.

The rest of the package never sees a module: it takes an `ApplyFn`, which `linen_apply` and
`nnx_apply` make. The nets here are those of the experiments:

* `MLP`: vectors and small images.
* `LeNet`: the MNIST net of the learning-to-reweight paper.
* `ResNet`: the CIFAR residual networks of depth 6n + 2.
* `ResNet18`: the wide residual network with projections, under a stem for small images.
* `PreActResNet`: the ResNet-32 and WRN-28-10 of the learning-to-reweight paper.
* `SequenceConvNet`, `Transformer`: sequences of tokens or of vectors; images too.

All are linen modules called as ``module(inputs, train=...)`` and normalize through `Norm`, whose
batch statistics are differentiable and which runs without mutation, as passes of a meta batch need
(`Transformer` normalizes by layer, as flax does). Unless a net says otherwise, kernels that feed a
ReLU start He normal, the others as flax's default. This room is an edge: it imports flax.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from reweight_jax.models.apply import init_linen, linen_apply, nnx_apply, scale_uint8
from reweight_jax.models.features import linen_features
from reweight_jax.models.lenet import LeNet, max_pool
from reweight_jax.models.mlp import MLP
from reweight_jax.models.norm import NORMS, Norm, num_groups
from reweight_jax.models.preact_resnet import PreActResNet
from reweight_jax.models.recorder import linen_recorder
from reweight_jax.models.resnet import ResNet, ResNet18
from reweight_jax.models.sequence import SequenceConvNet, Transformer

__all__ = [
  "MLP",
  "MODELS",
  "NORMS",
  "LeNet",
  "Norm",
  "PreActResNet",
  "ResNet",
  "ResNet18",
  "SequenceConvNet",
  "Transformer",
  "build",
  "init_linen",
  "linen_apply",
  "linen_features",
  "linen_recorder",
  "max_pool",
  "nnx_apply",
  "num_groups",
  "scale_uint8",
]

MODELS = (
  "mlp",
  "lenet",
  "resnet8",
  "resnet20",
  "resnet32",
  "resnet44",
  "resnet56",
  "resnet18",
  "preact_resnet32",
  "wrn28_10",
  "conv1d",
  "transformer",
)
"""The names that `build` knows. All read images; the last two also sequences."""

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
  "mlp": MLP,
  "lenet": LeNet,
  "resnet8": functools.partial(ResNet, depth=8),
  "resnet20": functools.partial(ResNet, depth=20),
  "resnet32": functools.partial(ResNet, depth=32),
  "resnet44": functools.partial(ResNet, depth=44),
  "resnet56": functools.partial(ResNet, depth=56),
  "resnet18": ResNet18,
  "preact_resnet32": functools.partial(PreActResNet, depth=32),
  "wrn28_10": functools.partial(PreActResNet, depth=28, widen=10, dropout_rate=0.3),
  "conv1d": SequenceConvNet,
  "transformer": Transformer,
}
_FIXED_NORM = {"lenet": "no normalization", "transformer": "its own layer normalization"}


def build(name: str, num_classes: int, *, norm: str | None = None, dtype: Any = None) -> nn.Module:
  """Builds a model by its name.

  Args:
    name: one of `MODELS`.
    num_classes: number of logits, at least 1 (1 is a binary head).
    norm: one of `NORMS`; None is the model's own ("batch" for the residual networks, layer-norm for
      the transformer, else "none").
    dtype: of the hidden computation, such as ``jnp.bfloat16``; None is that of the inputs.

  Returns:
    A linen module called as ``module(inputs, train=...)``.

  Raises:
    ValueError: if the name or the norm is unknown, if the model does not take the norm, or if
      ``num_classes`` is below 1.

  Example:
    >>> net = build("resnet20", 10, norm="group")
    >>> net.depth, net.norm
    (20, 'group')
  """
  if name not in _BUILDERS:
    raise ValueError(f"build expects a name in {MODELS}, got {name!r}.")
  if num_classes < 1:
    raise ValueError(f"build expects num_classes of at least 1, got {num_classes}.")
  options = {"num_classes": num_classes, "dtype": dtype}
  if norm is None or (norm == "none" and name == "lenet"):
    return _BUILDERS[name](**options)
  if name in _FIXED_NORM:
    raise ValueError(f"build: {name} has {_FIXED_NORM[name]}; leave norm out, got norm={norm!r}.")
  return _BUILDERS[name](**options, norm=norm)
