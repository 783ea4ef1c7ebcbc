"""The hierarchical variational auto-encoder: a chain of stochastic layers.

Generative story. A datum x ∈ {0, 1}ᴰ has latents z_L, …, z₁, drawn from the top down,

    p(z_L) = N(0, I),    p(z_l | z_{l+1}) = N(μ_l(z_{l+1}), diag σ_l²(z_{l+1})),
    p(x | z₁) = Πⱼ Bernoulli(xⱼ | σ(g(z₁)ⱼ)).

Inference. The guide is the chain from the bottom up,

    q(z₁ | x) = N(m₁(x), diag s₁²(x)),    q(z_l | z_{l−1}) = N(m_l(z_{l−1}), diag s_l²(z_{l−1})).

Every factor is a diagonal Gaussian, but the marginals p(z₁) and q(z₂ | x) are not. Training often
leaves the upper layers unused, q(z_l | z_{l−1}) = p(z_l | z_{l+1}); a warm-up of the KL term
(``objectives.Annealed``), importance weights or a ladder (``models/ladder_vae.py``) help.

The default sizes are those of Burda et al.; their layers are tanh,
``network=partial(mlp, activation=nn.Tanh)``.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016; Stochastic
Backpropagation and Approximate Inference in Deep Generative Models, Rezende, Mohamed and Wierstra,
2014.
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

__all__ = ["HierarchicalVAE", "tiny"]


@rebuildable
class HierarchicalVAE(nn.Module):
    """A chain of latents z1, …, zL above rows of `data_dim` binary numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dims: sizes of z1, …, zL, from the bottom up.
        hidden: for each latent, sizes of the hidden layers between it and the layer below, the
            same in both directions.
        network: makes a network of input size, hidden sizes and output size, as ``networks.mlp``
            and ``networks.gated_mlp`` do.

    Raises:
        ValueError: `latent_dims` and `hidden` are not of one length, or empty.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.hierarchical_vae import HierarchicalVAE
        >>> lvm = HierarchicalVAE(6, latent_dims=(3, 2), hidden=((8,), (8,)))
        >>> vilvm.fit(lvm, torch.rand(20, 6).round(), steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        *,
        network: Callable[[int, Sequence[int], int], Any] = mlp,
    ):
        super().__init__()
        if not len(latent_dims) == len(hidden) > 0:
            raise ValueError(
                "HierarchicalVAE: hidden must list the hidden layers of each of the "
                f"{len(latent_dims)} latents; got {len(hidden)} lists."
            )
        sizes = list(pairwise((data_dim, *latent_dims)))
        self.encoders = nn.ModuleList(
            network(low, between, 2 * high)
            for (low, high), between in zip(sizes, hidden, strict=True)
        )
        outputs = [data_dim, *(2 * dim for dim in latent_dims[:-1])]
        self.decoders = nn.ModuleList(
            network(high, between[::-1], out)
            for high, between, out in zip(latent_dims, hidden, outputs, strict=True)
        )
        self.register_buffer("origin", torch.zeros(latent_dims[-1]))

    def model(self, x: Tensor) -> None:
        """p(x | z1) p(z1 | z2) … p(zL); x has shape (batch, data_dim)."""
        pyro.module("hierarchical_vae", self)
        top = len(self.decoders)
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{top}", dist.Normal(self.origin, 1.0).to_event(1))
            for level in range(top - 1, 0, -1):
                z = pyro.sample(f"z{level}", normal(self.decoders[level](z)))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z1 | x) q(z2 | z1) …."""
        below = x
        with pyro.plate("data", len(x)):
            for level, encoder in enumerate(self.encoders, start=1):
                below = pyro.sample(f"z{level}", normal(encoder(below)))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z1) for z1 of shape (..., latent_dims[0])."""
        return IndependentBernoulli(self.decoders[0](z))

    def start_at(self, mean: Tensor) -> "HierarchicalVAE":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoders[0][-1], mean, "bernoulli")  # pyright: ignore
        return self


def tiny() -> tuple[HierarchicalVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.hierarchical_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = HierarchicalVAE(6, latent_dims=(3, 2), hidden=((8,), (7,)))
    return lvm, torch.bernoulli(torch.full((5, 6), 0.5))
