# pyright: reportMissingImports=false
"""The posteriors of ``vilvm.models.posteriordb`` in NumPyro, with the same sites and priors.

They are written as a NumPyro user writes them: in raw coordinates, loops over time by
``jax.lax.scan``, components and hidden states summed out by ``logsumexp``, ordered means as an
ordered vector with a ``factor``. The densities equal those of the Pyro models up to a constant.

``POSTERIORS`` gives, by name, the function that makes (model, arguments) of the variables of
posteriordb, which are numbers and float64 arrays.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

__all__ = ["POSTERIORS"]

Given = Mapping[str, Any]  # the variables of posteriordb
Stated = tuple[Callable[..., None], dict[str, Any]]  # a model and its arguments


# Regressions
# --------------------------------------------------------------------------------------------


def flat_regression(x: Any, y: Any) -> None:
    beta = _flat_coefficients(x)
    sigma = numpyro.sample("sigma", _flat_scale())
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def half_cauchy_regression(x: Any, y: Any) -> None:
    beta = _flat_coefficients(x)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def normal_regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", _normals(x.shape[1], 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def kilpisjarvi(
    x: Any, y: Any, pmualpha: float, psalpha: float, pmubeta: float, psbeta: float
) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = numpyro.sample("sigma", _flat_scale())
    numpyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def diamonds(x: Any, y: Any) -> None:
    b = numpyro.sample("b", _normals(x.shape[1], 1.0))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    half_student = dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0))
    sigma = numpyro.sample("sigma", half_student)
    numpyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


def _flat_coefficients(x: Any) -> Any:
    flat = dist.ImproperUniform(constraints.real, (), (x.shape[1],))
    return numpyro.sample("beta", flat)


def _flat_scale() -> Any:
    return dist.ImproperUniform(constraints.positive, (), ())


def _normals(size: int, scale: float) -> Any:
    return dist.Normal(0.0, scale).expand([size]).to_event(1)


# Time series and hidden Markov models
# --------------------------------------------------------------------------------------------


def autoregression(past: Any, y: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", _normals(past.shape[1], 10.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)


def arma11(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def step(before: Any, y_t: Any) -> Any:
        previous, error = before
        mean = mu + phi * previous + theta * error
        return (y_t, y_t - mean), mean

    _, means = jax.lax.scan(step, (mu, jnp.zeros_like(mu)), y)
    numpyro.sample("y", dist.Normal(means, sigma), obs=y)


def hmm_example(y: Any) -> None:
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = _ordered("mu", jnp.array([3.0, 10.0]))
    emission = dist.Normal(mu, 1.0).log_prob(y[:, None])
    numpyro.factor("y", _chain(theta1, theta2, emission))


def hmm_drive(u: Any, v: Any, alpha: Any, tau: float, rho: float) -> None:
    theta1 = numpyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(alpha[1]))
    phi = _ordered("phi", jnp.array([0.0, 3.0]))
    lambda_ = _ordered("lambda", jnp.array([0.0, 3.0]))
    emission = dist.Normal(phi, tau).log_prob(u[:, None])
    emission += dist.Normal(lambda_, rho).log_prob(v[:, None])
    numpyro.factor("x", _chain(theta1, theta2, emission))


def _chain(theta1: Any, theta2: Any, emission: Any) -> Any:
    """log p of a sequence by the forward algorithm; `emission` has shape (T, 2)."""
    transition = jnp.log(jnp.stack([theta1, theta2]))

    def step(alpha: Any, b: Any) -> Any:
        return logsumexp(alpha[:, None] + transition, axis=0) + b, None

    alpha, _ = jax.lax.scan(step, emission[0] - jnp.log(2.0), emission[1:])
    return logsumexp(alpha)


def _ordered(site: str, loc: Any, scale: float = 1.0) -> Any:
    """Independent normals in increasing order, as in Stan."""
    support = constraints.ordered_vector
    value = numpyro.sample(site, dist.ImproperUniform(support, (), loc.shape))
    prior = dist.Normal(loc, scale).log_prob(value).sum()
    numpyro.factor(f"{site}_prior", prior)
    return value


# Others
# --------------------------------------------------------------------------------------------


def two_normals(y: Any) -> None:
    mu = _ordered("mu", jnp.zeros(2), 2.0)
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = jnp.log(jnp.stack([theta, 1 - theta]))
    densities = dist.Normal(mu, sigma).log_prob(y[:, None])
    numpyro.factor("y", logsumexp(weights + densities, axis=1).sum())


def poisson_process(x: Any, k: Any) -> None:
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = numpyro.sample("f_tilde", _normals(len(x), 1.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * jnp.exp(-(distance**2) / 2) + 1e-10 * jnp.eye(len(x))
    f = numpyro.deterministic("f", jnp.linalg.cholesky(covariance) @ f_tilde)
    numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def eight_schools(y: Any, sigma: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("data", len(y)):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# The arguments of each
# --------------------------------------------------------------------------------------------


def _columns(*covariates: Any) -> Any:
    return np.stack([np.ones_like(covariates[0]), *covariates], -1)


def _regression(model: Any, response: str, covariates: str, given: Given) -> Stated:
    x = _columns(*(given[name] for name in covariates.split()))
    return model, {"x": x, "y": given[response]}


def _kidiq_with_mom_work(given: Given) -> Stated:
    x = _columns(*((given["mom_work"] == level) * 1.0 for level in (2, 3, 4)))
    return flat_regression, {"x": x, "y": given["kid_score"]}


def _log10_earnings(given: Given) -> Stated:
    x = _columns(given["height"])
    return flat_regression, {"x": x, "y": np.log10(given["earn"])}


def _log_earnings(given: Given) -> Stated:
    x = _columns(given["height"], given["male"])
    return flat_regression, {"x": x, "y": np.log(given["earn"])}


_SHRUB = ("diam1", "diam2", "canopy_height", "total_height", "density")


def _log_mesquite(given: Given) -> Stated:
    x = _columns(*(np.log(given[name]) for name in _SHRUB), given["group"])
    return flat_regression, {"x": x, "y": np.log(given["weight"])}


def _nes(given: Given) -> Stated:
    ages = [(given["age_discrete"] == level) * 1.0 for level in (2, 3, 4)]
    rest = [given[name] for name in ("educ1", "gender", "income")]
    x = _columns(given["real_ideo"], given["race_adj"], *ages, *rest)
    return flat_regression, {"x": x, "y": given["partyid7"]}


def _diamonds(given: Given) -> Stated:
    x = given["X"][:, 1:]
    return diamonds, {"x": x - x.mean(0), "y": given["Y"]}


def _autoregression(given: Given) -> Stated:
    y, lags = given["y"], int(given["K"])
    past = np.stack([y[lags - k : len(y) - k] for k in range(1, lags + 1)], -1)
    return autoregression, {"past": past, "y": y[lags:]}


def _named(model: Any, names: str, given: Given) -> Stated:
    """A model whose arguments have the names of posteriordb."""
    return model, {name: given[name] for name in names.split()}


def _blr(given: Given) -> Stated:
    return normal_regression, {"x": given["X"], "y": given["y"]}


_kidiq = partial(_regression, half_cauchy_regression, "kid_score")

POSTERIORS: dict[str, Callable[[Given], Stated]] = {
    "arK-arK": _autoregression,
    "arma-arma11": partial(_named, arma11, "y"),
    "bball_drive_event_1-hmm_drive_1": partial(_named, hmm_drive, "u v alpha tau rho"),
    "diamonds-diamonds": _diamonds,
    "earnings-earn_height": partial(_regression, flat_regression, "earn", "height"),
    "earnings-log10earn_height": _log10_earnings,
    "earnings-logearn_height_male": _log_earnings,
    "eight_schools-eight_schools_noncentered": partial(
        _named, eight_schools, "y sigma"
    ),
    "gp_pois_regr-gp_pois_regr": partial(_named, poisson_process, "x k"),
    "hmm_example-hmm_example": partial(_named, hmm_example, "y"),
    "kidiq-kidscore_momhs": partial(_kidiq, "mom_hs"),
    "kidiq-kidscore_momhsiq": partial(_kidiq, "mom_hs mom_iq"),
    "kidiq-kidscore_momiq": partial(_kidiq, "mom_iq"),
    "kidiq_with_mom_work-kidscore_mom_work": _kidiq_with_mom_work,
    "kilpisjarvi_mod-kilpisjarvi": partial(
        _named, kilpisjarvi, "x y pmualpha psalpha pmubeta psbeta"
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": partial(_named, two_normals, "y"),
    "mesquite-logmesquite": _log_mesquite,
    "mesquite-mesquite": partial(
        _regression, flat_regression, "weight", " ".join((*_SHRUB, "group"))
    ),
    "nes1972-nes": _nes,
    "nes1984-nes": _nes,
    "sblri-blr": _blr,
}
