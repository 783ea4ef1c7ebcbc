"""Guides: amortised Gaussian, degenerate (auto-encoder), and optimised for each datum."""

from vilvm.guides.delta import delta, flat_prior
from vilvm.guides.local import WithLocalGuide, fit_local_guide
from vilvm.guides.normal import normal

__all__ = ["WithLocalGuide", "delta", "fit_local_guide", "flat_prior", "normal"]
