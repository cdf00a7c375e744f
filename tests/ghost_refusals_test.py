"""Models that try to break the ghost route: exact to rounding, or refused for a true reason."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from flax.core import FrozenDict

import reweight_jax as rw
from reweight_jax import ghost, per_example

SIZE, WIDTH, CLASSES = 6, 5, 3


def _kernel(module):
  return module.param("kernel", nn.initializers.lecun_normal(), (WIDTH, WIDTH))


class Gated(nn.Module):
  """Called by keyword, with numbers that are no arrays."""

  @nn.compact
  def __call__(self, x, *, gate, power=1):
    return (x @ _kernel(self)) ** power * gate


class HalfFrozen(nn.Module):
  """A parameter that is used but not trained, beside one that is."""

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (WIDTH,))
    return (x @ jax.lax.stop_gradient(_kernel(self))) * scale[None]


class Fourier(nn.Module):
  """A layer whose output is complex."""

  @nn.compact
  def __call__(self, x):
    filters = self.param("filters", nn.initializers.ones, (WIDTH,))
    return jnp.fft.fft(x) * jax.lax.complex(filters, filters**2)[None]


@jax.custom_vjp
def straight_through(x):
  return jnp.round(2 * x) / 2


straight_through.defvjp(lambda x: (straight_through(x), x), lambda x, g: (g * (jnp.abs(x) < 2),))


class Patchwork(nn.Module):
  """Layers of `setup` that share, inside and outside of a Sequential."""

  def setup(self):
    self.first = nn.Dense(WIDTH)
    self.again = nn.Sequential([self.first, jnp.tanh, nn.Dense(WIDTH)])
    self.gated, self.frozen, self.fourier = Gated(), HalfFrozen(), Fourier()
    self.head = nn.Dense(CLASSES)

  def __call__(self, x, train):
    x = jnp.tanh(self.again(self.first(x)))
    x = jax.lax.stop_gradient(jnp.sin(x)) + self.gated(x, gate=jnp.cos(x), power=2)
    spectrum = self.fourier(straight_through(self.frozen(x)))
    return self.head(spectrum.real + jnp.sin(spectrum.imag))


class Recurrent(nn.Module):
  """A cell of layers called step by step, an einsum, and positions written out per example."""

  @nn.compact
  def __call__(self, tokens, train):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x = nn.Embed(9, WIDTH)(tokens) + nn.Embed(tokens.shape[1], WIDTH)(places)
    cell, carry = nn.SimpleCell(WIDTH), jnp.zeros((x.shape[0], WIDTH), x.dtype)
    for t in range(2):
      carry, _ = cell(carry, x[:, t])
    mixed = nn.Einsum((tokens.shape[1], WIDTH, WIDTH), "btd,tdf->bf")(jnp.tanh(x))
    return nn.Dense(CLASSES)(carry + mixed - jax.lax.stop_gradient(mixed.mean(0, keepdims=True)))


class Called(nn.Module):
  """A net that takes no `train`, behind one that does."""

  net: nn.Module

  @nn.compact
  def __call__(self, x, train):
    return self.net(x)


def _problem(net, tokens=False):
  """Values drawn by NumPy; the loss, with its recorder, of the net."""
  rng = np.random.default_rng(0)
  drawn = rng.integers(0, 9, (SIZE, 3)) if tokens else rng.normal(size=(SIZE, WIDTH))
  inputs = jnp.asarray(drawn, jnp.int32 if tokens else None)
  batch = rw.types.make_batch(inputs, jnp.arange(SIZE) % CLASSES, mask=jnp.arange(SIZE) < 5)
  keys = {name: jax.random.key(0) for name in ("params", "dropout")}
  variables = jax.eval_shape(lambda x: net.init(keys, x, train=False), inputs)
  draw = lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape))
  params = jax.tree.map(draw, variables["params"])
  return rw.losses.from_apply(rw.models.linen_apply(net)), params, {}, batch


PLAIN = Called(nn.Dense(CLASSES))


def same(loss_fn):
  return loss_fn


def twice(loss_fn):
  """The loss of two passes that must agree: every layer called again, by another batch."""

  @functools.wraps(loss_fn)
  def agreeing(params, model_state, batch, key):
    one = loss_fn(params, model_state, batch, key)
    other = loss_fn(params, model_state, batch._replace(inputs=-batch.inputs), key)
    apart = jnp.square(one.logits - other.logits).sum(1)
    return one._replace(losses=one.losses + apart)

  return agreeing


EXACT = {
  "patchwork": (Patchwork(), False, same, FrozenDict),
  "two_passes": (
    Called(nn.Sequential([nn.Dense(WIDTH), jnp.tanh, nn.Dense(3)])),
    False,
    twice,
    dict,
  ),
  "recurrent": (Recurrent(), True, same, dict),
}


class ExactTest(parameterized.TestCase):
  @parameterized.parameters(*EXACT)
  @pytest.mark.long  # below: parameters copy the mark
  def test_push_pull_and_norms_are_those_of_the_rows_of_the_jacobian(self, name):
    net, tokens, wrap, kind = EXACT[name]
    with jax.enable_x64(True):
      loss_fn, params, state, batch = _problem(net, tokens)
      loss_fn, params = wrap(loss_fn), kind(params)
      direction = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
      )
      weights = jnp.array([0.5, -2.0, 0.0, 3.0, 1.0, 7.0])

      @jax.jit
      def run(params):
        linearized = per_example.linearize(loss_fn, params, state, batch, route="ghost")
        norms = per_example.grad_norms(loss_fn, params, state, batch, route="ghost")
        rows = jax.jacrev(lambda p: loss_fn(p, state, batch, None).losses * batch.mask)(params)
        return linearized.push(direction), linearized.pull(weights), norms, rows

      pushed, pulled, norms, rows = jax.tree.map(np.asarray, run(params))
    flat = np.concatenate([row.reshape(SIZE, -1) for row in jax.tree.leaves(rows)], 1)
    ravel = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    self.assertIsInstance(pulled, kind)
    for got, expected in (
      (pushed, flat @ ravel(direction)),
      (ravel(pulled), np.asarray(weights) @ flat),
      (norms, np.linalg.norm(flat, axis=1)),
    ):
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    self.assertGreater(norms[:5].min(), 1e-3)

  def test_seeds_in_a_vmap_inside_of_a_scan_inside_of_a_grad_are_those_of_forward(self):
    with jax.enable_x64(True):
      loss_fn, params, state, batch = _problem(PLAIN)
      seeds = jax.tree.map(lambda p: jnp.stack([p, -2 * p]), params)

      def trained(rate, route):
        def step(params, inputs):
          now = batch._replace(inputs=inputs)
          linearized = per_example.linearize(loss_fn, params, state, now, route=route)
          grads = linearized.pull(jax.nn.softmax(linearized.push(params)))
          return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        steps = jnp.stack([batch.inputs, 2 * batch.inputs])
        moved = jax.vmap(lambda params: jax.lax.scan(step, params, steps)[0])(seeds)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(moved))

      run = jax.jit(lambda rate: [jax.grad(trained)(rate, route) for route in ("ghost", "forward")])
      by_ghost, by_forward = map(float, run(0.1))
    self.assertGreater(abs(by_forward), 1e-3)
    self.assertAlmostEqual(by_ghost, by_forward, delta=1e-11 * abs(by_forward))


class Lent(nn.Module):
  """Owns a parameter and calls a layer that is not its own."""

  inner: Any

  @nn.compact
  def __call__(self, x):
    return self.inner(x) * self.param("scale", nn.initializers.ones, (WIDTH,))[None]


class Lending(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    dense = nn.Dense(WIDTH)
    return nn.Dense(CLASSES)(Lent(dense)(dense(x)))


class Memory(nn.Module):
  """A cell whose layers return pairs."""

  @nn.compact
  def __call__(self, x, train):
    cell = nn.OptimizedLSTMCell(4)
    return nn.Dense(CLASSES)(cell(cell.initialize_carry(jax.random.key(0), x.shape), x)[1])


class DropConnect(nn.Module):
  """Draws inside of the layer that owns the kernel."""

  @nn.compact
  def __call__(self, x, train):
    kernel = _kernel(self)
    kept = jax.random.bernoulli(self.make_rng("dropout"), 0.5, kernel.shape)
    return (x @ (kernel * kept))[:, :CLASSES]


class Unwrapped(nn.Module):
  """A method that no interceptor sees, of a layer that has parameters."""

  def setup(self):
    self.kernel = _kernel(self)

  @nn.nowrap
  def __call__(self, x):
    return x @ self.kernel


class Ensemble(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    lift = dict(variable_axes={"params": 0}, split_rngs={"params": True})
    members = nn.vmap(nn.Dense, in_axes=None, out_axes=1, axis_size=2, **lift)(CLASSES)
    return members(x).mean(1)


class Sorted(nn.Module):
  """Examples that change places by what they are."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(WIDTH)(x)
    return nn.Dense(CLASSES)(jnp.tanh(x + x[jnp.argsort(x[:, 0])]))


