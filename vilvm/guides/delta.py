"""The degenerate guide and the flat prior: an auto-encoder as a latent variable model.

An auto-encoder with encoder f and decoder g minimises −log p(x | z = f(x)) over data. It is a
model/guide pair with

    q(z | x) = δ(z − f(x)),    p(z) ∝ 1 (flat, improper),    p(x | z) = p(x | g(z)),

whose Trace_ELBO is exactly the log-likelihood of the reconstruction, because Pyro assigns density
1 to a Delta at its point, and to the flat prior everywhere. Neither is a probability density:
−KL(q ‖ p) is −∞ for any proper prior, and undefined for this one. So such a pair has a distortion,
but no ELBO, no importance-weighted bound and no draws from its prior; vilvm raises an error for
these until a proper prior and a stochastic guide are fitted.

Reference: Deep Learning, Goodfellow, Bengio and Courville, 2016, chapter 14 (auto-encoders).
"""

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from vilvm._runtime.argument_checks import check_number

__all__ = ["delta", "flat_prior"]


def delta(codes: Tensor) -> dist.Delta:
    """The degenerate guide q(z | x) = δ(z − codes).

    Arguments:
        codes: shape (..., d).

    Returns:
        A distribution of batch shape (...) and event shape (d,).

    Reference: Deep Learning, Goodfellow, Bengio and Courville, 2016, chapter 14.

    Examples:
        >>> import torch
        >>> from vilvm.guides import delta
        >>> q = delta(torch.zeros(5, 2))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """
    return dist.Delta(codes, event_dim=1)


def flat_prior(latent_dim: int) -> dist.ImproperUniform:
    """The flat prior p(z) ∝ 1, whose log-density is 0 and which cannot be sampled.

    Arguments:
        latent_dim: d, the size of z.

    Returns:
        An improper distribution of event shape (d,).

    Raises:
        ValueError: `latent_dim` is not a whole number, at least 1.

    Examples:
        >>> import torch
        >>> from vilvm.guides import flat_prior
        >>> flat_prior(2).log_prob(torch.zeros(5, 2))
        tensor([0., 0., 0., 0., 0.])
    """
    latent_dim = check_number("flat_prior: latent_dim", latent_dim)
    return dist.ImproperUniform(constraints.real_vector, (), (latent_dim,))
