"""Posterior collapse: latents that the guide leaves at their prior, whatever the datum.

A unit u is active if its posterior mean moves with the data, Var_x E_q[z_u | x] > 0.01.

Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.
"""

from typing import Any

import torch
from torch import Tensor

from vilvm.data import as_data
from vilvm.lvm import LatentVariableModel
from vilvm.weights import posterior_mean

__all__ = ["active_units"]

_ROWS = 1000


@torch.no_grad()
def active_units(lvm: LatentVariableModel, data: Any, threshold: float = 0.01) -> dict[str, Tensor]:
    """Which units of each latent are active on these data.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform is drawn once.
        threshold: variance over the data of the posterior mean above which a unit is active.

    Returns:
        By latent, a Boolean tensor of the latent's event shape; its sum is the number of active units.

    Raises:
        ValueError: fewer than two data, which have no variance.
    """
    fixed = as_data(data).fixed()
    if len(fixed) < 2:
        raise ValueError(f"active_units needs at least two data; got {len(fixed)}.")
    means = [posterior_mean(lvm, fixed.subset(slice(i, i + _ROWS)).x) for i in range(0, len(fixed), _ROWS)]
    return {name: torch.cat([m[name] for m in means]).var(0) > threshold for name in means[0]}
