"""The convolutional auto-encoder: convolutions of stride 2, then transposed convolutions.

Each output of a convolution depends on a few neighbouring pixels, with the same weights at every
position of a picture. The loss and the model/guide pair are those of ``models/autoencoder.py``,

    −log p(x | z = f(x)),    p(z) flat,    q(z | x) = δ(z − f(x)).

Reference: Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction, Masci, Meier,
Cireşan and Schmidhuber, 2011.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import delta, flat_prior
from vilvm.lvm import rebuildable
from vilvm.networks import ConvDecoder, ConvEncoder

__all__ = ["ConvAutoencoder", "tiny"]


@rebuildable
class ConvAutoencoder(nn.Module):
    """A deterministic auto-encoder of square grey pictures, given as rows.

    Arguments:
        side: height and width of a picture, divisible by 2^len(channels).
        latent_dim: d, the size of a code.
        likelihood: "gaussian" (unit variance: squared error) or "bernoulli" (data in [0, 1]:
            cross-entropy).
        channels: of the encoder's stages; the decoder has them in reverse order.

    Raises:
        ValueError: an unknown likelihood, or a side that cannot be halved so often.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.conv_autoencoder import ConvAutoencoder
        >>> lvm, x = ConvAutoencoder(side=4, latent_dim=2, channels=(3,)), torch.rand(20, 16)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self,
        side: int = 28,
        latent_dim: int = 10,
        likelihood: str = "gaussian",
        channels: Sequence[int] = (16, 32),
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"ConvAutoencoder: unknown likelihood {likelihood!r}; choose 'bernoulli' or "
                "'gaussian'."
            )
        self.likelihood, self.latent_dim = likelihood, latent_dim
        self.encoder = ConvEncoder(side, latent_dim, channels)
        self.decoder = ConvDecoder(latent_dim, side, channels)

    def model(self, x: Tensor) -> None:
        """p(x | z), the prior flat; x has shape (batch, side · side)."""
        pyro.module("conv_autoencoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flat_prior(self.latent_dim))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """δ(z − f(x))."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", delta(self.encoder(x)))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., latent_dim)."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return IndependentBernoulli(out)
        return dist.Normal(out, 1.0).to_event(1)


def tiny() -> tuple[ConvAutoencoder, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.conv_autoencoder import tiny
        >>> lvm, batch = tiny()
    """
    return ConvAutoencoder(side=4, latent_dim=2, channels=(3,)), torch.rand(5, 16)
