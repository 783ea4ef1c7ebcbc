"""The posteriors of ``vilvm.models.hierarchical`` as NumPyro models, with the same sites.

They are written from the formulas in the docstrings there, not translated by a program. ``MODELS``
has, by name, the model and its arguments: numpy arrays, in float64 where they are not indices. Set
``jax_enable_x64`` for float64.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from vilvm.data.tensors import tensors_of
from vilvm.models.hierarchical import posterior
from vilvm.wrappers import float64

__all__ = ["MODELS"]

Array = Any  # of numpy or jax
sample: Callable[..., Any] = numpyro.sample  # whose type is a union


def eight_schools_centred(y: Array, sigma: Array) -> None:
    mu = sample("mu", dist.Normal(0, 5))
    tau = sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(y)):
        theta = sample("theta", dist.Normal(mu, tau))
        sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(y: Array, sigma: Array) -> None:
    mu = sample("mu", dist.Normal(0, 5))
    tau = sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(y)):
        eta = sample("eta", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        sample("y", dist.Normal(theta, sigma), obs=y)


def radon(county: Array, floor: Array, y: Array, uranium: Array) -> None:
    mu_a = sample("mu_a", dist.Normal(0, 10))
    gamma = sample("gamma", dist.Normal(0, 10))
    mu_b = sample("mu_b", dist.Normal(0, 10))
    sigma_a = sample("sigma_a", dist.HalfNormal(1))
    sigma_b = sample("sigma_b", dist.HalfNormal(1))
    sigma_y = sample("sigma_y", dist.HalfNormal(1))
    with numpyro.plate("counties", len(uranium)):
        a = sample("a", dist.Normal(mu_a + gamma * uranium, sigma_a))
        b = sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("houses", len(y)):
        mean = a[county] + b[county] * floor
        sample("y", dist.Normal(mean, sigma_y), obs=y)


def seeds(r: Array, n: Array, x1: Array, x2: Array) -> None:
    alpha0 = sample("alpha0", dist.Normal(0, 1000))
    alpha1 = sample("alpha1", dist.Normal(0, 1000))
    alpha2 = sample("alpha2", dist.Normal(0, 1000))
    alpha12 = sample("alpha12", dist.Normal(0, 1000))
    sigma = sample("sigma", dist.Uniform(0, 10))
    with numpyro.plate("plates", len(r)):
        b = sample("b", dist.Normal(0, sigma))
        logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + b
        sample("r", dist.Binomial(total_count=n, logits=logits), obs=r)


def irt_2pl(person: Array, item: Array, y: Array, persons: int, items: int) -> None:
    sigma_a = sample("sigma_a", dist.HalfNormal(0.5))
    mu_b = sample("mu_b", dist.Normal(0, 5))
    sigma_b = sample("sigma_b", dist.HalfCauchy(2))
    with numpyro.plate("persons", persons):
        theta = sample("theta", dist.Normal(0, 1))
    with numpyro.plate("items", items):
        a = sample("a", dist.LogNormal(0, sigma_a))
        b = sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("answers", len(y)):
        logits = a[item] * (theta[person] - b[item])
        sample("y", dist.Bernoulli(logits=logits), obs=y)


def poisson_glmm(group: Array, x: Array, time: Array, y: Array, groups: int) -> None:
    alpha = sample("alpha", dist.Normal(0, 5))
    beta = sample("beta", dist.Normal(0, 2.5))
    sigma = sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("groups", groups):
        u = sample("u", dist.Normal(0, sigma))
    with numpyro.plate("counts", len(y)):
        rate = time * jnp.exp(alpha + beta * x + u[group])
        sample("y", dist.Poisson(rate), obs=y)


def horseshoe_logistic(x: Array, y: Array) -> None:
    alpha = sample("alpha", dist.Normal(0, 5))
    tau = sample("tau", dist.HalfCauchy(1))
    with numpyro.plate("covariates", x.shape[1]):
        lam = sample("lam", dist.HalfCauchy(1))
        z = sample("z", dist.Normal(0, 1))
    beta = numpyro.deterministic("beta", tau * lam * z)
    with numpyro.plate("data", len(y)):
        sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def funnel() -> None:
    v = sample("v", dist.Normal(0, 3))
    with numpyro.plate("dims", 9):
        sample("x", dist.Normal(0, jnp.exp(v / 2)))


def _arguments(name: str, *names: str) -> dict[str, np.ndarray]:
    """The tensors of the data of a posterior as arrays, under these names."""
    with float64():
        data = tensors_of(posterior(name).data)
    return dict(zip(names, (t.numpy() for t in data), strict=True))


def _uranium() -> np.ndarray:
    model: Any = posterior("radon").model  # a partial
    return model.keywords["uranium"].numpy()


MODELS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "eight_schools_centred": (
        eight_schools_centred,
        _arguments("eight_schools_centred", "y", "sigma"),
    ),
    "eight_schools_noncentred": (
        eight_schools_noncentred,
        _arguments("eight_schools_noncentred", "y", "sigma"),
    ),
    "funnel": (funnel, {}),
    "horseshoe_logistic": (
        horseshoe_logistic,
        _arguments("horseshoe_logistic", "x", "y"),
    ),
    "irt_2pl": (
        irt_2pl,
        {**_arguments("irt_2pl", "person", "item", "y"), "persons": 50, "items": 20},
    ),
    "poisson_glmm": (
        poisson_glmm,
        {**_arguments("poisson_glmm", "group", "x", "time", "y"), "groups": 100},
    ),
    "radon": (
        radon,
        {**_arguments("radon", "county", "floor", "y"), "uranium": _uranium()},
    ),
    "seeds": (seeds, _arguments("seeds", "r", "n", "x1", "x2")),
}
