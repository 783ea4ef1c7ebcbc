"""The variational auto-encoder.

Generative story. A datum x ∈ ℝᴰ has a latent z ∈ ℝᵈ, drawn from p(z) = N(0, I); a network g, the
decoder, maps z to the parameters of p(x | z):

- Bernoulli, for x ∈ {0, 1}ᴰ:  p(x | z) = Πⱼ Bernoulli(xⱼ | σ(g(z)ⱼ));
- Gaussian, for real x:        p(x | z) = Πⱼ N(xⱼ | μ(z)ⱼ, σ²(z)ⱼ), g having two heads.

Inference. The posterior p(z | x) ∝ p(x | z) p(z) has no closed form. A second network f, the
encoder, maps x to a Gaussian q(z | x) = N(m(x), diag s²(x)), the same f for every x (amortised).
From log p(x) = log E_q[p(x, z) / q(z | x)] and Jensen's inequality,

    log p(x) ≥ E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) = ELBO(x),

with gap KL(q(z | x) ‖ p(z | x)), and both networks are trained to maximise the ELBO. With
z = m(x) + s(x) ε, ε ~ N(0, I), its gradient passes through the sample.

Reference: Auto-Encoding Variational Bayes, Diederik P. Kingma and Max Welling, 2014.
"""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.networks import mlp, start_at_mean

__all__ = ["VAE", "tiny"]

# limits for a Gaussian likelihood, whose density is unbounded if data are constant
_LOG_VARIANCES = (-8.0, 14.0)


class VAE(nn.Module):
    """Kingma and Welling's variational auto-encoder on rows of `data_dim` numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the size of z.
        likelihood: "bernoulli" (data 0 or 1) or "gaussian" (mean and variance both functions of
            z).
        encoder_hidden: sizes of the encoder's hidden layers.
        decoder_hidden: sizes of the decoder's hidden layers.
        activation: makes one activation module of either network.

    Raises:
        ValueError: an unknown likelihood.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.rand(20, 6).round()
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        latent_dim: int = 20,
        likelihood: str = "bernoulli",
        encoder_hidden: Sequence[int] = (400,),
        decoder_hidden: Sequence[int] = (256, 128),
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"VAE: unknown likelihood {likelihood!r}; choose 'bernoulli' or 'gaussian'."
            )
        self.likelihood = likelihood
        heads = {"bernoulli": 1, "gaussian": 2}[likelihood]
        self.encoder = mlp(data_dim, encoder_hidden, 2 * latent_dim, activation)
        self.decoder = mlp(latent_dim, decoder_hidden, heads * data_dim, activation)
        self.register_buffer("origin", torch.zeros(latent_dim))

    def model(self, x: Tensor) -> None:
        """p(x | z) p(z); x has shape (batch, data_dim)."""
        # for plain pyro.infer.SVI; vilvm.fit uses the module itself
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        q = normal(self.encoder(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., latent_dim)."""
        if self.likelihood == "bernoulli":
            return IndependentBernoulli(self.decoder(z))
        mean, log_variance = self.decoder(z).chunk(2, dim=-1)
        scale = (0.5 * log_variance.clamp(*_LOG_VARIANCES)).exp()
        return dist.Normal(mean, scale).to_event(1)

    def start_at(self, mean: Tensor) -> "VAE":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder[-1], mean, self.likelihood)
        return self


def tiny() -> tuple[VAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = VAE(data_dim=6, latent_dim=2, encoder_hidden=(8,), decoder_hidden=(8,))
    return lvm, torch.bernoulli(torch.full((5, 6), 0.5))
