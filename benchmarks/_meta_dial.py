"""Approximations of the meta gradient: how far from the exact one, and for how much less work.

A residual network trains on images with wrong labels by learning to reweight. In windows of
consecutive steps the alignment of each batch, before any rectifying, is computed exactly and with
the direction of the approximation; their cosine over the examples of the batch is what counts.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reweight_jax as rw
from benchmarks import _cost
from reweight_jax import per_example, training
from reweight_jax._arrays import zeros_for_none
from reweight_jax.meta.routes import make_meta_objective, meta_direction, none_where_still
from reweight_jax.types import Batch, Params

Moves = Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What to train, and where to look."""

  dataset: str = "digits"
  model: str = "resnet8"
  norm: str | None = "group"
  noise_rate: float = 0.4
  batch_size: int = 100
  meta_batch_size: int = 20
  meta_size: int = 100
  learning_rate: float = 0.1
  calibrate_at: int = 100
  windows: tuple[int, ...] = (200, 300)
  window_length: int = 10
  seeds: tuple[int, ...] = (0, 1, 2)
  periods: tuple[int, ...] = (2, 5, 10)
  layer_counts: tuple[int, ...] = (1, 2, 4)
  last_layer: tuple[str, ...] = ("Dense_0",)  # modules at the root
  last_block: tuple[str, ...] = ("Block_2", "Dense_0")


class Problem(NamedTuple):
  """A net, its data and the functions that measure it, each compiled once for all seeds."""

  setting: Setting
  data: Any
  net: Any
  loss_fn: Any
  rule: Any
  tx: Any
  step: Callable[..., Any]  # (state, batch, meta_batch or None)
  direction: Callable[..., Params]  # (params, meta_batch)
  push: Callable[..., Any]  # (params, batch, direction)


def run(setting: Setting) -> list[dict[str, Any]]:
  """One row for each approximation, the exact one first."""
  problem = _make_problem(setting)
  found: dict[str, list[float]] = {}
  choices: dict[str, list[Moves]] = _fixed_choices(setting)
  accuracies = []
  for seed in setting.seeds:
    learned, accuracy = _follow_exact(problem, seed, found)
    accuracies.append(accuracy)
    for name, chosen in learned.items():
      choices.setdefault(name, []).append(chosen)
    for period in setting.periods:
      _follow_stale(problem, seed, period, found)
  cost = _Costs(problem)
  rows = [cost.row("exact", [1.0]) | {"test_accuracy": float(np.mean(accuracies))}]
  for name, cosines in found.items():
    rows.append(cost.row(name, cosines, choices.get(name, ()), _period(name)))
  return rows


def _make_problem(setting: Setting) -> Problem:
  data = rw.data.load(setting.dataset)
  net = rw.models.build(setting.model, data.num_classes, norm=setting.norm)
  loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
  rule, tx = rw.meta.learning_to_reweight(), optax.sgd(setting.learning_rate, momentum=0.9)

  @jax.jit
  def direction(params: Params, meta_batch: Batch) -> Params:
    return meta_direction(make_meta_objective(loss_fn, {}, meta_batch, None), params)

  @jax.jit
  def push(params: Params, batch: Batch, direction: Params) -> Any:
    return per_example.linearize(loss_fn, params, {}, batch).push(direction)

  step = jax.jit(training.make_train_step(loss_fn, rule, tx, route="ghost"))
  return Problem(setting, data, net, loss_fn, rule, tx, step, direction, push)


def _follow_exact(
  problem: Problem, seed: int, found: dict[str, list[float]]
) -> tuple[dict[str, Moves], float]:
  """Trains with the exact meta gradient; what the layers choose, and the last test accuracy."""
  setting = problem.setting
  draw = _make_draw(problem, seed)
  state = _init_state(problem, seed)
  fixed = {name: choice[0] for name, choice in _fixed_choices(setting).items()}
  learned: dict[str, Moves] = {}
  for step in range(_num_steps(setting)):
    if step == setting.calibrate_at:
      # Batches as of steps far beyond the last one, and so none that is looked at later.
      pairs = [draw(100_000 + number) for number in range(4)]
      most = max(setting.layer_counts)
      chosen = rw.meta.choose_layers(problem.loss_fn, state.params, {}, pairs, most)
      for count in setting.layer_counts:
        name = f"learned, {count} layer{'s' * (count > 1)}"
        learned[name] = dataclasses.replace(chosen, names=chosen.names[:count])
    batch, meta_batch = draw(step)
    if _is_probed(setting, step):
      direction = problem.direction(state.params, meta_batch)
      exact = problem.push(state.params, batch, direction)
      for name, moves in (fixed | learned).items():
        part = problem.push(state.params, batch, _zero_where_still(direction, moves))
        found.setdefault(name, []).append(_cosine(part, exact))
      other = problem.direction(state.params, draw(200_000 + step)[1])
      drawn_anew = problem.push(state.params, batch, other)
      found.setdefault("exact, other meta batch", []).append(_cosine(drawn_anew, exact))
    state, _ = problem.step(state, batch, meta_batch)
  return learned, _test_accuracy(problem, state)


def _follow_stale(problem: Problem, seed: int, period: int, found: dict[str, list[float]]) -> None:
  """Trains with a direction kept between meta batches; only steps without one are looked at."""
  draw = _make_draw(problem, seed)
  state = _init_state(problem, seed)
  for step in range(_num_steps(problem.setting)):
    batch, meta_batch = draw(step)
    is_fresh = step % period == 0
    if _is_probed(problem.setting, step) and not is_fresh:
      direction = problem.direction(state.params, meta_batch)
      exact = problem.push(state.params, batch, direction)
      stale = problem.push(state.params, batch, state.meta_direction)
      found.setdefault(f"stale, every {period} steps", []).append(_cosine(stale, exact))
    state, _ = problem.step(state, batch, meta_batch if is_fresh else None)


