"""A variational auto-encoder of counts, as for single cells: zero-inflated negative binomial.

Generative story. A cell has a latent state z ∈ ℝᵈ and a library size ℓ, the number of molecules
that the sequencer reads. Networks give the share ρ_g of each of G genes and the probability π_g
that a gene is missed:

    z ~ N(0, I),    log ℓ ~ N(m, s²),    ρ = softmax(f(z)),    π = σ(h(z)),
    x_g ~ π_g δ_0 + (1 − π_g) NB(mean ℓ ρ_g, inverse dispersion θ_g),

where NB has variance μ + μ² / θ: it is a Poisson variable whose rate is Gamma distributed. θ_g is
a parameter of the gene, the same for all cells.

Inference. One encoder of log(1 + x) gives q(z | x) and q(log ℓ | x) = N(log Σ_g x_g + δ(x),
t²(x)), whose mean starts at the observed total. ρ is normalised, so the mean counts are ℓ times
shares; this is what separates ℓ from z.

The library size is latent, as in the paper. Later programs use the observed total in place of ℓ.
The total is computed from x, so p(x | ℓ = Σ x) is no density of x: it does not sum to one over
counts, its bound is no bound on log p(x), and the model cannot be simulated without data. With ℓ
latent all of this holds, at the cost of one number per cell whose posterior is narrow.

Reference: Deep Generative Modeling for Single-Cell Transcriptomics, Lopez, Regier, Cole, Jordan
and Yosef, 2018.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.guides import normal
from vilvm.lvm import rebuildable, training_tensors
from vilvm.networks import mlp

__all__ = ["CountVAE", "tiny"]


@rebuildable
class CountVAE(nn.Module):
    """A VAE of rows of counts with a zero-inflated negative binomial likelihood.

    Arguments:
        num_genes: G, the number of counts in a row.
        latent_dim: d, the size of z.
        encoder_hidden: sizes of the encoder's hidden layers.
        decoder_hidden: sizes of the decoder's hidden layers.

    Raises:
        ValueError: a size is not a positive integer.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.count_vae import CountVAE
        >>> x = torch.poisson(torch.full((20, 6), 3.0))
        >>> lvm = CountVAE(num_genes=6, latent_dim=2).start_at(x)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor
    log_library_mean: Tensor
    log_library_scale: Tensor

    def __init__(
        self,
        num_genes: int,
        latent_dim: int = 10,
        encoder_hidden: Sequence[int] = (128,),
        decoder_hidden: Sequence[int] = (128,),
    ):
        super().__init__()
        self.encoder = mlp(num_genes, encoder_hidden, 2 * latent_dim + 2)
        self.decoder = mlp(latent_dim, decoder_hidden, 2 * num_genes)
        self.log_dispersion = nn.Parameter(torch.zeros(num_genes))  # log θ
        self.register_buffer("origin", torch.zeros(latent_dim))
        self.register_buffer("log_library_mean", torch.zeros(()))
        self.register_buffer("log_library_scale", torch.ones(()))

    def model(self, x: Tensor) -> None:
        """p(x | z, ℓ) p(z) p(log ℓ); x has shape (batch, num_genes)."""
        pyro.module("count_vae", self)  # for plain pyro.infer.SVI
        prior = dist.Normal(self.log_library_mean, self.log_library_scale)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            log_library = pyro.sample("log_library", prior)
            pyro.sample("x", self.decode(z, log_library), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x) q(log ℓ | x)."""
        for_z, shift, log_scale = self.encoder(x.log1p()).tensor_split((-2, -1), -1)
        mean = _log_total(x) + shift.squeeze(-1)
        scale = log_scale.squeeze(-1).clamp(-7.0, 7.0).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(for_z))
            pyro.sample("log_library", dist.Normal(mean, scale))

    def decode(self, z: Tensor, log_library: Tensor) -> dist.TorchDistribution:
        """p(x | z, ℓ).

        Arguments:
            z: shape (..., latent_dim).
            log_library: log ℓ, shape (...,).

        Returns:
            Pyro's zero-inflated negative binomial over the genes, of batch shape (...).
        """
        shares, gate_logits = self.decoder(z).chunk(2, dim=-1)
        log_mean = log_library.unsqueeze(-1) + shares.log_softmax(-1)
        return dist.ZeroInflatedNegativeBinomial(
            self.log_dispersion.exp(),
            logits=log_mean - self.log_dispersion,
            gate_logits=gate_logits,
        ).to_event(1)

    @torch.no_grad()
    def start_at(self, x: Any) -> "CountVAE":
        """Sets p(log ℓ) to mean and deviation of log totals, as the paper does, and ρ to shares.

        Arguments:
            x: training data, shape (num_data, num_genes), a tensor, array or frame.

        Returns:
            The model.
        """
        x = training_tensors(self, x, "start_at: x")
        log_total = _log_total(x)
        self.log_library_mean.copy_(log_total.mean())
        self.log_library_scale.copy_(log_total.std().clamp_min(0.01))
        bias = self.decoder[-1].get_parameter("bias")
        # half a count more, so that a gene without counts has a finite logarithm
        bias[: x.shape[-1]] = (x.sum(0) + 0.5).log() - x.sum().log()
        return self


def _log_total(x: Tensor) -> Tensor:
    return x.sum(-1).clamp_min(1.0).log()


def tiny() -> tuple[CountVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.count_vae import tiny
        >>> lvm, batch = tiny()
    """
    x = torch.poisson(torch.full((5, 6), 2.0))
    return CountVAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,)).start_at(x), x
