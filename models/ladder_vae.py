"""The ladder variational auto-encoder: a guide that shares the model's top-down pass.

Generative story. That of a chain of latents (``models/hierarchical_vae.py``),

    p(z_L) = N(0, I),    p(z_l | z_{l+1}) = N(μ_l(z_{l+1}), diag σ_l²(z_{l+1})),
    p(x | z₁) = Πⱼ Bernoulli(xⱼ | σ(g(z₁)ⱼ)).

Inference. A deterministic pass from the bottom up, d_l = f_l(d_{l−1}), d₀ = x, gives an estimate
N(m̂_l(x), diag ŝ_l²(x)) of every latent. The guide draws from the top down, like the model. At
the top it is the estimate; below, it is the normalised product of the estimate, which reaches the
layer by a skip connection, and the model's own p(z_l | z_{l+1}),

    q(z_l | z_{l+1}, x) ∝ N(z_l; m̂_l, diag ŝ_l²) p(z_l | z_{l+1}),
    1 / s_l² = 1 / ŝ_l² + 1 / σ_l²,    m_l = s_l² (m̂_l / ŝ_l² + μ_l / σ_l²).

So a layer that the data do not inform costs no KL. The paper's networks have batch normalisation,
which is left out here; its warm-up of the KL term is ``objectives.Annealed``.

Reference: Ladder Variational Autoencoders, Sønderby, Raiko, Maaløe, Sønderby and Winther, 2016.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.lvm import rebuildable
from vilvm.networks import mlp, start_at_mean

__all__ = ["LadderVAE", "product", "tiny"]


@rebuildable
class LadderVAE(nn.Module):
    """A chain of latents z1, …, zL above rows of `data_dim` binary numbers, with a ladder guide.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dims: sizes of z1, …, zL, from the bottom up.
        hidden: for each latent, the size of the two hidden layers of its networks.
        network: makes a network of input size, hidden sizes and output size, as ``networks.mlp``
            and ``networks.gated_mlp`` do.

    Raises:
        ValueError: `latent_dims` and `hidden` are not of one length, or empty.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ladder_vae import LadderVAE
        >>> lvm = LadderVAE(6, latent_dims=(3, 2), hidden=(8, 8))
        >>> vilvm.fit(lvm, torch.rand(20, 6).round(), steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        latent_dims: Sequence[int] = (64, 32, 16),
        hidden: Sequence[int] = (512, 256, 128),
        *,
        network: Callable[[int, Sequence[int], int], Any] = mlp,
    ):
        super().__init__()
        if not len(latent_dims) == len(hidden) > 0:
            raise ValueError(
                "LadderVAE: hidden must give a size for each of the "
                f"{len(latent_dims)} latents; got {len(hidden)}."
            )
        self.upward = nn.ModuleList(
            nn.Sequential(network(low, (high,), high), nn.SiLU())
            for low, high in pairwise((data_dim, *hidden))
        )
        self.estimates = nn.ModuleList(
            nn.Linear(size, 2 * dim)
            for size, dim in zip(hidden, latent_dims, strict=True)
        )
        outputs = [data_dim, *(2 * dim for dim in latent_dims[:-1])]
        self.downward = nn.ModuleList(
            network(dim, (size, size), out)
            for dim, size, out in zip(latent_dims, hidden, outputs, strict=True)
        )
        self.register_buffer("origin", torch.zeros(latent_dims[-1]))

    def model(self, x: Tensor) -> None:
        """p(x | z1) p(z1 | z2) … p(zL); x has shape (batch, data_dim)."""
        pyro.module("ladder_vae", self)
        top = len(self.downward)
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{top}", dist.Normal(self.origin, 1.0).to_event(1))
            for level in range(top - 1, 0, -1):
                z = pyro.sample(f"z{level}", normal(self.downward[level](z)))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(zL | x) … q(z1 | z2, x)."""
        estimates = self.estimate(x)
        top = len(estimates)
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{top}", estimates[-1])
            for level in range(top - 1, 0, -1):
                prior = normal(self.downward[level](z))
                z = pyro.sample(f"z{level}", product(estimates[level - 1], prior))

    def estimate(self, x: Tensor) -> list[dist.Independent]:
        """N(m̂, ŝ²) of z1, …, zL, from the bottom-up pass."""
        found, d = [], x
        for upward, head in zip(self.upward, self.estimates, strict=True):
            d = upward(d)
            found.append(normal(head(d)))
        return found

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z1) for z1 of shape (..., latent_dims[0])."""
        return IndependentBernoulli(self.downward[0](z))

    def start_at(self, mean: Tensor) -> "LadderVAE":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.downward[0][-1], mean, "bernoulli")  # pyright: ignore
        return self


def product(first: dist.Independent, second: dist.Independent) -> dist.Independent:
    """The normalised product of two diagonal Gaussian densities.

    Arguments:
        first: of event shape (d,).
        second: of event shape (d,).

    Returns:
        A diagonal Gaussian, whose precision is the sum of theirs.

    Reference: Ladder Variational Autoencoders, Sønderby et al., 2016.

    Examples:
        >>> import torch
        >>> from vilvm.guides import normal
        >>> from vilvm.models.ladder_vae import product
        >>> product(normal(torch.zeros(4)), normal(torch.zeros(4))).variance
        tensor([0.5000, 0.5000])
    """
    precision = first.variance.reciprocal() + second.variance.reciprocal()
    mean = (first.mean / first.variance + second.mean / second.variance) / precision
    return dist.Normal(mean, precision.rsqrt()).to_event(1)


def tiny() -> tuple[LadderVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.ladder_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = LadderVAE(6, latent_dims=(4, 3, 2), hidden=(8, 7, 6))
    return lvm, torch.bernoulli(torch.full((5, 6), 0.5))
