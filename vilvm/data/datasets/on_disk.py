"""Data larger than memory: ``.npy`` files and ``.zarr`` folders that stay on disk, of which the
rows of a batch are read.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_path
from vilvm.data.data import Data, Transform
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import tensors_of

__all__ = ["on_disk"]

_SAMPLED_ROWS = 64  # of a file, that its fingerprint looks at
_SAMPLED_NUMBERS = 4096  # of each of those rows, at most


def on_disk(
    source: Any,
    *,
    transform: Transform | None = None,
    name: str | None = None,
    split: str = "all",
    flatten: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """Data that stay in their files, with one datum a row, for ``fit(..., batch_size=...)`` and
    ``evaluate``.

    ``fit`` reads the rows of a batch, in the same order as if they were in memory, while the steps
    before it are taken. Numbers are handed out as `dtype` and not scaled: bytes of a picture are 0
    to 255. NaN and infinity are found when their row is read. A file must not be written to while
    it is in use, which is looked for at each read (in a ``.zarr`` folder only what changes the
    folder itself is seen).

    Its fingerprint, by which a run that is resumed knows its data, is of the shape, the type and
    64 evenly spaced rows (the first 4096 numbers of each): a change elsewhere goes unseen.

    Arguments:
        source: the path of a ``.npy`` file or a ``.zarr`` folder (one array; needs the package
            zarr), or a tuple or dict of such paths.
        transform: one that is drawn anew for each batch, or None.
        name: of the data set; by default the (first) file's.
        split: "train", "validation", "test" or "all".
        flatten: whether rows of more than one dimension are made one, their shape kept as
            ``image_shape`` if `source` is one path.
        dtype: what the numbers become.

    Raises:
        ValueError: a file is missing, empty, truncated, of another kind, has no rows, or holds
            what is no real number.

    Example:
        >>> import numpy as np, pathlib, tempfile, torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "x.npy")
        ...     np.save(path, np.zeros((40, 6), dtype=np.uint8))
        ...     vilvm.fit(VAE(data_dim=6, latent_dim=2), vilvm.data.datasets.on_disk(path), batch_size=16, epochs=2).steps
        6
    """
    if isinstance(source, Mapping):
        x: Any = {key: _Stored(value, flatten, dtype) for key, value in source.items()}
    elif isinstance(source, list | tuple):
        x = tuple(_Stored(value, flatten, dtype) for value in source)
    else:
        x = _Stored(source, flatten, dtype)
    files = tensors_of(x)
    if not files:
        raise ValueError("on_disk: got no path; give one, or a tuple or dict of them.")
    lengths = {str(file.path): len(file) for file in files}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"on_disk: the files have different numbers of rows, {lengths}; give files with one "
            "datum a row each."
        )
    inner = files[0].stored.shape[1:]
    shape = tuple(inner) if flatten and len(files) == 1 and len(inner) > 1 else None
    return Data(x, name or files[0].path.stem, split, transform, image_shape=shape)


class _Stored(StreamedTensor):
    """The rows of one file."""

    def __init__(self, source: Any, flatten: bool, dtype: torch.dtype):
        if not isinstance(dtype, torch.dtype) or dtype.is_complex or dtype == torch.bfloat16:
            raise ValueError(
                "on_disk: dtype must be a real torch.dtype that NumPy has, such as "
                f"torch.float32; got {dtype!r}."
            )
        self.path = check_path("on_disk: source", source)
        self.stored = _open(self.path)
        kind, sizes = self.stored.dtype, tuple(self.stored.shape)
        if kind.kind not in "fiub":
            raise ValueError(
                f"{self.path}: holds numbers of type {kind}, which no model here takes; save real "
                "numbers or integers."
            )
        if not sizes or not math.prod(sizes):
            raise ValueError(
                f"{self.path}: is an array of shape {sizes}; save one datum a row, and at least "
                "one."
            )
        self.shape = torch.Size(
            (sizes[0], math.prod(sizes[1:])) if flatten and len(sizes) > 2 else sizes
        )
        self.dtype, self._kind = dtype, torch.empty(0, dtype=dtype).numpy().dtype
        self._state = _state(self.path)

    def __repr__(self) -> str:
        return f"on_disk({str(self.path)!r})"

    def to(self, device: torch.device | str) -> "_Stored":
        other = object.__new__(_Stored)
        vars(other).update(vars(self), device=torch.device(device))
        return other

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            rows, found = range(len(self))[index], self._read(index)
        else:
            rows = _places(index, len(self))
            order = rows.argsort(kind="stable")  # the file is read from front to back
            found = np.empty((len(rows), *self.shape[1:]), self._kind)
            found[order] = self._read(rows[order])
        self._check(found, rows)
        return torch.from_numpy(found).to(self.device)

    def _read(self, index: Any) -> np.ndarray:
        """A copy of some rows.

        A file that was cut short would end the process, not raise: it is looked at before.
        """
        if _state(self.path) != self._state:
            raise ValueError(
                f"{self.path}: was written to, or removed, while it was in use; start again with "
                "on_disk(...)."
            )
        try:
            picked = (
                self.stored[index]
                if isinstance(index, slice) or isinstance(self.stored, np.ndarray)
                else self.stored.oindex[index]
            )
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{self.path}: cannot be read ({error}); write it again.") from None
        # what does not fit becomes infinite, and is refused below
        with np.errstate(over="ignore", invalid="ignore"):
            picked = np.asarray(picked)
            found = picked.astype(self._kind)
        self._check_range(picked, found)
        return found.reshape(len(found), *self.shape[1:])

    def _check_range(self, picked: np.ndarray, found: np.ndarray) -> None:
        """Raises ValueError if an integer type cannot hold a number; fractions are cut off."""
        if self.dtype.is_floating_point or (
            picked.dtype.kind in "iub" and np.can_cast(picked.dtype, found.dtype)
        ):
            return
        altered = found != (np.trunc(picked) if picked.dtype.kind == "f" else picked)
        if altered.any():
            raise ValueError(
                f"{self.path}: holds {picked[altered].flat[0]}, which is no {self.dtype}; give "
                "on_disk a dtype that takes all of its numbers."
            )

    def _check(self, found: np.ndarray, rows: Any) -> None:
        if not self.dtype.is_floating_point or np.isfinite(found).all():
            return
        place = int((~np.isfinite(found)).reshape(len(found), -1).any(1).argmax())
        raise ValueError(
            f"{self.path}: row {rows[place]} holds NaN or infinity (as {self.dtype}); remove or "
            "impute such values first."
        )

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256(str(self.stored.dtype.newbyteorder("=")).encode())
        for row in sorted({round(i) for i in np.linspace(0, len(self) - 1, _SAMPLED_ROWS)}):
            numbers = self._read(slice(row, row + 1)).reshape(-1)[:_SAMPLED_NUMBERS]
            digest.update(numbers.tobytes())
        return digest.digest()


def _places(index: Tensor, length: int) -> np.ndarray:
    """The rows that an index of a tensor picks: by a mask, or by places, which may count from the
    end.
    """
    if index.dtype == torch.bool:
        return index.cpu().numpy().nonzero()[0]
    places = index.cpu().numpy()
    return np.where(places < 0, places + length, places)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of last change; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _open(path: Path) -> Any:
    """The array in a file, mapped and not read."""
    if path.suffix.lower() not in (".npy", ".zarr"):
        raise ValueError(
            f"{path}: unknown kind of file {path.suffix!r}; give a .npy file or a .zarr folder."
        )
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    return _open_npy(path) if path.suffix.lower() == ".npy" else _open_zarr(path)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; give a file.") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be opened ({error.strerror}); see to its permissions."
        ) from None
    except (EOFError, ValueError, SyntaxError) as error:
        if "Python objects" in str(error):
            raise ValueError(
                f"{path}: holds pickled objects, which are not read; save a plain numeric array."
            ) from None
        if "empty" in str(error) and path.stat().st_size:
            raise ValueError(
                f"{path}: has no rows; save one datum a row, and at least one."
            ) from None
        raise ValueError(f"{path}: is empty, truncated or damaged; write it again.") from None


def _open_zarr(path: Path) -> Any:
    try:
        import zarr  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path}: reading .zarr needs the package zarr; install it (pip install "
            "'vilvm[zarr]')."
        ) from None
    try:
        return zarr.open_array(str(path), mode="r")
    except Exception as error:  # zarr has many, and other ones in each version
        raise ValueError(
            f"{path}: is no zarr array that can be read ({error}); write one array, not a group."
        ) from None
