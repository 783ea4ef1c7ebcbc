"""The convolutional variational auto-encoder of square grey pictures.

Generative story and bound are those of ``models/vae.py``,

    log p(x) ≥ E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)),    p(z) = N(0, I);

the encoder is a stack of convolutions of stride 2, and the decoder the reversed stack of
transposed convolutions (``vilvm.networks.conv``). Weights are shared over all positions of a
picture, so a tenth of the parameters of perceptrons is enough.

As in ``models/vae.py``, a prior that is trained with the model may replace N(0, I), and a flow the
Gaussian q(z | x).

Reference: Markov Chain Monte Carlo and Variational Inference: Bridging the Gap, Tim Salimans,
Diederik P. Kingma and Max Welling, 2015 (section 3.4, a convolutional VAE of MNIST).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.lvm import rebuildable
from vilvm.networks import ConvDecoder, ConvEncoder, start_at_mean

__all__ = ["ConvVAE", "tiny"]

# limits for a Gaussian likelihood, whose density is unbounded if data are constant
_LOG_VARIANCES = (-8.0, 14.0)


@rebuildable
class ConvVAE(nn.Module):
    """A variational auto-encoder of square grey pictures, given as rows.

    Arguments:
        side: height and width of a picture, divisible by 2^len(channels).
        latent_dim: d, the size of z.
        likelihood: "bernoulli" (data 0 or 1) or "gaussian" (mean and variance both functions of
            z).
        channels: of the encoder's stages; the decoder has them in reverse order.
        head: makes q(z | x) of the encoder's output, ``guides.normal`` by default; or a flow,
            ``guides.IAF`` or ``guides.RealNVP``.
        prior: p(z), N(0, I) by default; or one of ``vilvm.priors``.

    Raises:
        ValueError: an unknown likelihood, or a side that cannot be halved so often.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.conv_vae import ConvVAE
        >>> lvm, x = ConvVAE(side=4, latent_dim=2, channels=(3,)), torch.rand(20, 16).round()
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self,
        side: int = 28,
        latent_dim: int = 20,
        likelihood: str = "bernoulli",
        channels: Sequence[int] = (16, 32),
        *,
        head: Any = normal,
        prior: nn.Module | None = None,
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"ConvVAE: unknown likelihood {likelihood!r}; choose 'bernoulli' or 'gaussian'."
            )
        self.likelihood, self.head, self.prior = likelihood, head, prior
        outputs = {"bernoulli": 1, "gaussian": 2}[likelihood]
        in_dim = getattr(head, "in_dim", 2 * latent_dim)
        self.encoder = ConvEncoder(side, in_dim, channels)
        self.decoder = ConvDecoder(latent_dim, side, channels, outputs)
        self.register_buffer("origin", torch.zeros(latent_dim))

    def model(self, x: Tensor) -> None:
        """p(x | z) p(z); x has shape (batch, side · side)."""
        pyro.module("conv_vae", self)
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
        """q(z | x) for x of shape (..., side · side)."""
        return self.head(self.encoder(x))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., latent_dim)."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return IndependentBernoulli(out)
        mean, log_variance = out.chunk(2, dim=-1)
        scale = (0.5 * log_variance.clamp(*_LOG_VARIANCES)).exp()
        return dist.Normal(mean, scale).to_event(1)

    def start_at(self, mean: Tensor) -> "ConvVAE":
        """Starts training from the mean of all numbers in the data, and returns the model.

        Arguments:
            mean: of the data, shape (side · side,); one bias serves all positions.
        """
        start_at_mean(self.decoder.stages[-2], mean.mean()[None], self.likelihood)
        return self


def tiny() -> tuple[ConvVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.conv_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = ConvVAE(side=4, latent_dim=2, channels=(3,))
    return lvm, torch.bernoulli(torch.full((5, 16), 0.5))
