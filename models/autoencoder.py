"""The deep auto-encoder: two perceptrons with a bottleneck between them, and no posterior.

The encoder f maps a datum x ∈ ℝᴰ to a code z ∈ ℝᵈ, d < D, the decoder g maps it back to the
parameters of p(x | z), and both minimise

    −log p(x | z = f(x)),

which for a Gaussian likelihood N(g(z), I) is ½ ‖x − g(f(x))‖² up to a constant, and for a
Bernoulli one the cross-entropy. With affine f and g this is PCA (see
``models/linear_autoencoder.py``); depth bends the plane into a manifold.

As a model/guide pair (see ``vilvm.guides.delta``): p(z) flat, q(z | x) = δ(z − f(x)). It has a
distortion, but no evidence and no draws, since it is not a probability model of x.

Reference: Reducing the Dimensionality of Data with Neural Networks, Geoffrey E. Hinton and Ruslan
R. Salakhutdinov, 2006.
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

__all__ = ["Autoencoder", "tiny"]


@rebuildable
class Autoencoder(nn.Module):
    """A deterministic auto-encoder of rows of `data_dim` numbers.

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
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> lvm, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(20, 6)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self,
        data_dim: int = 784,
        latent_dim: int = 10,
        likelihood: str = "gaussian",
        hidden: Sequence[int] = (512, 256),
    ):
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f"Autoencoder: unknown likelihood {likelihood!r}; choose 'bernoulli' or "
                "'gaussian'."
            )
        self.likelihood, self.latent_dim = likelihood, latent_dim
        self.encoder = mlp(data_dim, hidden, latent_dim)
        self.decoder = mlp(latent_dim, hidden[::-1], data_dim)

    def model(self, x: Tensor) -> None:
        """p(x | z), the prior flat; x has shape (batch, data_dim)."""
        pyro.module("autoencoder", self)
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

    def start_at(self, mean: Tensor) -> "Autoencoder":
        """Starts training from the data's mean, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder[-1], mean, self.likelihood)
        return self


def tiny() -> tuple[Autoencoder, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.autoencoder import tiny
        >>> lvm, batch = tiny()
    """
    return Autoencoder(data_dim=6, latent_dim=2, hidden=(8,)), torch.rand(5, 6)
