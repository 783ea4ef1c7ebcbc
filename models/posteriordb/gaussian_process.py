"""A Poisson regression on the line, its logarithmic rate a Gaussian process.

Generative story. Counts k_n at points x_n:

    ρ ~ Gamma(25, 4),    α ~ HalfNormal(2),    f ~ N(0, C),    k_n ~ Poisson(exp f_n),
    C_{nm} = α² exp(−(x_n − x_m)² / (2 ρ²)) + 10⁻¹⁰ [n = m].

As in the Stan program, the latent is f̃ ~ N(0, I), and f = L f̃ with C = L Lᵀ is deterministic.

Rounding. The eigenvalues of C decrease so fast that single precision makes it indefinite, and so
does double precision at long length scales ρ. C is therefore factorised in float64, and where that
fails the density is NaN: at many samples, an error would end the run of all of them.

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024; Gaussian Processes for Machine Learning, Carl Edward Rasmussen and
Christopher Williams, 2006.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .plates import in_data_plate
from .problem import Given, Statement, Table

__all__ = ["POSTERIORS", "poisson_process"]


def poisson_process(data: tuple[Tensor, Tensor]) -> None:
    """A Poisson regression with a Gaussian process.

    Arguments:
        data: points x and counts k, shape (N,) each.

    Reference: Gaussian Processes for Machine Learning, Rasmussen and Williams, 2006.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.gaussian_process import poisson_process
        >>> latents = {"rho": torch.tensor(6.0), "alpha": torch.tensor(2.0)}
        >>> model = pyro.condition(poisson_process, latents | {"f_tilde": torch.zeros(2)})
        >>> pyro.poutine.trace(model).get_trace((torch.arange(2.0), torch.ones(2))).log_prob_sum()
        tensor(-6.3820)
    """
    x, k = data
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))
    f = _cholesky(x, rho, alpha).to(f_tilde) @ f_tilde.unsqueeze(-1)
    f = pyro.deterministic("f", f.squeeze(-1), event_dim=1)
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Poisson(in_data_plate(f).exp()), obs=k)


def _cholesky(x: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    """L of every ρ and α, shape (..., N, N), float64; NaN where C is indefinite."""
    x, rho, alpha = x.double(), rho.double(), alpha.double()
    distance = (x.unsqueeze(-1) - x) / rho[..., None, None]
    covariance = alpha[..., None, None] ** 2 * (-(distance**2) / 2).exp()
    covariance = covariance + 1e-10 * torch.eye(len(x), dtype=x.dtype, device=x.device)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return factor.masked_fill(failed[..., None, None] > 0, torch.nan)


def _poisson_process(given: Given) -> Statement:
    data = given["x"], given["k"]
    return Statement(poisson_process, data, ("rho", "alpha", "f"))


POSTERIORS: Table = {
    "gp_pois_regr-gp_pois_regr": _poisson_process,
}
