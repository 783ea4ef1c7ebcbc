"""Eight schools, centred and non-centred.

Generative story. School j has a true effect θ_j; its trial measured y_j with a known standard
error σ_j:

    μ ~ N(0, 5),   τ ~ HalfCauchy(5),   θ_j ~ N(μ, τ),   y_j ~ N(θ_j, σ_j).

The centred model has the latents μ, τ and θ, whose posterior is a funnel: the smaller τ, the
closer all θ_j are to μ. The non-centred one has η_j ~ N(0, 1) and θ_j = μ + τ η_j.

``vilvm.models.eight_schools`` has guides and the exact moments.

References: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981; Bayesian Data
Analysis, Gelman et al., 2013, chapter 5; A General Framework for the Parametrization of
Hierarchical Models, Papaspiliopoulos, Roberts and Sköld, 2007.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .table import Table

__all__ = ["POSTERIORS", "eight_schools_centred", "eight_schools_noncentred"]

_EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
_STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def eight_schools_centred(data: tuple[Tensor, Tensor]) -> None:
    """Effects of coaching with a common normal distribution.

    Arguments:
        data: measured effects y and their standard errors, shape (num_schools,) each.

    Reference: Estimation in Parallel Randomized Experiments, Donald B. Rubin, 1981.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.hierarchical.schools import eight_schools_centred
        >>> latents = {"mu": torch.tensor(0.0), "tau": torch.tensor(5.0)}
        >>> model = pyro.condition(eight_schools_centred, latents | {"theta": torch.zeros(2)})
        >>> pyro.poutine.trace(model).get_trace((torch.zeros(2), torch.ones(2))).log_prob_sum()
        tensor(-12.1772)
    """
    y, sigma = data
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(data: tuple[Tensor, Tensor]) -> None:
    """Effects of coaching with a common normal distribution, as μ + τ η_j.

    Arguments:
        data: measured effects y and their standard errors, shape (num_schools,) each.

    Reference: A General Framework for the Parametrization of Hierarchical Models,
    Papaspiliopoulos, Roberts and Sköld, 2007.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.hierarchical.schools import eight_schools_noncentred
        >>> latents = {"mu": torch.tensor(0.0), "tau": torch.tensor(5.0)}
        >>> model = pyro.condition(eight_schools_noncentred, latents | {"eta": torch.zeros(2)})
        >>> pyro.poutine.trace(model).get_trace((torch.zeros(2), torch.ones(2))).log_prob_sum()
        tensor(-8.9583)
    """
    y, sigma = data
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _data() -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(_EFFECTS, dtype=torch.float64),
        torch.tensor(_STANDARD_ERRORS, dtype=torch.float64),
    )


def _centred() -> Statement:
    return Statement(eight_schools_centred, _data(), ("mu", "tau", "theta"))


def _noncentred() -> Statement:
    return Statement(eight_schools_noncentred, _data(), ("mu", "tau", "theta"))


POSTERIORS: Table = {
    "eight_schools_centred": _centred,
    "eight_schools_noncentred": _noncentred,
}
