"""Priors trained with a model, and priors fitted to the codes of a trained one."""

from vilvm.priors.fitted import FittedPrior, fit_prior
from vilvm.priors.mixture import Mixture
from vilvm.priors.real_nvp import RealNVP
from vilvm.priors.vamp import VampPrior

__all__ = ["FittedPrior", "Mixture", "RealNVP", "VampPrior", "fit_prior"]
