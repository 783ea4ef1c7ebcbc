"""The plate over the data: which of a model's plates it is, its size, its dimension."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from vilvm._runtime.random import preserved_rng
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError
from vilvm.weights._sites import Sites, latents_of, observed_of, own_dims, sites_of
from vilvm.weights._traces import run_once

__all__ = [
    "DataPlate",
    "find_data_plate",
    "in_plate",
    "plate_axis",
    "read_data_plate",
]


def in_plate(site: Any, plate: str) -> bool:
    """Whether a site stands in the plate of this name."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def plate_axis(site: Any, frame: Any) -> int:
    """The index, from the left, of a plate around a site among the site's own dimensions."""
    return sorted(own_dims(site)).index(frame.dim)


def _size_of(frame: Any, sites: Iterable[Any]) -> int:
    """The size of a plate; if it declares none, the size of the sites within it."""
    if frame.size > 0:
        return frame.size
    shapes = [site["fn"].batch_shape for site in sites if in_plate(site, frame.name)]
    return max([s[frame.dim] for s in shapes if len(s) >= -frame.dim], default=1)


def _full_size_of(frame: Any, sites: Iterable[Any]) -> int:
    """The full size that a plate declares; if it declares none, its size."""
    if frame.full_size and frame.full_size > 0:
        return frame.full_size
    return _size_of(frame, sites)


def find_data_plate(
    model: Any, batch: Any, observed: list[Any], name: str | None = None
) -> Any:
    """The plate over the data, or None.

    It is one of the plates around every observed site: the one called `name`, or by default the
    one of the batch's size.

    Raises:
        ContractError: several plates have the batch's size, and it is unknown which of them grows
            with the batch.
    """
    common = _around_all(observed)
    if name is not None:
        return next((frame for frame in common if frame.name == name), None)
    lengths = {tensor.shape[0] for tensor in tensors_of(batch) if tensor.dim()}
    matching = [f for f in common if {_size_of(f, observed), f.full_size} & lengths]
    if len(matching) > 1:
        return _only_data_plate(model, batch, matching, observed)
    return next(iter(matching or common), None)


def _around_all(observed: list[Any]) -> list[Any]:
    """The vectorised plates around every observed site."""
    if not observed:
        return []
    return [
        frame
        for frame in observed[0]["cond_indep_stack"]
        if frame.vectorized
        and frame.name != "_monte_carlo"
        and all(in_plate(site, frame.name) for site in observed[1:])
    ]


def _only_data_plate(
    model: Any, batch: Any, plates: list[Any], observed: list[Any]
) -> Any:
    """Picks the plate over the data among several plates of the batch's size."""
    found = (
        _growing_with_batch(model, batch, plates)
        or [frame for frame in plates if frame.name == "data"]
        or _along_rows(batch, plates, observed)
    )
    if len(found) != 1:
        raise ContractError(
            f"The plates {' and '.join(repr(f.name) for f in plates)} all have the batch's size, "
            'so it is unknown which of them is over the data: name that one "data".'
        )
    return found[0]


def _growing_with_batch(model: Any, batch: Any, plates: list[Any]) -> list[Any]:
    """The plates that are larger in a batch with one more datum."""
    data = Data(batch)
    if not data.divisible:
        return []
    first_twice = torch.arange(-1, len(data)).clamp(min=0)
    longer = data.subset(first_twice).x
    with preserved_rng(data.device), suppress(ContractError):
        before, after = _plate_sizes(model, batch), _plate_sizes(model, longer)
        return [
            f for f in plates if f.name in after and after[f.name] != before[f.name]
        ]
    return []


def _along_rows(batch: Any, plates: list[Any], observed: list[Any]) -> list[Any]:
    """The plates along the first dimension of the tensors that the model observes unchanged."""
    given = {id(tensor) for tensor in tensors_of(batch)}
    unchanged = [site for site in observed if id(site["value"]) in given]
    first_dims = {site["fn"].event_dim - site["value"].dim() for site in unchanged}
    return [frame for frame in plates if first_dims == {frame.dim}]


def _plate_sizes(model: Any, batch: Any) -> dict[str, tuple[int, int]]:
    """The size and the full size of every plate of the model by name."""
    trace, _ = run_once(model, batch)
    sites = list(sites_of(trace).values())
    sizes = {}
    for site in sites:
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                sizes[frame.name] = _size_of(frame, sites), frame.full_size
    return sizes


class DataPlate(NamedTuple):
    """The fields of a Layout that describe the plate over the data."""

    name: str | None
    dim: int | None
    num_data: int
    full_size: int
    local: bool
    scale: Any


def read_data_plate(model: Sites, guide: Sites, frame: Any) -> DataPlate:
    """The fields of a Layout for the plate over the data; `frame` is that plate, or None."""
    observed = list(observed_of(model).values())
    if frame is None:
        return DataPlate(None, None, 1, 1, False, observed[0]["scale"])
    inside = [site for site in observed if in_plate(site, frame.name)]
    drawn = [*latents_of(model).values(), *guide.values()]
    return DataPlate(
        name=frame.name,
        dim=frame.dim,
        num_data=_size_of(frame, inside),
        full_size=_full_size_of(frame, inside),
        local=all(in_plate(site, frame.name) for site in drawn),
        scale=(inside or observed)[0]["scale"],
    )
