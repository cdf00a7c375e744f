"""An ensemble whose members are each trained on a subset of the data set, given by masks.

One such ensemble says of every example what models make of it that have never seen it, which
`difficulty.held_out` turns into scores. `difficulty.masks` draws the subsets.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reweight_jax._arrays import at_least_float32
from reweight_jax._validate import check_choice, check_number
from reweight_jax.difficulty import _members
from reweight_jax.types import ApplyFn, Array, Batch, Key, ModelState, Params, PerExampleLoss

FORMS = ("auto", "vmap", "one_by_one")
"""How members are trained: a chunk of them in one program, one after the other, or as is faster."""


class Members(NamedTuple):
  """The trained members of an ensemble; every leaf has a leading `[members]` axis."""

  params: Params
  model_state: ModelState


def train_members(
  loss_fn: PerExampleLoss,
  init_fn: _members.InitFn,
  tx: optax.GradientTransformation,
  data: Batch,
  masks: np.ndarray,
  *,
  key: Key,
  num_steps: int,
  batch_size: int,
  form: str = "auto",
  members: Sequence[int] | None = None,
  members_at_once: int | None = None,
  mesh: Mesh | None = None,
  progress: Callable[[int], None] | None = None,
) -> Members:
  """Trains the members of an ensemble, each on the examples that its mask gives it.

  All members see the same batches in the same order; an example that a member's mask leaves out is
  padding to it. A member's step is that of the mean loss of the examples of the batch that are left
  to it, so with a share of 0.7 kept a batch of 100 is one of about 70.

  Guarantees: the params that a member starts from and all that it draws depend on `key` and its
  number alone. Both forms give the same members, to rounding. Trained again in the same chunk, a
  member comes out the same bit for bit on a CPU; so an ensemble that was stopped goes on with the
  chunks of `member_chunks` that are missing.
  Edge cases: where a batch leaves a member nothing, its gradient is 0 (momentum and decay still
  act). Examples left out still pass through the model: their inputs must be finite. A training that
  diverges ends in params that are not finite, and raises nothing here.

  In memory: the data set, and of `members_at_once` members the params, their gradients, the
  optimizer's state and the activations of a batch ("one_by_one": of one), besides the params of all
  members in the end.

  Args:
    loss_fn: per-example loss in training mode, of a model whose examples do not see each other.
    init_fn: draws a model, ``key -> (params, model_state)``; jitted here. Pass the same functions
      for each chunk: new ones are compiled anew.
    tx: optax optimizer.
    data: the whole training set as one batch; its padding is never drawn.
    masks: `[members, examples]` bool, True where a member is trained on an example.
    key: seeds everything.
    num_steps: steps of each member, at least 1.
    batch_size: examples of a batch, at most as many as there are.
    form: one of `FORMS`. "auto" is "one_by_one" on a CPU for a model with convolutions, which vmap
      makes several times slower, or with more than 50,000 params, and "vmap" otherwise.
    members: numbers of the members to train, rows of `masks`; None for all.
    members_at_once: at most so many in one program of the form "vmap"; None for all.
    mesh: of `sharding.batch_mesh`, to share the members of each chunk among devices.
    progress: called now and then with the number of steps taken since, over all members
      ``num_steps`` for each.

  Returns:
    The members, in the order of `members`.

  Raises:
    ValueError: if examples are coupled or the model's state depends on them, masks do not fit or
      leave a member nothing, or a number or word is out of range.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> data = rw.types.make_batch(jnp.eye(4), jnp.array([0, 1, 0, 1]))
    >>> members = train_members(
    ...   rw.losses.from_apply(linear),
    ...   lambda key: (jnp.zeros((4, 2)), ()),
    ...   optax.sgd(4.0),
    ...   data,
    ...   np.array([[True, True, False, False], [False, False, True, True]]),
    ...   key=jax.random.key(0),
    ...   num_steps=1,
    ...   batch_size=4,
    ... )
    >>> print(members.params[1])
    [[ 0.  0.]
     [ 0.  0.]
     [ 1. -1.]
     [-1.  1.]]
  """
  present = _check_masks(masks, data)
  numbers = _check_members(members, len(present))
  check_number("train_members: num_steps", num_steps, at_least=1, whole=True)
  num_real = int(np.sum(data.mask))
  check_number("train_members: batch_size", batch_size, at_least=1, at_most=num_real, whole=True)
  check_choice("train_members: form", form, FORMS)
  if mesh is not None and form == "one_by_one":
    raise ValueError('train_members expects form "vmap" or "auto" with a mesh, got "one_by_one".')
  by_default, is_fused = _members.inspect(loss_fn, init_fn, data, batch_size, key)
  form = "vmap" if mesh is not None else by_default if form == "auto" else form
  real, (data, present) = np.asarray(data.mask), _put((data, present), mesh, PartitionSpec())
  train = functools.partial(
    _train_chunk,
    _members.programs(loss_fn, init_fn, tx, form, is_fused),
    data,
    present,
    key=key,
    batches=lambda: _members.batch_positions(key, real, batch_size, num_steps),
    mesh=mesh,
    progress=progress or (lambda steps: None),
  )
  if form == "one_by_one":
    return _join(jnp.stack, [train(number) for number in numbers])
  chunks = member_chunks(len(numbers), members_at_once)
  return _join(jnp.concatenate, [train(numbers[list(chunk)]) for chunk in chunks])


def member_chunks(num_members: int, members_at_once: int | None = None) -> list[range]:
  """Cuts the numbers of members into chunks as `train_members` does, as equal as can be.

  Who saves what each chunk gives can stop, and train the missing chunks later.

  Args:
    num_members: how many members, at least 1.
    members_at_once: at most so many in a chunk, at least 1; None for all.

  Returns:
    The numbers of each chunk.

  Raises:
    ValueError: if a number is out of range.

  Example:
    >>> member_chunks(10, 4)
    [range(0, 4), range(4, 7), range(7, 10)]
  """
  check_number("member_chunks: num_members", num_members, at_least=1, whole=True)
  if members_at_once is None:
    return [range(num_members)]
  check_number("member_chunks: members_at_once", members_at_once, at_least=1, whole=True)
  parts = np.array_split(np.arange(num_members), math.ceil(num_members / members_at_once))
  return [range(int(part[0]), int(part[-1]) + 1) for part in parts]


def predict_members(
  apply_fn: ApplyFn, members: Members, inputs: Any, *, examples_at_once: int = 1000
) -> np.ndarray:
  """What each member makes of each example, in evaluation mode, as log-probabilities.

  The result takes 4 bytes times members, examples and classes, on the host: 4 GB for 100 members,
  100,000 examples and 100 classes. All that is made of it in `difficulty.held_out` is made for each
  example by itself, so beyond that predict and score a slice of the examples at a time.

  Args:
    apply_fn: ``(params, model_state, inputs, key, train) -> (logits [batch, classes], state)``;
      called with key None and train False.
    members: of `train_members`.
    inputs: pytree of `[examples, ...]` arrays.
    examples_at_once: examples in one forward pass, of one member at a time.

  Returns:
    `[members, examples, classes]` float32 or wider; NaN for a member whose training diverged.

  Raises:
    ValueError: if the model does not give two or more logits for each example, or a number is out
      of range.

  Example:
    >>> linear = lambda params, state, inputs, key, train: (inputs @ params, state)
    >>> log_probs = predict_members(linear, Members(jnp.zeros((3, 2, 4)), ()), jnp.ones((5, 2)))
    >>> print(log_probs.shape, np.exp(log_probs[0, 0]))
    (3, 5, 4) [0.25 0.25 0.25 0.25]
  """
  check_number("predict_members: examples_at_once", examples_at_once, at_least=1, whole=True)
  inputs, num_examples = jax.device_put(inputs), jax.tree.leaves(inputs)[0].shape[0]
  num_members = jax.tree.leaves(members)[0].shape[0]
  predict = _predictor(apply_fn)  # type: ignore[arg-type]
  rows = np.arange(num_examples, dtype=np.int32)
  # The last rows again fill the last pass: one shape, one program.
  starts = range(0, num_examples, examples_at_once)
  passes = [np.minimum(rows[0] + start + np.arange(examples_at_once), rows[-1]) for start in starts]
  shape = jax.eval_shape(predict, members, inputs, np.int32(0), passes[0])
  if shape.ndim != 2 or shape.shape[1] < 2:
    raise ValueError(
      "predict_members expects a model of logits [examples, classes], two classes or more, got "
      f"{shape.shape} for {examples_at_once} examples."
    )
  log_probs = np.empty((num_members, num_examples, shape.shape[1]), shape.dtype)
  for number in range(num_members):
    for start, positions in zip(starts, passes, strict=True):
      there = log_probs[number, start : start + examples_at_once]
      there[:] = predict(members, inputs, np.int32(number), positions)[: len(there)]
  return log_probs


@functools.lru_cache(maxsize=8)
def _predictor(apply_fn: Callable[..., Any]) -> Callable[..., Array]:
  def predict(members: Members, inputs: Any, number: Array, positions: Array) -> Array:
    params, model_state = jax.tree.map(lambda leaf: leaf[number], tuple(members))
    rows = jax.tree.map(lambda leaf: leaf[positions], inputs)
    logits, _ = apply_fn(params, model_state, rows, None, False)
    return jax.nn.log_softmax(at_least_float32(logits))

  return jax.jit(predict)


def _train_chunk(
  programs: _members.Programs,
  data: Batch,
  present: Array,
  numbers: np.ndarray,
  *,
  key: Key,
  batches: Callable[[], Iterable[tuple[int, np.ndarray]]],
  mesh: Mesh | None,
  progress: Callable[[int], None],
) -> Members:
  """Trains some members by one program, or one of them, whose number then has no axis."""
  size, shared = np.size(numbers), numbers
  if mesh is not None:  # the last member again, until each device has as many
    shared = np.append(numbers, [numbers[-1]] * (-size % mesh.size))
  cut = PartitionSpec() if mesh is None else PartitionSpec(mesh.axis_names[0])
  training, rows = _put((programs.start(key, shared), present[shared]), mesh, cut)
  for first_step, positions in batches():
    training = programs.run(training, data, rows, positions, first_step)
    jax.block_until_ready(training.params)
    progress(size * len(positions))
  trained = Members(training.params, training.model_state)
  return trained if shared is numbers else jax.tree.map(lambda leaf: leaf[:size], trained)


def _put(tree: Any, mesh: Mesh | None, cut: PartitionSpec) -> Any:
  return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, cut))


def _join(join: Callable[..., Array], parts: Sequence[Members]) -> Members:
  """The members of all parts in one tree."""
  return jax.tree.map(lambda *leaves: join(leaves), *parts)


def _check_masks(masks: np.ndarray, data: Batch) -> np.ndarray:
  """What each member is trained on, padding left out."""
  table, real = np.asarray(masks), np.asarray(data.mask)
  if table.ndim != 2 or table.dtype != bool or table.shape[1:] != real.shape or not table.size:
    raise ValueError(
      f"train_members expects masks [members, {real.size} examples] of bools, got {table.dtype} of "
      f"shape {table.shape}."
    )
  present = table & real
  if not present.any(axis=1).all():
    empty = int(np.argmin(present.any(axis=1)))
    raise ValueError(f"train_members expects an example for each member; member {empty} has none.")
  return present


def _check_members(members: Sequence[int] | None, num_members: int) -> np.ndarray:
  numbers = np.arange(num_members) if members is None else np.asarray(members)
  is_known = numbers.ndim == 1 and np.issubdtype(numbers.dtype, np.integer) and numbers.size
  if not is_known or numbers.min() < 0 or numbers.max() >= num_members:
    raise ValueError(
      f"train_members expects numbers of members, from 0 to {num_members - 1}, got {members}."
    )
  return numbers.astype(np.int32)
