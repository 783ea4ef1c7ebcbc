"""A logistic regression with the horseshoe prior: 100 data, 20 covariates, four that matter.

Generative story. With covariates x_n,

    α ~ N(0, 5),    τ ~ HalfCauchy(1),    λ_k ~ HalfCauchy(1),    z_k ~ N(0, 1),
    β_k = τ λ_k z_k,    y_n ~ Bernoulli(p_n),    logit p_n = α + x_n · β.

The prior has a peak at β_k = 0 and Cauchy tails. As users write it, β is a deterministic site: the
funnel of (β, λ, τ) becomes a posterior of (z, λ, τ) with heavy tails and curved ridges.

α, τ and β are reported. λ is not, since it has no posterior standard deviation: for large λ_k the
likelihood restricts z_k to an interval of width ∝ 1/λ_k, so that p(λ_k | y) ∝ λ_k⁻³.

The data are simulated, from seed 20.

References: The Horseshoe Estimator for Sparse Signals, Carvalho, Polson and Scott, 2010; Sparsity
Information and Regularization in the Horseshoe and Other Shrinkage Priors, Piironen and Vehtari,
2017.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.problem import Statement

from .simulation import Stream
from .table import Table

__all__ = ["POSTERIORS", "horseshoe_logistic"]

_DATA, _COVARIATES, _SEED = 100, 20, 20
_EFFECTS = (2.0, -2.0, 1.5, -1.0)


def horseshoe_logistic(data: tuple[Tensor, Tensor]) -> None:
    """A logistic regression with the horseshoe prior.

    Arguments:
        data: covariates X, shape (N, K), and responses y (1 or 0), shape (N,).

    Reference: The Horseshoe Estimator for Sparse Signals, Carvalho, Polson and Scott, 2010.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.hierarchical.horseshoe import horseshoe_logistic
        >>> trace = pyro.poutine.trace(horseshoe_logistic)
        >>> trace.get_trace((torch.zeros(4, 3), torch.ones(4))).nodes["beta"]["value"].shape
        torch.Size([3])
    """
    x, y = data
    zeros = x.new_zeros(x.shape[1])
    alpha = pyro.sample("alpha", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    lam = pyro.sample("lam", dist.HalfCauchy(zeros + 1).to_event(1))
    z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
    beta = pyro.deterministic("beta", tau[..., None] * lam * z, event_dim=1)
    with pyro.plate("data", len(y)):
        logits = alpha + (x * beta).sum(-1)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def _simulate() -> tuple[Tensor, Tensor]:
    stream = Stream(_SEED)
    x = stream.normal(_DATA, _COVARIATES)
    effects = torch.tensor(_EFFECTS, dtype=torch.float64)
    return x, stream.bernoulli(torch.sigmoid(x[:, : len(effects)] @ effects))


def _horseshoe_logistic() -> Statement:
    return Statement(horseshoe_logistic, _simulate(), ("alpha", "tau", "beta"))


POSTERIORS: Table = {"horseshoe_logistic": _horseshoe_logistic}
