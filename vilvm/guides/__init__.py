"""Guides: amortised (Gaussian, flows), degenerate (auto-encoder), fitted per datum; penalties."""

from vilvm.guides.delta import delta, flat_prior
from vilvm.guides.iaf import IAF
from vilvm.guides.initialisation import init_to_origin
from vilvm.guides.local import WithLocalGuide, fit_local_guide
from vilvm.guides.normal import normal
from vilvm.guides.penalty import penalty
from vilvm.guides.real_nvp import RealNVP

__all__ = [
    "IAF",
    "RealNVP",
    "WithLocalGuide",
    "delta",
    "fit_local_guide",
    "flat_prior",
    "init_to_origin",
    "normal",
    "penalty",
]
