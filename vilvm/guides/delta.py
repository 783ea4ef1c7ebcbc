"""The degenerate guide, and the prior that goes with it: what makes a deterministic auto-encoder a
latent variable model.

An auto-encoder with encoder f and decoder g minimises −log p(x | z = f(x)) over data. It is a
model/guide pair with

    q(z | x) = δ(z − f(x)),    p(z) ∝ 1 (flat, improper),    p(x | z) = p(x | g(z)),

whose Trace_ELBO is exactly the log-likelihood of the reconstruction, for at its one point a Delta
is given density 1 and the flat prior density 1 everywhere. Neither is a probability density: −KL(q
‖ p) is −∞ for any proper prior, and undefined for this one. So such a pair has a distortion and no
ELBO, no importance-weighted bound and no draws from its prior, and vilvm refuses them until a
proper prior and a stochastic guide are fitted.

Reference: Deep Learning, Goodfellow, Bengio and Courville, 2016, chapter 14 (auto-encoders).
"""

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from vilvm._runtime.argument_checks import check_number

__all__ = ["delta", "flat_prior"]


def delta(codes: Tensor) -> dist.Delta:
    """q(z | x) = δ(z − codes); codes of shape (..., d), of which the last dimension is that of one
    z.

    Example:
        >>> import torch
        >>> from vilvm.guides import delta
        >>> delta(torch.zeros(5, 2)).batch_shape, delta(torch.zeros(5, 2)).event_shape
        (torch.Size([5]), torch.Size([2]))
    """
    return dist.Delta(codes, event_dim=1)


def flat_prior(latent_dim: int) -> dist.ImproperUniform:
    """p(z) ∝ 1 over z of shape (latent_dim,); its log-density is 0, and it cannot be drawn from."""
    latent_dim = check_number("flat_prior: latent_dim", latent_dim)
    return dist.ImproperUniform(constraints.real_vector, (), (latent_dim,))
