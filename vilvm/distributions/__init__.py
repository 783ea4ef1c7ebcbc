"""What torch and Pyro lack."""

from vilvm.distributions.bernoulli import IndependentBernoulli
from vilvm.distributions.ordered import OrderedNormal

__all__ = ["IndependentBernoulli", "OrderedNormal"]
