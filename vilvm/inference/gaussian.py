"""The Gaussian of largest ELBO as a guide: see ``vilvm.inference._fixed_draws``.

References: Black Box Variational Inference with a Deterministic Objective, Giordano, Ingram and
Broderick, 2024; Sample Average Approximation for Black-Box Variational Inference, Burroni, Domke
and Sheldon, 2023.
"""

from typing import Any

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._approximations import pair_of
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.inference._start import start_of
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["fit_gaussian"]


def fit_gaussian(lvm: Any, data: Any, *, seed: int = 0) -> InFloat64:
    """The Gaussian of largest ELBO over the unconstrained latents, without a learning rate.

    Its covariance is full up to 250 dimensions; beyond, it is diagonal in the coordinates of the
    start.

    Arguments:
        lvm: a Pyro model, whose best mode is the start; or a pair, whose guide is.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        seed: of the base draws.

    Returns:
        The pair of the model and the guide, in float64.

    Raises:
        ContractError: the model cannot be used (see ``infer``).

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from vilvm.inference import fit_gaussian
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.ones(4)
        >>> draws = vilvm.posterior(fit_gaussian(model, y), y, 100_000)["mu"]
        >>> round(draws.mean().item(), 1), round(draws.std().item(), 1)
        (0.8, 0.4)
    """
    seed = check_seed("fit_gaussian: seed", seed)
    plain, batch = own_model(lvm), prepare_data(data)
    with seeded(seed, purpose="training"):
        target = target_of(plain, batch)
        best, _ = best_gaussian(target, start_of(lvm, data, target), seed)
        return pair_of(plain, batch, [best])
