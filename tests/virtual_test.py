"""The virtual step: any optimizer, its state, several steps, some parameters, kept directions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import meta, per_example
from reweight_jax.meta.routes import Virtual, check_virtual, make_meta_objective
from tests import zoo

OPTIMIZERS = {
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.1, momentum=0.9),
  "nesterov": optax.chain(
    optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9, nesterov=True)
  ),
  "adamw": optax.adamw(optax.cosine_decay_schedule(0.01, 10), weight_decay=0.1),
  "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)),
}

example_weights = jax.jit(
  meta.example_weights, static_argnums=0, static_argnames=("route", "virtual_optimizer")
)


def _setting(name):
  loss_fn, params, state = zoo.make(name, jnp.float64)
  batches = (zoo.random_batch(seed, size, jnp.float64) for seed, size in ((1, 6), (2, 4)))
  return loss_fn, params, state, *batches


def _after_steps(tx, params):
  """The state of an optimizer that has seen two gradients."""

  @jax.jit  # eagerly, every operation on every shape would be a program
  def steps(params, *gradients):
    state = tx.init(params)
    for gradient in gradients:
      _, state = tx.update(gradient, state, params)
    return state

  return steps(params, *(zoo.random_like(params, seed) for seed in (3, 4)))


def _linear(x, y, weight_of_zero=0.0):
  """Squared loss of a linear model of given examples, at the same weight everywhere."""
  model = lambda params, state, inputs, key, train: (inputs @ params, state)
  loss_fn = rw.losses.from_apply(model, rw.losses.squared_error)
  batch = rw.types.make_batch(jnp.asarray(x), jnp.asarray(y))
  return loss_fn, jnp.full(len(x[0]), weight_of_zero), batch


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(
    ("mlp", "ghost", ("sgd", "nesterov", "adamw")),
    ("batch_norm", "forward", ("momentum", "clipped")),
  )
  def test_its_transpose_pulls_the_meta_gradient_back_as_the_definition_does(
    self, name, route, optimizers
  ):
    with jax.enable_x64(True):
      loss_fn, params, state, batch, trusted = _setting(name)
      losses_of = lambda p: loss_fn(p, state, batch, None).losses
      objective = make_meta_objective(loss_fn, state, trusted, None)
      states = {name: _after_steps(OPTIMIZERS[name], params) for name in optimizers}

      @jax.jit
      def run(params, states):
        linearized = per_example.linearize(loss_fn, params, state, batch, route=route)
        at = {"momentum": jnp.zeros(6)}
        uniform = jnp.full(6, 1 / 6)
        results = {}
        for name, state_of_tx in states.items():
          rest = objective, params, at.get(name, uniform), Virtual(OPTIMIZERS[name], state_of_tx)
          results[name] = (
            meta.forward_alignment(linearized, *rest),
            meta.nested_alignment(losses_of, *rest),
          )
        return results

      results = jax.tree.map(np.asarray, run(params, states))
    for name, (forward, nested) in results.items():
      scale = np.abs(nested).max()
      self.assertGreater(scale, 1e-6, name)
      np.testing.assert_allclose(forward, nested, rtol=0, atol=1e-11 * scale, err_msg=name)

  def test_a_dead_unit_under_adam_counts_as_if_it_were_not_there(self):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    tx, alignments = optax.adam(0.1), []
    for inputs in (np.insert(x, 1, 0.0, axis=1), x):
      loss_fn, params, batch = _linear(inputs, y, 0.2)
      _, _, trusted = _linear(inputs[:1] + 0.1 * (inputs[:1] != 0), y[:1])

      @jax.jit
      def align(params, batch, trusted, loss_fn=loss_fn):
        linearized = per_example.linearize(loss_fn, params, (), batch)
        objective = make_meta_objective(loss_fn, (), trusted, None)
        at = jnp.full(3, 1 / 3)
        state = tx.update(linearized.pull(at), tx.init(params), params)[1]
        return meta.forward_alignment(linearized, objective, params, at, Virtual(tx, state))

      alignments.append(np.asarray(align(params, batch, trusted)))
    self.assertGreater(np.abs(alignments[1]).min(), 0)
    np.testing.assert_allclose(*alignments, rtol=1e-5)

  @parameterized.parameters(
    (optax.clip_by_global_norm(0.5),),
    (optax.adaptive_grad_clip(0.5),),
    (optax.clip_by_block_rms(0.5),),
  )
  def test_a_clip_that_lets_small_gradients_pass_changes_nothing_at_weights_0(self, clip):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    loss_fn, params, batch = _linear(x, y, 0.2)
    _, _, trusted = _linear(x[:1], y[:1])
    plain, clipped = (
      example_weights(loss_fn, params, (), batch, trusted, route=route, virtual_optimizer=tx)
      for route, tx in (("forward", None), ("nested", optax.chain(clip, optax.sgd(0.1))))
    )
    self.assertGreater(float(plain.max()), 0)
    np.testing.assert_allclose(clipped, plain, rtol=1e-5)

  def test_adam_from_a_fresh_state_at_weights_0_divides_by_its_epsilon(self):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    loss_fn, params, batch = _linear(x, y, 0.2)
    adam = Virtual(optax.adam(0.1, eps=1e-3))

    @jax.jit
    def align(params):
      linearized = per_example.linearize(loss_fn, params, (), batch)
      objective = make_meta_objective(loss_fn, (), batch, None)
      alignment = lambda *rest: meta.forward_alignment(linearized, objective, params, None, *rest)
      return alignment(), alignment(adam)

    plain, fresh = map(np.asarray, align(params))
    np.testing.assert_allclose(fresh, plain * 0.1 / 1e-3, rtol=1e-4)

  def test_a_meta_loss_that_is_not_a_number_stays_one(self):
    _, params, _ = _linear([[1.0]], [1.0])
    direction = meta.meta_direction(
      lambda p: jnp.sqrt(-1.0 - p[0]), params, jnp.ones(1), Virtual(optax.adam(0.1))
    )
    self.assertTrue(np.isnan(direction[0]))

  @parameterized.parameters(
    (optax.lion(0.1), "takes its sign alone"),
    (optax.set_to_zero(), "takes its sign alone or drops it"),
    (optax.chain(optax.clip(1.0), optax.sign_sgd(0.1)), "takes its sign alone"),
    (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), "MultiSteps skips steps"),
  )
  def test_an_update_that_hides_the_gradient_is_refused(self, tx, message):
    loss_fn, params, batch = _linear([[1.0]], [1.0])
    with self.assertRaisesRegex(ValueError, message):
      meta.example_weights(loss_fn, params, (), batch, batch, virtual_optimizer=tx)

  def test_a_schedule_that_starts_at_0_is_no_hidden_gradient(self):
    warming_up = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20))
    check_virtual(Virtual(warming_up), "forward", {"kernel": jnp.ones((2, 2))})

  def test_virtual_weights_away_from_0_need_an_optimizer(self):
    loss_fn, params, batch = _linear([[1.0]], [1.0])
    looks_ahead = rw.rules.weighting_rule(
      lambda weights, *, meta_alignment, **unused: meta_alignment(weights)
    )
    tx = optax.sgd(0.1)
    state = rw.training.init_train_state(
      params, (), looks_ahead, tx, key=jax.random.key(0), batch_size=1
    )
    with self.assertRaisesRegex(ValueError, "give the step virtual_optimizer=tx"):
      rw.training.make_train_step(loss_fn, looks_ahead, tx)(state, batch, batch)
    # One example x = y = 1 at theta = 0: the gradient is -1, the virtual step goes to 0.1, where
    # the meta gradient is -0.9; the derivative of the update is -0.1. So -0.1 * -0.9 * -1, turned.
    step = rw.training.make_train_step(loss_fn, looks_ahead, tx, virtual_optimizer=tx)
    np.testing.assert_allclose(step(state, batch, batch)[1].weights, [0.09], rtol=1e-6)


class StateTest(absltest.TestCase):
  def test_the_optimizer_of_training_steps_from_its_own_state(self):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    loss_fn, params, batch = _linear(x, y, 0.2)
    trusted = jax.tree.map(lambda leaf: leaf[:1], batch)
    rule, tx = meta.learning_to_reweight(), optax.sgd(0.1, momentum=0.9)
    state = rw.training.init_train_state(params, (), rule, tx, key=jax.random.key(0), batch_size=3)
    step = jax.jit(rw.training.make_train_step(loss_fn, rule, tx, virtual_optimizer=tx))
    state, _ = step(state, batch, trusted)
    # With momentum the virtual step moves at weights 0 too: by hand, theta + 0.9 * 0.1 * -trace.
    moved = np.asarray(state.params) - 0.1 * 0.9 * np.asarray(state.opt_state[0].trace)
    meta_gradient = (x[0] @ moved - y[0]) * x[0]
    products = np.maximum((x @ np.asarray(state.params) - y) * (x @ meta_gradient), 0)
    _, metrics = step(state, batch, trusted)
    np.testing.assert_allclose(metrics.weights, 3 * products / products.sum(), rtol=1e-4)


class StepsTest(parameterized.TestCase):
  def test_two_steps_are_the_derivative_of_two_steps_written_out(self):
    with jax.enable_x64(True):
      loss_fn, params, state, batch, trusted = _setting("batch_norm")
      losses_of = lambda p: loss_fn(p, state, batch, None).losses
      objective = make_meta_objective(loss_fn, state, trusted, None)
      virtual = Virtual(optax.sgd(0.1, momentum=0.9), num_steps=2)
      at = jnp.full(6, 1 / 6)

      @jax.jit
      def after_two(v):
        grad = jax.grad(lambda p: v @ losses_of(p))
        first = grad(params)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, first)
        second = jax.tree.map(lambda g, h: 0.9 * g + h, first, grad(moved))
        return objective(jax.tree.map(lambda p, g: p - 0.1 * g, moved, second))

      aligned = jax.jit(
        lambda at: meta.nested_alignment(losses_of, objective, params, at, virtual)
      )(at)
      shifts = 1e-5 * np.eye(6)
      differences = [(after_two(at - s) - after_two(at + s)) / 2e-5 for s in shifts]
      np.testing.assert_allclose(aligned, differences, rtol=1e-6, atol=1e-8)

  def test_at_weights_0_three_steps_of_sgd_are_three_times_one(self):
    loss_fn, params, batch = _linear([[1.0, 2.0], [0.5, -1.0]], [1.0, -2.0], 0.2)
    losses_of = lambda p: loss_fn(p, (), batch, None).losses
    objective = make_meta_objective(loss_fn, (), batch, None)
    align = lambda n: meta.nested_alignment(
      losses_of, objective, params, jnp.zeros(2), Virtual(num_steps=n)
    )
    one, three = map(np.asarray, jax.jit(lambda: (align(1), align(3)))())
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)

  def test_several_steps_are_refused_by_routes_that_have_one(self):
    with self.assertRaisesRegex(ValueError, "2 virtual steps expect route \"nested\"; got 'ghost'"):
      check_virtual(Virtual(num_steps=2), "ghost", jnp.ones(1))


class SomeParametersTest(parameterized.TestCase):
  @parameterized.parameters("forward", "ghost")
  def test_the_alignment_is_the_inner_product_over_the_chosen(self, route):
    with jax.enable_x64(True):
      loss_fn, params, state, batch, trusted = _setting("mlp")
      chosen = lambda name: name.startswith("Dense_2")
      virtual = Virtual(moves=chosen)
      losses_of = lambda p: loss_fn(p, state, batch, None).losses
      objective = make_meta_objective(loss_fn, state, trusted, None)

      @jax.jit
      def run(params):
        linearized = per_example.linearize(loss_fn, params, state, batch, route=route)
        return (
          meta.forward_alignment(linearized, objective, params, None, virtual),
          meta.nested_alignment(losses_of, objective, params, jnp.zeros(6), virtual),
          jax.jacrev(losses_of)(params)["Dense_2"],
          jax.grad(objective)(params)["Dense_2"],
        )

      forward, nested, rows, gradient = jax.tree.map(np.asarray, run(params))
    expected = sum(
      np.tensordot(rows[name].reshape(6, -1), gradient[name].ravel(), 1) for name in gradient
    )
    np.testing.assert_allclose(forward, expected, rtol=1e-12)
    np.testing.assert_allclose(nested, expected, rtol=1e-12)

  def test_choosing_nothing_is_refused_listing_the_names(self):
    loss_fn, params, batch = _linear([[1.0]], [1.0])
    nested = lambda p, *rest: loss_fn(p["layer"]["kernel"], *rest)
    with self.assertRaisesRegex(ValueError, "of layer/kernel it chooses none"):
      meta.example_weights(
        nested, {"layer": {"kernel": params}}, (), batch, batch, meta_params=lambda name: False
      )


class KeptDirectionTest(parameterized.TestCase):
  @parameterized.parameters(rw.training.make_train_step, rw.training.make_split_train_step)
  def test_a_step_without_a_meta_batch_weighs_by_the_last_one(self, make_step):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]]), np.array([1.0, -2.0, 0.5])
    loss_fn, params, batch = _linear(x, y, 0.2)
    trusted = jax.tree.map(lambda leaf: leaf[:1], batch)
    rule, tx = meta.learning_to_reweight(), optax.sgd(0.05)
    init = lambda **kept: rw.training.init_train_state(
      params, (), rule, tx, key=jax.random.key(0), batch_size=3, **kept
    )
    step = make_step(loss_fn, rule, tx)
    usual, metrics = step(init(), batch, trusted)
    kept, same = step(init(keep_direction=True), batch, trusted)
    np.testing.assert_allclose(same.weights, metrics.weights, rtol=1e-6)
    self.assertEqual(usual.meta_direction, ())
    # The direction is the meta gradient at the start; the examples' gradients are those of now.
    direction = (x[0] @ np.asarray(params) - y[0]) * x[0]
    np.testing.assert_allclose(kept.meta_direction, direction, rtol=1e-5)
    products = np.maximum((x @ np.asarray(kept.params) - y) * (x @ direction), 0)
    _, metrics = step(kept, batch)
    np.testing.assert_allclose(metrics.weights, 3 * products / products.sum(), rtol=1e-4)

  def test_before_the_first_meta_batch_all_weights_are_0(self):
    loss_fn, params, batch = _linear([[1.0]], [1.0])
    rule, tx = meta.learning_to_reweight(), optax.sgd(0.05)
    state = rw.training.init_train_state(
      params, (), rule, tx, key=jax.random.key(0), batch_size=1, keep_direction=True
    )
    _, metrics = rw.training.make_train_step(loss_fn, rule, tx)(state, batch)
    self.assertTrue(bool(metrics.all_zero))

  def test_the_definition_has_no_direction_to_keep(self):
    loss_fn, params, batch = _linear([[1.0]], [1.0])
    rule, tx = meta.learning_to_reweight(), optax.sgd(0.05)
    state = rw.training.init_train_state(
      params, (), rule, tx, key=jax.random.key(0), batch_size=1, keep_direction=True
    )
    with self.assertRaisesRegex(ValueError, "leave keep_direction out"):
      rw.training.make_train_step(loss_fn, rule, tx, route="nested")(state, batch, batch)


if __name__ == "__main__":
  absltest.main()
