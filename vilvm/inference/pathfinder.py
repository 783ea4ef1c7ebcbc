"""Pathfinder as a guide: see ``vilvm.inference._pathfinder`` for the algorithm.

Reference: Pathfinder: Parallel quasi-Newton variational inference, Zhang, Carpenter, Gelman and
Vehtari, 2022.
"""

from typing import Any

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._modes import pair_of_modes
from vilvm.inference._pathfinder import pathfinder_modes
from vilvm.inference._paths import starts
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.lvm import ContractError
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["pathfinder"]


def pathfinder(
    model: Any, data: Any, *, num_paths: int = 8, seed: int = 0
) -> InFloat64:
    """The approximation of largest ELBO on the paths of L-BFGS, for latents of any number.

    Each path gives a Gaussian, diagonal plus low rank. The guide is their mixture, with the
    weights of their ELBOs. Where the units of the latents differ by many orders of magnitude,
    paths end early, far from the mode: ``pareto_k`` shows it, and ``laplace`` does not suffer
    from it.

    Arguments:
        model: a Pyro model, called with the data; the guide of a pair is ignored.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        num_paths: starting points, of the prior and of a wide box.
        seed: of the starting points and the draws.

    Returns:
        The pair of the model and the guide, in float64.

    Raises:
        ContractError: the model cannot be used (see ``infer``), or no path gives a Gaussian.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from vilvm.inference import pathfinder
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(4)
        >>> draws = vilvm.posterior(pathfinder(model, y), y, 100_000)["mu"]
        >>> round(draws.mean().item(), 1), round(draws.std().item(), 1)
        (0.8, 0.4)
    """
    num_paths = check_number("pathfinder: num_paths", num_paths)
    plain, batch = own_model(model), prepare_data(data)
    with seeded(check_seed("pathfinder: seed", seed), purpose="training"):
        target = target_of(plain, batch)
        found = pathfinder_modes(target, starts(target, num_paths))
        if not found:
            raise ContractError(
                "pathfinder: no path gave a Gaussian; the posterior may be improper."
            )
        return pair_of_modes(plain, batch, found)
