"""The names of the latents, data and columns of a pair."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vilvm.data.data import Data
from vilvm.diagnostics._coordinates import NAMELESS, Coordinates, named_sites
from vilvm.lvm import ContractError
from vilvm.weights import Layout, observed, posterior
from vilvm.weights.generated_quantities import replay

__all__ = ["names_of_pair"]


def names_of_pair(
    who: str,
    pair: tuple[Any, Any, Layout],
    data: Data,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
    *,
    jointly: bool = False,
) -> Coordinates:
    """The names that the user gives; where there is none, the labels and columns of the data.

    Arguments:
        who: names the caller in errors.
        pair: the pair, a batch of the data, and their layout.
        data: all data.
        coords: by dimension, the name of each index.
        dims: by site, the names of its dimensions.
        jointly: whether a component's index has the datum also where each has its own latents.

    Raises:
        ValueError: a name does not fit.
    """
    lvm, batch, layout = pair
    own_coords, own_dims = _own_names(pair, data)
    coords, dims = {**own_coords, **(coords or {})}, {**own_dims, **(dims or {})}
    if not (coords or dims):
        return NAMELESS
    axes = dict(layout.data_axes)
    one = posterior(lvm, batch, 1) if layout.latents else {}
    # A likelihood without a sampler cannot be replayed; then only latents have names.
    with suppress(ContractError):
        run = replay(lvm, batch, one, num_samples=1, layout=layout)
        one, axes = one | run.deterministics, axes | run.data_axes
    sites = named_sites(one, axes, layout.local and not jointly)
    return Coordinates.of(who, coords, dims, sites, (layout.data_plate, len(data)))


def _own_names(
    pair: tuple[Any, Any, Layout], data: Data
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coordinates and dimensions of the data's own row labels and names of columns."""
    lvm, batch, layout = pair
    coords: dict[str, Any] = {}
    dims: dict[str, Any] = {}
    if data.index is not None and layout.data_plate:
        coords[layout.data_plate] = data.index
    if isinstance(data.columns, tuple) and len(layout.observed) == 1:
        ((site, values),) = observed(lvm, batch).items()
        if tuple(values.shape[1:]) == (len(data.columns),):
            dims[site] = (f"{site}_dim_0",)
            coords[dims[site][0]] = data.columns
    return coords, dims
