"""The conditional variational auto-encoder: a density of x given a condition c.

Generative story. Given c ∈ ℝᶜ (a label as a one-hot vector, a visible part of a picture), a
network draws the latent, and the decoder g sees both:

    z ~ p(z | c) = N(m₀(c), diag s₀²(c)),    x | z, c ~ Πⱼ Bernoulli(σ(g(z, c)ⱼ)).

Nothing is assumed about the distribution of c. Since z varies given c, p(x | c) can have many
modes, such as all digits that fit a visible half; the output of a regression network is one, their
mean.

Inference. The guide sees the datum and the condition, q(z | x, c) = N(m(x, c), diag s²(x, c)), and

    log p(x | c) ≥ E_q[log p(x | z, c)] − KL(q(z | x, c) ‖ p(z | c)).

A batch is a pair (c, x). ``vilvm.evaluate`` reports bounds on log p(x | c).

Reference: Learning Structured Output Representation using Deep Conditional Generative Models,
Kihyuk Sohn, Xinchen Yan and Honglak Lee, 2015.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.lvm import rebuildable
from vilvm.networks import mlp, start_at_mean

__all__ = ["ConditionalVAE", "tiny"]

Batch = tuple[Tensor, Tensor]


@rebuildable
class ConditionalVAE(nn.Module):
    """A variational auto-encoder of binary rows x of `data_dim` numbers, given a condition.

    Arguments:
        data_dim: D, the size of a datum x.
        condition_dim: C, the size of a condition c.
        latent_dim: d, the size of z.
        hidden: sizes of the encoder's hidden layers; the decoder has them in reverse order.
        prior_hidden: sizes of the hidden layers of the prior's network.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.conditional_vae import ConditionalVAE
        >>> lvm, c = ConditionalVAE(data_dim=6, condition_dim=3, latent_dim=2), torch.rand(20, 3)
        >>> vilvm.fit(lvm, (c, torch.rand(20, 6).round()), steps=20).stopped
        'finished'
        >>> lvm.generate(c, num_samples=5).shape
        torch.Size([5, 20, 6])
    """

    def __init__(
        self,
        data_dim: int = 784,
        condition_dim: int = 10,
        latent_dim: int = 20,
        hidden: Sequence[int] = (400, 200),
        prior_hidden: Sequence[int] = (200,),
    ):
        super().__init__()
        self.prior = mlp(condition_dim, prior_hidden, 2 * latent_dim)
        self.encoder = mlp(data_dim + condition_dim, hidden, 2 * latent_dim)
        self.decoder = mlp(latent_dim + condition_dim, hidden[::-1], data_dim)

    def model(self, batch: Batch) -> None:
        """p(x | z, c) p(z | c); batch is (c, x), of shapes (num_data, condition_dim) and
        (num_data, data_dim).
        """
        pyro.module("conditional_vae", self)
        c, x = batch
        prior = normal(self.prior(c))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", self.decode(z, c), obs=x)

    def guide(self, batch: Batch) -> None:
        """q(z | x, c)."""
        c, x = batch
        q = normal(self.encoder(torch.cat([x, c], -1)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    def decode(self, z: Tensor, c: Tensor) -> dist.TorchDistribution:
        """p(x | z, c) for z of shape (..., num_data, latent_dim) and c of shape (num_data,
        condition_dim).
        """
        c = c.expand(*z.shape[:-1], -1)
        return IndependentBernoulli(self.decoder(torch.cat([z, c], -1)))

    @torch.no_grad()
    def generate(self, c: Tensor, num_samples: int = 1) -> Tensor:
        """E[x | z, c] for z drawn from p(z | c).

        Arguments:
            c: conditions, shape (num_data, condition_dim).
            num_samples: draws for each condition.

        Returns:
            Shape (num_samples, num_data, data_dim).
        """
        z = normal(self.prior(c)).sample((num_samples,))
        return self.decode(z, c).mean

    def start_at(self, mean: Tensor) -> "ConditionalVAE":
        """Starts training from the mean of the x, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder[-1], mean, "bernoulli")
        return self


def tiny() -> tuple[ConditionalVAE, Batch]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.conditional_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = ConditionalVAE(6, 3, latent_dim=2, hidden=(8,), prior_hidden=(8,))
    return lvm, (torch.randn(5, 3), torch.bernoulli(torch.full((5, 6), 0.5)))
