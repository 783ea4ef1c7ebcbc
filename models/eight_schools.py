"""Eight schools, a hierarchical model on which mean-field inference fails; evidence by quadrature.

Generative story. School j has a true effect θ_j; its trial measured y_j with a known standard
error σ_j. The effects have a common distribution:

    μ ~ N(0, s²),    τ ~ HalfCauchy(r) or HalfNormal(r),    θ_j ~ N(μ, τ²),    y_j ~ N(θ_j, σ_j²).

In this centred form the posterior is a funnel: the smaller τ, the closer all θ_j are to μ, which
no guide of independent factors can represent. In the non-centred form the latents are η_j ~
N(0, 1), θ_j = μ + τ η_j: p(θ, y) is the same, and the latents are nearly independent a posteriori.

Exact answers. Given τ everything is Gaussian. With v_j = σ_j² + τ²,

    p(y | τ) = N(y | 0, diag v + s² 1 1ᵀ),
    μ | τ, y ~ N(m, 1/P),    P = 1/s² + Σ_j 1/v_j,    m = Σ_j (y_j / v_j) / P,
    E[θ_j | τ, y] = (τ² y_j + σ_j² m) / v_j,
    Var[θ_j | τ, y] = τ² σ_j² / v_j + (σ_j² / v_j)² / P.

τ is one-dimensional: τ = F⁻¹(u) by the quantile function of its prior turns p(y) = ∫₀¹ p(y | τ(u))
du into a smooth integral over the unit interval, computed by Gauss–Legendre quadrature. There is
one posterior for all data together, since they share μ and τ.

References: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981; Bayesian Data
Analysis, Gelman et al., 2013, chapter 5; A General Framework for the Parametrization of
Hierarchical Models, Papaspiliopoulos, Roberts and Sköld, 2007.
"""

from collections.abc import Iterable, Mapping
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
from vilvm.lvm import rebuildable

__all__ = ["EightSchools", "Moments", "eight_schools", "tiny"]

