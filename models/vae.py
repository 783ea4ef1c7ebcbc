"""The variational auto-encoder.

Generative story. A datum x ∈ ℝᴰ has a latent z ∈ ℝᵈ, drawn from p(z) = N(0, I); a network g, the
decoder, maps z to the parameters of p(x | z):

- Bernoulli, for x ∈ {0, 1}ᴰ:  p(x | z) = Πⱼ Bernoulli(xⱼ | σ(g(z)ⱼ));
- Gaussian, for real x:        p(x | z) = Πⱼ N(xⱼ | μ(z)ⱼ, σ²(z)ⱼ), g having two heads;
- Gaussian with μ = σ(g(z)), for grey levels in [0, 1], as the paper has it for Frey faces.

Inference. The posterior p(z | x) ∝ p(x | z) p(z) has no closed form. A second network f, the
encoder, maps x to a Gaussian q(z | x) = N(m(x), diag s²(x)), the same f for every x (amortised).
From log p(x) = log E_q[p(x, z) / q(z | x)] and Jensen's inequality,

    log p(x) ≥ E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) = ELBO(x),

with gap KL(q(z | x) ‖ p(z | x)), and both networks are trained to maximise the ELBO. With
z = m(x) + s(x) ε, ε ~ N(0, I), its gradient passes through the sample.

A prior that is trained with the model (``vilvm.priors``) may replace N(0, I), and a flow
(``vilvm.guides``) the Gaussian q(z | x).

Reference: Auto-Encoding Variational Bayes, Diederik P. Kingma and Max Welling, 2014.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.lvm import rebuildable
from vilvm.networks import mlp, start_at_mean

__all__ = ["VAE", "tiny"]

# limits for a Gaussian likelihood, whose density is unbounded if data are constant
_LOG_VARIANCES = (-8.0, 14.0)
# outputs of the decoder for each number of a datum
_HEADS = {"bernoulli": 1, "gaussian": 2, "sigmoid_gaussian": 2}


@rebuildable
class VAE(nn.Module):
    """Kingma and Welling's variational auto-encoder on rows of `data_dim` numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the size of z.
        likelihood: "bernoulli" (data 0 or 1), "gaussian" (mean and variance both functions of z)
            or "sigmoid_gaussian" (the same with means in (0, 1)).
        encoder_hidden: sizes of the encoder's hidden layers.
        decoder_hidden: sizes of the decoder's hidden layers.
        network: makes encoder and decoder of input size, hidden sizes and output size, as
            ``networks.mlp`` and ``networks.gated_mlp`` do.
        head: makes q(z | x) of the encoder's output, ``guides.normal`` by default; or a flow,
            ``guides.IAF`` or ``guides.RealNVP``.
        prior: p(z), N(0, I) by default; or one of ``vilvm.priors``.

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
        network: Callable[[int, Sequence[int], int], Any] = mlp,
        head: Any = normal,
        prior: nn.Module | None = None,
    ):
        super().__init__()
        if likelihood not in _HEADS:
            raise ValueError(
                f"VAE: unknown likelihood {likelihood!r}; choose 'bernoulli', 'gaussian' or "
                "'sigmoid_gaussian'."
            )
        self.likelihood, self.head, self.prior = likelihood, head, prior
        outputs = _HEADS[likelihood] * data_dim
        in_dim = getattr(head, "in_dim", 2 * latent_dim)
        self.encoder = network(data_dim, encoder_hidden, in_dim)
        self.decoder = network(latent_dim, decoder_hidden, outputs)
        self.register_buffer("origin", torch.zeros(latent_dim))

    def model(self, x: Tensor) -> None:
        """p(x | z) p(z); x has shape (batch, data_dim)."""
        # for plain pyro.infer.SVI; vilvm.fit uses the module itself
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior_of_z())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        q = self.encode(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    def prior_of_z(self) -> dist.TorchDistribution:
        """p(z), of batch shape ()."""
        if self.prior is None:
            return dist.Normal(self.origin, 1.0).to_event(1)
        return self.prior(self.encode)

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for x of shape (..., data_dim)."""
        return self.head(self.encoder(x))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., latent_dim)."""
        if self.likelihood == "bernoulli":
            return IndependentBernoulli(self.decoder(z))
        mean, log_variance = self.decoder(z).chunk(2, dim=-1)
        if self.likelihood == "sigmoid_gaussian":
            mean = mean.sigmoid()
        scale = (0.5 * log_variance.clamp(*_LOG_VARIANCES)).exp()
        return dist.Normal(mean, scale).to_event(1)

    def start_at(self, mean: Tensor) -> "VAE":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        # the logit of the mean, where a sigmoid follows
        unbounded = self.likelihood == "gaussian"
        start_at_mean(self.decoder[-1], mean, "gaussian" if unbounded else "bernoulli")
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
