"""Models with a known posterior, for the tests of inference."""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

SIGMA = 3.0
PRIOR = torch.tensor([1e5, 1e3, 1e4, 10.0, 1e-2, 1e3, 1e2, 1.0], dtype=torch.float64)
# the deviations of the covariates differ by nine orders of magnitude
SCALES = torch.tensor([1e-4, 1e3, 5.0, 1e5, 0.1, 2.0], dtype=torch.float64)


class Normal(NamedTuple):
    """A posterior N(mean, covariance) and its evidence in nats."""

    mean: Tensor
    covariance: Tensor
    log_evidence: float


def regression(batch):
    """y ~ N(X β, σ²), β ~ N(0, PRIOR²): its posterior is Gaussian."""
    x, y = batch
    dim = x.shape[1]
    beta = pyro.sample("beta", dist.Normal(torch.zeros(dim), PRIOR[:dim]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), SIGMA), obs=y)


def raw_data():
    """An intercept, a calendar year, and six covariates in raw units: (60, 8); with y."""
    random = torch.Generator().manual_seed(3)
    year = torch.linspace(1970, 2000, 60, dtype=torch.float64).round()
    others = torch.randn(60, 6, generator=random, dtype=torch.float64) + 2
    x = torch.cat([torch.ones(60, 1).double(), year[:, None], others * SCALES], 1)
    beta = PRIOR * torch.tensor([1.0, -0.5, 2.0, 1.0, -1.0, 0.3, 0.7, 1.5]).double()
    noise = torch.randn(60, generator=random, dtype=torch.float64)
    return x, x @ beta + SIGMA * noise


def exact_regression(x, y):
    """The closed form of ``regression``, by a QR decomposition in scaled coordinates."""
    dim = x.shape[1]
    prior, eye = PRIOR[:dim], torch.eye(dim, dtype=torch.float64)
    rows = torch.cat([x * prior / SIGMA, eye])
    size = rows.norm(dim=0)
    q, r = torch.linalg.qr(rows / size)
    target = torch.cat([y / SIGMA, torch.zeros(dim).double()])
    scale = (prior / size)[:, None] * torch.linalg.inv(r)
    rest = target - q @ (q.mT @ target)
    log_det = 2 * (r.diagonal().abs().log() + size.log()).sum()
    quadratic = rest.square().sum()
    log_evidence = (
        -(len(y) * math.log(2 * math.pi * SIGMA**2) + log_det + quadratic) / 2
    )
    return Normal(scale @ (q.mT @ target), scale @ scale.mT, log_evidence.item())


def moments(guide, part=None):
    """Mean and covariance of a linear component of a guide, by default the first."""
    part = guide.parts[0] if part is None else part
    dim = len(part.loc)
    with torch.no_grad():
        (loc, _), (points, _) = (
            part(torch.zeros(1, dim).double()),
            part(torch.eye(dim).double()),
        )
        return loc[0], (points - loc).mT @ (points - loc)


def errors_of(found, exact):
    """Largest errors of means in standard deviations, and of covariances relative to those."""
    mean, covariance = found
    sd = exact.covariance.diagonal().sqrt()
    scaled = (covariance - exact.covariance) / (sd[:, None] * sd)
    return ((mean - exact.mean) / sd).abs().max().item(), scaled.abs().max().item()


def mean_model(y):
    """y ~ N(μ, 1), μ ~ N(0, 2²)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact_mean(y):
    """The closed form of ``mean_model``."""
    y = y.double()
    precision = len(y) + 0.25
    covariance = torch.eye(len(y)).double() + 4
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(len(y)).double(), covariance
    )
    mean = (y.sum() / precision)[None]
    return Normal(
        mean, torch.ones(1, 1).double() / precision, evidence.log_prob(y).item()
    )


def groups(batch):
    """y_gi ~ N(θ_g, 1), θ_g ~ N(μ, τ), centred."""
    y, group = batch
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("group", 5):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta[..., group], 1.0), obs=y)


def mixture(y):
    """Two components without an order, so that their labels may be exchanged."""
    weight = pyro.sample("weight", dist.Dirichlet(torch.full((2,), 5.0)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        component = pyro.sample(
            "component", dist.Categorical(weight), infer={"enumerate": "parallel"}
        )
        pyro.sample("y", dist.Normal(Vindex(loc)[..., component], 1.0), obs=y)


def mixture_data():
    """Three around −3, three around 3."""
    return torch.tensor([-3.2, -2.9, -3.5, -2.4, 2.8, 3.1, 3.6, 2.5])


def curved(y):
    """A mean and a scale of few data: far from Gaussian."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)
