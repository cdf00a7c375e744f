"""Every measure of difficulty on one training set: what it costs, and the scores themselves."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments._errors import DivergedError
from experiments._parts import Parts
from experiments._progress import Progress
from reweight_jax import data, difficulty
from reweight_jax.types import ApplyFn, Array, Batch, PerExampleLoss

CHUNK = 500
"""Examples of one forward or backward pass that is not training's own."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the networks that scores come from are trained."""

  members: int = 30
  keep: float = 0.7
  steps: int = 2000
  batch_size: int = 100
  learning_rate: float = 0.1
  momentum: float = 0.0
  weight_decay: float = 0.0
  early_networks: int = 3  # 0: no measures of them
  early_share: float = 0.1  # of the steps
  snapshots: int = 5  # of one training, at equal distances; 0: no measures of gradients
  neighbors: int = 10
  members_at_once: int | None = None  # in a saved chunk

  def early_steps(self) -> int:
    """Steps of the networks that are looked at early in training."""
    return max(1, round(self.early_share * self.steps))

  def optimizer(self) -> optax.GradientTransformation:
    """SGD, the same for all networks; equal numbers, equal functions, which compile once."""
    return _optimizer(self.learning_rate, self.momentum, self.weight_decay)

  def total_steps(self) -> int:
    """Steps of all trainings, for a progress bar."""
    early = self.early_networks * self.early_steps()
    return (1 + self.members) * self.steps + early


