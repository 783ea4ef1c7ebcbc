"""Item response: the two-parameter logistic model, 50 persons and 20 items.

Generative story. Person i has ability θ_i; item j has discrimination a_j and difficulty b_j. The
answer is right with a probability whose logit is the distance of ability and difficulty, times the
discrimination:

    θ_i ~ N(0, 1),    σ_a ~ HalfNormal(0.5),    a_j ~ LogNormal(0, σ_a),
    μ_b ~ N(0, 5),    σ_b ~ HalfCauchy(2),    b_j ~ N(μ_b, σ_b),
    y_n ~ Bernoulli(p_n),    logit p_n = a_j(n) (θ_i(n) − b_j(n)).

The unit variance of θ fixes the scale, and a_j > 0 the sign. The standard deviation of a_j is
finite because the tail of σ_a is normal.

The data are simulated, from seed 50, with one answer a row: 1,000 in all.

References: Statistical Theories of Mental Test Scores, Lord and Novick, 1968, chapter 17 (Allan
Birnbaum); Handbook of Item Response Theory, van der Linden, 2016.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .simulation import Stream
from .table import Table

__all__ = ["POSTERIORS", "irt_2pl"]

_PERSONS, _ITEMS, _SEED = 50, 20, 50


def irt_2pl(
    data: tuple[Tensor, Tensor, Tensor], num_persons: int, num_items: int
) -> None:
    """The two-parameter logistic model with a hierarchical prior of the items.

    Arguments:
        data: person and item of each answer (int64, from 0), and whether it is right (1 or 0);
            shape (N,) each.
        num_persons: number of persons.
        num_items: number of items.

    Reference: Statistical Theories of Mental Test Scores, Lord and Novick, 1968.

    Examples:
        >>> import pyro, torch
        >>> from functools import partial
        >>> from vilvm.models.hierarchical.item_response import irt_2pl
        >>> data = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.ones(3)
        >>> model = partial(irt_2pl, num_persons=2, num_items=2)
        >>> pyro.poutine.trace(model).get_trace(data).nodes["theta"]["value"].shape
        torch.Size([2])
    """
    person, item, y = data
    sigma_a = pyro.sample("sigma_a", dist.HalfNormal(0.5))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    with pyro.plate("persons", num_persons):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("items", num_items):
        a = pyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with pyro.plate("data", len(y)):
        logits = a[..., item] * (theta[..., person] - b[..., item])
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def _simulate() -> tuple[Tensor, Tensor, Tensor]:
    stream = Stream(_SEED)
    theta = stream.normal(_PERSONS)
    a = (0.5 * stream.normal(_ITEMS)).exp()
    b = 0.3 + stream.normal(_ITEMS)
    person = torch.arange(_PERSONS).repeat_interleave(_ITEMS)
    item = torch.arange(_ITEMS).repeat(_PERSONS)
    p = torch.sigmoid(a[item] * (theta[person] - b[item]))
    return person, item, stream.bernoulli(p)


def _irt_2pl() -> Statement:
    model = partial(irt_2pl, num_persons=_PERSONS, num_items=_ITEMS)
    parameters = ("sigma_a", "mu_b", "sigma_b", "theta", "a", "b")
    return Statement(model, _simulate(), parameters)


POSTERIORS: Table = {"irt_2pl": _irt_2pl}
