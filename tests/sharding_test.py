"""Eight virtual devices against one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
from absl.testing import absltest

from reweight_jax import sharding

# In a process of its own: the number of devices is fixed when JAX starts.
PROGRAM = """
import jax, numpy as np, optax
import reweight_jax as rw
from tests import zoo

assert len(jax.devices()) == 8
meta_rule = rw.meta.learning_to_reweight
rules = {
  "batch_norm": optax.chain(rw.rules.random_weights(0), meta_rule()),
  # After the meta rule, so that their sums are seen: over the two examples of a device each were
  # another.
  "mlp": optax.chain(
    meta_rule(),
    rw.rules.gradient_harmonizing(5),
    rw.rules.small_loss(0.7, of="class"),
    rw.rules.smooth_by_index(100),
    rw.rules.exponential_emphasis(8.0, normalization="batch"),
  ),
}
routes = {"batch_norm": "forward", "mlp": "ghost"}
for name, rule in rules.items():
  loss_fn, params, model_state = zoo.make(name)
  tx = optax.sgd(0.1, momentum=0.9)
  step = jax.jit(rw.training.make_train_step(loss_fn, rule, tx, route=routes[name]))
  key = jax.random.key(0)
  start = rw.training.init_train_state(params, model_state, rule, tx, key=key, batch_size=16)
  batch = zoo.random_batch(1, 16, num_padding=3)
  clean = zoo.random_batch(2, 8)
  alone, placed = start, rw.sharding.place(rw.sharding.batch_mesh(), start, batch, clean)
  shared = placed[0]
  for _ in range(3):
    alone, one = step(alone, batch, clean)
    shared, eight = step(shared, *placed[1:])
  assert len(placed[1].inputs.sharding.device_set) == 8
  np.testing.assert_allclose(one.weights, eight.weights, atol=1e-4)
  for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(shared.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

# Inside of shard_map, where what varies over devices is tracked: the net is the last one.
def pulled(params, batch):
  linearized = rw.per_example.linearize(loss_fn, params, model_state, batch, route="ghost")
  return linearized.pull(jax.numpy.ones(batch.mask.size))

axes = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
by_device = jax.shard_map(pulled, mesh=rw.sharding.batch_mesh(), in_specs=axes, out_specs=axes[0])
results = (jax.jit(way)(params, batch) for way in (by_device, pulled))
for a, b in zip(*map(jax.tree.leaves, results), strict=True):
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
print("equal")
"""


class ShardingTest(absltest.TestCase):
  def test_eight_devices_give_the_parameters_of_one(self):
    environment = {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "PATH": "",
    }
    result = subprocess.run(
      [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False
    )
    self.assertEqual(result.stdout.strip(), "equal", result.stderr[-2000:])

  def test_a_batch_that_does_not_divide_is_refused_by_name(self):
    class EightDevices:
      size = 8

    with self.assertRaisesRegex(ValueError, r"batches\[0\]\['x'\] has shape \(12, 2\)"):
      sharding.place(EightDevices(), jnp.zeros(1), {"x": jnp.zeros((12, 2))})
    self.assertEqual(sharding.batch_mesh(jax.devices()[:1]).axis_names, ("batch",))


if __name__ == "__main__":
  absltest.main()
