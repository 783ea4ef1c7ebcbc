"""Data larger than memory: files of NumPy, zarr, Parquet and AnnData that stay on disk.

Only the rows of a batch are read.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_path
from vilvm.data.data import Data, Transform
from vilvm.data.datasets._parquet import ParquetRows
from vilvm.data.from_anndata import from_anndata
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import tensors_of

__all__ = ["on_disk"]

_SAMPLED_ROWS = 64  # rows of a file that its fingerprint covers
_SAMPLED_NUMBERS = 4096  # largest number of values from each of these rows


def on_disk(
    source: Any,
    *,
    transform: Transform | None = None,
    name: str | None = None,
    split: str = "all",
    flatten: bool = True,
    dtype: torch.dtype = torch.float32,
    columns: Sequence[str] | None = None,
) -> Data:
    """Data that stay in their files, for ``fit(..., batch_size=...)`` and ``evaluate``.

    ``fit`` reads the rows of a batch while the previous steps run, in the same order as for data
    in memory. Numbers are converted to `dtype` and not scaled: bytes of a picture are 0 to 255.
    NaN and infinity raise when their row is read. A file must not change while it is in use; each
    read checks this (for a ``.zarr`` folder, only the folder itself).

    The fingerprint, which identifies the data of a resumed run, covers the shape, the type and 64
    evenly spaced rows (the first 4096 numbers of each). A change elsewhere is not detected.

    A ``.parquet`` file is a matrix of its numeric columns. Its numbers are copied once, group by
    group, to a file without a name in the temporary folder (``TMPDIR``), from which single rows
    can be read. Of a ``.h5ad`` file, X is read; ``vilvm.data.from_anndata`` reads layers and
    covariates. Both keep row labels and names of columns, and need pyarrow and anndata.

    Arguments:
        source: the path of a ``.npy`` file, a ``.zarr`` folder (one array; needs the package
            zarr), a ``.parquet`` file, or a tuple or dict of such paths; or that of a ``.h5ad``
            file; one datum a row.
        transform: a fresh transform, drawn anew for each batch, or None.
        name: of the data set; by default the name of the (first) file.
        split: "train", "validation", "test" or "all".
        flatten: whether rows of several dimensions are flattened; ``image_shape`` keeps their
            shape if `source` is one path.
        dtype: of the rows.
        columns: names of the columns of a ``.parquet`` file; all by default.

    Returns:
        The data, whose tensors are ``StreamedTensor``.

    Raises:
        ImportError: pyarrow or anndata is needed, and is not installed.
        ValueError: a file is missing, empty, truncated or of another kind, has no rows, lacks
            values, or holds some that are not real numbers.

    Examples:
        >>> import numpy as np, pathlib, tempfile, torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "x.npy")
        ...     np.save(path, np.zeros((40, 6), dtype=np.uint8))
        ...     data = vilvm.data.datasets.on_disk(path)
        ...     vilvm.fit(VAE(data_dim=6, latent_dim=2), data, batch_size=16, epochs=2).steps
        6
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".h5ad":
        data = from_anndata(
            source, name=name or Path(source).stem, split=split, dtype=dtype
        )
        return replace(data, transform=transform)
    x = _opened(source, _Reading(flatten, dtype, columns))
    files = tensors_of(x)
    if not files:
        raise ValueError("on_disk: got no path; give one, or a tuple or dict of them.")
    _check_lengths(files)
    inner = files[0].stored.shape[1:]
    shape = None
    if flatten and len(files) == 1 and len(inner) > 1:
        shape = tuple(inner)
    names = None
    if len(files) == 1:
        names = getattr(files[0].stored, "columns", None)
    return Data(
        x,
        name or files[0].path.stem,
        split,
        transform,
        image_shape=shape,
        index=_index_of(files),
        columns=names,
    )


class _Reading(NamedTuple):
    """How files are read; see ``on_disk``."""

    flatten: bool
    dtype: torch.dtype
    columns: Sequence[str] | None


def _opened(source: Any, reading: _Reading) -> Any:
    if isinstance(source, Mapping):
        return {key: _Stored(value, reading) for key, value in source.items()}
    if isinstance(source, list | tuple):
        return tuple(_Stored(value, reading) for value in source)
    return _Stored(source, reading)


def _index_of(files: list["_Stored"]) -> Any:
    """The row labels of the files; None if they have none."""
    indexes = [getattr(file.stored, "index", None) for file in files]
    known = [index for index in indexes if index is not None]
    if any(not index.equals(known[0]) for index in known):
        raise ValueError(
            "on_disk: the files have different row labels; write them in one order."
        )
    return known[0] if known else None


