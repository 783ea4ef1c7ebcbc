"""Rows that are made when they are read: of a sparse matrix, a backed AnnData, a torch Dataset."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm.data._numbers import Place, as_float
from vilvm.data.streamed import StreamedTensor

__all__ = ["MatrixRows", "RowSource", "is_sparse", "row_numbers", "rows_of_matrix"]

_SAMPLED_ROWS = 64  # rows that a fingerprint covers, as for data on disk


def row_numbers(index: Tensor | slice, length: int) -> np.ndarray:
    """The row numbers, from 0, that a slice, a mask or a tensor of indices selects."""
    if isinstance(index, slice):
        return np.arange(length)[index]
    if index.dtype == torch.bool:
        return index.cpu().numpy().nonzero()[0]
    rows = index.cpu().numpy()
    return np.where(rows < 0, rows + length, rows)


def is_sparse(x: Any) -> bool:
    """Whether a value is a sparse matrix or array of SciPy, or one in a file of AnnData."""
    return hasattr(x, "format") and hasattr(x, "dtype") and hasattr(x, "shape")


class RowSource(StreamedTensor):
    """Rows that `read(row numbers)` makes, in the order of the numbers.

    Arguments:
        read: of sorted row numbers without repeats; may be called from another thread.
        shape: of the whole.
        dtype: of the rows.
        digest: identifies the rows; None to digest some of them.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        digest: bytes | None = None,
    ):
        self._read, self._digest = read, digest
        self.shape, self.dtype = torch.Size(shape), dtype

    def __repr__(self) -> str:
        return f"rows of shape {tuple(self.shape)}, read in batches"

    def to(self, device: torch.device | str) -> "RowSource":
        other = object.__new__(type(self))
        vars(other).update(vars(self), device=torch.device(device))
        return other

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows, places = np.unique(row_numbers(index, len(self)), return_inverse=True)
        found = self._read(rows)
        if not np.array_equal(places, np.arange(len(rows))):
            found = found[torch.from_numpy(places)]
        return found.to(self.device)

    def fingerprint(self) -> bytes:
        if self._digest is not None:
            return self._digest
        digest = hashlib.sha256()
        for row in sorted(
            {round(i) for i in np.linspace(0, len(self) - 1, _SAMPLED_ROWS)}
        ):
            digest.update(self._read(np.array([row])).contiguous().numpy().tobytes())
        return digest.digest()


class MatrixRows(RowSource):
    """The rows of a matrix that is sparse or in a file, each dense once it is read.

    Arguments:
        matrix: indexed by an array of row numbers.
        place: for messages, and the type of the rows.
    """

    def __init__(self, matrix: Any, place: Place):
        self._matrix, self._place = matrix, place
        super().__init__(self._dense, matrix.shape, place.float_type)

    def _dense(self, rows: np.ndarray) -> Tensor:
        picked = self._matrix[rows]
        if is_sparse(picked):
            picked = picked.toarray()
        found = as_float(np.asarray(picked), self._place)
        if not bool(found.isfinite().all()):
            row = rows[int((~found.isfinite()).any(1).nonzero()[0])]
            raise self._place.error(
                f"row {row} holds NaN or infinity; remove or impute such values first."
            )
        return found


def rows_of_matrix(matrix: Any, place: Place) -> MatrixRows:
    """The rows of a sparse matrix in memory, checked.

    Raises:
        ValueError: it is no matrix, is empty, or holds a number that is not finite.
    """
    if len(matrix.shape) != 2 or not min(matrix.shape):
        raise place.error(
            f"is a sparse array of shape {tuple(matrix.shape)}; pass a matrix with one datum a "
            "row, and at least one."
        )
    rows = matrix.tocsr()
    if rows.dtype.kind not in "fiub":
        raise place.error(
            f"holds numbers of type {rows.dtype}; pass real numbers or integers."
        )
    wrong = (~np.isfinite(rows.data)).nonzero()[0]
    if len(wrong):
        row = int(np.searchsorted(rows.indptr, wrong[0], side="right")) - 1
        raise place.error(
            f"holds NaN or infinity, first at index [{row}, {rows.indices[wrong[0]]}]; remove "
            "such values."
        )
    as_float(rows.data[:0], place)  # the note on float64
    return _InMemory(rows, place)


class _InMemory(MatrixRows):
    """The rows of a sparse matrix in memory, identified by all of its numbers."""

    def fingerprint(self) -> bytes:
        # equal matrices may store their numbers in another order, or zeros
        own = self._matrix.copy()
        own.sum_duplicates()
        own.eliminate_zeros()
        digest = hashlib.sha256()
        for part in (own.data.astype("f8"), own.indices, own.indptr):
            digest.update(np.ascontiguousarray(part).astype(part.dtype.str).tobytes())
        return digest.digest()
