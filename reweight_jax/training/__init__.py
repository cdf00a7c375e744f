"""The training step with example weights, in three forms that give equal results.

The step is `pull(rule(...)) / num_real` handed to an optax optimizer.

| form | for |
| --- | --- |
| `make_train_step` | one pure function to jit, scan, export or shard |
| `make_split_train_step` | two jitted calls; the meta pass is over before the train pass starts |
| `make_accumulating_train_step` | batches larger than memory, weights normalized over all of it |

No loop and no input or output here.
"""

from reweight_jax.training.accumulation import make_accumulating_train_step
from reweight_jax.training.state import StepMetrics, TrainState, init_train_state
from reweight_jax.training.step import make_eval_step, make_split_train_step, make_train_step

__all__ = [
  "StepMetrics",
  "TrainState",
  "init_train_state",
  "make_accumulating_train_step",
  "make_eval_step",
  "make_split_train_step",
  "make_train_step",
]
