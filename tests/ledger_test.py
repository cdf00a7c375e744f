"""The ledger against sums by hand."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import reweight_jax as rw
from reweight_jax import ledger


def _batch(indices, mask=None):
  size = len(indices)
  return rw.types.make_batch(jnp.zeros(size), jnp.zeros(size), indices=np.array(indices), mask=mask)


class LedgerTest(absltest.TestCase):
  def test_means_and_last_weights_by_hand(self):
    entries = ledger.init_ledger(4)
    entries = ledger.record(entries, _batch([2, 0]), jnp.array([1.0, 0.5]))
    entries = ledger.record(entries, _batch([2, 1]), jnp.array([3.0, 0.0]))
    np.testing.assert_array_equal(ledger.mean_weights(entries), [0.5, 0.0, 2.0, np.nan])
    np.testing.assert_array_equal(entries.last_weight, [0.5, 0.0, 3.0, np.nan])
    self.assertEqual(entries.times_seen.tolist(), [1, 1, 2, 0])

  def test_padding_is_not_entered_even_where_its_index_is_a_real_one(self):
    entries = ledger.record(ledger.init_ledger(2), _batch([0, 1]), jnp.array([2.0, 3.0]))
    mask = np.array([True, False])
    entries = ledger.record(entries, _batch([1, 0], mask), jnp.array([5.0, 0.0]))
    self.assertEqual(entries.last_weight.tolist(), [2.0, 5.0])
    self.assertEqual(entries.times_seen.tolist(), [1, 2])

  def test_indices_outside_the_ledger_change_nothing(self):
    entries = ledger.record(ledger.init_ledger(2), _batch([-1, 2]), jnp.array([2.0, 3.0]))
    self.assertEqual(entries.times_seen.tolist(), [0, 0])


if __name__ == "__main__":
  absltest.main()
