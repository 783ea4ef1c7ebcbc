"""Names and coordinates of dimensions, and the tree of groups with named dimensions."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xarray as xr
from arviz_base import dict_to_dataset

from vilvm.export._variables import SAMPLED, Groups, Variable

__all__ = ["build_tree", "check_coords", "dimension_names"]

_ORDER = (*SAMPLED, "observed_data", "constant_data", "diagnostics")

Dims = dict[str, dict[str, list[str]]]


def dimension_names(
    groups: Groups, plate: str | None, given: Mapping[str, Sequence[str]]
) -> Dims:
    """By group and variable, the names of its dimensions except chain and draw.

    Arguments:
        groups: the variables.
        plate: the plate over the data, whose name its dimension gets.
        given: the user's names, by site.

    Raises:
        ValueError: a name of `given` does not fit.
    """
    sites = sorted({name for variables in groups.values() for name in variables})
    unknown = sorted(set(given) - set(sites))
    if unknown:
        raise ValueError(
            f"to_datatree: dims names dimensions of {unknown[0]!r}, which is not a site; there "
            f"are {sites}."
        )
    taken = {*sites, "chain", "draw", str(plate)}
    dims: Dims = defaultdict(dict)
    for group, variables in groups.items():
        own_names = {} if group == "log_likelihood" else given
        for name, variable in variables.items():
            axes = list(range(int(group in SAMPLED), variable.values.ndim))
            own = list(own_names.get(name, []))
            if own:
                _check_own_names(name, own, variable, axes, taken)
            dims[group][name] = _names(name, variable, axes, own, str(plate))
    return dims


def _names(
    site: str, variable: Variable, axes: list[int], own: list[str], plate: str
) -> list[str]:
    """The names of the axes of one variable: the user's own, or numbered ones."""
    events = [axis for axis in axes if axis != variable.data_axis]
    names = own or [f"{site}_dim_{i}" for i in range(len(events))]
    by_axis = dict(zip(events, names, strict=True))
    return [by_axis.get(axis, plate) for axis in axes]


def _check_own_names(
    site: str, names: list[str], variable: Variable, axes: list[int], taken: set[str]
) -> None:
    """Checks the user's names of the dimensions of a variable."""
    expected = sum(axis != variable.data_axis for axis in axes)
    if len(names) != expected:
        raise ValueError(
            f"to_datatree: dims gives {names} for {site!r}, which has {expected} dimensions "
            "besides draws and data."
        )
    clashes = sorted(taken & set(names))
    if len(set(names)) < len(names):
        clashes.append(names[0])
    if clashes:
        raise ValueError(
            f"to_datatree: {clashes[0]!r} in dims is taken; give another name."
        )


def check_coords(
    groups: Groups, dims: Dims, coords: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """The coordinates that the variables use; a warning names those that none uses.

    A name may be of another model of the same data, or misspelt.

    Raises:
        ValueError: a dimension has two sizes, or another number of coordinates.
    """
    sizes: dict[str, int] = {}
    for name, dim, size in _sizes(groups, dims):
        if sizes.setdefault(dim, size) != size:
            raise ValueError(
                f"to_datatree: dimension {dim!r} has size {sizes[dim]}, and size {size} in "
                f"{name!r}; give them two names in dims."
            )
    # xarray reads a tuple as (dims, data)
    used = {dim: [*values] for dim, values in coords.items() if dim in sizes}
    for dim, values in used.items():
        if len(values) != sizes[dim]:
            raise ValueError(
                f"to_datatree: {len(values)} coordinates for dimension {dim!r}, which has size "
                f"{sizes[dim]}."
            )
    unused = [dim for dim in coords if dim not in sizes]
    if unused:
        warnings.warn(
            f"to_datatree: coords of {', '.join(map(repr, unused))} are left out, because no "
            f"variable has such a dimension; there are {sorted(sizes)}.",
            stacklevel=3,
        )
    return used


def _sizes(groups: Groups, dims: Dims) -> Iterator[tuple[str, str, int]]:
    """Variable, dimension and size of every axis except those of chain and draw."""
    for group, variables in groups.items():
        for name, variable in variables.items():
            shape = variable.values.shape[int(group in SAMPLED) :]
            for dim, size in zip(dims[group][name], shape, strict=True):
                yield name, dim, size


def build_tree(
    groups: Groups,
    dims: Dims,
    coords: dict[str, Any],
    attrs: dict[str, Any],
    chains: int = 1,
) -> xr.DataTree:
    """The groups as a DataTree; draws of several chains come one chain after another."""
    origin = {
        key: attrs[key] for key in ("inference_library", "inference_library_version")
    }
    datasets: dict[str, xr.Dataset] = {}
    for group in sorted(groups, key=_ORDER.index):
        values = {name: variable.values for name, variable in groups[group].items()}
        names, sampled = dims[group], []
        if group in SAMPLED:
            sampled = ["chain", "draw"]
            values = {
                name: array.reshape(chains, -1, *array.shape[1:])
                for name, array in values.items()
            }
        datasets[group] = dict_to_dataset(
            {_public(name): array for name, array in values.items()},
            attrs=origin,
            coords=coords,
            dims={
                _public(name): [*sampled, *map(_public, names[name])] for name in values
            },
            sample_dims=[],
            check_conventions=False,  # many short chains
        )
        datasets[group].attrs["sample_dims"] = sampled  # ArviZ's plots read it
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs = {
        **attrs,
        "created_at": next(iter(datasets.values())).attrs["created_at"],
    }
    return tree


def _public(name: str) -> str:
    """A name without slashes, which would make groups in a DataTree."""
    return name.replace("/", ".")
