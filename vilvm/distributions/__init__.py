"""Distributions that torch and Pyro lack, or have in a slower form."""

from vilvm.distributions.bernoulli import IndependentBernoulli
from vilvm.distributions.multinomial import Multinomial
from vilvm.distributions.ordered import OrderedNormal

__all__ = ["IndependentBernoulli", "Multinomial", "OrderedNormal"]
