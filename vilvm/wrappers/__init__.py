"""Models around a model: another prior, guide or likelihood scale, or partly observed data."""

from vilvm.wrappers.imputation import impute
from vilvm.wrappers.in_float64 import InFloat64, float64
from vilvm.wrappers.likelihood_scale import WithLikelihoodScale, fit_likelihood_scale
from vilvm.wrappers.partly_observed import PartlyObserved, partly_observed
from vilvm.wrappers.with_guide import WithGuide, fit_guide, with_guide
from vilvm.wrappers.with_prior import WithPrior, with_prior
from vilvm.wrappers.with_prior_guide import WithPriorGuide, with_prior_guide

__all__ = [
    "InFloat64",
    "PartlyObserved",
    "WithGuide",
    "WithLikelihoodScale",
    "WithPrior",
    "WithPriorGuide",
    "fit_guide",
    "fit_likelihood_scale",
    "float64",
    "impute",
    "partly_observed",
    "with_guide",
    "with_prior",
    "with_prior_guide",
]
