"""Probabilistic PCA, the linear Gaussian latent variable model, exact in closed form.

Generative story. A datum x ∈ ℝᴰ has a latent z ∈ ℝᵈ, z ~ N(0, I), and

    x = W z + b + ε,    ε ~ N(0, σ² I).

So p(x) = N(x | b, C) with C = W Wᵀ + σ² I, and with M = WᵀW + σ² I the posterior is p(z | x) =
N(M⁻¹ Wᵀ (x − b), σ² M⁻¹).

Maximum likelihood. With the eigenvalues λ₁ ≥ … ≥ λ_D of the data's covariance and their vectors
u₁, …, u_D,

    b = mean,    σ² = (λ_{d+1} + … + λ_D) / (D − d),
    W = [u₁ … u_d] diag(λ₁ − σ², …, λ_d − σ²)^{1/2} R,    R any rotation.

Inference. The guide is that of a linear VAE, q(z | x) = N(V (x − b), diag s²), amortised and
learnt. If the columns of W are orthogonal, the posterior's covariance is diagonal and the guide is
exact. So the ELBO and the likelihood have the same maximum, where R is a permutation: a linear VAE
finds the principal axes themselves.

References: Probabilistic Principal Component Analysis, Michael E. Tipping and Christopher M.
Bishop, 1999; Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, Lucas, Tucker,
Grosse and Norouzi, 2019.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.lvm import rebuildable, training_tensors

__all__ = ["PPCA", "tiny"]


@rebuildable
class PPCA(nn.Module):
    """Probabilistic PCA of rows of `data_dim` numbers, with an amortised Gaussian guide.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the size of z; below D.

    Raises:
        ValueError: latent_dim is not below data_dim.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> lvm, x = PPCA(data_dim=6, latent_dim=2), torch.randn(20, 6)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(self, data_dim: int = 784, latent_dim: int = 10):
        super().__init__()
        if not 0 < latent_dim < data_dim:
            raise ValueError(
                f"PPCA: latent_dim must be at least 1 and below data_dim = {data_dim}; got "
                f"{latent_dim}."
            )
        self.W = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(data_dim))
        self.b = nn.Parameter(torch.zeros(data_dim))
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.V = nn.Parameter(torch.randn(latent_dim, data_dim) / math.sqrt(data_dim))
        self.log_s = nn.Parameter(torch.zeros(latent_dim))
        self.register_buffer("origin", torch.zeros(latent_dim))

    def model(self, x: Tensor) -> None:
        """p(x | z) p(z); x has shape (batch, data_dim)."""
        pyro.module("ppca", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            mean = z @ self.W.T + self.b
            pyro.sample("x", dist.Normal(mean, self.log_sigma.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        mean = (x - self.b) @ self.V.T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, self.log_s.exp()).to_event(1))

    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), exact, in nats, shape (batch,); x has shape (batch, data_dim)."""
        noise = (2 * self.log_sigma).exp().expand(len(self.b))
        return dist.LowRankMultivariateNormal(self.b, self.W, noise).log_prob(x)

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x), exact, for x of shape (batch, data_dim)."""
        W, variance = self.W, (2 * self.log_sigma).exp()
        precision = torch.eye(len(self.origin)).to(W) + W.T @ W / variance
        mean = torch.linalg.solve(precision, W.T @ (x - self.b).T / variance).T
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    @torch.no_grad()
    def maximise(self, x: Any) -> "PPCA":
        """Sets all parameters to maximum likelihood on `x`, and the guide to the exact posterior.

        Returns the model.

        Arguments:
            x: shape (num_data, data_dim), a tensor, array or frame; computed in float64.
        """
        d = len(self.origin)
        x = training_tensors(self, x, "maximise: x", dtype=torch.float64).double()
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        variance = values[d:].mean()
        W = vectors[:, :d] * (values[:d] - variance).clamp(min=0).sqrt()
        self.W.copy_(W)
        self.b.copy_(mean)
        self.log_sigma.copy_(variance.log() / 2)
        # M = diag(λ), since the columns of W are orthogonal
        self.V.copy_((W / values[:d]).T)
        self.log_s.copy_((variance / values[:d]).log() / 2)
        return self


def tiny() -> tuple[PPCA, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.ppca import tiny
        >>> lvm, batch = tiny()
    """
    return PPCA(data_dim=6, latent_dim=2), torch.randn(5, 6)
