"""Factor analysis: a linear Gaussian latent variable model in which every variable has noise of
its own.

Generative story. A datum x ∈ ℝᴰ has factors z ∈ ℝᵈ, z ~ N(0, I), and

    x = W z + b + ε,    ε ~ N(0, Ψ),    Ψ = diag(ψ₁, …, ψ_D).

So p(x) = N(x | b, W Wᵀ + Ψ), and with M = I + Wᵀ Ψ⁻¹ W the posterior is p(z | x) = N(M⁻¹ Wᵀ Ψ⁻¹ (x
− b), M⁻¹): its mean is linear in the datum and its covariance is common to all data.

Inference. The guide is q(z | x) = N(V (x − b), L Lᵀ), amortised and learnt, L lower triangular: at
its optimum it is exact, so the ELBO reaches log p(x). A diagonal guide, L = diag(s), cannot turn:
its best has V = M⁻¹ Wᵀ Ψ⁻¹ and s²ⱼ = 1 / Mⱼⱼ, and falls short by

    log p(x) − ELBO = KL(q(z | x) ‖ p(z | x)) = ½ (Σⱼ log Mⱼⱼ − log |M|)    nats, the same for every datum: its approximation gap.

Maximum likelihood is by EM on the covariance S of the data, which never lowers the likelihood.
With B = M⁻¹ Wᵀ Ψ⁻¹,

    E:  E[z zᵀ] = M⁻¹ + B S Bᵀ,        M:  W ← S Bᵀ E[z zᵀ]⁻¹,    ψ ← diag(S − W B S).

References: EM Algorithms for ML Factor Analysis, Donald B. Rubin and Dorothy T. Thayer, 1982; A
Unifying Review of Linear Gaussian Models, Sam Roweis and Zoubin Ghahramani, 1999.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

__all__ = ["FactorAnalysis", "tiny"]


class FactorAnalysis(nn.Module):
    """Factor analysis of rows of `data_dim` numbers, with an amortised Gaussian guide.

    Arguments:
        data_dim: D, the size of a datum.
        latent_dim: d, the number of factors; below D.
        diagonal: whether the guide's covariance is diagonal (mean field) in place of full.

    Raises:
        ValueError: latent_dim is not below data_dim.
    """

    origin: Tensor

    def __init__(self, data_dim: int = 784, latent_dim: int = 10, diagonal: bool = False):
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
        self.unconstrained_L = nn.Parameter(
            torch.zeros(latent_dim if diagonal else (latent_dim, latent_dim))
        )
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
            pyro.sample(
                "x", dist.Normal(z @ self.W.T + self.b, self.psi.sqrt()).to_event(1), obs=x
            )

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        mean = (x - self.b) @ self.V.T
        with pyro.plate("data", len(x)):
            if self.diagonal:
                pyro.sample("z", dist.Normal(mean, self.unconstrained_L.exp()).to_event(1))
            else:
                pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=self.L))

    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), exact, in nats; x of shape (num_data, data_dim), the result of shape
        (num_data,).
        """
        return dist.LowRankMultivariateNormal(self.b, self.W, self.psi).log_prob(x)

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x), exact, for x of shape (num_data, data_dim)."""
        M = _precision(self.W, self.psi)
        mean = torch.linalg.solve(M, (self.W.T / self.psi) @ (x - self.b).T).T
        return dist.MultivariateNormal(mean, precision_matrix=M)

    @torch.no_grad()
    def optimise_guide(self) -> "FactorAnalysis":
        """Sets the guide to the best of its family under the model as it stands: the exact
        posterior if full. Returns the model.
        """
        W, psi = self.W.double(), self.psi.double()
        M = _precision(W, psi)
        self.V.copy_(torch.linalg.solve(M, W.T / psi))
        best = (
            M.diagonal().log() / -2
            if self.diagonal
            else _unconstrained(torch.linalg.cholesky(torch.linalg.inv(M)))
        )
        self.unconstrained_L.copy_(best)
        return self

    @torch.no_grad()
    def maximise(
        self,
        x: Tensor,
        max_steps: int = 10_000,
        tolerance: float = 1e-9,
        least_noise: float = 1e-6,
    ) -> "FactorAnalysis":
        """Climbs to maximum likelihood on `x` by EM, from where W and ψ stand, and sets the guide
        to its best. Returns the model.

        Arguments:
            x: shape (num_data, data_dim); worked on in float64.
            max_steps: of EM.
            tolerance: a step that gains less, in nats per datum, is the last.
            least_noise: the smallest ψ, without which a variable that never varies, or that a
                factor explains alone, has a likelihood without bound (a Heywood case).
        """
        mean, W, psi = (
            x.double().mean(0),
            self.W.double(),
            self.psi.double().clamp(min=least_noise),
        )
        S = (x.double() - mean).T @ (x.double() - mean) / len(x)
        before = -math.inf
        for _ in range(max_steps):
            W, psi, log_likelihood = _em_step(W, psi, S, least_noise)
            # of the parameters before the step: one more step is free
            if log_likelihood - before < tolerance:
                break
            before = log_likelihood
        self.b.copy_(mean)
        self.W.copy_(W)
        self.log_psi.copy_(psi.log())
        return self.optimise_guide()


def _precision(W: Tensor, psi: Tensor) -> Tensor:
    """M = I + Wᵀ Ψ⁻¹ W, the posterior's precision."""
    return torch.eye(W.shape[1], dtype=W.dtype, device=W.device) + (W.T / psi) @ W


def _em_step(
    W: Tensor, psi: Tensor, S: Tensor, least_noise: float
) -> tuple[Tensor, Tensor, float]:
    """W and ψ after one step of EM, and the mean log-likelihood, in nats per datum, that they had
    before it.
    """
    M = _precision(W, psi)
    B = torch.linalg.solve(M, W.T / psi)
    BS = B @ S
    # |C| = |M| |Ψ| and C⁻¹ = Ψ⁻¹ − Ψ⁻¹ W B
    explained = (S.diagonal() / psi).sum() - (BS.T * (W.T / psi).T).sum()
    log_likelihood = (
        -(len(psi) * math.log(2 * math.pi) + torch.logdet(M) + psi.log().sum() + explained) / 2
    )
    W = torch.linalg.solve(torch.linalg.inv(M) + BS @ B.T, BS).T
    return W, (S - W @ BS).diagonal().clamp(min=least_noise), log_likelihood.item()


def _unconstrained(L: Tensor) -> Tensor:
    """What a lower triangular matrix is stored as: its diagonal in logarithms."""
    return L.tril(-1) + L.diagonal().log().diag()


def tiny() -> tuple[FactorAnalysis, Tensor]:
    """A small instance and a small batch, for the tests."""
    return FactorAnalysis(data_dim=6, latent_dim=2), torch.randn(5, 6)
