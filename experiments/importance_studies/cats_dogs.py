"""Small nets that learn cats against dogs of CIFAR-10 under class weights, one run after another.

A Python loop over jitted steps, since XLA on CPUs is slow at convolutions inside of a scan.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from experiments._errors import DivergedError
from reweight_jax import data

CAT, DOG = 3, 5
CONFIGURATIONS = ("none", "l2", "dropout", "batch_norm", "undersampling", "polynomial_tail")


@dataclasses.dataclass(frozen=True)
class Options:
  """What is trained; the defaults are the small version, for a CPU."""

  images: int = 200  # of each class
  ratios: tuple[float, ...] = (16.0, 1.0, 1 / 16)  # dog:cat
  configurations: tuple[str, ...] = CONFIGURATIONS
  epochs: int = 200
  batch_size: int = 16
  learning_rate: float = 0.1
  l2: float = 1e-2
  width: int = 16  # channels of the first convolutions; 64 is the size of the paper's net
  test_images: int = 1000  # in the domain, and as many out of it
  seeds: tuple[int, ...] = (0, 1, 2)  # of images, initial params and batches

  def eval_epochs(self) -> list[int]:
    """When shares are taken: 1, 2, 5, 10, ... and at the end."""
    times = [k * 10**p for p in range(5) for k in (1, 2, 5)]
    return [time for time in times if time < self.epochs] + [self.epochs]


class Net(nn.Module):
  """Two strided convolutions, with norms, and two dense layers, with dropout between them."""

  width: int
  norm: str = "none"
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, inputs: Any, *, train: bool) -> Any:
    """Two logits for each image."""
    features = inputs
    for maps in (self.width, 2 * self.width):
      features = nn.Conv(maps, (3, 3), (2, 2), kernel_init=nn.initializers.he_normal())(features)
      features = nn.relu(rw.models.Norm(self.norm)(features, train=train))
    features = features.reshape((features.shape[0], -1))
    features = nn.Dense(4 * self.width, kernel_init=nn.initializers.he_normal())(features)
    features = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(features))
    return nn.Dense(2)(features)


class Images:
  """Cats and dogs to train and to test on, and images that are neither."""

  def __init__(self, dataset: data.Dataset, options: Options, seed: int):
    """Draws them; the same for every run of a seed."""
    self.seed = seed
    rng = np.random.default_rng(seed)
    is_pet = lambda labels: (labels == CAT) | (labels == DOG)
    pick = lambda where, size: rng.permutation(np.flatnonzero(where))[:size]
    train = [pick(dataset.train_labels == label, options.images) for label in (CAT, DOG)]
    half = options.test_images // 2
    tests = [pick(dataset.test_labels == label, half) for label in (CAT, DOG)]
    others = pick(~is_pet(dataset.test_labels), options.test_images)
    self.inputs = _scaled(dataset.train_inputs[np.concatenate(train)])
    self.labels = np.repeat([0, 1], [len(chosen) for chosen in train]).astype(np.int32)
    self.in_domain = _scaled(dataset.test_inputs[np.concatenate(tests)])
    self.in_domain_labels = np.repeat([0, 1], [len(chosen) for chosen in tests])
    self.out_of_domain = _scaled(dataset.test_inputs[others])


def class_weights(labels: np.ndarray, ratio: float) -> np.ndarray:
  """Weights of cats and of dogs, dog:cat as `ratio`:1; over the labels (1: dog) they average 1."""
  weights = np.array([1.0, ratio])
  return weights / weights[labels].mean()


def train(images: Images, options: Options, configuration: str, ratio: float) -> dict[str, Any]:
  """One run: shares called dog and accuracies `[evaluations]`.

  Under `undersampling` examples of one class are left out instead of weighing less. Every run takes
  the same number of steps.

  Raises:
    DivergedError: if a logit is not finite, naming the run and the epoch.
  """
  rng = np.random.default_rng([images.seed, 1])
  kept, weights = np.arange(len(images.labels)), class_weights(images.labels, ratio)
  if configuration == "undersampling":
    shares = np.minimum(1, np.array([1 / ratio, ratio]))  # of cats, of dogs
    counts = np.maximum(1, np.round(shares * np.bincount(images.labels))).astype(int)
    kept = np.concatenate([np.flatnonzero(images.labels == c)[: counts[c]] for c in (0, 1)])
    weights = np.ones(2)
  net = "none" if configuration == "undersampling" else configuration  # of which it is one
  step, evaluate, init = _built(options, net)
  state = init(jax.random.key(images.seed))
  fixed = tuple(map(jnp.asarray, (images.inputs, images.labels, weights.astype(np.float32))))
  steps_of_epoch = len(images.labels) // options.batch_size
  queue, rows = np.zeros(0, int), []
  for epoch in range(1, options.epochs + 1):
    for _ in range(steps_of_epoch):
      while len(queue) < options.batch_size:
        queue = np.concatenate([queue, rng.permutation(kept)])
      state = step(state, *fixed, jnp.asarray(queue[: options.batch_size]))
      queue = queue[options.batch_size :]
    if epoch in options.eval_epochs():
      name = f"byrd_lipton, {configuration}, dog:cat {ratio:g}, seed {images.seed}, epoch {epoch}"
      call = functools.partial(_called_dog, evaluate, state, name)
      tests = call(images.in_domain)
      rows.append(
        {
          "in_domain": tests.mean(),
          "out_of_domain": call(images.out_of_domain).mean(),
          "train_accuracy": np.mean(call(images.inputs[kept]) == images.labels[kept]),
          "test_accuracy": np.mean(tests == images.in_domain_labels),
        }
      )
  return {key: np.array([row[key] for row in rows]) for key in rows[0]}


@functools.lru_cache(maxsize=1)  # the runs of a configuration share the compiled step
def _built(options: Options, configuration: str) -> tuple[Any, Any, Any]:
  """The jitted step, the jitted logits, and the first state of a key."""
  net = Net(
    options.width,
    norm="batch" if configuration == "batch_norm" else "none",
    dropout_rate=0.5 if configuration == "dropout" else 0.0,
  )
  is_tail = configuration == "polynomial_tail"
  loss = rw.losses.polynomial_tail(1.0) if is_tail else rw.losses.softmax_cross_entropy
  apply_fn = rw.models.linen_apply(net)
  loss_fn = rw.losses.from_apply(apply_fn, loss)
  # Times log(1 + 1/e), by which the tail's loss is divided: so it is logistic up to margin 1.
  tx = optax.sgd(options.learning_rate * (np.log1p(np.exp(-1)) if is_tail else 1))
  if configuration == "l2":
    tx = optax.chain(optax.add_decayed_weights(options.l2), tx)

  @jax.jit
  def step(state: Any, inputs: Any, labels: Any, class_weights: Any, chosen: Any) -> Any:
    rule = rw.rules.weighting_rule(
      lambda weights, *, labels, **unused: weights * class_weights[labels]
    )
    batch = rw.types.make_batch(inputs[chosen], labels[chosen])
    return rw.training.make_train_step(loss_fn, rule, tx)(state, batch)[0]

  @jax.jit
  def evaluate(params: Any, model_state: Any, inputs: Any) -> Any:
    return apply_fn(params, model_state, inputs, None, False)[0]

  def init(key: Any) -> Any:
    params, model_state = rw.models.init_linen(net, jnp.zeros((1, 32, 32, 3)), key)
    return rw.training.init_train_state(
      params, model_state, optax.identity(), tx, key=key, batch_size=options.batch_size
    )

  return step, evaluate, init


def _called_dog(evaluate: Any, state: Any, name: str, inputs: np.ndarray) -> np.ndarray:
  """`[images]` bool; raises DivergedError if a logit is not finite."""
  logits = evaluate(state.params, state.model_state, inputs)
  if not np.isfinite(logits).all():
    raise DivergedError(f"{name}: the logits are not finite; lower --byrd_lipton_learning_rate")
  return np.asarray(logits[:, 1] > logits[:, 0])


def _scaled(images: np.ndarray) -> np.ndarray:
  return ((images.astype(np.float32) / 255 - 0.5) * 2).astype(np.float32)
