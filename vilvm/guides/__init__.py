"""Guides: the amortised Gaussian, the degenerate one of an auto-encoder, the prior itself, and a new one for a frozen model."""

from vilvm.guides.delta import delta, flat_prior
from vilvm.guides.local import WithLocalGuide, fit_local_guide
from vilvm.guides.normal import normal
from vilvm.guides.prior import WithPriorGuide, with_prior_guide
from vilvm.guides.replaced import WithGuide, fit_guide, with_guide

__all__ = [
    "WithGuide",
    "WithLocalGuide",
    "WithPriorGuide",
    "delta",
    "fit_guide",
    "fit_local_guide",
    "flat_prior",
    "normal",
    "with_guide",
    "with_prior_guide",
]
