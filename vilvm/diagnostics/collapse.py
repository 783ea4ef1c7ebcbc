"""Posterior collapse: latents that the guide leaves at their prior, whatever the datum.

A unit u is active if its posterior mean moves with the data, Var_x E_q[z_u | x] > 0.01.

Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.
"""

from typing import Any

import torch
from torch import Tensor

from vilvm.data import Data
from vilvm.lvm import ContractError, LatentVariableModel, fixed_beside
from vilvm.weights import layout, posterior_mean

__all__ = ["active_units"]

_ROWS = 50_000


@torch.no_grad()
def active_units(lvm: LatentVariableModel, data: Any, threshold: float = 0.01, num_samples: int = 50) -> dict[str, Tensor]:
    """Which units of each latent are active on these data.

    Where the guide's mean is not known in closed form, its variance over the data is estimated without bias, as the covariance of
    two estimates of independent draws.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform is drawn once.
        threshold: variance over the data of the posterior mean above which a unit is active.
        num_samples: draws of latents on which others depend, for each of the two estimates.

    Returns:
        By latent, a Boolean tensor of the latent's event shape; its sum is the number of active units.

    Raises:
        ValueError: fewer than two data, which have no variance.
        ContractError: a latent is shared by the data, or has no mean.
    """
    fixed = fixed_beside(lvm, data)
    if len(fixed) < 2:
        raise ValueError(f"active_units needs at least two data; got {len(fixed)}.")
    if not layout(lvm, fixed.subset(slice(0, 2)).x).local:
        raise ContractError(f"active_units: {type(lvm).__name__} has a latent that its data share, which cannot move with a datum.")
    first, second = (_deviations(lvm, fixed, num_samples) for _ in range(2))
    return {name: (first[name] * second[name]).sum(0) / (len(fixed) - 1) > threshold for name in first}


def _deviations(lvm: LatentVariableModel, data: Data, num_samples: int) -> dict[str, Tensor]:
    """Posterior means less their mean over the data, by latent, shape (num_data, ...)."""
    rows = max(1, _ROWS // num_samples)
    means = [posterior_mean(lvm, part.x, num_samples) for part in data.parts(rows)]
    joined = {name: torch.cat([m[name] for m in means]) for name in means[0]}
    return {name: value - value.mean(0) for name, value in joined.items()}
