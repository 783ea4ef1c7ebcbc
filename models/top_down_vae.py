"""The two-level variational auto-encoder of the VampPrior's paper, whose guide runs top down.

Generative story. A datum x ∈ {0, 1}ᴰ has two latents, and depends on both,

    p(z₂): N(0, I), or a prior that is trained with the model (``vilvm.priors``),
    p(z₁ | z₂) = N(μ(z₂), diag σ²(z₂)),    p(x | z₁, z₂) = Πⱼ Bernoulli(xⱼ | σ(g(z₁, z₂)ⱼ)).

Inference. The guide draws z₂ first, from x alone, and then z₁,

    q(z₂ | x) = N(m₂(x), diag s₂²(x)),    q(z₁ | x, z₂) = N(m₁(x, z₂), diag s₁²(x, z₂)).

So q(z₂ | x) is a density in closed form, and a VampPrior 1/K Σₖ q(z₂ | uₖ) can stand for p(z₂).
With N(0, I) the KL term tends to switch z₂ off; a VampPrior keeps it in use.

All layers are gated (``networks.gated``). A network of two inputs has a layer for each of them,
and one for both.

Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018, section 4.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.lvm import rebuildable
from vilvm.networks import GatedLinear, gated_mlp, start_at_mean

__all__ = ["TopDownVAE", "tiny"]


@rebuildable
class TopDownVAE(nn.Module):
    """Tomczak and Welling's two-level model of rows of `data_dim` binary numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dims: sizes of z1 and z2.
        hidden: the size of every hidden layer.
        prior: p(z2), N(0, I) by default; or one of ``vilvm.priors``.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.top_down_vae import TopDownVAE
        >>> from vilvm.priors import VampPrior
        >>> x = torch.rand(20, 6).round()
        >>> lvm = TopDownVAE(6, latent_dims=(3, 2), hidden=8, prior=VampPrior(x[:5]))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        latent_dims: tuple[int, int] = (40, 40),
        hidden: int = 300,
        *,
        prior: nn.Module | None = None,
    ):
        super().__init__()
        dim1, dim2 = latent_dims
        self.prior = prior
        self.encoder2 = gated_mlp(data_dim, (hidden, hidden), 2 * dim2)
        self.encoder1 = _OfTwo(data_dim, dim2, hidden, 2 * dim1)
        self.decoder1 = gated_mlp(dim2, (hidden, hidden), 2 * dim1)
        self.decoder = _OfTwo(dim1, dim2, hidden, data_dim)
        self.register_buffer("origin", torch.zeros(dim2))

    def model(self, x: Tensor) -> None:
        """p(x | z1, z2) p(z1 | z2) p(z2); x has shape (batch, data_dim)."""
        pyro.module("top_down_vae", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior_of_z2())
            z1 = pyro.sample("z1", normal(self.decoder1(z2)))
            pyro.sample("x", self.decode(z1, z2), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z2 | x) q(z1 | x, z2)."""
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.encode(x))
            pyro.sample("z1", normal(self.encoder1(x, z2)))

    def prior_of_z2(self) -> dist.TorchDistribution:
        """p(z2), of batch shape ()."""
        if self.prior is None:
            return dist.Normal(self.origin, 1.0).to_event(1)
        return self.prior(self.encode)

    def encode(self, x: Tensor) -> dist.Independent:
        """q(z2 | x) for x of shape (..., data_dim)."""
        return normal(self.encoder2(x))

    def decode(self, z1: Tensor, z2: Tensor) -> dist.TorchDistribution:
        """p(x | z1, z2) for z1 and z2 of shapes (..., latent_dims[0]), (..., latent_dims[1])."""
        return IndependentBernoulli(self.decoder(z1, z2))

    def start_at(self, mean: Tensor) -> "TopDownVAE":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder.both[-1], mean, "bernoulli")
        return self


class _OfTwo(nn.Module):
    """A gated network of two vectors: a layer for each, a layer for both, and an affine map."""

    def __init__(self, first_dim: int, second_dim: int, hidden: int, out_dim: int):
        super().__init__()
        self.first = GatedLinear(first_dim, hidden)
        self.second = GatedLinear(second_dim, hidden)
        self.both = gated_mlp(2 * hidden, (hidden,), out_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        # x has no dimension of samples, z2 has
        parts = torch.broadcast_tensors(self.first(first), self.second(second))
        return self.both(torch.cat(parts, -1))


def tiny() -> tuple[TopDownVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.top_down_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = TopDownVAE(6, latent_dims=(3, 2), hidden=8)
    return lvm, torch.bernoulli(torch.full((5, 6), 0.5))
