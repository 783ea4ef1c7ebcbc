"""Draws, densities and data of a model as an ArviZ DataTree.

Latents zₛ ~ q(z | x), s = 1 … S, are one chain of S independent draws. With the groups

    posterior              z, and every ``pyro.deterministic`` f(z), if no latent is enumerated
    log_likelihood         log p(x | z), by observed site, in nats
    sample_stats           log_p = log p(x, z), log_q = log q(z | x), log_weight = log_p − log_q,
                           in nats
    diagnostics            pareto_k, k̂ of the weights
    posterior_predictive   x̃ ~ p(x | z)
    prior                  z ~ p(z), and f(z)
    prior_predictive       x̃ ~ p(x | z) for these
    observed_data          x, as the model observes it
    constant_data          the other tensors of the batch

the functions of ArviZ apply. k̂ has no draws, and ArviZ summarises no group that contains a
variable without draws: hence its own group. With one chain of independent draws, R̂ and the
effective sample size of ArviZ do not measure the quality of q; k̂ does.

Reference: ArviZ: a modular and flexible library for exploratory analysis of Bayesian models,
Martin et al., 2026; Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry,
2024 (k̂).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from vilvm._runtime.argument_checks import check_number, optional
from vilvm.data.data import Data
from vilvm.export._attributes import library_versions, protocol_of
from vilvm.export._dimensions import build_tree, check_coords, dimension_names
from vilvm.export._groups import (
    PROPOSALS,
    Request,
    constant_data,
    groups_of,
    missing_groups,
)
from vilvm.export._variables import join, named_tensors
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import Layout
from vilvm.weights.prepared import Prepared, prepared_of, require_weights

__all__ = ["to_datatree"]

_MAX_PREDICTED = 2**26  # numbers in a predictive group, unless the user asks for more


@torch.no_grad()
def to_datatree(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    num_samples: int = 1000,
    num_predictive: int | None = None,
    resampled: bool = False,
    batch_size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """A model's posterior, predictive draws, densities and data as a DataTree, for ``arviz``.

    A variable has the dimensions (chain, draw, *its own), with one chain. The axis of the plate
    over the data has that plate's name; any other axis is called "SITE_dim_0", "SITE_dim_1", and
    so on, unless `dims` names it.

    If every latent is in that plate (a VAE), weights are per datum: log_p, log_q and log_weight
    have dimensions (chain, draw, PLATE), and pareto_k (PLATE). If data share a latent (eight
    schools), they have dimensions (chain, draw) and refer to all data together, and pareto_k is
    one number. It is NaN for fewer than 25 draws.

    **Leave-one-out.** ``az.loo`` assumes draws of the posterior; for a model with shared latents,
    ``az.loo_approximate_posterior(tree, tree.sample_stats.log_p, tree.sample_stats.log_q)``
    corrects for the guide. If each latent belongs to one datum, both run, but neither estimates
    leave-one-out: without its datum a latent has only its prior, and the result is the harmonic
    mean estimate of log p(x), whose variance may be infinite (see its k̂). Compare such models by
    ``vilvm.evaluate`` on held-out data.

    Arguments:
        lvm: the model and guide, or a ``Prepared`` in place of (lvm, data).
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once. The tree holds num_samples draws for each datum, so pass a subset of a
            large data set (``data.subset(slice(0, 100))``).
        num_samples: draws, S.
        num_predictive: draws in the prior and the predictive groups; by default num_samples, or as
            many as hold 2²⁶ numbers a group.
        resampled: whether to resample S draws by their weights, with replacement, from 10 S draws
            of the guide (see ``vilvm.resample``), which approximates the posterior. pareto_k is
            then that of the 10 S draws; the other densities are of the S draws.
        batch_size: data a pass, 50 by default; a model whose data share a latent gets all of them
            at once.
        coords: by dimension, its coordinates, such as {"data": names}; 0, 1, … by default. Those
            of a dimension that no variable has are left out with a warning, so that several models
            can share one dict.
        dims: by site, names for its dimensions except those of draws and data, such as {"z":
            ["code"]}.
        seed: of draws and transform; torch's generators are restored.

    Returns:
        The DataTree, with densities in nats. Its attributes hold model, seed, protocol, versions,
        the origin of the draws, and the groups left out with the reason: the predictive groups if
        a likelihood cannot be drawn from or the model observes only factors, the prior's groups if
        there is a ``pyro.factor``. Enumerated latents have no draws; log_likelihood sums over
        them. sample_stats and diagnostics are missing if the guide is degenerate or a prior is
        flat; the prior's groups are missing if a prior is flat.

    Raises:
        ValueError: a number is below 1, or coords or dims do not fit.
        ContractError: the pair breaks the contract, has no latent, or subsamples its data at
            random.

    Reference: ArviZ: a modular and flexible library for exploratory analysis of Bayesian models,
    Martin et al., 2026.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.export import to_datatree
        >>> tree = to_datatree(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=30)
        >>> dict(tree.posterior.z.sizes), tree.diagnostics.pareto_k.shape
        ({'chain': 1, 'draw': 30, 'data': 4, 'z_dim_0': 2}, (4,))
    """
    num_samples = check_number("to_datatree: num_samples", num_samples)
    num_predictive = optional(
        check_number, "to_datatree: num_predictive", num_predictive
    )
    _check_mapping("coords", coords)
    _check_mapping("dims", dims)
    prepared = prepared_of("to_datatree", lvm, data, batch_size=batch_size, seed=seed)
    pair, fixed, layout = prepared.lvm, prepared.data, prepared.layout
    _check_layout(pair, layout, resampled)
    num_predictive = num_predictive or min(num_samples, _affordable_draws(fixed))
    with prepared.running():
        first = prepared.part(0)
        missing = missing_groups(pair, first.batch, layout)
        request = Request(num_samples, num_predictive, resampled, missing)
        found = [groups_of(first, request)]
        for number in range(1, len(prepared.batches)):
            found.append(groups_of(prepared.part(number), request))
    groups = join(found)
    groups |= constant_data(fixed.x, groups.get("observed_data", {}))
    names = dimension_names(groups, layout.data_plate, dims or {})
    used = check_coords(groups, names, coords or {})
    attrs = {
        **library_versions(),
        "model": f"{type(pair).__module__}.{type(pair).__qualname__}",
        **protocol_of(fixed),
        "seed": prepared.seed,
        "draws": _origin(num_samples, resampled),
        "weights": "per datum" if layout.local else "of all data together",
        **{f"no {group}": reason for group, reason in missing.items()},
    }
    return build_tree(groups, names, used, attrs)


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping | None):
        raise ValueError(
            f"to_datatree: {name} must be a dict; got a {type(value).__name__}."
        )


def _affordable_draws(data: Data) -> int:
    """The default limit of predictive draws."""
    return max(
        1, _MAX_PREDICTED // sum(tensor.numel() for _, tensor in named_tensors(data.x))
    )


def _check_layout(lvm: object, layout: Layout, resampled: bool) -> None:
    if layout.subsample:
        raise ContractError(
            f"to_datatree: {type(lvm).__name__} subsamples its plate "
            f"{next(iter(layout.subsample))!r} at random, so its draws belong to a part of the "
            "data; export a model whose plate uses all of it."
        )
    if not layout.latents:
        raise ContractError(
            f"to_datatree: the guide of {type(lvm).__name__} draws no latent, so there is no "
            "posterior to export."
        )
    if resampled:
        require_weights("to_datatree: resampled=True", lvm, layout)


def _origin(num_samples: int, resampled: bool) -> str:
    if not resampled:
        return "of the guide"
    return (
        f"resampled by their weights, with replacement, from {PROPOSALS * num_samples} of the "
        "guide"
    )
