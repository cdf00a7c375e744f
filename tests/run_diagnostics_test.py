"""The diagnostics of a run: the numbers by hand from its checkpoint, the advice told once."""

import dataclasses

import jax
import numpy as np
from absl.testing import absltest, parameterized

import reweight_jax as rw
from experiments import _diagnostics, _model
from experiments._rule_options import RuleOptions
from tests import runs

CLASS_WEIGHTS = (8.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
CONFIG = dataclasses.replace(
  runs.CONFIG,  # which evaluates moving averages
  methods=("class_weights",),
  rule_options=RuleOptions(class_weights=CLASS_WEIGHTS),
  augment="none",
)


def logits_of(params, images):
  return images.reshape(-1, 64) / 255 @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


class SampleTest(absltest.TestCase):
  def test_has_as_many_of_each_class_as_there_are_up_to_the_same_number(self):
    labels = np.repeat([0, 1, 2, 1], [900, 3, 700, 4])
    train = np.flatnonzero(np.arange(len(labels)) != 5)
    inputs = np.zeros((len(labels), 2), np.uint8)
    sample = _diagnostics.draw(train, inputs, labels, seed=0)
    self.assertLen(np.unique(sample.positions), 500)
    self.assertNotIn(5, sample.positions)
    counts = np.bincount(labels[sample.positions])
    self.assertEqual(counts[1], 7)
    self.assertLessEqual(abs(counts[0] - counts[2]), 1)
    np.testing.assert_array_equal(sample.examples.labels, labels[sample.positions])
    # In no order of class, as its beginning serves as a batch.
    self.assertGreater(np.count_nonzero(np.diff(labels[sample.positions])), 100)
    again, other = (_diagnostics.draw(train, inputs, labels, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.positions, sample.positions)
    self.assertNotEqual(list(other.positions), list(sample.positions))


class NumbersTest(runs.RunTestCase):
  def test_are_those_of_the_sample_and_the_test_set_by_hand(self):
    self.train("run", config=CONFIG)
    row, carry = self.rows("run")[-1], self.carry("run", config=CONFIG)
    digits = runs.dataset()
    sample = _diagnostics.draw(self.task.train, digits.train_inputs, self.task.labels, 0)
    drawn = sample.positions[np.asarray(carry.ledger.times_seen)[sample.positions] > 0]
    self.assertBetween(len(drawn), 5, 40)  # the steps draw 60 of 1228
    labels, params = self.task.labels[drawn], carry.averages[0]
    logits = logits_of(params, digits.train_inputs[drawn])
    label = logits[np.arange(len(drawn)), labels]
    logits[np.arange(len(drawn)), labels] = -np.inf
    margins, weights = label - logits.max(1), np.array(CLASS_WEIGHTS)[labels]
    ratio = weights.max() / weights.min()
    on_test = np.sort(logits_of(params, digits.test_inputs), axis=1)
    expected = {
      "train_accuracy": np.mean(margins > 0),
      "relative_margin": margins.min() / np.sqrt(np.mean(margins**2)),
      "weight_ratio": ratio,
      "effective_share": weights.sum() ** 2 / np.sum(weights**2) / len(weights),
      "zero_share": 0,
      "flippable_share": np.mean(on_test[:, -1] - on_test[:, -2] < np.log(ratio) / 2),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(row[name], value, delta=2e-3, msg=name)

  def test_the_cosine_is_that_of_the_batch_by_hand(self):
    carry, task = self.begun(), self.task
    weights = np.random.default_rng(1).exponential(size=len(task.labels)).astype(np.float32)
    sample = _diagnostics.draw(task.train, runs.dataset().train_inputs, task.labels, seed=3)
    batch = sample.positions[:10]
    times_seen = np.ones(len(task.labels), int)
    times_seen[batch[4]] = 0  # which thus does not count
    row = self.measure(carry, sample, weights, times_seen)
    rows = runs.dataset().train_inputs[batch].reshape(10, 64) / 255
    errors = 0.1 - np.eye(10)[task.labels[batch]]  # softmax minus one-hot: all logits are 1
    gradients = np.einsum("bi,bc->bic", np.concatenate([rows, np.ones((10, 1))], 1), errors)
    gradients = np.delete(gradients.reshape(10, -1), 4, axis=0)
    weighted, plain = np.delete(weights[batch], 4) @ gradients, gradients.sum(0)
    cosine = weighted @ plain / np.linalg.norm(weighted) / np.linalg.norm(plain)
    self.assertLess(cosine, 0.99)
    self.assertAlmostEqual(row["gradient_cosine"], cosine, places=4)

  def test_before_any_of_the_sample_is_drawn_there_are_none(self):
    carry, task = self.begun(), self.task
    sample = _diagnostics.draw(task.train, runs.dataset().train_inputs, task.labels, seed=3)
    nothing = np.zeros(len(task.labels))
    row = self.measure(carry, sample, nothing, nothing.astype(int))
    self.assertEqual(row, dict.fromkeys(_diagnostics.NAMES))

  def test_the_two_gradients_cost_less_than_two_plain_steps(self):
    model = _model.make_model("mlp", 10, None)
    images, key = np.zeros((100, 8, 8, 1), np.uint8), jax.random.key(0)
    params, model_state = jax.eval_shape(model.init, key, images[:2])
    batch, ones = rw.types.make_batch(images, np.zeros(100, int)), np.ones(100, np.float32)
    cosine = _diagnostics._cosine(model.loss_fn).lower(
      params, model_state, batch, ones, ones > 0, key
    )
    losses = lambda params: model.loss_fn(params, model_state, batch, key).losses.mean()
    plain = jax.jit(jax.value_and_grad(losses)).lower(params)
    flops = [program.cost_analysis()["flops"] for program in (cosine, plain)]
    self.assertBetween(flops[0] / flops[1], 1.3, 2)

  def begun(self):
    run = self.make_run("run", CONFIG)
    return runs._lane.begin(run, 0, runs._phases.make_schedule(CONFIG))

  def measure(self, carry, sample, weights, times_seen):
    entries = carry.ledger._replace(times_seen=times_seen, last_weight=weights)
    loss_fn = self.make_run("run", CONFIG).phases[0].loss_fn
    predict = runs.linear_model().predict
    carry = carry._replace(ledger=jax.tree.map(jax.numpy.asarray, entries))
    return _diagnostics.measure(sample, carry, np.ones(3), predict, loss_fn, 10)

  def test_phases_without_a_ledger_have_none(self):
    config = dataclasses.replace(CONFIG, methods=("finetune",))
    self.train("run", config=config)
    self.assertEqual(
      ["weight_ratio" in row for row in self.rows("run")], [True, True, False, False]
    )


IDLE = {
  "train_accuracy": 1.0,
  "relative_margin": 0.3,
  "weight_ratio": 8.0,
  "effective_share": 0.5,
  "zero_share": 0.0,
  "flippable_share": 0.01,
}


class AdviceTest(runs.RunTestCase):
  def test_told_after_two_rows_and_once(self):
    idle, active = IDLE, IDLE | {"flippable_share": 0.1}
    for rows in ([idle], [active, idle], [idle, active], [idle, {}], [{}, idle]):
      self.assertIsNone(_diagnostics.advice(rows))
    unknown = dict.fromkeys(idle)
    self.assertIsNone(_diagnostics.advice([idle, unknown]))
    said = _diagnostics.advice([active, idle, idle])
    self.assertStartsWith(said, "weights hardly matter any more")
    self.assertIsNone(_diagnostics.advice([idle, idle | {"advice": said}, idle]))

  def test_printed_with_the_step_and_logged(self):
    # A linear model separates thirty examples; by then it is certain of most of the test set too.
    config = dataclasses.replace(
      CONFIG,
      methods=("class_weights",),
      train_size=30,
      batch_size=30,
      learning_rate=300.0,
      steps=50,
      eval_every=10,
      checkpoint_every=50,
      ema_decay=None,
    )
    stderr = self.train("run", config=config, task=runs.make_task(train_size=30))
    told = [row for row in self.rows("run") if "advice" in row]
    self.assertLen(told, 1)
    step = told[0]["step"]
    self.assertGreater(step, 10)
    self.assertEqual(stderr, f"warning: {self.root / 'run'}, step {step}: {told[0]['advice']}\n")

  @parameterized.parameters(
    ("class_weights", {}, True),
    ("proportion", {}, True),
    ("ce", {}, False),  # no weights
    ("focal", {}, False),  # they follow the loss
    ("l2rw", {}, False),  # they are learned
    ("class_weights", {"mixup": 1.0}, False),  # labels are soft, margins bounded
    ("class_weights", {"label_smoothing": 0.1}, False),
    (("class_weights", "clip"), {}, True),
    (("class_weights", "polynomial_tail"), {}, False),  # weights persist
    (("class_weights", "small_loss"), {}, False),
  )
  def test_advice_is_for_fixed_weights_under_cross_entropy(self, names, fields, is_given):
    how = {"rules": names} if isinstance(names, tuple) else {"methods": (names,)}
    config = dataclasses.replace(CONFIG, **{"methods": (), **how, **fields})
    self.assertEqual(self.make_run("run", config).phases[0].has_offsets, is_given)


if __name__ == "__main__":
  absltest.main()
