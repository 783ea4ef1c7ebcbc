"""Priors fitted to the codes of a trained model."""

from vilvm.priors.fitted import FittedPrior, fit_prior

__all__ = ["FittedPrior", "fit_prior"]
