"""Guides: the amortised Gaussian, the degenerate one of an auto-encoder, and a new one for a model that is frozen."""

from vilvm.guides.delta import delta, flat_prior
from vilvm.guides.normal import normal
from vilvm.guides.replaced import WithGuide, fit_guide, with_guide

__all__ = ["WithGuide", "delta", "fit_guide", "flat_prior", "normal", "with_guide"]
