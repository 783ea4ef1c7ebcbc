"""What torch and Pyro lack."""

from vilvm.distributions.bernoulli import IndependentBernoulli

__all__ = ["IndependentBernoulli"]
