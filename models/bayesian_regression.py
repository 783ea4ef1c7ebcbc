"""Bayesian linear regression, also on lagged data (autoregression); exact by quadrature.

Generative story. With covariates x_n ∈ ℝᴷ (a leading 1 among them, if there is an intercept α =
β₀),

    β_k ~ N(0, s_k²),    σ ~ HalfCauchy(r) or HalfNormal(r), or known,    y_n ~ N(x_n · β, σ²).

The autoregression AR(K) has the last K values as its covariates: y_t ~ N(α + Σ_k β_k y_{t−k}, σ²)
for t > K, given the first K.

Coordinates. With the singular values of X diag(s) = U D Vᵀ and any reference noise σ₀, let

    β = diag(s) V (g + h ∘ z),    h_k = σ₀ / √(D_k² + σ₀²),    g_k = D_k (Uᵀ y)_k / (D_k² + σ₀²).

Then the prior N(0, diag s²) of β is z_k ~ N(−g_k / h_k, 1 / h_k²), and given σ = σ₀ the posterior
of z is N(0, I): prior and likelihood are both diagonal, for any scales and correlations of the
covariates. It is a change of variables with fixed g, h and V, so p(β, σ, y) is the same; the guide
trains easily, and factorising over z costs almost nothing.

Exact answers. Given σ, y ~ N(0, σ² I + U D² Uᵀ), and β is Gaussian with E[Vᵀ β/s] = D Uᵀy / (D² +
σ²), Var = σ² / (D² + σ²). The remaining integral over t = log σ is one-dimensional and done by the
trapezoidal rule, which for a smooth integrand that vanishes at both ends converges faster than any
power of its step. There is one posterior for all data together, since they share β and σ.

References: Bayesian Data Analysis, Gelman et al., 2013, chapter 14; The Exponentially Convergent
Trapezoidal Rule, Trefethen and Weideman, 2014; Automatic Differentiation Variational Inference,
Kucukelbir et al., 2017 (mean-field against full rank).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from vilvm.data import Data, as_data
from vilvm.lvm import rebuildable

__all__ = ["FLAT", "BayesianRegression", "Moments", "lagged", "tiny"]

# a prior scale that approximates a flat prior, for coefficients of the order of 100 or below
FLAT = 1e4
GUIDES = {
    "mean_field": AutoNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
}
SIGMA_PRIORS = {"half_cauchy": dist.HalfCauchy, "half_normal": dist.HalfNormal}
_NODES = 2001


class Moments(NamedTuple):
    """Posterior means and standard deviations, by the names of posteriordb.

    Arguments:
        mean: of every scalar.
        sd: of every scalar.

    Examples:
        >>> import torch
        >>> from vilvm.models.bayesian_regression import BayesianRegression
        >>> moments = BayesianRegression(1).exact_moments((torch.zeros(4, 1), torch.zeros(4)))
        >>> list(moments.mean)
        ['alpha', 'beta[1]', 'sigma']
    """

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


@rebuildable
class BayesianRegression(nn.Module):
    """Linear regression with Gaussian coefficients and Gaussian noise, and a Pyro autoguide.

    A batch is (x, y), of shape (num_data, num_covariates) and (num_data,). The latents are "beta"
    (the intercept first, if there is one) and "sigma". In a model from ``whitened`` they are "z"
    and "sigma", and "beta" is a deterministic site.

    A flat prior is not a density and has no evidence. Use the scale ``FLAT`` instead: a proper
    prior that moves the posterior by at most a thousandth of its standard deviation (for
    coefficients up to 100 and posterior standard deviations up to 10).

    Arguments:
        num_covariates: number of columns of x, without the intercept.
        intercept: whether there is an intercept α.
        guide: "mean_field", "full_rank" or "low_rank" (Gaussians in β or z, and log σ).
        beta_scale: s of the coefficients.
        alpha_scale: s of the intercept; `beta_scale` by default.
        sigma_scale: r, the scale of the prior of σ.
        sigma_prior: "half_cauchy" or "half_normal".
        sigma: the noise, if it is known; then it is not a latent.

    Raises:
        ValueError: an unknown guide or prior, or a number that is not positive.

    Examples:
        >>> import torch
        >>> from vilvm.models.bayesian_regression import BayesianRegression
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> lvm = BayesianRegression.whitened((x, 2 * x[:, 0]), intercept=False, sigma=0.5)
        >>> round(lvm.exact_moments((x, 2 * x[:, 0])).mean["beta[1]"].item(), 2)
        2.0
    """

    scales: Tensor
    shift: Tensor
    spread: Tensor
    noise: Tensor
    basis: Tensor | None

    def __init__(
        self,
        num_covariates: int,
        *,
        intercept: bool = True,
        guide: str = "full_rank",
        beta_scale: float = 10.0,
        alpha_scale: float | None = None,
        sigma_scale: float = 2.5,
        sigma_prior: str = "half_cauchy",
        sigma: float | None = None,
    ):
        super().__init__()
        _check_option("guide", guide, GUIDES)
        _check_option("sigma_prior", sigma_prior, SIGMA_PRIORS)
        if alpha_scale is None:
            alpha_scale = beta_scale
        numbers = {
            "beta_scale": beta_scale,
            "alpha_scale": alpha_scale,
            "sigma_scale": sigma_scale,
        }
        if sigma is not None:
            numbers["sigma"] = sigma
        _check_positive(numbers, num_covariates + intercept)
        self.intercept = intercept
        self.sigma_scale = sigma_scale
        self.sigma_prior = sigma_prior
        self.sigma = sigma
        scales = torch.tensor([alpha_scale] * intercept + [beta_scale] * num_covariates)
        self.register_buffer("scales", scales)
        self.register_buffer("basis", None)  # diag(s) V, if the latents are z
        self.register_buffer("shift", torch.zeros_like(scales))  # g
        self.register_buffer("spread", torch.ones_like(scales))  # h
        self.register_buffer("noise", torch.tensor(float(sigma_scale)))  # σ₀
        self.guide = GUIDES[guide](self.model, init_loc_fn=self._start)

    @classmethod
    def whitened(
        cls, batch: tuple[Tensor, Tensor], **options: object
    ) -> "BayesianRegression":
        """The same model in coordinates z with posterior N(0, I) given the least-squares noise.

        Arguments:
            batch: (x, y), shape (num_data, num_covariates) and (num_data,), which determine the
                coordinates; the model applies to any data.
            options: of the constructor.

        Raises:
            ValueError: the data are not finite, or not of these shapes; or see the constructor.
        """
        x, y = as_data(batch, "BayesianRegression.whitened").x
        if x.dim() != 2 or y.shape != x.shape[:1]:
            raise ValueError(
                "BayesianRegression.whitened: x must have shape (num_data, num_covariates) and y "
                f"(num_data,); got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        lvm = cls(x.shape[1], **options).to(y.device)  # type: ignore[arg-type]
        basis, d, uy, rest = lvm._rotated(x, y)
        if lvm.sigma:
            noise = d.new_tensor(lvm.sigma)
        else:
            # for data without noise
            least = 1e-6 * y.double().square().mean().sqrt() + 1e-12
            noise = (rest / max(len(y) - len(d), 1)).sqrt().clamp(min=least)
        lvm.basis = basis.to(lvm.scales)
        lvm.noise.copy_(noise)
        lvm.shift.copy_(d * uy / (d**2 + noise**2))
        lvm.spread.copy_(noise / (d**2 + noise**2).sqrt())
        return lvm

    def model(self, batch: tuple[Tensor, Tensor]) -> None:
        """p(y | x, β, σ) p(β) p(σ); batch is (x, y), of shape (num_data, num_covariates) and
        (num_data,).
        """
        x, y = batch
        sigma = self.sigma
        if not sigma:
            scale = self.scales.new_tensor(self.sigma_scale)
            sigma = pyro.sample("sigma", SIGMA_PRIORS[self.sigma_prior](scale))
        if self.basis is None:
            beta = pyro.sample("beta", dist.Normal(0.0, self.scales).to_event(1))
        else:
            prior = dist.Normal(-self.shift / self.spread, 1 / self.spread).to_event(1)
            z = pyro.sample("z", prior)
            beta = pyro.deterministic("beta", self._beta(z), event_dim=1)
        with pyro.plate("data", len(y)):
            mean = (beta * self._design(x)).sum(-1)
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    def _beta(self, z: Tensor) -> Tensor:
        """β = diag(s) V (g + h ∘ z)."""
        assert self.basis is not None
        return (self.shift + self.spread * z) @ self.basis.T

    def _start(self, site: Any) -> Tensor:
        """The guide's initial values: the reference noise, and β = 0 or z = 0.

        z = 0 is least squares, except for the prior.
        """
        if site["name"] == "sigma":
            return self.noise.clone()
        return torch.zeros_like(self.scales)

    def scalars(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """alpha, beta[1], …, sigma of draws of the latents, by the names of posteriordb.

        Arguments:
            latents: from ``vilvm.posterior``: beta or z of shape (num_samples, num_coefficients),
                sigma of shape (num_samples,).

        Returns:
            Each of shape (num_samples,).
        """
        beta = latents["beta"] if self.basis is None else self._beta(latents["z"])
        values = list(beta.unbind(-1))
        if not self.sigma:
            values.append(latents["sigma"])
        return dict(zip(self._names(), values, strict=True))

    def exact_log_evidence(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """log p(y | x), exact, in nats, of all data together: a scalar, float64."""
        return self._given_sigma(*batch)[1].logsumexp(0)

    def exact_moments(self, batch: tuple[Tensor, Tensor]) -> Moments:
        """Exact posterior means and standard deviations of all coefficients and σ, by the names of
        ``scalars``.
        """
        sigma, log_joint = self._given_sigma(*batch)
        basis, d, uy, _ = self._rotated(*batch)
        w, variance = log_joint.softmax(0), sigma[:, None] ** 2
        conditional = d * uy / (d**2 + variance)
        means = torch.cat([conditional @ basis.T, sigma[:, None]], 1)
        variances = torch.cat(
            [variance / (d**2 + variance) @ basis.T**2, 0 * variance], 1
        )
        mean = w @ means
        sd = (w @ (variances + (means - mean) ** 2)).sqrt()
        names = self._names()  # without a known σ
        return Moments(
            dict(zip(names, mean, strict=False)), dict(zip(names, sd, strict=False))
        )

    def _design(self, x: Tensor) -> Tensor:
        if not self.intercept:
            return x
        return torch.cat([torch.ones_like(x[:, :1]), x], 1)

    def _names(self) -> list[str]:
        names = ["alpha"] * self.intercept
        names += [f"beta[{k + 1}]" for k in range(len(self.scales) - self.intercept)]
        if not self.sigma:
            names.append("sigma")
        return names

    def _rotated(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """diag(s) V, D, Uᵀ y (both with zeros beyond the rank) and the squares of y outside U, in
        float64.
        """
        y, scales = y.double(), self.scales.double()
        u, d, vt = torch.linalg.svd(
            self._design(x).double() * scales, full_matrices=False
        )
        if len(vt) < len(scales):
            # fewer data than coefficients: complete the basis with directions without data
            whole = torch.linalg.svd(vt, full_matrices=True).Vh
            vt = whole.index_copy(0, torch.arange(len(vt), device=y.device), vt)
        uy = u.T @ y
        rest = (y - u @ uy).square().sum()
        lacking = (0, len(scales) - len(d))
        return scales[:, None] * vt.T, pad(d, lacking), pad(uy, lacking), rest

    def _given_sigma(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes of σ, and log(weight of the node · p(y | x, σ)).

        Both are float64 and of shape (nodes,); a known σ is one node.
        """
        _, d, uy, rest = self._rotated(x, y)

        def log_likelihood(sigma: Tensor) -> Tensor:
            v = d**2 + sigma[:, None] ** 2
            # with len(y) < len(d) this also removes the surplus zeros of d
            outside = (len(y) - len(d)) * 2 * sigma.log() + rest / sigma**2
            inside = v.log().sum(1) + (uy**2 / v).sum(1)
            return -(inside + outside + len(y) * math.log(2 * math.pi)) / 2

        if self.sigma:
            sigma = d.new_tensor([self.sigma])
            return sigma, log_likelihood(sigma)
        prior = SIGMA_PRIORS[self.sigma_prior](d.new_tensor(self.sigma_scale))
        low, high = -30.0, 30.0
        t = log_joint = d
        for _ in range(
            3
        ):  # first over sixty powers of e, then over the bulk of the mass
            t = torch.linspace(low, high, _NODES, dtype=d.dtype, device=d.device)
            log_joint = log_likelihood(t.exp()) + prior.log_prob(t.exp())
            log_joint = log_joint + t + math.log((high - low) / (_NODES - 1))
            inside = (log_joint > log_joint.max() - 50).nonzero().squeeze(1)
            low = t[(inside[0] - 1).clamp(min=0)].item()
            high = t[(inside[-1] + 1).clamp(max=_NODES - 1)].item()
        return t.exp(), log_joint