def _check_lengths(files: list["_Stored"]) -> None:
    lengths = {str(file.path): len(file) for file in files}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"on_disk: the files have different numbers of rows, {lengths}; give files with one "
            "datum a row each."
        )


class _Stored(StreamedTensor):
    """The rows of one file."""

    def __init__(self, source: Any, reading: _Reading):
        flatten, dtype, _ = reading
        if (
            not isinstance(dtype, torch.dtype)
            or dtype.is_complex
            or dtype == torch.bfloat16
        ):
            raise ValueError(
                "on_disk: dtype must be a real torch.dtype that NumPy has, such as "
                f"torch.float32; got {dtype!r}."
            )
        self.path = check_path("on_disk: source", source)
        self.stored = _open(self.path, reading)
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
        if flatten and len(sizes) > 2:
            sizes = (sizes[0], math.prod(sizes[1:]))
        self.shape = torch.Size(sizes)
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
            rows = _row_numbers(index, len(self))
            order = rows.argsort(kind="stable")  # the file is read from front to back
            found = np.empty((len(rows), *self.shape[1:]), self._kind)
            found[order] = self._read(rows[order])
        self._check(found, rows)
        return torch.from_numpy(found).to(self.device)

    def _read(self, index: Any) -> np.ndarray:
        """A copy of some rows.

        The file's state is checked first: reading a truncated file would end the process.
        """
        if _state(self.path) != self._state:
            raise ValueError(
                f"{self.path}: was changed or removed while it was in use; start again with "
                "on_disk(...)."
            )
        try:
            picked = self._picked(index)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{self.path}: cannot be read ({error}); write it again."
            ) from None
        # a number that does not fit becomes infinite, and _check refuses it
        with np.errstate(over="ignore", invalid="ignore"):
            picked = np.asarray(picked)
            converted = picked.astype(self._kind)
        self._check_range(picked, converted)
        return converted.reshape(len(converted), *self.shape[1:])

    def _picked(self, index: Any) -> Any:
        if isinstance(index, slice) or not hasattr(self.stored, "oindex"):
            return self.stored[index]
        return self.stored.oindex[index]  # zarr

    def _check_range(self, picked: np.ndarray, converted: np.ndarray) -> None:
        """Raises ValueError if an integer type cannot hold a number; fractions are cut off."""
        if self.dtype.is_floating_point:
            return
        if picked.dtype.kind in "iub" and np.can_cast(picked.dtype, converted.dtype):
            return
        whole = picked
        if picked.dtype.kind == "f":
            whole = np.trunc(picked)
        altered = converted != whole
        if altered.any():
            raise ValueError(
                f"{self.path}: holds {picked[altered].flat[0]}, which {self.dtype} cannot hold; "
                "give on_disk a dtype that holds all of its numbers."
            )

    def _check(self, values: np.ndarray, rows: Any) -> None:
        if not self.dtype.is_floating_point or np.isfinite(values).all():
            return
        first = int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
        raise ValueError(
            f"{self.path}: row {rows[first]} holds NaN or infinity (as {self.dtype}); remove or "
            "impute such values first."
        )

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256(str(self.stored.dtype.newbyteorder("=")).encode())
        for row in sorted(
            {round(i) for i in np.linspace(0, len(self) - 1, _SAMPLED_ROWS)}
        ):
            numbers = self._read(slice(row, row + 1)).reshape(-1)[:_SAMPLED_NUMBERS]
            digest.update(numbers.tobytes())
        return digest.digest()


def _row_numbers(index: Tensor, length: int) -> np.ndarray:
    """The row numbers that a mask, or a tensor of possibly negative indices, selects."""
    if index.dtype == torch.bool:
        return index.cpu().numpy().nonzero()[0]
    rows = index.cpu().numpy()
    return np.where(rows < 0, rows + length, rows)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None if the file was removed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _open(path: Path, reading: _Reading) -> Any:
    """The array in a file, memory-mapped or read by rows."""
    if path.suffix.lower() not in (".npy", ".zarr", ".parquet"):
        raise ValueError(
            f"{path}: unknown kind of file {path.suffix!r}; give a .npy, .parquet or .h5ad file, "
            "or a .zarr folder."
        )
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    if path.suffix.lower() == ".parquet":
        return ParquetRows(path, reading.columns, reading.dtype)
    if reading.columns is not None:
        raise ValueError(f"{path}: has no names of columns; leave columns out.")
    if path.suffix.lower() == ".npy":
        return _open_npy(path)
    return _open_zarr(path)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; give a file.") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions."
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
        raise ValueError(
            f"{path}: is empty, truncated or damaged; write it again."
        ) from None


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
    except Exception as error:  # zarr raises many kinds, which differ between versions
        raise ValueError(
            f"{path}: cannot be read as a zarr array ({error}); write one array, not a group."
        ) from None
