"""Eight schools in the non-centred form of the Stan program.

Generative story. School j has a true effect θ_j; its trial measured y_j with a known standard
error σ_j:

    μ ~ N(0, 5),   τ ~ HalfCauchy(5),   η_j ~ N(0, 1),   θ_j = μ + τ η_j,   y_j ~ N(θ_j, σ_j).

The site of η is "theta_trans", as in the Stan program.

``vilvm.models.eight_schools`` has both forms, guides, and the exact evidence.

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024; Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981;
Bayesian Data Analysis, Gelman et al., 2013, chapter 5.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor

from .problem import Given, Statement, Table

__all__ = ["POSTERIORS", "eight_schools"]


def eight_schools(data: tuple[Tensor, Tensor]) -> None:
    """Effects of coaching with a common normal distribution, non-centred.

    Arguments:
        data: measured effects y and their standard errors, shape (num_schools,) each.

    Reference: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.schools import eight_schools
        >>> latents = {"mu": torch.tensor(0.0), "tau": torch.tensor(5.0)}
        >>> model = pyro.condition(eight_schools, latents | {"theta_trans": torch.zeros(2)})
        >>> pyro.poutine.trace(model).get_trace((torch.zeros(2), torch.ones(2))).log_prob_sum()
        tensor(-8.9583)
    """
    y, sigma = data
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _eight_schools(given: Given) -> Statement:
    return Statement(
        eight_schools, (given["y"], given["sigma"]), ("mu", "tau", "theta")
    )


POSTERIORS: Table = {
    "eight_schools-eight_schools_noncentered": _eight_schools,
}