@functools.lru_cache(maxsize=8)
def _optimizer(
  learning_rate: float, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  sgd = optax.sgd(learning_rate, momentum or None)
  return optax.chain(optax.add_decayed_weights(weight_decay), sgd)


class Subject(NamedTuple):
  """A training set under examination."""

  inputs: np.ndarray  # [examples, ...] floats
  labels: np.ndarray  # [examples] int32, as training sees them
  num_classes: int
  embedding: np.ndarray  # [examples, features] for neighbors that need no training


class Net(NamedTuple):
  """A network as functions of floating inputs."""

  init: Callable[[Any], Any]  # key -> (params, model_state)
  apply_fn: ApplyFn
  loss_fn: PerExampleLoss
  features_fn: Callable[..., tuple[Array, Array]]


class Measured(NamedTuple):
  """What is known of every example."""

  scores: dict[str, np.ndarray]  # name -> [examples], larger is harder
  log_probs: np.ndarray  # [members, examples, classes]
  masks: np.ndarray  # [members, examples] bool, True where trained on
  accuracy: float  # of the recorded network on its own training labels, at its end


@functools.lru_cache(maxsize=8)
def make_net(module: nn.Module, shape: tuple[int, ...]) -> Net:
  """The functions of a linen module for inputs of a shape; equal arguments, equal functions."""
  apply_fn = rw.models.linen_apply(module)
  example = jnp.zeros((1, *shape))
  return Net(
    lambda key: rw.models.init_linen(module, example, key),
    apply_fn,
    rw.losses.from_apply(apply_fn),
    jax.jit(rw.models.linen_features(module)),
  )


COSTS: dict[str, Callable[[Setting], float]] = {}
"""Measure -> its price in trainings of one network."""


def _price(cost: Callable[[Setting], float], *names: str) -> None:
  COSTS.update(dict.fromkeys(names, cost))


_price(lambda s: 0, "random", "class_rarity", "neighbor_disagreement", "neighbor_distance")
_price(lambda s: 0, "nonprototypicality")
_price(lambda s: s.early_networks * s.early_steps() / s.steps, "early_el2n", "early_grand")
_price(lambda s: s.early_networks * s.early_steps() / s.steps, "early_last_layer_grand")
_price(lambda s: 1, *difficulty.OF_DYNAMICS, "entropy", "uncertainty_margin", "final_grand")
_price(lambda s: 1, "variance_of_gradients", "self_influence")
_price(lambda s: 1, "feature_neighbor_disagreement", "feature_neighbor_distance")
_price(lambda s: s.members, *difficulty.OF_ENSEMBLE, "predictive_entropy", "bald")


def measure(
  subject: Subject,
  net: Net,
  setting: Setting,
  seed: int,
  parts: Parts,
  progress: Progress,
) -> Measured:
  """Trains what the measures need and returns all of them.

  Args:
    subject: the training set.
    net: the network.
    setting: how it is trained.
    seed: of everything random.
    parts: where what is done is kept, so that a run that was stopped goes on from there.
    progress: the bar to count steps on.

  Raises:
    DivergedError: if the params of a network are not finite.
    ValueError: from `difficulty.subset_masks`, if the members do not hold every example out.
  """
  size = len(subject.labels)
  examples = rw.types.make_batch(jnp.asarray(subject.inputs), jnp.asarray(subject.labels))
  masks = difficulty.subset_masks(size, setting.members, keep=setting.keep, seed=seed)
  scores = {"random": np.random.default_rng([seed, 7]).uniform(size=size)}
  scores |= parts.kept("neighbors", lambda: _of_neighbors(subject, setting))
  progress.begin("one training, recorded")
  done = parts.has("recorded")
  recorded = parts.kept(
    "recorded", lambda: _of_one_training(examples, net, setting, seed, progress)
  )
  if done:
    progress.advance(setting.steps, "finished before")
  accuracy = float(recorded.pop("accuracy"))
  scores |= recorded
  if setting.early_networks:
    progress.begin("networks early in training")
    done = parts.has("early")
    scores |= parts.kept(
      "early", lambda: _of_early_networks(examples, net, setting, seed, progress)
    )
    if done:
      progress.advance(setting.early_networks * setting.early_steps(), "finished before")
  log_probs = _ensemble(examples, net, setting, seed, masks, parts, progress)
  said = jnp.asarray(log_probs)
  scores |= {
    name: np.asarray(of(said, jnp.asarray(masks), examples.labels))
    for name, of in difficulty.OF_ENSEMBLE.items()
  }
  scores["predictive_entropy"] = np.asarray(difficulty.predictive_entropy(said))
  scores["bald"] = np.asarray(difficulty.bald(said))
  return Measured(scores, log_probs, masks, accuracy)


def _of_neighbors(subject: Subject, setting: Setting) -> dict[str, np.ndarray]:
  found = difficulty.nearest_neighbors(subject.embedding, setting.neighbors)
  rarity = difficulty.class_rarity(jnp.asarray(subject.labels), subject.num_classes)
  return {
    "neighbor_disagreement": _disagreement(found, subject.labels),
    "neighbor_distance": np.asarray(found.distances).mean(1),
    "nonprototypicality": np.asarray(
      difficulty.nonprototypicality(subject.embedding, subject.labels)
    ),
    "class_rarity": np.asarray(rarity),
  }


def _disagreement(found: difficulty.Neighbors, labels: np.ndarray) -> np.ndarray:
  return np.mean(labels[np.asarray(found.indices)] != labels[:, None], axis=1)


def _of_one_training(
  examples: Batch, net: Net, setting: Setting, seed: int, progress: Progress
) -> dict[str, np.ndarray]:
  """The dynamics of a training, what its snapshots see, and what its end says."""
  size, tx = examples.mask.shape[0], setting.optimizer()
  rule, take_step = _recording_step(net.loss_fn, tx, size)
  key = jax.random.fold_in(jax.random.key(seed), 2**20)  # no member's
  params, model_state = jax.jit(net.init)(key)
  state = rw.training.init_train_state(
    params, model_state, rule, tx, key=key, batch_size=setting.batch_size
  )
  snapshots = []
  ends = np.linspace(0, setting.steps, setting.snapshots + 1).round().astype(int)[1:]
  for number in range(setting.steps):
    positions = data.batch_indices(size, setting.batch_size, number, seed)
    state = take_step(state, examples, positions)
    if number + 1 in ends:
      _check_finite(state.params, f"at step {number + 1}")
      snapshots.append(jax.tree.map(jnp.copy, (state.params, state.model_state)))
    if number % 100 == 99 or number + 1 == setting.steps:
      progress.advance(number % 100 + 1, f"step {number + 1}")
  seen = difficulty.dynamics_of(state.rule_state)
  found = {name: np.asarray(of(seen)) for name, of in difficulty.OF_DYNAMICS.items()}
  _check_finite(state.params, "at the end")
  logits, features = _logits_and_features(net, (state.params, state.model_state), examples)
  labels = np.asarray(examples.labels)
  neighbors = difficulty.nearest_neighbors(np.asarray(features), setting.neighbors)
  found |= _of_snapshots(net, snapshots, examples, setting) if snapshots else {}
  return found | {
    "entropy": np.asarray(difficulty.entropy(logits)),
    "uncertainty_margin": np.asarray(difficulty.uncertainty_margin(logits)),
    "feature_neighbor_disagreement": _disagreement(neighbors, labels),
    "feature_neighbor_distance": np.asarray(neighbors.distances).mean(1),
    "accuracy": np.asarray(np.mean(np.argmax(np.asarray(logits), -1) == labels)),
  }


def _of_snapshots(
  net: Net, snapshots: list[Any], examples: Batch, setting: Setting
) -> dict[str, np.ndarray]:
  norms, saliency = _of_gradients(net, snapshots, examples)
  rates = [setting.learning_rate] * len(snapshots)
  return {
    "final_grand": norms[-1],
    "self_influence": np.asarray(difficulty.self_influence(jnp.asarray(norms), rates)),
    "variance_of_gradients": saliency,
  }


@functools.lru_cache(maxsize=8)
def _recording_step(
  loss_fn: Callable[..., Any], tx: optax.GradientTransformation, size: int
) -> tuple[rw.types.WeightingRule, Callable[[Any, Batch, Any], Any]]:
  """A rule that keeps the dynamics of so many examples, and a compiled step with it."""
  rule = difficulty.record_dynamics(size)
  step = rw.training.make_train_step(loss_fn, rule, tx)

  @functools.partial(jax.jit, donate_argnums=0)
  def take_step(state: Any, examples: Batch, positions: Array) -> Any:
    return step(state, _at(examples, positions))[0]

  return rule, take_step


def _of_early_networks(
  examples: Batch, net: Net, setting: Setting, seed: int, progress: Progress
) -> dict[str, np.ndarray]:
  """Scores of networks that have seen a little, averaged over the networks."""
  members = difficulty.train_members(
    net.loss_fn,
    net.init,
    setting.optimizer(),
    examples,
    np.ones((setting.early_networks, examples.mask.shape[0]), bool),
    key=jax.random.fold_in(jax.random.key(seed), 2**21),
    num_steps=setting.early_steps(),
    batch_size=setting.batch_size,
    progress=lambda steps: progress.advance(steps, f"{setting.early_networks} networks"),
  )
  _check_finite(members, "early in training")
  networks = [_member(members, i) for i in range(setting.early_networks)]
  found: dict[str, list[Array]] = {"early_el2n": [], "early_last_layer_grand": []}
  for network in networks:
    logits, features = _logits_and_features(net, network, examples)
    found["early_el2n"].append(difficulty.el2n(logits, examples.labels))
    found["early_last_layer_grand"].append(
      difficulty.last_layer_grand(logits, examples.labels, features)
    )
  scores = {name: np.mean(np.stack(lists), axis=0) for name, lists in found.items()}
  grand = [difficulty.grand(net.loss_fn, networks, part) for part in _chunks(examples)]
  return scores | {"early_grand": np.concatenate(grand)[: examples.mask.shape[0]]}


def _ensemble(
  examples: Batch,
  net: Net,
  setting: Setting,
  seed: int,
  masks: np.ndarray,
  parts: Parts,
  progress: Progress,
) -> np.ndarray:
  """The members' log-probabilities, chunk by chunk, each kept as soon as it is made."""
  tx = setting.optimizer()  # one for all chunks, which then share a compiled program

  def predictions(chunk: range) -> dict[str, Any]:
    members = difficulty.train_members(
      net.loss_fn,
      net.init,
      tx,
      examples,
      masks,
      key=jax.random.key(seed),
      num_steps=setting.steps,
      batch_size=setting.batch_size,
      members=chunk,
      progress=lambda steps: progress.advance(steps, f"of {setting.members}"),
    )
    _check_finite(members, f"among members {chunk[0]} to {chunk[-1]}")
    return {"log_probs": difficulty.predict_members(net.apply_fn, members, examples.inputs)}

  found = []
  for chunk in difficulty.member_chunks(setting.members, setting.members_at_once):
    name = f"members_{chunk[0]:03d}_{chunk[-1]:03d}"
    progress.begin(f"members {chunk[0]} to {chunk[-1]}")
    if parts.has(name):
      progress.advance(setting.steps * len(chunk), "finished before")
    found.append(parts.kept(name, functools.partial(predictions, chunk))["log_probs"])
  return np.concatenate(found)


def _member(members: difficulty.Members, number: int) -> tuple[Any, Any]:
  params, model_state = jax.tree.map(lambda leaf: leaf[number], members)
  return params, model_state


def _of_gradients(net: Net, snapshots: list[Any], examples: Batch) -> tuple[np.ndarray, np.ndarray]:
  """Norms of the gradients `[snapshots, examples]`, and the variance of the input's gradients."""
  norms, saliency = [], []
  for part in _chunks(examples):
    norms.append(np.asarray(difficulty.gradient_norms(net.loss_fn, snapshots, part)))
    maps = difficulty.input_gradients(net.loss_fn, snapshots, part)
    saliency.append(np.asarray(difficulty.variance_of_gradients(maps)))
  size = examples.mask.shape[0]
  return np.concatenate(norms, 1)[:, :size], np.concatenate(saliency)[:size]


def _logits_and_features(net: Net, network: Any, examples: Batch) -> tuple[Array, Array]:
  parts = [net.features_fn(*network, part.inputs) for part in _chunks(examples)]
  size = examples.mask.shape[0]
  logits, features = zip(*parts, strict=True)
  return jnp.concatenate(logits)[:size], jnp.concatenate(features)[:size]


def _chunks(examples: Batch) -> Iterator[Batch]:
  """Parts of equal size; the last one is filled up with its last example, as padding."""
  size = examples.mask.shape[0]
  chunk = min(CHUNK, size)
  for start in range(0, size, chunk):
    rows = start + np.arange(chunk)
    part = _at(examples, np.minimum(rows, size - 1))
    yield part._replace(mask=jnp.asarray(rows < size))


def _at(examples: Batch, positions: Any) -> Batch:
  return jax.tree.map(lambda leaf: leaf[positions], examples)


def _check_finite(tree: Any, when: str) -> None:
  if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree)):
    raise DivergedError(
      f"a network's params are not finite {when}: lower --learning_rate; what was done before is "
      "kept"
    )
