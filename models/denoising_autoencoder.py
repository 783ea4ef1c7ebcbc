"""The denoising auto-encoder, which maps a corrupted datum to the clean one.

A clean x is corrupted, x̃ ~ C(x̃ | x) (noise, erased pixels, a missing block, blur; see
``vilvm.data.corruptions``), and encoder f and decoder g minimise, over pairs (x̃, x),

    −log p(x | z = f(x̃)).

With a Gaussian likelihood N(g(z), I) this is the squared error, which is smallest at the
conditional mean:

    h(x̃) = g(f(x̃))  →  E[x | x̃].

The conditional mean is the best point estimate in mean square. But if several x can have become
x̃, it is in general none of them (``examples/denoising_multimodal.py``). A copy of x̃ is not a
minimum, so the code need not be smaller than the datum.

As a model/guide pair (see ``vilvm.guides.delta``): p(z) flat, q(z | x̃) = δ(z − f(x̃)), and p(x |
z) scores the clean datum. A batch is a pair (x̃, x); a clean batch x alone means (x, x), so that
the model can be evaluated like any other auto-encoder.

Reference: Extracting and Composing Robust Features with Denoising Autoencoders, Vincent,
Larochelle, Bengio and Manzagol, 2008.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import delta, flat_prior
from vilvm.lvm import rebuildable
from vilvm.networks import mlp, start_at_mean

__all__ = ["DenoisingAutoencoder", "tiny"]

Batch = Tensor | tuple[Tensor, Tensor]


@rebuildable
class DenoisingAutoencoder(nn.Module):
    """A denoising auto-encoder of rows of `data_dim` numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the size of a code.
        likelihood: "gaussian" (unit variance: squared error) or "bernoulli" (data in [0, 1]:
            cross-entropy).
        hidden: sizes of the encoder's hidden layers; the decoder has them in reverse order.

    Raises:
        ValueError: an unknown likelihood.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
        >>> lvm, x = DenoisingAutoencoder(data_dim=6, latent_dim=2), torch.rand(20, 6)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self,
        data_dim: int = 784,
        latent_dim: int = 64,
        likelihood: str = "gaussian",
        hidden: Sequence[int] = (512, 256),
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"DenoisingAutoencoder: unknown likelihood {likelihood!r}; choose 'bernoulli' or "
                "'gaussian'."
            )
        self.likelihood, self.latent_dim = likelihood, latent_dim
        self.encoder = mlp(data_dim, hidden, latent_dim)
        self.decoder = mlp(latent_dim, hidden[::-1], data_dim)

    def model(self, batch: Batch) -> None:
        """p(x | z), the prior flat; batch is (x̃, x), of shape (num_data, data_dim) each, or x
        alone.
        """
        pyro.module("denoising_autoencoder", self)
        _, clean = _pair(batch)
        with pyro.plate("data", len(clean)):
            z = pyro.sample("z", flat_prior(self.latent_dim))
            pyro.sample("x", self.decode(z), obs=clean)

    def guide(self, batch: Batch) -> None:
        """δ(z − f(x̃))."""
        corrupted, _ = _pair(batch)
        with pyro.plate("data", len(corrupted)):
            pyro.sample("z", delta(self.encoder(corrupted)))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., latent_dim)."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return IndependentBernoulli(out)
        return dist.Normal(out, 1.0).to_event(1)

    def start_at(self, mean: Tensor) -> "DenoisingAutoencoder":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder[-1], mean, self.likelihood)
        return self


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Tensor):
        return batch, batch
    corrupted, clean = batch
    return corrupted, clean


def tiny() -> tuple[DenoisingAutoencoder, tuple[Tensor, Tensor]]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.denoising_autoencoder import tiny
        >>> lvm, batch = tiny()
    """
    clean = torch.rand(5, 6)
    lvm = DenoisingAutoencoder(data_dim=6, latent_dim=2, hidden=(8,))
    return lvm, (clean + 0.1 * torch.randn(5, 6), clean)
