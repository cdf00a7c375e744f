"""The studies of importance weighting: each has a claim, a prediction and a verdict."""
