"""Log-likelihoods at given latents: log p(x | z), by observed site and datum, enumerated latents
summed over.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from vilvm.lvm import LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights._conditioning import at_samples
from vilvm.weights._enumeration import run_model
from vilvm.weights._passes import Pass, Values
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.layout import Layout, find_layout

__all__ = ["log_likelihoods"]


@torch.no_grad()
def log_likelihoods(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
) -> dict[str, Tensor]:
    """log p(x | z) of every observed site at S given draws of all latents.

    Arguments:
        lvm: the model and guide; the guide is not run at the draws.
        batch: what both are called with.
        latents: draws by latent, as ``posterior`` returns them: shape (S, num_data, ...), or (S,
            ...) if the data share it.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        By observed site, in nats, shape (S, num_data), or (S,) without an axis of the data. Sites
        that depend on one enumerated latent form one term, "x+y".

    Raises:
        ContractError: the pair breaks the contract, or a latent has another shape.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.likelihoods import log_likelihoods
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> log_likelihoods(lvm, x, vilvm.posterior(lvm, x, 10))["x"].shape
        torch.Size([10, 4])
    """
    layout = layout or find_layout(lvm, batch, any_data=True)

    def run(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        with at_samples(given, num_samples, layout.nesting):
            found = run_model(lvm.model, batch, (None,), num_samples, layout)
        return {"densities": found.log_likelihoods}

    num_samples = len(next(iter(latents.values())))
    with (
        module_parameters(lvm),
        evaluation_mode(lvm),
        pyro.validation_enabled(False),
    ):
        return run_at_samples(
            lvm,
            batch,
            num_samples,
            Pass(run, "log-likelihoods at given latents"),
            latents,
            vectorisation=layout.vectorisation,
        )["densities"]