class _Costs:
  """What the step of an approximation needs beside the plain one."""

  def __init__(self, problem: Problem):
    self._problem = problem
    self._flops: dict[Any, float] = {}
    self._plain = self._count(None, has_meta_batch=False, is_plain=True)

  def row(
    self,
    name: str,
    cosines: Sequence[float],
    choices: Sequence[Moves] = (),
    period: int = 1,
  ) -> dict[str, Any]:
    """The row of an approximation: the mean over the choices of the seeds, or over the period."""
    exact = self._count(None, has_meta_batch=True)
    flops = exact
    if choices:
      flops = float(np.mean([self._count(moves, has_meta_batch=True) for moves in choices]))
    elif period > 1:
      kept = self._count(None, has_meta_batch=False)
      flops = (exact + (period - 1) * kept) / period
    numbers = np.asarray(cosines)
    return {
      "approximation": name,
      "flops_ratio": flops / self._plain,
      "saved": (exact - flops) / (exact - self._plain),
      "cosine": float(numbers.mean()),
      "cosine_std": float(numbers.std()),
      "cosine_min": float(numbers.min()),
      "num_batches": 0 if name == "exact" else len(numbers),
      "layers": [list(getattr(moves, "names", ())) for moves in choices],
    }

  def _count(self, moves: Moves | None, *, has_meta_batch: bool, is_plain: bool = False) -> float:
    """FLOPs of the compiled step."""
    problem = self._problem
    rule = problem.rule
    names = () if moves is None else tuple(sorted(getattr(moves, "names", (str(moves),))))
    key = names, has_meta_batch, is_plain
    if key in self._flops:
      return self._flops[key]
    if is_plain:
      rule = optax.with_extra_args_support(optax.identity())
    step = training.make_train_step(
      problem.loss_fn, rule, problem.tx, route="forward" if is_plain else "ghost", meta_params=moves
    )
    batches = _make_draw(problem, 0)(0)

    def arguments() -> tuple[Any, ...]:
      state = _init_state(problem, 0, rule, keeps=not (has_meta_batch or is_plain))
      return (state, *batches) if has_meta_batch else (state, batches[0])

    shapes = jax.eval_shape(arguments)
    self._flops[key] = _cost.measure(jax.jit(step), shapes).flops
    return self._flops[key]


@dataclasses.dataclass(frozen=True)
class _Modules:
  """Whether a parameter is in one of some modules at the root."""

  names: tuple[str, ...]

  def __call__(self, name: str) -> bool:
    return name.partition("/")[0] in self.names


def _fixed_choices(setting: Setting) -> dict[str, list[Moves]]:
  return {
    "last layer": [_Modules(setting.last_layer)],
    "last block": [_Modules(setting.last_block)],
  }


def _make_draw(problem: Problem, seed: int) -> Callable[[int], tuple[Batch, Batch]]:
  """(step) -> batch with wrong labels, and meta batch with clean ones; disjoint."""
  setting, data = problem.setting, problem.data
  rng = np.random.default_rng(seed)
  split = rw.data.split_indices(
    data.train_labels, data.num_classes, meta_size=setting.meta_size, validation_size=0, rng=rng
  )
  noisy = rw.data.corrupt_labels(
    data.train_labels[split.train], data.num_classes, "symmetric", setting.noise_rate, rng
  )
  images = np.asarray(rw.models.scale_uint8(data.train_inputs))
  meta_labels = data.train_labels[split.meta]

  def draw(step: int) -> tuple[Batch, Batch]:
    rows = rw.data.batch_indices(len(split.train), setting.batch_size, step, seed)
    chosen = rw.data.balanced_batch_indices(meta_labels, setting.meta_batch_size, step, seed)
    batch = rw.types.make_batch(images[split.train[rows]], noisy.labels[rows])
    return batch, rw.types.make_batch(images[split.meta[chosen]], meta_labels[chosen])

  return draw


def _init_state(
  problem: Problem, seed: int, rule: Any = None, *, keeps: bool = True
) -> training.TrainState:
  sample = jnp.zeros((1, *problem.data.train_inputs.shape[1:]))
  params, _ = rw.models.init_linen(problem.net, sample, jax.random.key(seed))
  return training.init_train_state(
    params,
    {},
    problem.rule if rule is None else rule,
    problem.tx,
    key=jax.random.key(seed),
    batch_size=problem.setting.batch_size,
    keep_direction=keeps,
  )


def _test_accuracy(problem: Problem, state: training.TrainState) -> float:
  images = rw.models.scale_uint8(problem.data.test_inputs)
  evaluate = jax.jit(functools.partial(problem.net.apply, train=False))
  logits = evaluate({"params": state.params}, images)
  return float(np.mean(np.argmax(np.asarray(logits), 1) == problem.data.test_labels))


def _zero_where_still(direction: Params, moves: Moves) -> Params:
  return zeros_for_none(none_where_still(direction, moves), direction)


def _cosine(first: Any, second: Any) -> float:
  first, second = (np.asarray(vector, np.float64) for vector in (first, second))
  lengths = np.linalg.norm(first) * np.linalg.norm(second)
  return float(first @ second / lengths) if lengths > 0 else 0.0


def _is_probed(setting: Setting, step: int) -> bool:
  return any(0 <= step - start < setting.window_length for start in setting.windows)


def _num_steps(setting: Setting) -> int:
  return max(setting.windows) + setting.window_length


def _period(name: str) -> int:
  return int(name.split()[2]) if name.startswith("stale") else 1
