"""Eight schools, the hierarchical model on which mean-field inference first goes wrong, with its
evidence by quadrature.

Generative story. School j has a true effect θ_j, of which its trial saw y_j with a known standard
error σ_j; the effects are alike:

    μ ~ N(0, s²),    τ ~ HalfCauchy(r) or HalfNormal(r),    θ_j ~ N(μ, τ²),    y_j ~ N(θ_j, σ_j²).

As it stands (centred) the posterior is a funnel: the smaller τ, the closer all θ_j are to μ, which
no guide of independent factors can follow. Without centring the latents are η_j ~ N(0, 1), θ_j = μ
+ τ η_j: the same p(θ, y), nearly independent a posteriori.

Exact answers. Given τ everything is Gaussian. With v_j = σ_j² + τ²,

    p(y | τ) = N(y | 0, diag v + s² 1 1ᵀ),
    μ | τ, y ~ N(m, 1/P),    P = 1/s² + Σ_j 1/v_j,    m = Σ_j (y_j / v_j) / P,
    E[θ_j | τ, y] = (τ² y_j + σ_j² m) / v_j,    Var[θ_j | τ, y] = τ² σ_j² / v_j + (σ_j² / v_j)² / P.

τ is one-dimensional: τ = F⁻¹(u) by the quantile function of its prior turns p(y) = ∫₀¹ p(y | τ(u))
du into a smooth integral over the unit interval, done by Gauss and Legendre. The posterior is one
of all data together, for μ and τ are shared by them.

References: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981; Bayesian Data
Analysis, Gelman et al., 2013, chapter 5; A General Framework for the Parametrization of
Hierarchical Models, Papaspiliopoulos, Roberts and Sköld, 2007.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from torch import Tensor, nn

from vilvm.data import Data

__all__ = ["EightSchools", "Moments", "eight_schools", "tiny"]

GUIDES = ("mean_field", "full_rank", "low_rank", "flow")
TAU_PRIORS = {"half_cauchy": dist.HalfCauchy, "half_normal": dist.HalfNormal}
_NODES = 1000


class Moments(NamedTuple):
    """Posterior means and standard deviations, by the name of the scalar as posteriordb writes it."""

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


class EightSchools(nn.Module):
    """Effects of schools, alike up to τ, with a guide of Pyro's.

    A batch is (y, sigma), the effects seen and their standard errors, each of shape
    (num_schools,).

    Arguments:
        centred: whether the latents are θ themselves, else η with θ = μ + τ η as a deterministic
            site "theta".
        guide: "mean_field", "full_rank", "low_rank" (Gaussians in μ, log τ, θ or η) or "flow"
            (inverse autoregressive).
        mu_scale: s.
        tau_scale: r.
        tau_prior: "half_cauchy" or "half_normal".

    Raises:
        ValueError: an unknown guide or prior, or a scale that is not positive.

    Example:
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> round(EightSchools(centred=False).exact_log_evidence(eight_schools().x).item(), 3)
        -31.311
    """

    origin: Tensor

    def __init__(
        self,
        centred: bool = False,
        guide: str = "full_rank",
        mu_scale: float = 5.0,
        tau_scale: float = 5.0,
        tau_prior: str = "half_cauchy",
    ):
        super().__init__()
        for what, value, known in (
            ("guide", guide, GUIDES),
            ("tau_prior", tau_prior, tuple(TAU_PRIORS)),
        ):
            if value not in known:
                raise ValueError(
                    f"EightSchools: unknown {what} {value!r}; choose from {list(known)}."
                )
        if not (mu_scale > 0 and tau_scale > 0):
            raise ValueError(
                f"EightSchools: mu_scale and tau_scale must be positive; got {mu_scale} and "
                f"{tau_scale}."
            )
        self.centred, self.mu_scale, self.tau_scale, self.tau_prior = (
            centred,
            mu_scale,
            tau_scale,
            tau_prior,
        )
        self.register_buffer("origin", torch.zeros(()))
        self.guide = self._guide(guide)

    def _guide(self, name: str) -> nn.Module:
        if name == "flow":
            return AutoNormalizingFlow(self.model, self._flow)
        return {
            "mean_field": AutoNormal,
            "full_rank": AutoMultivariateNormal,
            "low_rank": AutoLowRankMultivariateNormal,
        }[name](self.model)

    def _flow(self, dim: int) -> nn.Module:
        return nn.Module.to(
            iterated(3, affine_autoregressive, dim, hidden_dims=[4 * dim, 4 * dim]),
            self.origin.device,
        )

    def model(self, batch: tuple[Tensor, Tensor]) -> None:
        """p(y | θ) p(θ | μ, τ) p(μ) p(τ); batch is (y, sigma), of shape (num_schools,) each."""
        y, sigma = batch
        zero, one = y.new_zeros(()), y.new_ones(())
        mu = pyro.sample("mu", dist.Normal(zero, self.mu_scale * one))
        tau = pyro.sample("tau", TAU_PRIORS[self.tau_prior](self.tau_scale * one))
        with pyro.plate("data", len(y)):
            if self.centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = pyro.deterministic(
                    "theta", mu + tau * pyro.sample("eta", dist.Normal(zero, one)), event_dim=0
                )
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def scalars(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """mu, tau and theta[1], … of draws of the latents, by the names of posteriordb.

        Arguments:
            latents: as ``vilvm.posterior`` returns them: mu and tau of shape (num_samples,), theta
                or eta (num_samples, num_schools).

        Returns:
            Each of shape (num_samples,).
        """
        mu, tau = latents["mu"], latents["tau"]
        theta = latents["theta"] if self.centred else mu[:, None] + tau[:, None] * latents["eta"]
        return {
            "mu": mu,
            "tau": tau,
            **{f"theta[{j + 1}]": theta[:, j] for j in range(theta.shape[-1])},
        }

    def exact_log_evidence(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """log p(y), exact, in nats, of all data together: a scalar, float64."""
        return self._given_tau(*batch)[2].logsumexp(0)

    def exact_moments(self, batch: tuple[Tensor, Tensor]) -> Moments:
        """Posterior means and standard deviations of μ, τ and every θ_j, exact, by the names that
        ``scalars`` gives.
        """
        y, sigma = (t.double() for t in batch)
        tau, (m, precision), log_joint = self._given_tau(y, sigma)
        w = log_joint.softmax(0)
        tau, m, precision = tau[:, None], m[:, None], precision[:, None]
        v = sigma**2 + tau**2
        means = torch.cat([m, tau, (tau**2 * y + sigma**2 * m) / v], 1)
        variances = torch.cat(
            [1 / precision, 0 * tau, tau**2 * sigma**2 / v + (sigma**2 / v) ** 2 / precision], 1
        )
        mean = w @ means
        sd = (w @ (variances + (means - mean) ** 2)).sqrt()
        names = ["mu", "tau", *(f"theta[{j + 1}]" for j in range(len(y)))]
        return Moments(dict(zip(names, mean, strict=True)), dict(zip(names, sd, strict=True)))

    def _given_tau(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Nodes of τ, mean and precision of μ at each, and log(weight of the node · p(y | τ));
        shape (nodes,), float64.
        """
        y, sigma = y.double(), sigma.double()
        u, w = (
            torch.as_tensor(a, device=y.device) for a in np.polynomial.legendre.leggauss(_NODES)
        )
        tau = TAU_PRIORS[self.tau_prior](self.tau_scale * torch.ones_like(u)).icdf((u + 1) / 2)
        v = sigma**2 + tau[:, None] ** 2
        precision = 1 / self.mu_scale**2 + (1 / v).sum(1)
        m = (y / v).sum(1) / precision
        # The determinant lemma and completing the square, for diag v + s² 1 1ᵀ.
        log_det = (
            v.log().sum(1) + (self.mu_scale**2 * precision).log() + len(y) * np.log(2 * np.pi)
        )
        return (
            tau,
            (m, precision),
            (w / 2).log() - (log_det + (y**2 / v).sum(1) - m**2 * precision) / 2,
        )


def eight_schools() -> Data:
    """The effects of coaching on SAT-V scores in eight schools and their standard errors, as (y,
    sigma) (Rubin, 1981).
    """
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return Data(
        (y, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])), "eight schools"
    )


def tiny() -> tuple[EightSchools, tuple[Tensor, Tensor]]:
    """A small instance and a small batch, for the tests."""
    return EightSchools(centred=True), eight_schools().x
