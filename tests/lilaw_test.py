"""LiLAW by hand, what its published gradient can do, and what the meta-gradient can."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import meta

LOG_3 = math.log(3)
# Softmax (3/4, 1/4), (1/4, 3/4) and (1/2, 1/2); the label is 0.
LOGITS, LABELS = jnp.array([[LOG_3, 0.0], [0.0, LOG_3], [0.0, 0.0]]), jnp.zeros(3, jnp.int32)
SHARES = ((0.75, 0.75), (0.25, 0.75), (0.5, 0.5))  # of the label, the largest


def _sigmoid(x):
  return 1 / (1 + math.exp(-x))


def _factor(of_label, largest, alpha=10.0, beta=2.0, delta=6.0):
  undecided = math.exp(-((delta * of_label - largest) ** 2) / 2)
  return _sigmoid(alpha * of_label - largest) + _sigmoid(largest - beta * of_label) + undecided


@functools.cache
def _compiled():
  rule = meta.lilaw(optax.sgd(1.0))

  @jax.jit
  def update(state, losses, logits, labels):
    meta_outputs = lambda: (rw.types.Outputs(losses, logits), labels)
    return rule.update(jnp.ones(3), state, logits=LOGITS, labels=LABELS, meta_outputs=meta_outputs)

  return rule.init(jnp.ones(3)), update


def _move(losses, logits, labels, **start):
  """Weights of the three examples, and the scalars after one step on a meta batch."""
  state, update = _compiled()
  state = state._replace(params=state.params._replace(**jax.tree.map(np.float32, start)))
  weights, state = update(state, np.float32(losses), np.float32(logits), np.array(labels))
  return weights, state.params


class LilawTest(parameterized.TestCase):
  def test_the_batch_is_weighed_by_the_scalars_before_they_move(self):
    weights, moved = _move([1.0, 3.0], np.zeros((2, 2)), [0, 1])
    np.testing.assert_allclose(weights, [_factor(*shares) for shares in SHARES], rtol=1e-6)
    self.assertNotEqual(float(moved.beta), 2.0)

  def test_a_hand_worked_step_of_the_scalars(self):
    # Both shares are 1/2. Losses 1 and 3: their mean, 2, times what one factor gains.
    start = {"alpha": 3.0, "beta": 2.0, "delta": 2.0}
    _, moved = _move([1.0, 3.0], np.zeros((2, 2)), [0, 1], **start)
    easy, hard = _sigmoid(1.0), _sigmoid(-0.5)
    gradient = 2 * np.array(
      [0.5 * easy * (1 - easy), -0.5 * hard * (1 - hard), -0.5 * 0.5 * math.exp(-1 / 8)]
    )
    np.testing.assert_allclose(moved, np.array([3.0, 2.0, 2.0]) - gradient, rtol=1e-6)

  def test_with_losses_that_are_not_negative_alpha_only_falls_and_beta_only_rises(self):
    rng = np.random.default_rng(0)
    delta_rose = set()
    for _ in range(4):
      start = dict(zip(("alpha", "beta", "delta"), rng.uniform(-2, 4, size=3), strict=True))
      losses, logits = rng.exponential(size=8), rng.normal(size=(8, 4))
      _, moved = _move(losses, logits, np.arange(8) % 4, **start)
      self.assertLess(float(moved.alpha), start["alpha"])
      self.assertGreater(float(moved.beta), start["beta"])
      delta_rose.add(bool(moved.delta > start["delta"]))
    self.assertEqual(delta_rose, {True, False})

  def test_a_number_that_is_not_finite_is_refused(self):
    for make in (meta.lilaw, meta.lilaw_meta_gradient):
      with self.assertRaisesRegex(ValueError, "delta expects a finite number, got inf"):
        make(optax.sgd(0.1), delta=math.inf)


class LilawMetaGradientTest(parameterized.TestCase):
  def _move(self, alignment):
    rule = meta.lilaw_meta_gradient(optax.sgd(1.0), alpha=3.0, beta=2.0, delta=2.0)
    evidence = {"logits": LOGITS, "labels": LABELS, "mask": jnp.ones(3, bool)}

    @jax.jit
    def update(state, alignment):
      return rule.update(jnp.ones(3), state, meta_alignment=lambda at: alignment, **evidence)

    weights, state = update(rule.init(jnp.ones(3)), np.float32(alignment))
    return weights, state.params

  def test_each_scalar_follows_the_alignment_either_way(self):
    # Of the example at 1/2, 1/2 alone; over the three examples of the batch.
    easy, hard = _sigmoid(1.0), _sigmoid(-0.5)
    rises = np.array([0.5 * easy * (1 - easy), -0.5 * hard * (1 - hard), -0.25 * math.exp(-1 / 8)])
    for sign in (1.0, -1.0):
      _, moved = self._move([0.0, 0.0, 3.0 * sign])
      np.testing.assert_allclose(moved, np.array([3.0, 2.0, 2.0]) + sign * rises, rtol=1e-6)

  def test_the_batch_is_weighed_by_the_scalars_after_they_moved(self):
    weights, moved = self._move([3.0, -1.0, 2.0])
    expected = [_factor(*shares, *map(float, moved)) for shares in SHARES]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    self.assertNotEqual(float(moved.alpha), 3.0)


if __name__ == "__main__":
  absltest.main()
