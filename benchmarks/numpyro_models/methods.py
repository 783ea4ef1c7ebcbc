# pyright: reportMissingImports=false
"""NUTS and variational inference of NumPyro, in float64 and with NumPyro's defaults.

    nuts           one chain, 1,000 warmup steps and 1,000 draws;
    normal, mvn    ``AutoNormal`` and ``AutoMultivariateNormal``, 10,000 steps of Adam(1e-2) by
                   ``svi.run``, and 10,000 draws.

Without a progress bar all steps run in one compiled loop, which is the fastest way.

References: Composable Effects for Flexible and Accelerated Probabilistic Programming in NumPyro,
Du Phan, Neeraj Pradhan and Martin Jankowiak, 2019; The No-U-Turn Sampler, Matthew Hoffman and
Andrew Gelman, 2014.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

__all__ = ["METHODS"]

Draws = dict[str, np.ndarray]  # by site, latents and deterministic ones
Method = Callable[[Any, dict[str, Any], int], tuple[Draws, int]]

_STEPS = 10_000


def nuts(model: Any, arguments: dict[str, Any], seed: int) -> tuple[Draws, int]:
    """Draws, and gradient evaluations: leapfrog steps of warmup and sampling.

    Those of the search for a first step size are not counted; they are a few dozen.
    """
    numpyro.enable_x64()
    mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, progress_bar=False)
    # Keep the warmup steps too, for their number of gradients. The public way is two runs, which
    # compiles twice.
    mcmc._set_collection_params(0, 2000)
    mcmc.run(jax.random.key(seed), extra_fields=("num_steps",), **arguments)
    gradients = int(mcmc.get_extra_fields()["num_steps"].sum())
    draws = {site: np.array(v[1000:]) for site, v in mcmc.get_samples().items()}
    return draws, gradients


def variational(
    family: Any, model: Any, arguments: dict[str, Any], seed: int
) -> tuple[Draws, int]:
    """Draws, and gradient evaluations: one a step."""
    numpyro.enable_x64()
    fit, draw = jax.random.split(jax.random.key(seed))
    guide = family(model)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    result = svi.run(fit, _STEPS, progress_bar=False, **arguments)
    draws = guide.sample_posterior(
        draw, result.params, sample_shape=(10_000,), **arguments
    )
    return {site: np.array(v) for site, v in draws.items()}, _STEPS


METHODS: dict[str, Method] = {
    "nuts": nuts,
    "normal": partial(variational, AutoNormal),
    "mvn": partial(variational, AutoMultivariateNormal),
}