GAUSSIANS = {
    "mean_field": AutoNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
GUIDES = (*GAUSSIANS, "flow")
TAU_PRIORS = {"half_cauchy": dist.HalfCauchy, "half_normal": dist.HalfNormal}
_NODES = 1000


class Moments(NamedTuple):
    """Posterior means and standard deviations, by the names of posteriordb.

    Arguments:
        mean: of every scalar.
        sd: of every scalar.

    Examples:
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> round(EightSchools().exact_moments(eight_schools().x).mean["tau"].item(), 1)
        3.6
    """

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


@rebuildable
class EightSchools(nn.Module):
    """The hierarchical model of the effects of schools, with a Pyro autoguide.

    A batch is (y, sigma), the measured effects and their standard errors, each of shape
    (num_schools,).

    Arguments:
        centred: whether the latents are θ; else they are η, and θ = μ + τ η is a deterministic
            site "theta".
        guide: "mean_field", "full_rank", "low_rank" (Gaussians in μ, log τ, θ or η) or "flow"
            (inverse autoregressive).
        mu_scale: s.
        tau_scale: r.
        tau_prior: "half_cauchy" or "half_normal".

    Raises:
        ValueError: an unknown guide or prior, or a scale that is not positive.

    Examples:
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
        _check_option("guide", guide, GUIDES)
        _check_option("tau_prior", tau_prior, TAU_PRIORS)
        if not (mu_scale > 0 and tau_scale > 0):
            raise ValueError(
                f"EightSchools: mu_scale and tau_scale must be positive; got {mu_scale} and "
                f"{tau_scale}."
            )
        self.centred = centred
        self.mu_scale = mu_scale
        self.tau_scale = tau_scale
        self.tau_prior = tau_prior
        self.register_buffer("origin", torch.zeros(()))
        if guide == "flow":
            self.guide = AutoNormalizingFlow(self.model, self._flow)
        else:
            self.guide = GAUSSIANS[guide](self.model)

    def _flow(self, dim: int) -> nn.Module:
        flow = iterated(3, affine_autoregressive, dim, hidden_dims=[4 * dim, 4 * dim])
        return nn.Module.to(flow, self.origin.device)

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
                eta = pyro.sample("eta", dist.Normal(zero, one))
                theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def scalars(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """mu, tau and theta[1], … of draws of the latents, by the names of posteriordb.

        Arguments:
            latents: from ``vilvm.posterior``: mu and tau of shape (num_samples,), theta or eta of
                shape (num_samples, num_schools).

        Returns:
            Each of shape (num_samples,).
        """
        mu, tau = latents["mu"], latents["tau"]
        theta = (
            latents["theta"]
            if self.centred
            else mu[:, None] + tau[:, None] * latents["eta"]
        )
        effects = {
            f"theta[{j}]": draws for j, draws in enumerate(theta.unbind(-1), start=1)
        }
        return {"mu": mu, "tau": tau, **effects}

    def exact_log_evidence(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """log p(y), exact, in nats, of all data together: a scalar, float64."""
        return self._given_tau(*batch)[2].logsumexp(0)

    def exact_moments(self, batch: tuple[Tensor, Tensor]) -> Moments:
        """Exact posterior means and standard deviations of μ, τ and every θ_j, by the names of
        ``scalars``.
        """
        y, sigma = (t.double() for t in batch)
        tau, (m, precision), log_joint = self._given_tau(y, sigma)
        w = log_joint.softmax(0)
        tau, m, precision = tau[:, None], m[:, None], precision[:, None]
        v = sigma**2 + tau**2
        theta_mean = (tau**2 * y + sigma**2 * m) / v
        theta_variance = tau**2 * sigma**2 / v + (sigma**2 / v) ** 2 / precision
        means = torch.cat([m, tau, theta_mean], 1)
        variances = torch.cat([1 / precision, 0 * tau, theta_variance], 1)
        mean = w @ means
        sd = (w @ (variances + (means - mean) ** 2)).sqrt()
        names = ["mu", "tau", *(f"theta[{j + 1}]" for j in range(len(y)))]
        return Moments(
            dict(zip(names, mean, strict=True)), dict(zip(names, sd, strict=True))
        )

    def _given_tau(
        self, y: Tensor, sigma: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Nodes of τ, mean and precision of μ at each, and log(weight of the node · p(y | τ));
        shape (nodes,), float64.
        """
        y, sigma = y.double(), sigma.double()
        nodes = np.polynomial.legendre.leggauss(_NODES)
        u, w = (torch.as_tensor(a, device=y.device) for a in nodes)
        prior = TAU_PRIORS[self.tau_prior](self.tau_scale * torch.ones_like(u))
        tau = prior.icdf((u + 1) / 2)
        v = sigma**2 + tau[:, None] ** 2
        precision = 1 / self.mu_scale**2 + (1 / v).sum(1)
        m = (y / v).sum(1) / precision
        # the matrix determinant lemma, and completing the square, for diag v + s² 1 1ᵀ
        log_det = v.log().sum(1) + (self.mu_scale**2 * precision).log()
        log_det = log_det + len(y) * np.log(2 * np.pi)
        log_density = -(log_det + (y**2 / v).sum(1) - m**2 * precision) / 2
        return tau, (m, precision), (w / 2).log() + log_density


def _check_option(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(
            f"EightSchools: unknown {what} {value!r}; choose from {list(known)}."
        )


def eight_schools() -> Data:
    """The effects of coaching on SAT-V scores in eight schools, and their standard errors.

    Returns:
        Data whose batch is (y, sigma), each of shape (8,).

    Reference: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981.

    Examples:
        >>> from vilvm.models.eight_schools import eight_schools
        >>> len(eight_schools())
        8
    """
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return Data((y, sigma), "eight schools")


def tiny() -> tuple[EightSchools, tuple[Tensor, Tensor]]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.eight_schools import tiny
        >>> lvm, batch = tiny()
    """
    return EightSchools(centred=True), eight_schools().x
