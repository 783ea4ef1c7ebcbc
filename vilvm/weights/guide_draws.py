"""Draws of the latents from the guide, and draws resampled by their weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._guide_runs import guide_pass
from vilvm.weights._passes import Values
from vilvm.weights._sites import Sites, own_values
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch
from vilvm.weights.generated_quantities import derived_values
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import LogWeights, log_weights

__all__ = ["latent_draws", "picked_by_weight", "posterior", "resample"]


def posterior(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1
) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x), with the model's deterministic values f(z).

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with.
        num_samples: draws per datum.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        that the data share. Values of ``pyro.deterministic`` follow, unless the model has
        enumerated latents, of which there are no draws.

    Raises:
        ContractError: the pair breaks the contract on this batch (see
            ``vilvm.weights.find_layout``).

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> vilvm.posterior(lvm, x, num_samples=10)["z"].shape
        torch.Size([10, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    batch = as_batch(lvm, batch)
    layout = find_layout(lvm, batch)
    latents = latent_draws(lvm, batch, num_samples, layout)
    return latents | derived_values(lvm, batch, latents, layout)


def latent_draws(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    layout: Layout | None = None,
) -> dict[str, Tensor]:
    """The draws of ``posterior``, without deterministic sites; the model is not run.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: draws per datum.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...).

    Raises:
        ContractError: as ``posterior``.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.guide_draws import latent_draws
        >>> latent_draws(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), 10)["z"].shape
        torch.Size([10, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    batch = as_batch(lvm, batch)
    layout = layout or find_layout(lvm, batch)

    def read(found: Sites, size: int) -> Values:
        latents = {name: found[name] for name in layout.latents}
        return {"latents": own_values(latents, size, layout.nesting)}

    pass_ = guide_pass(lvm, layout, read, "latents")
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        values = run_at_samples(
            lvm, batch, num_samples, pass_, vectorisation=layout.vectorisation
        )
    return values.get("latents", {})


# Resampling
# --------------------------------------------------------------------------------------------


@torch.no_grad()
def resample(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    proposals: int = 1000,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Approximate draws of the latents from the posterior: sampling-importance-resampling.

    For each datum, `num_samples` of `proposals` draws from the guide are picked with replacement,
    with probabilities proportional to their weights. Their distribution converges to p(z | x) as
    `proposals` grows. The number of distinct draws is about the effective sample size.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: draws to return.
        proposals: number of draws from the guide, from which these are picked.
        chunk: proposals per pass, which bounds memory; all at once by default.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        that the data share.

    Raises:
        ContractError: the pair breaks the contract on this batch; its guide is degenerate; or a
            datum has weight zero under all proposals.

    Reference: A noniterative sampling/importance resampling alternative to the data augmentation
    algorithm, Donald B. Rubin, 1987.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> vilvm.resample(lvm, x, num_samples=10, proposals=50)["z"].shape
        torch.Size([10, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    proposals = check_number("proposals", proposals)
    batch = as_batch(lvm, batch)
    layout = find_layout(lvm, batch)
    if layout.degenerate:
        raise ContractError(
            f"resample: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point, so its draws have no weights; give it a guide with a density "
            "(vilvm.wrappers.fit_guide)."
        )
    weights = log_weights(lvm, batch, proposals, chunk=chunk, layout=layout)
    impossible = (weights.log_weight.amax(0) == -torch.inf).nonzero()
    if len(impossible):
        where = "".join(f"datum {int(i)} of " for i in impossible[0])
        raise ContractError(
            f"resample: {where}the batch has probability zero under all {proposals} proposals; "
            "take more, or check the guide."
        )
    return picked_by_weight(weights, num_samples, layout).latents


def picked_by_weight(
    weights: LogWeights, num_samples: int, layout: Layout
) -> LogWeights:
    """Draws picked with replacement in proportion to their weights, separately for each datum.

    Arguments:
        weights: for each datum, at least one is not zero.
        num_samples: draws to pick.
        layout: the layout of the batch.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout, log_weights
        >>> from vilvm.weights.guide_draws import picked_by_weight
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> picked_by_weight(log_weights(lvm, x, 50), 3, find_layout(lvm, x)).log_weight.shape
        torch.Size([3, 4])
    """
    log_w = weights.log_weight
    probabilities = (log_w - log_w.amax(0)).exp()
    # (num_samples, num_data or 1)
    by_datum = probabilities.reshape(len(log_w), -1).T
    picked = by_datum.multinomial(num_samples, replacement=True).T

    def pick(value: Tensor, axis: int | None = 1) -> Tensor:
        if log_w.dim() == 1 or axis is None:
            return value[picked[:, 0]]
        rows = value.movedim(axis, 1)
        return rows[picked, torch.arange(rows.shape[1], device=rows.device)].movedim(
            1, axis
        )

    return replace(
        weights,
        latents={
            n: pick(v, layout.data_axes.get(n)) for n, v in weights.latents.items()
        },
        log_likelihoods={n: pick(v) for n, v in weights.log_likelihoods.items()},
        log_priors={n: pick(v) for n, v in weights.log_priors.items()},
        log_guides={n: pick(v) for n, v in weights.log_guides.items()},
    )
