r"""Emphasis densities: how long an example's gradient may be, by the probability of its label.

Derivative manipulation keeps the direction of each example's logit gradient and chooses its L1
length, :math:`w(p)`, with :math:`p` the softmax probability of the given label. A loss of
:math:`p` alone *is* such a choice, so the losses of the field stand here beside the families that
were made for it. `rules.emphasis` weighs by a density, `losses.emphasized_margin` trains on one.

| density | :math:`w(p)` | emphasis mode |
| --- | --- | --- |
| `exponential_of_beta(beta, lam)` | :math:`\exp(\beta p^\lambda (1-p))` | lam / (lam + 1) |
| `exponential(beta)` | :math:`\exp(\beta (1-p))` | 0 |
| `normal(beta, mode)` | :math:`\exp(-\beta p (p - 2 \psi))` | min(mode, 1) |
| `beta(alpha, eta)` | :math:`p^{\alpha-1} (1-p)^{\eta-1}` | (alpha - 1) / (alpha + eta - 2) |
| `cross_entropy()` | :math:`2 (1-p)` | 0 |
| `mean_absolute_error()` | :math:`2 p (1-p)` | 1/2 |
| `mean_squared_error()` | :math:`4 p (1-p)^2` | 1/3 |
| `generalized_cross_entropy(q)` | :math:`2 p^q (1-p)` | q / (q + 1) |
| `symmetric_cross_entropy(mu, nu)` | :math:`2 (1-p) (\mu - A \nu p)` | |
| `taylor_cross_entropy(order)` | :math:`2 (1-p) (1 - (1-p)^t)` | 1 - 1 / (t + 1)^(1/t) |
| `improved_mean_absolute_error(temperature)` | :math:`\exp(T p (1-p))` | 1/2 |
| `uniform()` | 1 | none |

The modes of the exponential families are those of a positive beta. Source of families, words and
table: Wang, Kodirov, Hua, Robertson, "Derivative Manipulation for General Example Weighting", 2019,
arXiv 1905.11233, section 3, eqs. (7)-(12) and appendix B; IMAE: the same, arXiv 1903.12141. Where
this package names an equation of 1905.11233, the number is that of the conference submission;
versions on arXiv may number differently.
"""

from reweight_jax.densities._density import Density, from_function, log_probabilities
from reweight_jax.densities.families import (
  beta,
  exponential,
  exponential_of_beta,
  improved_mean_absolute_error,
  normal,
  uniform,
)
from reweight_jax.densities.of_losses import (
  cross_entropy,
  generalized_cross_entropy,
  mean_absolute_error,
  mean_squared_error,
  symmetric_cross_entropy,
  taylor_cross_entropy,
)
from reweight_jax.densities.statistics import area, mode, variance

__all__ = [
  "Density",
  "area",
  "beta",
  "cross_entropy",
  "exponential",
  "exponential_of_beta",
  "from_function",
  "generalized_cross_entropy",
  "improved_mean_absolute_error",
  "log_probabilities",
  "mean_absolute_error",
  "mean_squared_error",
  "mode",
  "normal",
  "symmetric_cross_entropy",
  "taylor_cross_entropy",
  "uniform",
  "variance",
]
