"""Factor analysis: a linear Gaussian latent variable model with a noise variance per variable.

Generative story. A datum x ∈ ℝᴰ has factors z ∈ ℝᵈ, z ~ N(0, I), and

    x = W z + b + ε,    ε ~ N(0, Ψ),    Ψ = diag(ψ₁, …, ψ_D).

So p(x) = N(x | b, W Wᵀ + Ψ), and with M = I + Wᵀ Ψ⁻¹ W the posterior is p(z | x) = N(M⁻¹ Wᵀ Ψ⁻¹ (x
− b), M⁻¹): its mean is linear in the datum and its covariance is common to all data.

Inference. The guide is q(z | x) = N(V (x − b), L Lᵀ), amortised and learnt, L lower triangular: at
its optimum it is exact, so the ELBO reaches log p(x). A diagonal guide, L = diag(s), has no
correlations: its optimum is V = M⁻¹ Wᵀ Ψ⁻¹ and s²ⱼ = 1 / Mⱼⱼ, with the approximation gap

    log p(x) − ELBO = KL(q(z | x) ‖ p(z | x)) = ½ (Σⱼ log Mⱼⱼ − log |M|)

nats, the same for every datum.

Maximum likelihood is by EM on the covariance S of the data, which never lowers the likelihood.
With B = M⁻¹ Wᵀ Ψ⁻¹,

    E:  E[z zᵀ] = M⁻¹ + B S Bᵀ,        M:  W ← S Bᵀ E[z zᵀ]⁻¹,    ψ ← diag(S − W B S).

References: EM Algorithms for ML Factor Analysis, Donald B. Rubin and Dorothy T. Thayer, 1982; A
Unifying Review of Linear Gaussian Models, Sam Roweis and Zoubin Ghahramani, 1999.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from vilvm.lvm import rebuildable, training_tensors

__all__ = ["FactorAnalysis", "tiny"]


@rebuildable
class FactorAnalysis(nn.Module):
    """Factor analysis of rows of `data_dim` numbers, with an amortised Gaussian guide.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the number of factors; below D.
        diagonal: whether the guide's covariance is diagonal (mean field), not full.

    Raises:
        ValueError: latent_dim is not below data_dim.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.factor_analysis import FactorAnalysis
        >>> lvm, x = FactorAnalysis(data_dim=6, latent_dim=2), torch.randn(20, 6)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self, data_dim: int = 784, latent_dim: int = 10, diagonal: bool = False
    ):
        super().__init__()
        if not 0 < latent_dim < data_dim:
            raise ValueError(
                f"FactorAnalysis: latent_dim must be at least 1 and below data_dim = {data_dim}; "
                f"got {latent_dim}."
            )
        self.diagonal = diagonal
        self.W = nn.Parameter(torch.randn(data_dim, latent_dim) / math.sqrt(data_dim))
        self.b = nn.Parameter(torch.zeros(data_dim))
        self.log_psi = nn.Parameter(torch.zeros(data_dim))
        self.V = nn.Parameter(torch.randn(latent_dim, data_dim) / math.sqrt(data_dim))
        shape = (latent_dim, latent_dim)
        if diagonal:
            shape = (latent_dim,)
        self.unconstrained_L = nn.Parameter(torch.zeros(shape))
        self.register_buffer("origin", torch.zeros(latent_dim))

    @property
    def psi(self) -> Tensor:
        """ψ, the noise variance of every variable, shape (data_dim,)."""
        return self.log_psi.exp()

    @property
    def L(self) -> Tensor:
        """The Cholesky factor of the guide's covariance, shape (latent_dim, latent_dim)."""
        if self.diagonal:
            return self.unconstrained_L.exp().diag()
        return transform_to(constraints.lower_cholesky)(self.unconstrained_L)

    def model(self, x: Tensor) -> None:
        """p(x | z) p(z); x has shape (batch, data_dim)."""
        pyro.module("factor_analysis", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            mean = z @ self.W.T + self.b
            pyro.sample("x", dist.Normal(mean, self.psi.sqrt()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        mean = (x - self.b) @ self.V.T
        with pyro.plate("data", len(x)):
            if self.diagonal:
                pyro.sample(
                    "z", dist.Normal(mean, self.unconstrained_L.exp()).to_event(1)
                )
            else:
                pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=self.L))

    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), exact, in nats, shape (num_data,); x has shape (num_data, data_dim)."""
        return dist.LowRankMultivariateNormal(self.b, self.W, self.psi).log_prob(x)

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x), exact, for x of shape (num_data, data_dim)."""
        M = _precision(self.W, self.psi)
        mean = torch.linalg.solve(M, (self.W.T / self.psi) @ (x - self.b).T).T
        return dist.MultivariateNormal(mean, precision_matrix=M)

    @torch.no_grad()
    def optimise_guide(self) -> "FactorAnalysis":
        """Sets the guide to the optimum of its family for the current model; returns the model.

        A full guide is then the exact posterior.
        """
        W, psi = self.W.double(), self.psi.double()
        M = _precision(W, psi)
        self.V.copy_(torch.linalg.solve(M, W.T / psi))
        if self.diagonal:
            self.unconstrained_L.copy_(M.diagonal().log() / -2)
        else:
            L = torch.linalg.cholesky(torch.linalg.inv(M))
            self.unconstrained_L.copy_(_unconstrained(L))
        return self

    @torch.no_grad()
    def maximise(
        self,
        x: Any,
        max_steps: int = 10_000,
        tolerance: float = 1e-9,
        least_noise: float = 1e-6,
    ) -> "FactorAnalysis":
        """Maximises the likelihood on `x` by EM, starting from the current W and ψ.

        It then sets the guide to its optimum, and returns the model.

        Arguments:
            x: shape (num_data, data_dim), a tensor, array or frame; computed in float64.
            max_steps: of EM.
            tolerance: EM stops after a step that gains less, in nats per datum.
            least_noise: lower bound of ψ. Without it the likelihood is unbounded if a variable is
                constant, or if one factor explains it (a Heywood case).
        """
        x = training_tensors(self, x, "maximise: x", dtype=torch.float64).double()
        mean = x.mean(0)
        W = self.W.double()
        psi = self.psi.double().clamp(min=least_noise)
        S = (x - mean).T @ (x - mean) / len(x)
        before = -math.inf
        for _ in range(max_steps):
            W, psi, log_likelihood = _em_step(W, psi, S, least_noise)
            # the likelihood is that of the parameters before the step
            if log_likelihood - before < tolerance:
                break
            before = log_likelihood
        self.b.copy_(mean)
        self.W.copy_(W)
        self.log_psi.copy_(psi.log())
        return self.optimise_guide()


