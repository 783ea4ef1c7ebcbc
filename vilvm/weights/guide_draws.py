"""Draws of the latents from the guide, their means, and draws resampled by their weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.data._foreign import is_foreign
from vilvm.data.data import Data
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    data_beside,
    device_of,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import drawn_values
from vilvm.weights._guide_runs import run_guide
from vilvm.weights._model_runs import check_means, mean_or_value
from vilvm.weights._passes import Pass, Values
from vilvm.weights._sites import Sites, own_densities, own_values
from vilvm.weights._supports import guide_sites
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch, check_batch
from vilvm.weights.frames import frame_of
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import LogWeights, log_weights

__all__ = ["picked_by_weight", "posterior", "posterior_mean", "resample"]

_ROWS = 1000  # data that are read and run at once


def posterior(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1
) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x).

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with.
        num_samples: draws per datum.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        that the data share.

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
    return _run_guide(lvm, batch, num_samples)["latents"]


def posterior_mean(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    layout: Layout | None = None,
    as_frame: bool = False,
) -> Any:
    """E[z | x] under the guide, in closed form or as the mean of `num_samples` draws.

    A latent that depends on another is averaged over `num_samples` draws of the other.

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with, or data that ``vilvm.data.as_data`` converts. Those that
            are on disk or sparse are read in batches.
        num_samples: draws, where they are needed.
        layout: the layout of this very batch; by default a run of the pair finds it.
        as_frame: whether to return a pandas DataFrame, which has the row labels of the data.

    Returns:
        Every latent by name, shape (num_data, ...); (...) for a latent that the data share. With
        `as_frame`, a DataFrame with a row for each datum and the columns "z[0]", "z[1]", …

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent has no mean (a
            Categorical); or the data share a latent, and are read in batches or `as_frame` is set.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import posterior_mean
        >>> posterior_mean(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))["z"].shape
        torch.Size([4, 2])
        >>> posterior_mean(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), as_frame=True).shape
        (4, 2)
    """
    if as_frame or isinstance(batch, Data) or is_foreign(batch):
        return _mean_of_data(lvm, batch, num_samples, as_frame)
    means = _run_guide(lvm, batch, num_samples, layout, mean=True)["means"]
    return {name: _mean(value) for name, value in means.items()}


def _mean_of_data(lvm: Any, data: Any, num_samples: int, as_frame: bool) -> Any:
    """The means for data with row labels, or data that are read in batches."""
    given = data_beside(lvm, data, "posterior_mean")
    if given.transform is not None and not given.transformed:
        check_batch(given)
    given = given.to(device_of(lvm, given.device))
    parts, axes = [], {}
    for part in given.chunks(_ROWS if given.streamed else len(given)):
        layout = find_layout(lvm, part.x)
        axes = {name: layout.data_axes.get(name) for name in layout.latents}
        shared = next((name for name, axis in axes.items() if axis is None), None)
        if shared is not None and (given.streamed or as_frame):
            raise ContractError(
                f"posterior_mean: the data share the latent {shared!r}, so it has no row for each "
                "datum; leave as_frame out, and pass data in memory."
            )
        parts.append(posterior_mean(lvm, part.x, num_samples, layout=layout))
    means = parts[0]
    if len(parts) > 1:
        means = {
            n: torch.cat([p[n] for p in parts], (a or 1) - 1) for n, a in axes.items()
        }
    if not as_frame:
        return means
    rows = {n: value.movedim((axes[n] or 1) - 1, 0) for n, value in means.items()}
    return frame_of(rows, given.index)


def _mean(draws: Tensor) -> Tensor:
    """The mean over draws; integers that are all equal remain integers, to be used as indices."""
    if draws.is_floating_point():
        return draws.mean(0)
    if bool((draws == draws[:1]).all()):
        return draws[0]
    return draws.float().mean(0)


def _run_guide(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    layout: Layout | None = None,
    mean: bool = False,
) -> Values:
    """The latents that the guide draws, under "latents".

    With `mean`, the means of their distributions are under "means"; a draw replaces a mean
    without closed form.
    """
    num_samples = check_number("num_samples", num_samples)
    batch = as_batch(lvm, batch)
    layout = layout or find_layout(lvm, batch)
    sites: Sites = {}  # of the last run
    pass_ = _guide_pass(lvm, layout, mean, sites)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        values = run_at_samples(
            lvm, batch, num_samples, pass_, vectorisation=layout.vectorisation
        )
    check_means(values.get("means", {}), sites)
    return values


def _guide_pass(
    lvm: LatentVariableModel, layout: Layout, mean: bool, sites: Sites
) -> Pass:
    """A pass of the guide, which also writes its sites to `sites`."""

    def draw(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        found = guide_sites(run_guide(lvm.guide, batch, given, num_samples, layout))
        sites.update(found)
        size, latents = num_samples or 1, {n: found[n] for n in layout.latents}
        values = {
            "latents": own_values(latents, size, layout.nesting),
            "drawn": drawn_values(found, size, layout.nesting),
            "densities": own_densities("guide", found, size, layout.nesting),
        }
        if mean:
            means = {
                n: {**site, "value": mean_or_value(site)} for n, site in latents.items()
            }
            values["means"] = own_values(means, size, layout.nesting)
        return values

    return Pass(draw, f"draws of the guide, mean={mean}")


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
