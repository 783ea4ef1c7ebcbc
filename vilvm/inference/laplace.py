"""The Laplace approximation: Gaussians at the modes of the posterior.

At a maximum û of log p(x, u) with Hessian H, the posterior of the unconstrained latents is
approximated by N(û, −H⁻¹), and the evidence by

    log p(x) ≈ log p(x, û) + (D log 2π − log det(−H)) / 2.

Reference: Accurate Approximations for Posterior Moments and Marginal Densities, Tierney and
Kadane, 1986.
"""

from typing import Any

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._modes import modes, pair_of_modes
from vilvm.inference._newton import newton
from vilvm.inference._paths import starts
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.lvm import ContractError
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["laplace"]

_STEPS = 100


def laplace(model: Any, data: Any, *, num_paths: int = 8, seed: int = 0) -> InFloat64:
    """The Laplace approximation of a model's posterior as its guide.

    Newton's method with true Hessians climbs from draws of the prior and points of a wide box. If
    the paths end at several maxima, the guide is a mixture of their Gaussians, with the weights of
    their ELBOs.

    Arguments:
        model: a Pyro model, called with the data; the guide of a pair is ignored.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        num_paths: starting points.
        seed: of the starting points.

    Returns:
        The pair of the model and the guide, in float64.

    Raises:
        ContractError: the model cannot be used (see ``infer``), or no path ends at a maximum.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from vilvm.inference import laplace
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(4)
        >>> draws = vilvm.posterior(laplace(model, y), y, 100_000)["mu"]
        >>> round(draws.mean().item(), 1), round(draws.std().item(), 1)
        (0.8, 0.4)
    """
    num_paths = check_number("laplace: num_paths", num_paths)
    plain, batch = own_model(model), prepare_data(data)
    with seeded(check_seed("laplace: seed", seed), purpose="training"):
        target = target_of(plain, batch)
        paths = newton(target, starts(target, num_paths), steps=_STEPS)
        found = [mode for mode in modes(target, paths) if mode.is_maximum]
        if not found:
            raise ContractError(
                "laplace: no path ends at a maximum of the density; the posterior may be "
                "improper, or its mode at infinity: use pathfinder, or infer."
            )
        return pair_of_modes(plain, batch, found)
