"""A mixture of two normals on the line, the components summed out.

Generative story.

    μ_1, μ_2 ~ N(0, 2) subject to μ_1 < μ_2,    σ_k ~ HalfNormal(2),    θ ~ Beta(5, 5),
    y_n ~ θ N(μ_1, σ_1) + (1 − θ) N(μ_2, σ_2).

The order of the means selects one of the two labellings. The Stan program leaves out the factor 2!
of the ordered prior (``vilvm.distributions.ordered``).

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024; Identifying Bayesian Mixture Models, Michael Betancourt, 2017.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.distributions.ordered import OrderedNormal

from .problem import Given, Statement, Table

__all__ = ["POSTERIORS", "two_normals"]


def two_normals(y: Tensor) -> None:
    """A mixture of two normals with ordered means.

    Arguments:
        y: shape (N,).

    Reference: Identifying Bayesian Mixture Models, Michael Betancourt, 2017.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.mixture import two_normals
        >>> latents = {"mu": torch.tensor([-1.0, 1.0]), "sigma": torch.ones(2)}
        >>> model = pyro.condition(two_normals, latents | {"theta": torch.tensor(0.5)})
        >>> pyro.poutine.trace(model).get_trace(torch.zeros(3)).log_prob_sum()
        tensor(-8.2252)
    """
    mu = pyro.sample("mu", OrderedNormal(y.new_zeros(2), 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta], -1))
    with pyro.plate("data", len(y)):
        fn = dist.MixtureSameFamily(weights, dist.Normal(mu, sigma))
        pyro.sample("y", fn, obs=y)


def _two_normals(given: Given) -> Statement:
    return Statement(two_normals, given["y"], ("mu", "sigma", "theta"))


POSTERIORS: Table = {
    "low_dim_gauss_mix-low_dim_gauss_mix": _two_normals,
}
