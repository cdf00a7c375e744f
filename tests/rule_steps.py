"""Compiled steps of weighting rules, for the tests of rules."""

import jax
import jax.numpy as jnp
import numpy as np


def step(rule, weights, state=None, **evidence):
  """The weights of one step and the next state."""
  weights = jnp.asarray(weights, jnp.float32)
  evidence = {name: jnp.asarray(array) for name, array in evidence.items()}
  update = jax.jit(rule.update)
  return update(weights, rule.init(weights) if state is None else state, **evidence)


def weigh(rule, weights, **evidence):
  """The weights of a first step."""
  return step(rule, weights, **evidence)[0]


def of_losses(rule, losses, **evidence):
  """A rule's factors for a vector of losses."""
  losses = np.asarray(losses, np.float32)
  return weigh(rule, np.ones(losses.size), losses=losses, **evidence)