def _check_option(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(
            f"BayesianRegression: unknown {what} {value!r}; choose from {list(known)}."
        )


def _check_positive(numbers: Mapping[str, float], num_coefficients: int) -> None:
    wrong = [f"{name} = {value}" for name, value in numbers.items() if not value > 0]
    if not wrong and num_coefficients < 1:
        wrong = ["the number of coefficients"]
    if wrong:
        raise ValueError(f"BayesianRegression: {', '.join(wrong)} must be positive.")


def lagged(series: Tensor, order: int) -> Data:
    """A series as data of an autoregression: x_t = (y_{t−1}, …, y_{t−K}) and y_t for t > K.

    Arguments:
        series: shape (num_times,).
        order: K, at least 1 and below num_times.

    Returns:
        Data of num_times − K rows, x being the tuple of tensors of shape (num_times − K, K) and
        (num_times − K,).

    Raises:
        ValueError: the series does not have one dimension, or is too short.

    Examples:
        >>> import torch
        >>> from vilvm.models.bayesian_regression import lagged
        >>> lagged(torch.arange(4.0), 2).x
        (tensor([[1., 0.],
                [2., 1.]]), tensor([2., 3.]))
    """
    if series.dim() != 1 or not 0 < order < len(series):
        raise ValueError(
            f"lagged: order {order} needs a series of more numbers in one dimension; got shape "
            f"{tuple(series.shape)}."
        )
    return Data(
        (series.unfold(0, order, 1)[:-1].flip(1), series[order:]), "lagged series"
    )


def tiny() -> tuple[BayesianRegression, tuple[Tensor, Tensor]]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.bayesian_regression import tiny
        >>> lvm, batch = tiny()
    """
    x = torch.randn(6, 2)
    batch = (x, x @ torch.tensor([1.0, -0.5]) + 0.3 * torch.randn(6))
    return BayesianRegression.whitened(batch), batch
