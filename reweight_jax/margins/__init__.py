"""Margins: how far the examples are on their side, and where training without end would take them.

`separator` solves the limit of a linear model on the host, in float64; the rest is for nets, inside
of jit too. `diagnostics` says whether weights still matter.
"""

from reweight_jax.margins.diagnostics import (
  EVEN,
  FITTED,
  IDLE,
  BoundTerms,
  WeightDiagnostics,
  advice,
  bound_terms,
  gradient_cosine,
  weight_diagnostics,
)
from reweight_jax.margins.normalized import (
  homogeneity_degree,
  log_objective,
  normalized_margins,
  output_margins,
  smoothed_margin,
)
from reweight_jax.margins.separator import (
  Separator,
  cosine,
  loss_normalized_descent,
  max_margin,
  separable_part,
  signed_rows,
)

__all__ = [
  "EVEN",
  "FITTED",
  "IDLE",
  "BoundTerms",
  "Separator",
  "WeightDiagnostics",
  "advice",
  "bound_terms",
  "cosine",
  "gradient_cosine",
  "homogeneity_degree",
  "log_objective",
  "loss_normalized_descent",
  "max_margin",
  "normalized_margins",
  "output_margins",
  "separable_part",
  "signed_rows",
  "smoothed_margin",
  "weight_diagnostics",
]
