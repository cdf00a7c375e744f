"""The record of training dynamics and its measures against a history kept in full."""

import itertools
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from scipy import special

import reweight_jax as rw
from reweight_jax.checkpointing import Checkpoints
from reweight_jax.difficulty import dynamics
from reweight_jax.types import Batch, Outputs

# One size everywhere, so that what is compiled is shared.
EXAMPLES, BATCH, CLASSES = 12, 8, 3
OBSERVE = jax.jit(dynamics.observe)
MEASURE = jax.jit(
  lambda record: {name: measure(record) for name, measure in dynamics.OF_DYNAMICS.items()}
)


def _enter(record, indices, logits, labels, losses=None, mask=None):
  """Enters some examples as one batch, filled up with padding that looks like examples."""
  rest = BATCH - len(indices)
  fill = lambda array: np.concatenate([array, np.repeat(array[:1], rest, axis=0)])
  indices, labels = np.asarray(indices, np.int32), np.asarray(labels, np.int32)
  losses = np.ones(len(indices), np.float32) if losses is None else losses
  mask = np.ones(len(indices), bool) if mask is None else mask
  batch = Batch((), fill(labels), fill(indices), np.append(mask, np.zeros(rest, bool)))
  dtype = np.asarray(logits).dtype
  return OBSERVE(record, batch, Outputs(fill(losses), jnp.asarray(fill(logits), dtype)))


def _two_class(p):
  """Logits of which label 0 has probability p, and the third class none to speak of."""
  return np.float32([[np.log(p / (1 - p)), 0, -80]])