def on_other_params(change):
  return lambda loss_fn: functools.wraps(loss_fn)(lambda p, *rest: loss_fn(change(p), *rest))


def decayed(loss_fn):
  """The wrapped loss still has the recorder, and uses every parameter outside of it."""

  @functools.wraps(loss_fn)
  def with_decay(params, *rest):
    outputs = loss_fn(params, *rest)
    return outputs._replace(losses=outputs.losses + optax.tree.norm(params, squared=True))

  return with_decay


def centered(loss_fn):
  """Each class of the batch has a center, which all of its examples move."""

  @functools.wraps(loss_fn)
  def to_centers(params, model_state, batch, key):
    outputs = loss_fn(params, model_state, batch, key)
    alike = (batch.labels[:, None] == batch.labels[None]).astype(outputs.logits.dtype)
    centers = (alike @ outputs.logits) / alike.sum(1, keepdims=True)
    return outputs._replace(losses=jnp.square(outputs.logits - centers).sum(1))

  return to_centers


REFUSED = {
  "net/layer_instance does not see the parameters": (Called(nn.WeightNorm(nn.Dense(CLASSES))),),
  'parameter named "kernel" in scope "/inner"': (Lending(),),
  "OptimizedLSTMCell_0/.. returns a tuple, not one array": (Memory(),),
  'needs PRNG for "dropout"': (DropConnect(), same, jax.random.key(0)),
  "no layer with parameters was seen": (Called(Unwrapped()),),
  "VmapDense_0 does not see the parameters": (Ensemble(),),
  "net does not see the parameters": (Called(nn.jit(nn.Dense)(CLASSES)),),
  "is inside of nn.scan, nn.remat": (Called(nn.remat(nn.Dense)(CLASSES)),),
  "net/bias is used outside of the layer that owns it": (PLAIN, decayed),
  "they were changed on the way": (PLAIN, on_other_params(jax.lax.stop_gradient)),
  "nn.vmap or jax.jit": (PLAIN, jax.jit),
  "values push and pull differ from a backward pass": (PLAIN, centered),
  "made-up values push and pull differ": (Sorted(),),
}


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(*REFUSED)
  def test_auto_goes_forward_and_names_what_is_refused(self, message):
    net, wrap, key = (*REFUSED[message], *(same, None)[len(REFUSED[message]) - 1 :])
    loss_fn, *rest = _problem(net)
    route, reason = per_example.pick_route(wrap(loss_fn), *rest, key=key)
    self.assertEqual(route, "forward")
    self.assertRegex(reason, message)

  def test_a_state_with_one_row_for_each_example_of_this_batch_is_refused(self):
    loss_fn, params, _, batch = _problem(PLAIN)

    @functools.wraps(loss_fn)
    def scaled(params, scales, batch, key):
      outputs = loss_fn(params, {}, batch, key)
      return outputs._replace(losses=outputs.losses * scales)

    with self.assertRaisesRegex(ghost.RefusedError, "recording fails: TypeError: mul"):
      ghost.check(scaled, params, jnp.arange(1.0, SIZE + 1), batch)

  def test_a_loss_that_closes_over_a_tracer_is_refused_and_goes_forward(self):
    loss_fn, params, state, batch = _problem(PLAIN)

    def total(scale, route):
      @functools.wraps(loss_fn)
      def scaled(*args):
        outputs = loss_fn(*args)
        return outputs._replace(losses=scale * outputs.losses)

      return per_example.linearize(scaled, params, state, batch, route=route).push(params).sum()

    with self.assertRaisesRegex(ghost.RefusedError, "closes over traced values"):
      jax.eval_shape(lambda scale: total(scale, "ghost"), 2.0)
    # The pushes are linear in the scale, as the losses are: 2 times the derivative is the value.
    value, slope = jax.jit(jax.value_and_grad(lambda scale: total(scale, "auto")))(2.0)
    self.assertGreater(abs(float(value)), 1e-3)
    np.testing.assert_allclose(2 * slope, value, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
