"""The ghost route: equal to rows of the Jacobian where it is taken, refused by name elsewhere."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import reweight_jax as rw
from reweight_jax import ghost, per_example

SIZE, CLASSES = 4, 3


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    attended = nn.MultiHeadDotProductAttention(2, dropout_rate=0.2, deterministic=not train)(
      nn.LayerNorm()(x)
    )
    x += nn.Dropout(0.2, deterministic=not train)(attended)
    return x + nn.Dense(8)(nn.gelu(x))


class Transformer(nn.Module):
  """Embedding and logits share a table by `attend`; time is the leading axis on the way."""

  @nn.compact
  def __call__(self, tokens, train):
    embed = nn.Embed(5, 8)
    x = Block()(embed(tokens), train)
    x = jnp.swapaxes(nn.Dense(8)(jnp.swapaxes(x, 0, 1)), 0, 1)
    return embed.attend(x).mean(1)


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    dense = nn.Dense(6)
    x = nn.Dense(6)(x)
    for _ in range(3):
      x = jnp.tanh(dense(x))
    return Bent(CLASSES)(x)


class Bent(nn.Module):
  """A layer that is not linear in its parameters, called by a method of another name too."""

  size: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.size))
    scale = self.param("scale", nn.initializers.normal(), (self.size,))
    return jnp.sin((x @ kernel) * jnp.exp(scale)[None]) + scale[None] ** 2


class Unused(nn.Module):
  """Rows of a table that no token asks for, and a layer whose result is dropped."""

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(50, 4)(tokens).mean(1)
    nn.Dense(2)(x)
    return nn.Dense(CLASSES)(x)


class Wide(nn.Module):
  """Layers whose norms are cheaper by the one form and by the other."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(20, (3, 3), strides=2)(x)
    x = nn.Conv(20, 3)(x.reshape(x.shape[0], -1, 20))
    return nn.Dense(CLASSES)(jnp.tanh(nn.Dense(30)(x.reshape(x.shape[0], -1))))


EXACT = {
  "transformer": (Transformer(), (SIZE,)),  # as many tokens as examples
  "shared": (Shared(), (5,)),
  "unused": (Unused(), (3,)),
  "wide": (Wide(), (4, 4, 2)),
}


def _problem(net, shape, dtype=jnp.float64):
  rng = np.random.default_rng(0)
  inputs = (
    rng.normal(size=(SIZE, *shape))
    if shape not in ((SIZE,), (3,))
    else rng.integers(0, 5, size=(SIZE, *shape))
  )
  inputs = jnp.asarray(inputs, dtype if inputs.dtype == np.float64 else jnp.int32)
  batch = rw.types.make_batch(
    inputs, np.arange(SIZE, dtype=np.int32) % CLASSES, mask=np.array([True, True, True, False])
  )
  # Their shapes alone: the initializers are not compiled.
  init = lambda inputs: rw.models.init_linen(net, inputs, jax.random.key(0))
  params, model_state = jax.eval_shape(init, inputs)
  model_state = jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape), leaf.dtype), model_state)
  draw = lambda p: jnp.asarray(rng.normal(scale=0.5, size=p.shape), dtype)
  return jax.tree.map(draw, params), model_state, batch


