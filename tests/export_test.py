"""The whole step lowers for accelerators that are not here."""

import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest, parameterized

import reweight_jax as rw
from tests import zoo


class ExportTest(parameterized.TestCase):
  @parameterized.product(platform=("tpu", "cuda"), route=("nested", "forward", "auto"))
  def test_a_learning_to_reweight_step_lowers(self, platform, route):
    loss_fn, params, model_state = zoo.make("batch_norm")
    rule, tx = rw.meta.learning_to_reweight(), optax.adamw(1e-3)
    key = jax.random.PRNGKey(0)  # raw: exported programs take no typed keys as arguments
    state = rw.training.init_train_state(params, model_state, rule, tx, key=key, batch_size=4)
    step = rw.training.make_train_step(loss_fn, rule, tx, route=route)
    batch = zoo.random_batch(1, 4)
    exported = jax.export.export(jax.jit(step), platforms=[platform])(state, batch, batch)
    self.assertEqual(exported.platforms, (platform,))
    self.assertIn("stablehlo.convolution", exported.mlir_module())
    self.assertEqual(jax.tree.structure(exported.out_avals[0]), jax.tree.structure(jnp.zeros(())))


if __name__ == "__main__":
  absltest.main()
