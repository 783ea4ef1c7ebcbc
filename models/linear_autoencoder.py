"""The linear auto-encoder with tied weights, which is principal component analysis.

Encoder and decoder are affine and share one matrix U ∈ ℝᴰˣᵈ,

    f(x) = Uᵀ (x − b),    g(z) = U z + b,

and training minimises the squared error Σ ‖x − g(f(x))‖². Its minima are the U with orthonormal
columns that span the first d principal axes, and b the mean (up to a shift along them): U Uᵀ is
then the projector of PCA. U is only found up to a rotation.

As a model/guide pair (see ``vilvm.guides.delta``): p(z) flat, q(z | x) = δ(z − f(x)), p(x | z) =
N(g(z), I), so that the loss a datum is ½ ‖x − g(f(x))‖² + ½ D log 2π.

Optimisation. Two axes of nearly the same eigenvalue can be exchanged at almost no loss, so the
error converges at a rate λ_d and the subspace at a rate λ_d − λ_{d+1} (MNIST at d = 50: 0.0015,
compared with λ₁ = 5.1). Adam on batches reaches the error within seconds, but its subspace stays
about a radian from the optimum. SGD with Nesterov's momentum β moves 1 / (1 − β) times as fast as
its learning rate, and averages the noise of as many batches, which would otherwise rotate one axis
into the other. It is stable up to a rate of 2 (1 + β) / (1 + 2β) / 4λ₁, and the rate must decay to
zero. b must start at the mean, since ‖b − mean‖² adds to λ₁. With β = 0.99, a rate of 0.03 with
cosine decay, and 40 epochs of batches of 1,000, the largest angle is 0.01 rad.

Reference: Neural Networks and Principal Component Analysis: Learning from Examples Without Local
Minima, Pierre Baldi and Kurt Hornik, 1989.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.guides import delta, flat_prior
from vilvm.lvm import rebuildable

__all__ = ["LinearAutoencoder", "tiny"]


@rebuildable
class LinearAutoencoder(nn.Module):
    """PCA as an auto-encoder of rows of `data_dim` numbers.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the size of a code.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.linear_autoencoder import LinearAutoencoder
        >>> lvm, x = LinearAutoencoder(data_dim=6, latent_dim=2), torch.randn(20, 6)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(self, data_dim: int = 784, latent_dim: int = 10):
        super().__init__()
        self.U = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(data_dim))
        self.b = nn.Parameter(torch.zeros(data_dim))

    def model(self, x: Tensor) -> None:
        """p(x | z), the prior flat; x has shape (batch, data_dim)."""
        pyro.module("linear_autoencoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flat_prior(self.U.shape[1]))
            pyro.sample("x", dist.Normal(z @ self.U.T + self.b, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """δ(z − f(x))."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", delta((x - self.b) @ self.U))

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> "LinearAutoencoder":
        """Sets b to the data's mean, shape (data_dim,), where the loss is best conditioned.

        Returns the model.
        """
        self.b.copy_(mean)
        return self


def tiny() -> tuple[LinearAutoencoder, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.linear_autoencoder import tiny
        >>> lvm, batch = tiny()
    """
    return LinearAutoencoder(data_dim=6, latent_dim=2), torch.randn(5, 6)
