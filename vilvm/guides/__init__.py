"""Guides: an amortised Gaussian, a point (auto-encoder), one fitted per datum; penalties."""

from vilvm.guides.delta import delta, flat_prior
from vilvm.guides.initialisation import init_to_origin
from vilvm.guides.local import WithLocalGuide, fit_local_guide
from vilvm.guides.normal import normal
from vilvm.guides.penalty import penalty

__all__ = [
    "WithLocalGuide",
    "delta",
    "fit_local_guide",
    "flat_prior",
    "init_to_origin",
    "normal",
    "penalty",
]
