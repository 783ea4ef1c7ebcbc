"""Where a fit starts: the guide of a pair, or the best mode of a model."""

from typing import Any

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation, Gaussian
from vilvm.inference._paths import find_modes
from vilvm.inference._preparation import (
    latent_sites,
    own_model,
    packed,
    prepare_data,
)
from vilvm.inference._target import Target
from vilvm.lvm import ContractError, fixed_beside
from vilvm.weights.guide_draws import latent_draws

__all__ = ["guide_draws", "start_of"]

_DRAWS = 2000
_TRIES = 5  # paths of a centred hierarchical model may all end in its unbounded density


def start_of(lvm: Any, data: Any, target: Target) -> Approximation:
    """A Gaussian with the moments of the guide; at the best mode if there is no guide.

    Raises:
        ContractError: the model has no region where its density is concave.
    """
    if hasattr(lvm, "guide"):
        u = guide_draws(lvm, data, max(_DRAWS, 20 * target.dim))
        covariance = u.T.cov().reshape(target.dim, target.dim)
        return Gaussian(u.mean(0), torch.linalg.cholesky(covariance))
    for _ in range(_TRIES):
        found = find_modes(target)
        if found:
            return found[0].gaussian
    raise ContractError(
        "No path found a region where the density is concave; the posterior may be improper."
    )


@torch.no_grad()
def guide_draws(lvm: Any, data: Any, num: int) -> Tensor:
    """Unconstrained draws of a pair's guide, shape (num, D)."""
    batch = fixed_beside(lvm, data).x
    sites = latent_sites(own_model(lvm), prepare_data(data))
    return packed(sites, latent_draws(lvm, batch, num))
