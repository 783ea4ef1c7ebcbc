"""Priors fitted to the codes of a trained model, and the model with one in place of its own."""

from vilvm.priors.fitted import FittedPrior, fit_prior
from vilvm.priors.replaced import WithPrior, with_prior

__all__ = ["FittedPrior", "WithPrior", "fit_prior", "with_prior"]
