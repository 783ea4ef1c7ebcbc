"""Neal's funnel: nine normals whose common scale is unknown, and no data.

Generative story.

    v ~ N(0, 3),    x_i ~ N(0, exp(v/2)),  i = 1, …, 9.

There is nothing to condition on. The model observes one datum that is independent of v and x,
y ~ N(0, 1), because a model that observes nothing has no posterior that differs from its prior;
this one's equals it too:

    E v = 0,    sd v = 3,    E x_i = 0,    sd x_i = exp(9/4) ≈ 9.49.

Only v is reported. The fourth moment of x_i is 3 e¹⁸: the standard deviation of 10,000 exact draws
has a relative standard error of about 0.8, so that no sample could be judged by it.

Reference: Slice Sampling, Radford M. Neal, 2003, section 8.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .table import Table

__all__ = ["POSTERIORS", "funnel"]


def funnel(y: Tensor) -> None:
    """Neal's funnel in ten dimensions.

    Arguments:
        y: data that are independent of the latents, shape (N,).

    Reference: Slice Sampling, Radford M. Neal, 2003.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.hierarchical.funnel import funnel
        >>> model = pyro.condition(funnel, {"v": torch.tensor(0.0), "x": torch.zeros(9)})
        >>> pyro.poutine.trace(model).get_trace(torch.zeros(1)).log_prob_sum()
        tensor(-11.2069)
    """
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("dims", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def _funnel() -> Statement:
    return Statement(funnel, torch.zeros(1, dtype=torch.float64), ("v",))


POSTERIORS: Table = {"funnel": _funnel}
