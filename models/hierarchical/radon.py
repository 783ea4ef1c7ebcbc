"""Radon in houses of many counties, with intercepts and slopes that vary by county.

Generative story. House i in county c(i) was measured in the basement (x_i = 0) or on the ground
floor (x_i = 1); county j has soil with log uranium u_j; y_i is the log of the radon concentration.

    μ_a, γ, μ_b ~ N(0, 10),    σ_a, σ_b, σ_y ~ HalfNormal(1),
    a_j ~ N(μ_a + γ u_j, σ_a),    b_j ~ N(μ_b, σ_b),    y_i ~ N(a_c(i) + b_c(i) x_i, σ_y).

The form is centred. A county with some fifty houses determines its a_j, one with two hardly does:
neither form suits all counties.

The data are simulated, from seed 919, to the published shape: 919 houses, 85 counties of one to 83
houses, a sixth of the measurements on the ground floor, and parameters near the published
estimates.

Reference: Data Analysis Using Regression and Multilevel/Hierarchical Models, Andrew Gelman and
Jennifer Hill, 2007, chapters 12 and 13.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .simulation import Stream
from .table import Table

__all__ = ["POSTERIORS", "radon"]

_HOUSES, _COUNTIES, _SEED = 919, 85, 919


def radon(data: tuple[Tensor, Tensor, Tensor], uranium: Tensor) -> None:
    """Log radon with varying intercepts and slopes, centred.

    Arguments:
        data: county of each house (int64, from 0), floor, log radon; shape (N,) each.
        uranium: log uranium of each county, shape (num_counties,).

    Reference: Data Analysis Using Regression and Multilevel/Hierarchical Models, Gelman and Hill,
    2007.

    Examples:
        >>> import pyro, torch
        >>> from functools import partial
        >>> from vilvm.models.hierarchical.radon import radon
        >>> data = torch.tensor([0, 0, 1]), torch.tensor([0.0, 1.0, 0.0]), torch.zeros(3)
        >>> trace = pyro.poutine.trace(partial(radon, uranium=torch.zeros(2))).get_trace(data)
        >>> trace.nodes["a"]["value"].shape
        torch.Size([2])
    """
    county, floor, y = data
    mu_a = pyro.sample("mu_a", dist.Normal(0.0, 10.0))
    gamma = pyro.sample("gamma", dist.Normal(0.0, 10.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 10.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfNormal(1.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfNormal(1.0))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    with pyro.plate("county", len(uranium)):
        a = pyro.sample("a", dist.Normal(mu_a + gamma * uranium.to(y), sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with pyro.plate("data", len(y)):
        mean = a[..., county] + b[..., county] * floor
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def _simulate() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Uranium of the counties, and the data."""
    stream = Stream(_SEED)
    share = (1.25 * stream.normal(_COUNTIES)).exp()
    others = stream.categorical(share, _HOUSES - _COUNTIES)
    county = torch.cat([torch.arange(_COUNTIES), others]).sort().values
    floor = stream.bernoulli(torch.full((_HOUSES,), 1 / 6, dtype=torch.float64))
    uranium = 0.4 * stream.normal(_COUNTIES)
    a = 1.5 + 0.7 * uranium + 0.2 * stream.normal(_COUNTIES)
    b = -0.7 + 0.3 * stream.normal(_COUNTIES)
    y = a[county] + b[county] * floor + 0.75 * stream.normal(_HOUSES)
    return uranium, (county, floor, y)


def _radon() -> Statement:
    uranium, data = _simulate()
    scales = ("sigma_a", "sigma_b", "sigma_y")
    return Statement(
        partial(radon, uranium=uranium),
        data,
        ("mu_a", "gamma", "mu_b", *scales, "a", "b"),
    )


POSTERIORS: Table = {"radon": _radon}
