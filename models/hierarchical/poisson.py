"""Counts in 100 groups, a Poisson regression with an intercept of each group and an offset.

Generative story. Count y_n in group g(n) was observed for a time t_n, under the covariate x_n:

    α ~ N(0, 5),    β ~ N(0, 2.5),    σ ~ HalfNormal(1),    u_g ~ N(0, σ),
    y_n ~ Poisson(t_n exp(α + β x_n + u_g(n))).

log t_n is the offset.

The data are simulated, from seed 100: 500 counts, in groups of one to 23.

Reference: Approximate Inference in Generalized Linear Mixed Models, Breslow and Clayton, 1993.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .simulation import Stream
from .table import Table

__all__ = ["POSTERIORS", "poisson_glmm"]

_COUNTS, _GROUPS, _SEED = 500, 100, 100


def poisson_glmm(data: tuple[Tensor, Tensor, Tensor, Tensor], num_groups: int) -> None:
    """A Poisson regression with a random intercept of each group, and an offset.

    Arguments:
        data: group of each count (int64, from 0), covariate x, time of observation t, count y;
            shape (N,) each.
        num_groups: number of groups.

    Reference: Approximate Inference in Generalized Linear Mixed Models, Breslow and Clayton, 1993.

    Examples:
        >>> import pyro, torch
        >>> from functools import partial
        >>> from vilvm.models.hierarchical.poisson import poisson_glmm
        >>> data = torch.tensor([0, 0, 1]), torch.zeros(3), torch.ones(3), torch.ones(3)
        >>> model = partial(poisson_glmm, num_groups=2)
        >>> pyro.poutine.trace(model).get_trace(data).nodes["u"]["value"].shape
        torch.Size([2])
    """
    group, x, time, y = data
    alpha = pyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 2.5))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", num_groups):
        u = pyro.sample("u", dist.Normal(0.0, sigma))
    with pyro.plate("data", len(y)):
        log_rate = time.log() + alpha + beta * x + u[..., group]
        pyro.sample("y", dist.Poisson(log_rate.exp()), obs=y)


def _simulate() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = Stream(_SEED)
    share = (0.8 * stream.normal(_GROUPS)).exp()
    others = stream.categorical(share, _COUNTS - _GROUPS)
    group = torch.cat([torch.arange(_GROUPS), others]).sort().values
    x = stream.normal(_COUNTS)
    time = 0.5 + 3.5 * stream.uniform(_COUNTS)
    u = 0.7 * stream.normal(_GROUPS)
    y = stream.poisson(time * (0.2 + 0.4 * x + u[group]).exp())
    return group, x, time, y


def _poisson_glmm() -> Statement:
    model = partial(poisson_glmm, num_groups=_GROUPS)
    return Statement(model, _simulate(), ("alpha", "beta", "sigma", "u"))


POSTERIORS: Table = {"poisson_glmm": _poisson_glmm}
