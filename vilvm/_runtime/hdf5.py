"""Checks of an untrusted HDF5 file before it is opened.

The file may hold groups and arrays, each once, and all contents must be in the file itself. An
external link or external storage could otherwise read any file of this machine into the result, a
group that links to its parent would be traversed for ever, and an array larger than memory would
end the process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import torch

from vilvm._runtime.memory import free_bytes

__all__ = ["check_contents", "root_attributes"]


def check_contents(path: Path) -> None:
    """Checks that all contents of a file are in the file itself, once, and fit in memory.

    Raises:
        ValueError: they are elsewhere, linked twice or too large; the message names the entry.
        OSError: the file is not an HDF5 file.
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
    """Yields every array below a group; raises ValueError for links and external storage."""
    for name in group:
        where = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(
                f"{where} is a link to another place, which is not followed"
            )
        item = group[name]
        address = _address(item)
        if address in met:
            raise ValueError(
                f"{where} is a second link to one object, which is not followed"
            )
        met.add(address)
        if isinstance(item, h5py.Group):
            yield from _arrays(item, met)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(
                    f"the numbers of {where} are in another file, which is not read"
                )
            yield item


def _address(item: Any) -> Any:
    info: Any = h5py.h5o.get_info(item.id)  # pyright: ignore[reportAttributeAccessIssue]
    return info.fileno, info.addr
