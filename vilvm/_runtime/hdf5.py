"""What an HDF5 file of others may hold before anything of it is opened: groups and arrays, each
once, all in the file itself.

An external link or raw storage reads any file of this machine into the result; a group that links
to one around it is walked for ever; an array that is declared larger than memory ends the process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import torch

from vilvm._runtime.memory import free_bytes

__all__ = ["check_contents", "root_attributes"]


def check_contents(path: Path) -> None:
    """Raises ValueError, which says what, unless all that the file holds is in it, once, and fits
    in memory.

    Raises:
        OSError: it is no HDF5 file.
    """
    with h5py.File(path, "r") as file:
        size = sum(array.nbytes for array in _arrays(file, {_address(file)}))
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"its arrays take {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            "free"
        )


def root_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the file's root."""
    with h5py.File(path, "r") as file:
        return dict(file.attrs)


def _arrays(group: Any, met: set[Any]) -> Iterator[Any]:
    """Every array below a group; raises ValueError if one is linked to, or kept elsewhere."""
    for name in group:
        where = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{where} is a link to another place, which is not followed")
        found = group[name]
        address = _address(found)
        if address in met:
            raise ValueError(f"{where} is a second link to one object, which is not followed")
        met.add(address)
        if isinstance(found, h5py.Group):
            yield from _arrays(found, met)
        elif isinstance(found, h5py.Dataset):
            if found.external or found.is_virtual:
                raise ValueError(f"the numbers of {where} are in another file, which is not read")
            yield found


def _address(found: Any) -> Any:
    info: Any = h5py.h5o.get_info(found.id)  # pyright: ignore[reportAttributeAccessIssue]
    return info.fileno, info.addr
