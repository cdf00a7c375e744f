"""The diagnostics of a run: the numbers by hand from its checkpoint, the advice told once."""

import dataclasses
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from experiments import _diagnostics, _methods
from experiments._rule_options import RuleOptions
from tests import runs

CLASS_WEIGHTS = (8.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
CONFIG = dataclasses.replace(
  runs.CONFIG,
  methods=("class_weights",),
  rule_options=RuleOptions(class_weights=CLASS_WEIGHTS),
  augment="none",
  ema_decay=None,
)


class NumbersTest(runs.RunTestCase):
  def test_are_those_of_the_sample_by_hand(self):
    self.train("run", config=CONFIG)
    row, state = self.rows("run")[-1], self.carry("run", config=CONFIG).state
    digits = runs.dataset()
    positions = np.random.default_rng([0, 5]).permutation(self.task.train)[:500]
    times_seen = np.asarray(self.carry("run", config=CONFIG).ledger.times_seen)[positions]
    self.assertBetween(np.count_nonzero(times_seen), 5, 40)  # 60 draws of 1527
    inputs = digits.train_inputs[positions].reshape(500, 64) / 255
    labels = self.task.labels[positions]
    logits = inputs @ np.asarray(state.params["kernel"]) + np.asarray(state.params["bias"])

    def of(rows):
      label, others = logits[rows, labels[rows]], logits[rows].copy()
      others[np.arange(len(rows)), labels[rows]] = -np.inf
      return label - others.max(1), np.array(CLASS_WEIGHTS)[labels[rows]]

    margins, weights = of(np.flatnonzero(times_seen))
    ratio = weights.max() / weights.min()
    expected = {
      "train_accuracy": np.mean(margins > 0),
      "normalized_margin": margins.min() / np.sqrt(np.mean(margins**2)),
      "weight_ratio": ratio,
      "effective_share": weights.sum() ** 2 / np.sum(weights**2) / len(weights),
      "zero_share": 0,
      "flippable_share": np.mean(np.abs(margins) < np.log(ratio) / 2),
    }
    found = {name: row[name] for name in expected}
    for name, value in expected.items():
      self.assertAlmostEqual(found[name], value, places=4, msg=name)

  def test_the_cosine_is_that_of_the_batch_by_hand(self):
    self.train("run", config=CONFIG)
    carry, task = self.carry("run", config=CONFIG), self.task
    # All of the training examples drawn, so that the first ten of the sample are.
    everything = np.ones_like(np.asarray(carry.ledger.times_seen))
    weights = np.random.default_rng(1).exponential(size=len(task.labels)).astype(np.float32)
    entries = carry.ledger._replace(times_seen=everything, last_weight=weights)
    inputs = runs.dataset().train_inputs
    sample = _diagnostics.draw(task.train, inputs, task.labels, seed=3)
    run = self.make_run("run", CONFIG)
    key = jax.random.key(0)
    carry = carry._replace(ledger=entries, state=carry.state._replace(key=key))
    row = _diagnostics.measure(
      sample, carry, runs.linear_model().predict, run.phases[0].loss_fn, 10
    )
    rows = inputs[sample.positions[:10]].reshape(10, 64) / 255
    params = carry.state.params
    logits = rows @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = task.labels[sample.positions[:10]]
    errors[np.arange(10), labels] -= 1
    ones = np.concatenate([rows, np.ones((10, 1))], 1)
    gradients = np.einsum("bi,bc->bic", ones, errors).reshape(10, -1)
    weighted, plain = weights[sample.positions[:10]] @ gradients, gradients.sum(0)
    cosine = weighted @ plain / np.linalg.norm(weighted) / np.linalg.norm(plain)
    self.assertLess(cosine, 0.999)
    self.assertAlmostEqual(row["gradient_cosine"], cosine, places=4)

  def test_phases_without_a_ledger_have_none(self):
    config = dataclasses.replace(CONFIG, methods=("finetune",))
    self.train("run", config=config)
    self.assertEqual(
      ["weight_ratio" in row for row in self.rows("run")], [True, True, False, False]
    )


class AdviceTest(runs.RunTestCase):
  def fitted(self, *methods):
    """Trains on thirty examples, which a linear model separates."""
    config = dataclasses.replace(
      CONFIG,
      methods=methods,
      train_size=30,
      batch_size=30,
      learning_rate=2.0,
      steps=120,
      eval_every=10,
      checkpoint_every=120,
    )
    folder = methods[0]
    return self.train(folder, config=config, task=runs.make_task(train_size=30)), self.rows(folder)

  def test_told_once_with_the_step(self):
    stderr, rows = self.fitted("class_weights")
    told = [row["step"] for row in rows if "advice" in row]
    self.assertLen(told, 1)
    self.assertEqual(stderr.count("\n"), 1)
    pattern = rf"warning: .*class_weights, step {told[0]}: weights have stopped mattering: 100.0 %"
    self.assertRegex(stderr, pattern)
    # Not before all are fitted beyond log(8) / 2, though the ratio is the same throughout.
    first = next(row for row in rows if row["train_accuracy"] == 1 and not row["flippable_share"])
    self.assertEqual(first["step"], told[0])
    self.assertNotEqual(first, rows[0])
    self.assertEqual({row["weight_ratio"] for row in rows}, {8.0})

  def test_not_told_of_even_weights_nor_of_a_tail_that_keeps_them(self):
    with mock.patch.dict(
      _methods.METHODS, {"tail": _methods.Recipe(("class_weights", "polynomial_tail"))}
    ):
      for method in ("ce", "tail"):
        stderr, rows = self.fitted(method)
        self.assertEqual((stderr, rows[-1]["train_accuracy"]), ("", 1.0))

  def test_a_resumed_run_remembers_that_it_was_told(self):
    rows = [{"weight_ratio": 8.0, "advice": "so"}, {"weight_ratio": 8.0}]
    self.assertIsNone(_diagnostics.advice(rows))


if __name__ == "__main__":
  absltest.main()
