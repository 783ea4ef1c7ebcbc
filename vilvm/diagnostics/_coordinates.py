"""Names of data and of components, from the coordinates that a user gives.

``coords`` and ``dims`` mean what they mean in ``vilvm.export``: the dimension of the plate over
the data has that plate's name, and any other dimension of a site is called "SITE_dim_0",
"SITE_dim_1", and so on, unless ``dims`` names it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

__all__ = [
    "NAMELESS",
    "Coordinates",
    "SiteDims",
    "datum",
    "named_sites",
    "own_name",
]

# Pyro's reparametrisations draw these in place of a latent, which the model then observes.
_SUFFIXES = ("_decentered", "_base")

# a component such as "theta[3]" or "z[1,2]"
_COMPONENT = re.compile(r"([^\s=,\[\]()]+)\[(\d+(?:,\d+)*)\]")


class SiteDims(NamedTuple):
    """The dimensions of one draw of a site, in the order of its index in a component's name.

    Arguments:
        sizes: their sizes.
        data_axis: which of them is over the data; None if none is.
    """

    sizes: tuple[int, ...]
    data_axis: int | None = None


class Coordinates(NamedTuple):
    """The user's names.

    Arguments:
        coords: by dimension, the name of each index.
        dims: by site, the names of its dimensions.
        plate: the plate over the data.
    """

    coords: Mapping[str, tuple[str, ...]] = {}
    dims: Mapping[str, tuple[str, ...]] = {}
    plate: str = ""

    @classmethod
    def of(
        cls,
        who: str,
        coords: Mapping[str, Sequence[Any]] | None,
        dims: Mapping[str, Sequence[str]] | None,
        sites: Mapping[str, SiteDims],
        data: tuple[str | None, int],
    ) -> "Coordinates":
        """The names, checked against the sites.

        Arguments:
            who: names the caller in errors.
            coords: as given by the user.
            dims: as given by the user; sites that are not latents are checked by the export.
            sites: the latents.
            data: the plate over the data, and the number of all data.

        Raises:
            ValueError: a name does not fit.
        """
        plate, given = data[0] or "", _checked_dims(who, dims, sites)
        named = {
            site: _dims_of(site, shape, given.get(site), plate)
            for site, shape in sites.items()
        }
        sizes = {
            dim: size
            for site, own in named.items()
            for dim, size in zip(own, sites[site].sizes, strict=True)
        }
        sizes[plate] = data[1]
        names = _checked_coords(
            who, coords, sizes, {d for v in given.values() for d in v}
        )
        return cls(names, {**given, **named}, plate)

    @property
    def of_data(self) -> tuple[str, ...]:
        """The name of each datum in the full data set; empty if they have numbers only."""
        return tuple(self.coords.get(self.plate, ())) if self.plate else ()

    @property
    def own_dims(self) -> dict[str, tuple[str, ...]]:
        """The names of each site's dimensions, without that of the data."""
        return {
            site: tuple(dim for dim in dims if dim != self.plate)
            for site, dims in self.dims.items()
        }

    def of_columns(self, sites: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The names of the columns of observed sites, where they have names."""
        found = {}
        for site in sites:
            dims = self.dims.get(site, (f"{site}_dim_0",))
            if len(dims) == 1 and dims[0] in self.coords:
                found[site] = self.coords[dims[0]]
        return found

    def renamed(self, text: str) -> str:
        """A text with every component named: "theta[3]" becomes "theta[Choate]"."""
        return _COMPONENT.sub(self._component, text) if self.coords else text

    def apply(self, found: Any) -> Any:
        """The result of a diagnostic with the names of its components and data."""
        changes: dict[str, Any] = {}
        if isinstance(getattr(found, "names", None), tuple):
            changes["names"] = tuple(map(self.renamed, found.names))
        if hasattr(found, "data_names") and self.of_data:
            changes["data_names"] = self.of_data
        return replace(found, **changes) if changes and self.coords else found

    def _component(self, found: re.Match[str]) -> str:
        site, index = found[1], [int(i) for i in found[2].split(",")]
        dims = self.dims.get(site, ())
        if len(dims) != len(index):
            return found[0]
        parts = [
            self.coords[dim][i] if dim in self.coords else str(i)
            for dim, i in zip(dims, index, strict=True)
        ]
        return f"{site}[{','.join(parts)}]"


NAMELESS = Coordinates()


def named_sites(
    latents: Mapping[str, Tensor], data_axes: Mapping[str, int], local: bool
) -> dict[str, SiteDims]:
    """The dimensions of latents, as the names of their components have them.

    Arguments:
        latents: one or more draws, shape (S, ...).
        data_axes: the axis of the data in these draws.
        local: whether every latent belongs to one datum, so that names leave out the datum.
    """
    found = {}
    for name, value in latents.items():
        sizes, axis = tuple(value.shape[1:]), data_axes.get(name)
        if axis is None:
            found[name] = SiteDims(sizes)
        elif local:
            found[name] = SiteDims((*sizes[: axis - 1], *sizes[axis:]))
        else:
            found[name] = SiteDims(sizes, axis - 1)
    return {own_name(name): shape for name, shape in found.items()} | found


def own_name(site: str) -> str:
    """The name that the user gave to a latent which is drawn in standard units."""
    return next((site.removesuffix(s) for s in _SUFFIXES if site.endswith(s)), site)


def datum(found: Any, index: int) -> str:
    """The name of a datum in a result, or its index in the full data set."""
    return found.data_names[index] if found.data_names else str(index)


def _dims_of(
    site: str, shape: SiteDims, given: tuple[str, ...] | None, plate: str
) -> tuple[str, ...]:
    events = len(shape.sizes) - (shape.data_axis is not None)
    names = list(given or [f"{site}_dim_{i}" for i in range(events)])
    if shape.data_axis is not None:
        names.insert(shape.data_axis, plate)
    return tuple(names)


def _checked_dims(
    who: str,
    dims: Mapping[str, Sequence[str]] | None,
    sites: Mapping[str, SiteDims],
) -> dict[str, tuple[str, ...]]:
    found = {site: tuple(map(str, names)) for site, names in (dims or {}).items()}
    for site in set(found) & set(sites):
        shape = sites[site]
        expected = len(shape.sizes) - (shape.data_axis is not None)
        if len(found[site]) != expected:
            raise ValueError(
                f"{who}: dims gives {list(found[site])} for {site!r}, which has {expected} "
                "dimensions besides draws and data."
            )
    return found


def _checked_coords(
    who: str,
    coords: Mapping[str, Sequence[Any]] | None,
    sizes: Mapping[str, int],
    others: set[str],
) -> dict[str, tuple[str, ...]]:
    """The names by dimension.

    Arguments:
        who: names the caller in errors.
        coords: as given by the user.
        sizes: of the dimensions of latents and data.
        others: dimensions of other sites.
    """
    found = {dim: tuple(map(str, names)) for dim, names in (coords or {}).items()}
    for dim, names in found.items():
        if dim not in sizes and dim not in others:
            known = sorted(name for name in {*sizes, *others} if name)
            raise ValueError(
                f"{who}: coords has {dim!r}, which is not a dimension; there are {known}."
            )
        if len(names) != sizes.get(dim, len(names)):
            raise ValueError(
                f"{who}: {len(names)} coordinates for dimension {dim!r}, which has size "
                f"{sizes[dim]}."
            )
    return found