class ExactTest(parameterized.TestCase):
  def test_push_pull_and_norms_are_those_of_the_rows_of_the_jacobian(self):
    self._check("transformer")

  @parameterized.parameters(*sorted(set(EXACT) - {"transformer"}))
  @pytest.mark.long  # below: parameters copy the mark
  def test_in_other_models_too(self, name):
    self._check(name)

  def _check(self, name):
    with jax.enable_x64(True):
      net, shape = EXACT[name]
      params, model_state, batch = _problem(net, shape)
      loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
      key = jax.random.key(1)
      direction = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
      )
      weights = jnp.array([0.5, -2.0, 0.0, 3.0])

      @jax.jit
      def run(params):
        linearized = ghost.linearize(loss_fn, params, model_state, batch, key=key)
        losses = lambda p: loss_fn(p, model_state, batch, key).losses * batch.mask
        rows = jax.jacrev(losses)(params)
        norms = per_example.grad_norms(loss_fn, params, model_state, batch, key=key, route="ghost")
        results = linearized.outputs.losses, linearized.push(direction), linearized.pull(weights)
        return *results, norms, rows

      losses, pushed, pulled, norms, rows = jax.tree.map(np.asarray, run(params))
    self.assertEqual(losses[-1], 0)
    expected = sum(
      np.tensordot(row.reshape(SIZE, -1), d.ravel(), axes=1)
      for row, d in zip(jax.tree.leaves(rows), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(pushed, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
    squares = sum(np.square(row.reshape(SIZE, -1)).sum(1) for row in jax.tree.leaves(rows))
    np.testing.assert_allclose(norms, np.sqrt(squares), rtol=1e-12)
    self.assertGreater(norms[:3].min(), 1e-3)
    for got, row in zip(jax.tree.leaves(pulled), jax.tree.leaves(rows), strict=True):
      total = np.tensordot(weights, row, axes=1)
      np.testing.assert_allclose(got, total, rtol=1e-12, atol=1e-12 * max(np.abs(total).max(), 1))


class Positions(nn.Module):
  """A raw parameter: the trap of an audit that forgets what comes into a layer."""

  @nn.compact
  def __call__(self, x, train):
    x = x + self.param("positions", nn.initializers.normal(), (1, 5))
    return nn.Dense(CLASSES)(nn.Dense(4)(x))


class Tied(nn.Module):
  """Weights read as an attribute: the trap of counting them twice."""

  @nn.compact
  def __call__(self, tokens, train):
    embed = nn.Embed(CLASSES, 4)
    return nn.Dense(4)(embed(tokens)).mean(1) @ embed.embedding.T


class Centered(nn.Module):
  """Examples that see each other without any parameter: the trap of bookkeeping by layers."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(4)(x)
    return nn.Dense(CLASSES)(nn.tanh(x - x.mean(0, keepdims=True)))


class CenteredInHalf(nn.Module):
  """The same, a little of it and in bfloat16, where rounding could hide it."""

  share: float

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(4, dtype=jnp.bfloat16)(x)
    x = nn.tanh(x - self.share * x.mean(0, keepdims=True))
    return nn.Dense(CLASSES, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))


class Table(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(CLASSES)(x + nn.Embed(5, 5)(jnp.arange(5)).sum(0)[None])


class Merged(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(2)(x.reshape(-1, 1))
    return nn.Dense(CLASSES)(x.reshape(-1, 10))


class Rematerialized(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(CLASSES)(nn.remat(nn.Dense)(4)(x))


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    body = nn.scan(
      lambda dense, carry, _: (nn.tanh(dense(carry)), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=2,
    )
    x, _ = body(nn.Dense(5, name="stack"), x, None)
    return nn.Dense(CLASSES)(x)


REFUSED = {
  "positions is used outside": (Positions(), (5,)),
  "Embed_0/embedding is used outside": (Tied(), (3,)),
  "differ from a backward pass": (Centered(), (5,)),
  "made-up values push and pull": (CenteredInHalf(0.2), (5,)),
  "BatchNorm_0 writes to batch_stats": (Normed(), (5,)),
  "Embed_0 has an output that all examples share": (Table(), (5,)),
  "Dense_0 has an output that merges the batch": (Merged(), (5,)),
  "does not see the parameters": (Rematerialized(), (5,)),
  "stack does not see the parameters": (Scanned(), (5,)),
}


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(*REFUSED)
  def test_what_it_would_get_wrong_it_refuses_by_name(self, message):
    net, shape = REFUSED[message]
    params, model_state, batch = _problem(net, shape, jnp.float32)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    with self.assertRaisesRegex(ghost.RefusedError, message):
      ghost.linearize(loss_fn, params, model_state, batch)

  @pytest.mark.long
  def test_the_norms_of_a_layer_that_depends_on_the_batch_size_are_refused_alone(self):
    class ByLength(nn.Module):
      @nn.compact
      def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (5, 4)) / len(x)

    class Net(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        return nn.Dense(CLASSES)(ByLength()(x))

    params, model_state, batch = _problem(Net(), (5,), jnp.float32)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(Net()))
    ghost.check(loss_fn, params, model_state, batch)
    with self.assertRaisesRegex(ghost.RefusedError, "layer depends on the batch size"):
      ghost.grad_norms(loss_fn, params, model_state, batch)
    norms = [
      per_example.grad_norms(loss_fn, params, model_state, batch, route=route)
      for route in ("auto", "vmap")
    ]
    np.testing.assert_array_equal(*norms)

  def test_a_verdict_is_not_kept_for_another_program(self):
    params, model_state, batch = _problem(Shared(), (5,), jnp.float32)
    base, is_coupled = rw.losses.from_apply(rw.models.linen_apply(Shared())), [False]

    def loss_fn(params, model_state, batch, key):
      outputs = base(params, model_state, batch, key)
      losses = outputs.losses * outputs.losses.mean() if is_coupled[0] else outputs.losses
      return outputs._replace(losses=losses)

    loss_fn.recorder = base.recorder
    ghost.check(loss_fn, params, model_state, batch)
    is_coupled[0] = True
    with self.assertRaisesRegex(ghost.RefusedError, "see each other"):
      ghost.check(loss_fn, params, model_state, batch)

  def test_numpy_params_and_frozen_batch_statistics_are_taken(self):
    class Frozen(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=True)(x))

    params, model_state, batch = _problem(Frozen(), (5,), jnp.float32)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(Frozen()))
    params = jax.tree.map(np.asarray, params)
    pull = lambda: ghost.linearize(loss_fn, params, model_state, batch).pull([1.0] * SIZE)
    pulled = jax.jit(pull)()  # of constants, which stay NumPy's
    losses = lambda p: jnp.sum(loss_fn(p, model_state, batch, None).losses * batch.mask)
    gradient = jax.jit(jax.grad(losses))(params)
    chex.assert_trees_all_close(pulled, gradient, rtol=1e-5, atol=1e-6)

  @pytest.mark.long
  def test_a_model_in_bfloat16_is_taken(self):
    net = CenteredInHalf(0.0)
    params, model_state, batch = _problem(net, (5,), jnp.float32)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
    linearized = ghost.linearize(loss_fn, params, model_state, batch)
    pulled, pushed = linearized.pull(jnp.ones(SIZE)), linearized.push(params)
    self.assertEqual(
      {leaf.dtype for leaf in jax.tree.leaves((pulled, pushed))}, {np.dtype("float32")}
    )

  def test_a_loss_without_a_recorder_is_refused(self):
    params, model_state, batch = _problem(Shared(), (5,), jnp.float32)
    apply_fn = rw.models.linen_apply(Shared())
    loss_fn = rw.losses.from_apply(lambda *args: apply_fn(*args))
    with self.assertRaisesRegex(ghost.RefusedError, "no recorder"):
      ghost.linearize(loss_fn, params, model_state, batch)


class RouteTest(absltest.TestCase):
  def test_a_step_by_ghost_is_the_step_by_forward(self):
    self._check_step("ghost")

  @pytest.mark.long
  def test_a_step_by_auto_too(self):
    self._check_step("auto")

  def _check_step(self, route):
    params, model_state, batch = _problem(Shared(), (5,), jnp.float32)
    loss_fn = rw.losses.from_apply(rw.models.linen_apply(Shared()))
    rule, tx = rw.meta.learning_to_reweight(), optax.sgd(0.1)
    state = rw.training.init_train_state(
      params, model_state, rule, tx, key=jax.random.key(0), batch_size=SIZE
    )
    clean = rw.types.make_batch(batch.inputs[:2], batch.labels[:2])
    results = [
      jax.jit(rw.training.make_train_step(loss_fn, rule, tx, route=route))(state, batch, clean)
      for route in ("forward", route)
    ]
    (expected, of_forward), (new, metrics) = results
    np.testing.assert_allclose(metrics.weights, of_forward.weights, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new.params, expected.params, rtol=1e-5, atol=1e-6)

  def test_auto_picks_and_says_what_and_why(self):
    found = []
    per_example._log_once.cache_clear()
    for net in (Shared(), Normed()):
      params, model_state, batch = _problem(net, (5,), jnp.float32)
      loss_fn = rw.losses.from_apply(rw.models.linen_apply(net))
      with self.assertLogs("reweight_jax", "INFO") as logs:
        found.append(per_example.pick_route(loss_fn, params, model_state, batch)[0])
      self.assertStartsWith(logs.output[0], f"INFO:reweight_jax:route auto: {found[-1]}, since ")
    self.assertEqual(found, ["ghost", "forward"])
    self.assertIn("BatchNorm_0 writes to batch_stats", logs.output[0])


if __name__ == "__main__":
  absltest.main()
