"""Reads arrays from untrusted ``.npy`` and ``.npz`` files.

The size in the header is compared with the size of the file before memory is allocated.
"""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilvm._runtime.memory import free_bytes

__all__ = ["read_npy", "read_npz"]

_DAMAGED = (
    EOFError,
    OSError,
    zipfile.BadZipFile,
    KeyError,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
)


def read_npy(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file, in memory.

    Raises:
        ValueError: the file is not a ``.npy`` file, is damaged, holds pickled objects, has another
            length than its header states, or does not fit in memory.
    """
    with _plain_errors(path), path.open("rb") as file:
        return _array(path, file, path.stat().st_size)


def read_npz(path: Path, keys: Any = None) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name: those that `keys(names)` picks, by default all.

    Raises:
        ValueError: see ``read_npy``.
    """
    with _plain_errors(path), zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): info for info in archive.infolist()
        }
        picked = list(members)
        if keys is not None:
            picked = keys(picked)
        arrays = {}
        for name in picked:
            with archive.open(members[name]) as file:
                arrays[name] = _array(path, file, members[name].file_size)
        return arrays


def _array(path: Path, file: Any, size: int) -> np.ndarray:
    """The array in an open file of `size` bytes."""
    read = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(file) == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(
            f"{path}: holds pickled objects, which are not read; save a plain numeric array."
        )
    numbers = math.prod(shape)
    if min(shape, default=0) < 0 or numbers * dtype.itemsize != size - file.tell():
        raise ValueError(
            f"{path}: is truncated or damaged: its length does not match the shape {shape} in its "
            "header; write it again."
        )
    _check_memory(path, size)
    array = np.empty(0, dtype)
    if numbers:
        array = np.frombuffer(file.read(size), dtype=dtype, count=numbers)
    if by_columns:
        return array.reshape(shape, order="F")
    return array.reshape(shape)


def _check_memory(path: Path, size: int) -> None:
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"{path}: holds {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are "
            "free; leave it on disk, vilvm.data.datasets.on_disk."
        )


class _plain_errors:
    """A context that turns the errors of numpy and zipfile into one ValueError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{self.path}: there is no such file.") from None
        if isinstance(error, IsADirectoryError):
            raise ValueError(f"{self.path}: is a folder; give a file.") from None
        damaged = isinstance(error, _DAMAGED) or (
            isinstance(error, ValueError) and not str(error).startswith(str(self.path))
        )
        if damaged:
            raise ValueError(
                f"{self.path}: is empty, truncated or damaged; write it again as a plain numeric "
                "array."
            ) from None
