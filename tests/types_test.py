"""What make_batch fills in and refuses."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from reweight_jax import types


class MakeBatchTest(absltest.TestCase):
  def test_trees_of_arrays_and_given_indices_pass_through(self):
    inputs = {"image": np.zeros((2, 4)), "age": np.ones(2)}
    batch = types.make_batch(inputs, np.array([1, 0]), indices=np.array([7, 3], np.int64))
    self.assertEqual(batch.indices.dtype, jnp.int32)
    self.assertEqual(batch.indices.tolist(), [7, 3])
    self.assertEqual(batch.inputs["image"].shape, (2, 4))

  def test_a_leaf_of_another_batch_size_is_named(self):
    with self.assertRaisesRegex(
      ValueError, r"inputs.image has 2 examples, labels has shape \(3,\)"
    ):
      types.make_batch({"image": np.zeros((2, 4))}, np.zeros(3))

  def test_a_mask_of_another_batch_size_is_refused(self):
    with self.assertRaisesRegex(ValueError, r"indices or mask has shape \(3,\)"):
      types.make_batch(np.zeros((2, 4)), np.zeros(2), mask=np.ones(3))

  def test_a_scalar_is_named_with_the_way_to_mend_it(self):
    with self.assertRaisesRegex(ValueError, r"labels is a scalar.*x\[None\]"):
      types.make_batch(np.zeros((2, 4)), 1)


if __name__ == "__main__":
  absltest.main()