def _history(seed, epochs=9):
  """Logits of every epoch and example, labels, losses, and who was seen."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=EXAMPLES)
  logits = rng.normal(size=(epochs, EXAMPLES, CLASSES))
  # The first are learned early, the next late, example 9 never; 10 comes once and 11 not at all.
  growth = np.linspace(-0.5, 0.5, epochs)[:, None] + np.linspace(2, -1, EXAMPLES)
  np.put_along_axis(logits, labels[None, :, None], growth[..., None], axis=2)
  logits[:, 9, labels[9]] -= 9
  seen = rng.random((epochs, EXAMPLES)) < 0.8
  seen[:, 9], seen[:, 10], seen[:, 11] = True, np.arange(epochs) == 4, False
  return logits.astype(np.float32), labels, rng.exponential(size=seen.shape), seen


def _brute_force(logits, labels, losses, seen):
  """Every measure, example by example, from the list of what was seen of it."""
  result = {name: np.full(EXAMPLES, np.nan) for name in dynamics.OF_DYNAMICS}
  for i in range(EXAMPLES):
    z, loss = logits[seen[:, i], i].astype(np.float64), losses[seen[:, i], i]
    if not len(z):
      continue
    probs, y = special.softmax(z, axis=1), labels[i]
    p, right = probs[:, y], z.argmax(1) == y
    margin = z[:, y] - np.delete(z, y, axis=1).max(1)
    wrong, times = np.flatnonzero(~right), len(z)
    forgotten = sum(before and not after for before, after in itertools.pairwise(right))
    values = {
      "final_loss": loss[-1],
      "mean_loss": loss.mean(),
      "low_confidence": 1 - p.mean(),
      "variability": p.std(),
      "aleatoric": (p * (1 - p)).mean(),
      "incorrectness": (~right).mean(),
      "late_learning": (wrong[-1] + 1) / times if wrong.size else 0,
      "late_first_correct": right.argmax() / times if right.any() else 1,
      "forgetting": forgotten if right.any() else seen.sum(0).max(),
      "negative_margin_area": -margin.mean(),
      "final_negative_margin": -margin[-1],
      "final_el2n": np.linalg.norm(probs[-1] - np.eye(CLASSES)[y]),
    }
    for name, value in values.items():
      result[name][i] = value
  return result


class MeasuresTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_every_measure_is_that_of_the_whole_history(self, seed):
    logits, labels, losses, seen = _history(seed)
    rng, record = np.random.default_rng(seed), dynamics.init_dynamics(EXAMPLES)
    for epoch in range(len(seen)):
      shuffled = rng.permutation(np.flatnonzero(seen[epoch]))
      for rows in np.array_split(shuffled, 2):
        record = _enter(record, rows, logits[epoch, rows], labels[rows], losses[epoch, rows])
    expected = _brute_force(logits, labels, losses, seen)
    # Of everything that the measures tell apart there is an example.
    self.assertGreater(len(set(expected["forgetting"][:9])), 2)
    self.assertGreater(len(set(expected["late_learning"][:9])), 4)
    found = MEASURE(record)
    self.assertEqual(found.keys(), expected.keys())
    for name in expected:
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(record.times_seen, seen.sum(0))

  def test_wrong_right_wrong_right_right_by_hand(self):
    record = dynamics.init_dynamics(EXAMPLES)
    for p, loss in zip((0.25, 0.75, 0.25, 0.75, 0.75), np.float32([5, 1, 2, 1, 0.5]), strict=True):
      record = _enter(record, [4], _two_class(p), [0], np.array([loss]))
    expected = {
      "final_loss": 0.5,
      "mean_loss": 1.9,
      "low_confidence": 0.45,
      "variability": np.sqrt(0.06),  # twice -0.3 and three times 0.2 from the mean
      "aleatoric": 3 / 16,
      "incorrectness": 0.4,
      "late_learning": 0.6,
      "late_first_correct": 0.2,
      "forgetting": 1,
      "negative_margin_area": -np.log(3) / 5,
      "final_negative_margin": -np.log(3),
      "final_el2n": np.sqrt(2) / 4,
    }
    found = MEASURE(record)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][4], value, rtol=1e-5, err_msg=name)
      self.assertEqual(np.isnan(found[name]).sum(), EXAMPLES - 1, name)  # of those never seen

  def test_an_example_never_learned_is_the_hardest_to_learn(self):
    record = dynamics.init_dynamics(EXAMPLES)
    for step in range(6):
      swing = 0.75 if step % 2 == 0 else 0.25  # forgotten as often as six sightings allow
      logits = np.concatenate([_two_class(p) for p in (0.9, swing, 0.1)])
      record = _enter(record, [0, 1, 2], logits, [0, 0, 0])
    record = _enter(record, [3], _two_class(0.1), [0])  # seen once, and wrong
    found = MEASURE(record)
    self.assertEqual(found["forgetting"][:4].tolist(), [0, 3, 6, 6])
    self.assertEqual(found["late_learning"][:4].tolist(), [0, 1, 1, 1])
    self.assertEqual(found["late_first_correct"][:4].tolist(), [0, 0, 1, 1])

  def test_what_is_easy_beyond_the_digits_of_p_is_still_told_apart(self):
    record = dynamics.init_dynamics(EXAMPLES)
    logits = np.float32([[20, 0, -80], [40, 0, -80], [1e4, -1e4, 0], [-1e4, 1e4, 0]])
    found = MEASURE(_enter(record, [0, 1, 2, 3], logits, [0, 0, 0, 0]))
    for name in ("low_confidence", "aleatoric"):
      np.testing.assert_allclose(found[name][:2], np.exp([-20.0, -40.0]), rtol=1e-4)
    np.testing.assert_allclose(found["final_el2n"][:2], np.sqrt(2) * np.exp([-20, -40]), rtol=1e-4)
    for name, scores in found.items():
      self.assertTrue(np.isfinite(scores[:4]).all(), name)


class RecordTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    logits, labels, losses, _ = _history(5, epochs=3)
    self.logits, self.labels, self.losses = logits[:, :BATCH], labels[:BATCH], losses[:, :BATCH]
    self.rows = np.arange(BATCH)
    empty = dynamics.init_dynamics(EXAMPLES)
    self.record = _enter(empty, self.rows, self.logits[0], self.labels, self.losses[0])

  def test_padding_and_unknown_indices_change_nothing(self):
    indices = np.array([-1, EXAMPLES, 10**6, -(2**31), 0, 1, 2, EXAMPLES - 1])
    known = indices == EXAMPLES - 1
    logits, losses = self.logits[1].copy(), self.losses[1].copy()
    logits[4:7], losses[4:7] = np.nan, np.nan  # what no padding should contain
    mask = np.arange(BATCH) // 4 != 1
    after = _enter(self.record, indices, logits, self.labels, losses, mask)
    chex.assert_trees_all_equal(after, self.record)
    # The same with one example in it: that one row is written.
    after = _enter(self.record, indices, logits, self.labels, losses, mask | known)
    self.assertEqual(after.times_seen[-1], 1)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[:-1], r) for r in (after, self.record)))

  def test_the_order_of_a_batch_does_not_matter(self):
    indices, order = self.rows % 3, np.random.default_rng(1).permutation(BATCH)
    evidence = indices, self.logits[1], self.labels[indices], self.losses[1]
    found = _enter(self.record, *evidence)
    permuted = _enter(self.record, *(array[order] for array in evidence))
    chex.assert_trees_all_close(found, permuted, rtol=1e-6)

  def test_copies_in_one_batch_are_one_sighting_with_the_mean_of_their_numbers(self):
    record = dynamics.init_dynamics(EXAMPLES)
    logits = np.concatenate([_two_class(p) for p in (0.8, 0.6, 0.4, 0.7)])
    losses = np.float32([1, 2, 6, 9])
    # Example 7 comes three times, right, right and wrong; example 0 once, in between.
    record = _enter(record, [7, 7, 7, 0], logits, [0] * 4, losses)
    self.assertEqual(record.times_seen.tolist(), [1] + [0] * 6 + [1] + [0] * 4)
    self.assertEqual(record.was_correct[np.array([0, 7])].tolist(), [True, False])
    found = MEASURE(record)
    np.testing.assert_allclose(found["mean_loss"][np.array([0, 7])], [9, 3], rtol=1e-6)
    np.testing.assert_allclose(found["low_confidence"][np.array([0, 7])], [0.3, 0.4], rtol=1e-5)
    self.assertEqual(found["variability"][7], 0)  # of sightings, not of copies

  def test_logits_in_bfloat16_count_as_the_numbers_that_they_are(self):
    coarse = jnp.asarray(self.logits[1], jnp.bfloat16)
    exact = _enter(self.record, self.rows, np.asarray(coarse, np.float32), self.labels)
    found = _enter(self.record, self.rows, np.asarray(coarse), self.labels)
    chex.assert_trees_all_close(found, exact, rtol=1e-6)
    chex.assert_trees_all_equal_dtypes(found, exact)

  def test_float64_stays_float64_and_dtypes_never_change(self):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      for dtype in (jnp.float32, jnp.float64):
        rule = dynamics.record_dynamics(EXAMPLES)
        record = jax.eval_shape(rule.init, jax.ShapeDtypeStruct((BATCH,), dtype))
        self.assertEqual(record.mean_loss.dtype, dtype)
        batch = Batch((), self.labels, self.rows.astype(np.int32), np.ones(BATCH, bool))
        for precision in (jnp.bfloat16, dtype):
          outputs = Outputs(self.losses[0].astype(dtype), jnp.asarray(self.logits[0], precision))
          after = jax.eval_shape(dynamics.observe, record, batch, outputs)
          chex.assert_trees_all_equal_shapes_and_dtypes(record, after)
        for name, scores in jax.eval_shape(MEASURE, record).items():
          self.assertEqual((scores.shape, scores.dtype), ((EXAMPLES,), dtype), name)

  def test_outputs_that_are_not_a_classifiers_are_refused(self):
    record, losses = dynamics.init_dynamics(EXAMPLES), np.ones(BATCH, np.float32)
    batch = rw.types.make_batch(np.zeros(BATCH), self.labels)
    for logits, what in (
      (None, "got None"),
      (np.zeros((BATCH, 1)), r"at least two classes, got shape \(8, 1\)"),
      (np.zeros((BATCH, 2, 3)), r"got shape \(8, 2, 3\)"),
      (np.zeros((BATCH - 1, 3)), r"one for each of 7 rows of logits, got shape \(8,\)"),
    ):
      with self.assertRaisesRegex(ValueError, what):
        dynamics.observe(record, batch, Outputs(losses, logits))
    for number in (0, 2.5):
      with self.assertRaisesRegex(ValueError, "num_examples expects a whole number >= 1"):
        dynamics.record_dynamics(number)


class RuleTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.inputs = rng.normal(size=(EXAMPLES, 4)).astype(np.float32)
    self.labels = rng.integers(CLASSES, size=EXAMPLES)
    self.rule = optax.chain(rw.rules.focal(2.0), dynamics.record_dynamics(EXAMPLES))
    self.tx = optax.sgd(0.5)

  def _batch(self, rows):
    rows = np.append(rows, np.zeros(BATCH - len(rows), int))
    mask = np.arange(BATCH) < BATCH - 1
    return rw.types.make_batch(self.inputs[rows], self.labels[rows], indices=rows, mask=mask)

  def _start(self):
    params = jnp.zeros((4, CLASSES))
    return rw.training.init_train_state(
      params, (), self.rule, self.tx, key=jax.random.key(0), batch_size=BATCH
    )

  def test_a_chain_trains_as_without_the_record_which_is_checkpointed_with_it(self):
    loss_fn = rw.losses.from_apply(lambda params, state, x, key, train: (x @ params, state))
    step = rw.training.make_train_step(loss_fn, self.rule, self.tx)
    step = jax.jit(chex.assert_max_traces(step, n=1))  # the second step does not recompile
    rng = np.random.default_rng(3)
    batches = [self._batch(rng.permutation(EXAMPLES)[: BATCH - 1]) for _ in range(4)]
    state, by_hand, kept = self._start(), dynamics.init_dynamics(EXAMPLES), None
    for number, batch in enumerate(batches):
      logits = np.asarray(batch.inputs) @ np.asarray(state.params)
      state, metrics = step(state, batch)
      by_hand = OBSERVE(by_hand, batch._replace(inputs=()), Outputs(metrics.losses, logits))
      p = special.softmax(logits.astype(np.float64), axis=1)[np.arange(BATCH), batch.labels]
      expected = np.where(batch.mask, (1 - p) ** 2, 0)
      np.testing.assert_allclose(metrics.weights, expected, rtol=1e-4, atol=1e-6)
      kept = state if number == 1 else kept
    record = dynamics.dynamics_of(state.rule_state)
    chex.assert_trees_all_close(record, by_hand, rtol=1e-5, atol=1e-6)
    self.assertEqual(record.times_seen.sum(), 4 * (BATCH - 1))
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "checkpoints"
    with Checkpoints(folder) as checkpoints:
      checkpoints.save(2, kept._asdict())
      checkpoints.wait()
      found = kept._replace(**checkpoints.restore(2, self._start()._asdict()))
    self.assertIsInstance(found.rule_state[1], dynamics.Dynamics)
    for batch in batches[2:]:
      found, _ = step(found, batch)
    chex.assert_trees_all_equal(
      *(one._replace(key=jax.random.key_data(one.key)) for one in (found, state))
    )

  def test_the_record_is_found_in_a_chain_or_its_absence_named(self):
    weights = jnp.ones(BATCH)
    nested = optax.chain(optax.identity(), self.rule).init(weights)
    self.assertIsInstance(dynamics.dynamics_of(nested), dynamics.Dynamics)
    for rule, what in ((rw.rules.focal(), "found 0"), (optax.chain(self.rule, self.rule), "2")):
      with self.assertRaisesRegex(ValueError, f"one record of training dynamics, .*{what}"):
        dynamics.dynamics_of(rule.init(weights))

  def test_missing_evidence_is_a_type_error_that_names_it(self):
    rule = dynamics.record_dynamics(EXAMPLES)
    weights = jnp.ones(BATCH)
    with self.assertRaisesRegex(TypeError, "indices"):
      rule.update(
        weights, rule.init(weights), losses=weights, logits=None, labels=None, mask=weights > 0
      )


if __name__ == "__main__":
  absltest.main()
