"""Seeds: germination on 21 plates, a logistic regression with a normal effect of each plate.

Generative story. On plate i, r_i of n_i seeds germinated; x1_i is the kind of seed and x2_i that
of the root extract.

    α_0, α_1, α_2, α_12 ~ N(0, 1000),    σ ~ Uniform(0, 10),    b_i ~ N(0, σ),
    r_i ~ Binomial(n_i, p_i),    logit p_i = α_0 + α_1 x1_i + α_2 x2_i + α_12 x1_i x2_i + b_i.

Priors and form are those of the BUGS example: nearly flat, and centred, a funnel at small σ.

References: Beta-Binomial Anova for Proportions, Martin J. Crowder, 1978 (the data); Approximate
Inference in Generalized Linear Mixed Models, Breslow and Clayton, 1993; The BUGS Project:
Evolution, Critique and Future Directions, Lunn, Spiegelhalter, Thomas and Best, 2009.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .table import Table

__all__ = ["POSTERIORS", "seeds"]

_GERMINATED = "10 23 23 26 17 5 53 55 32 46 10 8 10 8 23 0 3 22 15 32 3"
_SEEDS = "39 62 81 51 39 6 74 72 51 79 13 16 30 28 45 4 12 41 30 51 7"
_KIND = "0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1"
_EXTRACT = "0 0 0 0 0 1 1 1 1 1 1 0 0 0 0 0 1 1 1 1 1"


def seeds(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Germinated seeds, binomial with a random effect of each plate.

    Arguments:
        data: germinated r, seeds n, kind of seed x1, root extract x2; shape (num_plates,) each.

    Reference: Approximate Inference in Generalized Linear Mixed Models, Breslow and Clayton, 1993.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.hierarchical.seeds import seeds
        >>> data = torch.ones(3), 2 * torch.ones(3), torch.zeros(3), torch.zeros(3)
        >>> pyro.poutine.trace(seeds).get_trace(data).nodes["b"]["value"].shape
        torch.Size([3])
    """
    r, n, x1, x2 = data
    alpha0 = pyro.sample("alpha0", dist.Normal(0.0, 1000.0))
    alpha1 = pyro.sample("alpha1", dist.Normal(0.0, 1000.0))
    alpha2 = pyro.sample("alpha2", dist.Normal(0.0, 1000.0))
    alpha12 = pyro.sample("alpha12", dist.Normal(0.0, 1000.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    with pyro.plate("data", len(r)):
        b = pyro.sample("b", dist.Normal(0.0, sigma))
        logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + b
        pyro.sample("r", dist.Binomial(total_count=n, logits=logits), obs=r)


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def _seeds() -> Statement:
    data = tuple(_numbers(text) for text in (_GERMINATED, _SEEDS, _KIND, _EXTRACT))
    coefficients = ("alpha0", "alpha1", "alpha2", "alpha12")
    return Statement(seeds, data, (*coefficients, "sigma", "b"))


POSTERIORS: Table = {"seeds": _seeds}
