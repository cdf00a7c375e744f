"""Nets that map the loss of an example to its weight: Meta-Weight-Net and its class-aware form."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reweight_jax._validate import check_number, check_table
from reweight_jax.meta.learned import learned_params, learned_weights
from reweight_jax.types import Array, Key, WeightingRule


class Layer(NamedTuple):
  """One dense layer of a weight net."""

  kernel: Array  # [in, out]
  bias: Array  # [out]


def meta_weight_net(
  tx: optax.GradientTransformation,
  *,
  hidden: int | Sequence[int] = 100,
  normalized: bool = True,
  key: Key,
) -> WeightingRule:
  r"""Multiplies by a small net of the example's loss, learned from the meta batch.

  :math:`V_\Theta(\ell) \in (0, 1)`: dense layers with ReLU and one sigmoid at the end. Whether
  large losses weigh more, as under imbalance, or less, as under label noise, it learns.

  The published settings; the virtual step is plain SGD at the learning rate of the model:

  * label noise: ``optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, momentum=0.9))``;
  * imbalance: ``optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-5, momentum=0.9))``;
  * the authors' later, "stable" script: ``normalized=False`` with
    ``optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))``.

  Guarantees, edge cases: as for `learned_weights`. Factors lie in [0, 1]. Every layer starts
  uniform in :math:`\pm 1/\sqrt{\text{fan in}}`, kernel and bias, as PyTorch's `nn.Linear` does:
  without normalization weights start around 1/2.

  Args:
    tx: optax optimizer of the net.
    hidden: width of the hidden layer, or one for each; () is a logistic curve.
    normalized: whether the weights of the real examples average 1, as published; else they are the
      sigmoid's.
    key: JAX key of the initial parameters.

  Returns:
    A rule needing evidence ``meta_alignment``, ``mask`` and ``losses``.

  Raises:
    ValueError: if a width is not whole or below 1.

  Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", 2019,
    arXiv 1902.07379, algorithm 1 and eqs. (3) to (5).

  Example:
    >>> rule = meta_weight_net(optax.sgd(1e-3, momentum=0.9), key=jax.random.key(0))
    >>> print([layer.kernel.shape for layer in rule.init(jnp.ones(2)).params])
    [(1, 100), (100, 1)]
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> loss_fn = rw.losses.from_apply(linear)
    >>> step = rw.training.make_train_step(loss_fn, rule, tx, virtual_optimizer=optax.sgd(0.1))
  """
  layers = _init_net(_widths("meta_weight_net", hidden, 1), key)

  def factors(layers: Sequence[Layer], *, losses: Array, **unused: Any) -> Array:
    return jax.vmap(lambda loss: _net(layers, loss)[0])(losses)

  return learned_weights(factors, layers, tx, normalized=normalized)


def class_aware_weight_net(
  tx: optax.GradientTransformation,
  class_counts: Sequence[int],
  *,
  num_groups: int = 3,
  hidden: int | Sequence[int] = 100,
  normalized: bool = True,
  key: Key,
) -> WeightingRule:
  r"""Multiplies by a net of the example's loss that has a curve for each size of class.

  `meta_weight_net` with one sigmoid for each group of classes of similar size, on the same hidden
  layer: the label of an example chooses which one weighs it. The groups are `class_size_groups`.

  Guarantees, edge cases: as for `meta_weight_net`, which it is where all classes have one size. A
  label outside [0, classes) is clamped to the nearest class.

  Args:
    tx: optax optimizer of the net.
    class_counts: number of training examples of each class.
    num_groups: number of groups, at least 1; published: 3.
    hidden: as in `meta_weight_net`.
    normalized: as in `meta_weight_net`.
    key: JAX key of the initial parameters.

  Returns:
    A rule needing evidence ``meta_alignment``, ``mask``, ``losses`` and ``labels``.

  Raises:
    ValueError: if a count is negative or not finite, naming the class; if a width or `num_groups`
      is not whole or below 1.

  Source: Shu et al., "CMW-Net: Learning a Class-Aware Sample Weighting Mapping for Robust Deep
    Learning", 2022, arXiv 2202.05613, algorithm 1.

  Example:
    >>> rule = class_aware_weight_net(optax.sgd(1e-3), [500, 60, 50, 5], key=jax.random.key(0))
    >>> print(rule.init(jnp.ones(2)).params[-1].bias.shape)
    (3,)
  """
  groups = class_size_groups(class_counts, num_groups)
  layers = _init_net(_widths("class_aware_weight_net", hidden, int(groups.max()) + 1), key)

  def factors(layers: Sequence[Layer], *, losses: Array, labels: Array, **unused: Any) -> Array:
    chosen = jnp.asarray(groups)[jnp.clip(labels, 0, groups.size - 1)]
    return jax.vmap(lambda loss, group: _net(layers, loss)[group])(losses, chosen)

  return learned_weights(factors, layers, tx, normalized=normalized)


def weight_curve(rule_state: Any, losses: Array, *, group: int = 0) -> Array:
  """The curve that a weight net has learned: its factor at given losses, before normalization.

  Args:
    rule_state: state of `meta_weight_net` or `class_aware_weight_net`, alone or in a chain.
    losses: `[points]`, nats.
    group: which group of classes, 0 having the smallest classes; of `class_aware_weight_net`.

  Returns:
    `[points]`, in [0, 1].

  Raises:
    ValueError: if the state holds no weight net, or several, or the net has no such group.

  Source: the figures of Shu et al. 2019, arXiv 1902.07379, that plot weight against loss.

  Example:
    >>> rule = rw.meta.meta_weight_net(optax.sgd(1e-3), key=jax.random.key(0))
    >>> print(weight_curve(rule.init(jnp.ones(8)), jnp.linspace(0.0, 5.0, 50)).shape)
    (50,)
  """
  layers = learned_params(rule_state)
  if not isinstance(layers, tuple) or not all(isinstance(layer, Layer) for layer in layers):
    raise ValueError(
      "weight_curve expects the state of a weight net, got that of another rule that learns. "
      "Read its parameters with learned_params."
    )
  heads = layers[-1].bias.size
  if not 0 <= group < heads:
    raise ValueError(f"weight_curve expects a group in [0, {heads}), got {group}.")
  return jax.vmap(lambda loss: _net(layers, loss)[group])(jnp.asarray(losses))


def class_size_groups(class_counts: Sequence[int], num_groups: int = 3) -> np.ndarray:
  """Groups classes by size: the split of least squared distance to the groups' mean sizes.

  Guarantees: deterministic; classes of one size share a group; group 0 has the smallest classes.
  Edge cases: with fewer different sizes than groups, each size is a group.

  Args:
    class_counts: number of training examples of each class.
    num_groups: number of groups, at least 1.

  Returns:
    `[classes]` int32, the group of each class.

  Raises:
    ValueError: if a count is negative or not finite, naming the class, or `num_groups` is not
      whole or below 1.

  Source: K-means of the class sizes, Shu et al. 2022, arXiv 2202.05613. # Departs from it: of
    numbers on a line the best groups are found exactly, without centers that start at random.

  Example:
    >>> print(class_size_groups([500, 60, 50, 5]))
    [2 1 1 0]
  """
  sizes = check_table("class_size_groups: class_counts", class_counts, "class")
  check_number("class_size_groups: num_groups", num_groups, at_least=1, whole=True)
  values, place, repeats = np.unique(sizes, return_inverse=True, return_counts=True)
  cost = _split_costs(values - sizes.mean(), repeats)
  # best[j]: least cost of the j smallest values in the groups so far; a group is never empty.
  best, cuts = cost[0], []
  for _ in range(min(int(num_groups), values.size) - 1):
    total = best[:, None] + cost
    cuts.append(total.argmin(0))
    best = total.min(0)
  group, end = np.zeros(values.size, np.int32), values.size
  for cut in reversed(cuts):
    end = cut[end]
    group[end:] += 1
  return group[place]


def _split_costs(values: np.ndarray, repeats: np.ndarray) -> np.ndarray:
  """`[i, j]`: squared distances of the sorted values i to j-1 from their mean; empty: infinite."""
  sums = [np.r_[0, np.cumsum(repeats * values**power)] for power in range(3)]
  count, total, square = (column - column[:, None] for column in sums)
  cost = square - total**2 / np.where(count > 0, count, 1)
  return np.where(count > 0, cost, np.inf)


def _widths(name: str, hidden: int | Sequence[int], num_heads: int) -> tuple[int, ...]:
  """Widths from the loss to the heads."""
  between = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
  for width in between:
    check_number(f"{name}: hidden", width, at_least=1, whole=True)
  return (1, *(int(width) for width in between), num_heads)


@functools.partial(jax.jit, static_argnums=0)
def _init_net(widths: tuple[int, ...], key: Key) -> tuple[Layer, ...]:
  """Layers, each uniform within one over the root of its inputs."""
  layers, keys = [], jax.random.split(key, len(widths) - 1)
  for layer_key, (fan_in, fan_out) in zip(keys, itertools.pairwise(widths), strict=True):
    kernel_key, bias_key = jax.random.split(layer_key)
    bound = fan_in**-0.5
    kernel = jax.random.uniform(kernel_key, (fan_in, fan_out), jnp.float32, -bound, bound)
    bias = jax.random.uniform(bias_key, (fan_out,), jnp.float32, -bound, bound)
    layers.append(Layer(kernel, bias))
  return tuple(layers)


def _net(layers: Sequence[Layer], loss: Array) -> Array:
  """`[heads]` sigmoids of one loss."""
  features = loss.astype(layers[0].kernel.dtype)[None]
  for depth, layer in enumerate(layers):
    features = jax.nn.relu(features) if depth else features
    # Highest: a bfloat16 product, a TPU's default, tells losses 2.30 and 2.31 not apart.
    features = jnp.dot(features, layer.kernel, precision="highest") + layer.bias
  return jax.nn.sigmoid(features)
