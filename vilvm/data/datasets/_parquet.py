"""Parquet files, whose columns are compressed in groups of rows.

A single row cannot be read without its whole group, and batches are drawn from all rows. So the
numbers are copied once, one group at a time, to a temporary file of plain rows, which has no name
and vanishes with the process. Batches are then read as from a ``.npy`` file, in the same order.
"""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilvm._runtime.extras import require
from vilvm.data._frames import read_frame
from vilvm.data._numbers import Place

__all__ = ["ParquetRows"]

_ROWS = 2**14  # largest number of rows that are decoded at once


class ParquetRows:
    """The rows of a Parquet file, with the part of an array's interface that ``on_disk`` uses.

    Arguments:
        path: of the file.
        columns: their names; all by default.
        dtype: of the numbers.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file cannot be read, has no such column, or one that holds no numbers or
            lacks values; or the temporary folder has too little room.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None, dtype: torch.dtype):
        require("pyarrow", "parquet")
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(
                f"{path}: cannot be read as a Parquet file ({str(error).splitlines()[0]}); write "
                "it again."
            ) from None
        with file:
            self.columns = _chosen(path, file, columns)
            self.shape = (file.metadata.num_rows, len(self.columns))
            self.dtype = torch.empty(0, dtype=dtype).numpy().dtype
            self._row = self.shape[1] * self.dtype.itemsize
            self._lock, self._file = threading.Lock(), self._copied(path, file)
            self.index = _row_labels(file)

    def _copied(self, path: Path, source: Any) -> Any:
        """The temporary file with all numbers, row by row."""
        size, folder = self.shape[0] * self._row, tempfile.gettempdir()
        if size > shutil.disk_usage(folder).free:
            raise ValueError(
                f"{path}: its numbers take {size / 2**30:.1f} GiB as plain rows, more than is "
                f"free in the temporary folder {folder}; name one with more room in TMPDIR."
            )
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, copy.close)
        place = Place(str(path), torch.from_numpy(np.empty(0, self.dtype)).dtype)
        for batch in _batches(source, list(self.columns)):
            frame = batch.to_pandas(ignore_metadata=True)
            rows = read_frame(frame[list(self.columns)], place).values.numpy()
            copy.write(np.ascontiguousarray(rows, self.dtype))
        copy.flush()
        return copy

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = index
        if isinstance(index, slice):
            rows = np.arange(self.shape[0])[index]
        found = np.empty((len(rows), self.shape[1]), self.dtype)
        # successive rows are read at once
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        with self._lock:
            for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
                if stop > start:
                    self._file.seek(int(rows[start]) * self._row)
                    self._file.readinto(memoryview(found[start:stop]).cast("B"))
        return found


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    """The rows in order, a part of one group at a time, so that no group is read ahead."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(
            _ROWS, row_groups=[group], columns=columns, use_threads=False
        )


def _chosen(path: Path, file: Any, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns to read: without those that hold the row labels of a pandas frame."""
    there = [
        name for name in file.schema_arrow.names if name not in _label_columns(file)
    ]
    absent = [name for name in columns or () if name not in there]
    if absent:
        raise ValueError(f"{path}: has no column {absent[0]!r}; it has {there[:20]}.")
    return tuple(there if columns is None else columns)


def _label_columns(file: Any) -> list[str]:
    known = file.schema_arrow.pandas_metadata or {}
    return [name for name in known.get("index_columns", []) if isinstance(name, str)]


def _row_labels(file: Any) -> Any:
    """The row labels that pandas wrote, a pandas Index; None without any."""
    names = _label_columns(file)
    if len(names) != 1:
        return None
    return file.read(columns=[], use_pandas_metadata=True).to_pandas().index
