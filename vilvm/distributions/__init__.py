"""Distributions that torch and Pyro lack, or have in a slower form."""

from vilvm.distributions.bernoulli import IndependentBernoulli
from vilvm.distributions.coupling import CouplingLayers
from vilvm.distributions.multinomial import Multinomial
from vilvm.distributions.normal_mixture import NormalMixture
from vilvm.distributions.ordered import OrderedNormal

__all__ = [
    "CouplingLayers",
    "IndependentBernoulli",
    "Multinomial",
    "NormalMixture",
    "OrderedNormal",
]