def _precision(W: Tensor, psi: Tensor) -> Tensor:
    """M = I + Wᵀ Ψ⁻¹ W, the posterior's precision."""
    identity = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    return identity + (W.T / psi) @ W


def _em_step(
    W: Tensor, psi: Tensor, S: Tensor, least_noise: float
) -> tuple[Tensor, Tensor, float]:
    """W and ψ after one step of EM, and the mean log-likelihood before it, in nats per datum."""
    M = _precision(W, psi)
    B = torch.linalg.solve(M, W.T / psi)
    BS = B @ S
    # |C| = |M| |Ψ| and C⁻¹ = Ψ⁻¹ − Ψ⁻¹ W B
    explained = (S.diagonal() / psi).sum() - (BS.T * (W.T / psi).T).sum()
    log_det = len(psi) * math.log(2 * math.pi) + torch.logdet(M) + psi.log().sum()
    log_likelihood = -(log_det + explained) / 2
    W = torch.linalg.solve(torch.linalg.inv(M) + BS @ B.T, BS).T
    psi = (S - W @ BS).diagonal().clamp(min=least_noise)
    return W, psi, log_likelihood.item()


def _unconstrained(L: Tensor) -> Tensor:
    """A lower triangular matrix with the logarithm of its diagonal."""
    return L.tril(-1) + L.diagonal().log().diag()


def tiny() -> tuple[FactorAnalysis, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.factor_analysis import tiny
        >>> lvm, batch = tiny()
    """
    return FactorAnalysis(data_dim=6, latent_dim=2), torch.randn(5, 6)
