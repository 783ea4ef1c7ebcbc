"""Data of other libraries as tensors: NumPy, pandas, polars, xarray, SciPy, AnnData, torch.

A library is recognised by the module of an object's type, so none of them is imported here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vilvm.data._checks import is_rows
from vilvm.data._frames import Levels, is_frame, read_frame
from vilvm.data._numbers import Place, as_float, as_tensor
from vilvm.data._row_sources import MatrixRows, is_sparse, rows_of_matrix
from vilvm.data._torch_loaders import dataset_of, read_dataset
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import like_nesting

__all__ = ["Converted", "converted", "is_foreign", "matrix_of"]


class Converted(NamedTuple):
    """Data of other libraries as tensors.

    Arguments:
        x: a nesting of tensors.
        index: the row labels, a pandas Index, or None.
        columns: the names of the columns, if `x` is one matrix with names; those of the matrices
            of a tuple or dict, by their place; else None.
        levels: what the codes of categorical columns stand for, by the name of the column.
    """

    x: Any
    index: Any = None
    columns: Any = None
    levels: Levels = {}  # noqa: RUF012


def library_of(x: Any) -> str:
    """The library of a value's type or of one of its bases; "" if it is none of these."""
    for base in type(x).__mro__:
        library = base.__module__.partition(".")[0]
        if library in _READERS:
            return library
    return ""


def is_foreign(x: Any) -> bool:
    """Whether a nesting of tuples, lists and dicts holds data of another library."""
    if isinstance(x, Tensor | StreamedTensor | str | int | float) or x is None:
        return False
    if _reader_of(x) is not None:
        return True
    if isinstance(x, Mapping):
        return any(map(is_foreign, x.values()))
    if isinstance(x, list | tuple):
        return any(map(is_foreign, x))
    return False


def converted(data: Any, what: str, dtype: torch.dtype | None = None) -> Converted:
    """Converts the data of other libraries in a nesting of tuples, lists and dicts.

    Arguments:
        data: the nesting; tensors and other values stay as they are.
        what: the name of the argument, for messages.
        dtype: of floats of other libraries; None for torch's default.

    Raises:
        ValueError: they hold no real numbers, or too few, or their row labels differ.
    """
    labels = _Labels(what)
    found = _walk(data, Place(what, dtype), "", labels)
    return Converted(found.x, labels.index, found.columns, found.levels)


class _Labels:
    """The row labels of all parts of the data, which must be the same."""

    def __init__(self, what: str):
        self.what, self.index, self.part = what, None, ""

    def add(self, index: Any, part: str) -> None:
        if index is None:
            return
        if self.index is None:
            self.index, self.part = index, part
        elif not self.index.equals(index):
            raise ValueError(
                f"{self.what}: the rows of {self.part} and {part} have different labels, so that "
                "a row of one may belong to another datum than that of the other; align them "
                "first (frame.loc[other.index])."
            )


def _walk(x: Any, place: Place, name: str, labels: _Labels) -> Converted:
    reader = _reader_of(x)
    if reader is not None:
        found = reader(x, place.at(name and f"x{name}"))
        labels.add(found.index, f"x{name}")
        inner = _walk(found.x, place, name, labels)
        return Converted(
            inner.x,
            found.index,
            found.columns or inner.columns,
            {**found.levels, **inner.levels},
        )
    if not isinstance(x, Mapping | list | tuple) or is_rows(x):
        return Converted(x)
    items = x.items() if isinstance(x, Mapping) else enumerate(x)
    parts = {f"{name}[{k!r}]": v for k, v in items}
    return _joined(x, {n: _walk(v, place, n, labels) for n, v in parts.items()})


def _joined(nesting: Any, parts: Mapping[str, Converted]) -> Converted:
    """The parts of a tuple or dict, by their place in it, with their names."""
    columns: dict[str, tuple[str, ...]] = {}
    levels: Levels = {}
    for place, part in parts.items():
        levels |= part.levels
        names = part.columns or {}
        columns |= names if isinstance(names, dict) else {f"x{place}": names}
    nested = like_nesting(nesting, [part.x for part in parts.values()])
    return Converted(nested, columns=columns or None, levels=levels)


# One reader a library
# --------------------------------------------------------------------------------------------


def _numpy(x: Any, place: Place) -> Converted:
    return Converted(as_tensor(x, place))


def _frame(x: Any, place: Place) -> Converted:
    found = read_frame(x, place)
    names = found.names if found.values.dim() > 1 else None
    return Converted(found.values, found.index, names, found.levels)


def _sparse(x: Any, place: Place) -> Converted:
    return Converted(rows_of_matrix(x, place))


def _xarray(x: Any, place: Place) -> Converted:
    """A DataArray is an array; a Dataset is a dict of its variables."""
    if hasattr(x, "data_vars"):
        return Converted({str(name): x[name] for name in x.data_vars})
    if not x.dims:
        raise place.error("is a DataArray of one number; pass one datum a row.")
    index = x.indexes.get(x.dims[0]) if hasattr(x, "indexes") else None
    return Converted(as_tensor(x.to_numpy(), place), index)


def _anndata(x: Any, place: Place) -> Converted:
    """X, with the names of observations and variables."""
    if x.X is None:
        raise place.error(
            "is an AnnData without X; choose a layer, vilvm.data.from_anndata(adata, layer=...)."
        )
    columns = tuple(map(str, x.var_names))
    return Converted(matrix_of(x.X, place), x.obs_names, columns)


def matrix_of(x: Any, place: Place) -> Any:
    """The matrix of an AnnData, X or a layer: floats, dense a batch at a time if it is not yet."""
    if isinstance(x, np.ndarray):
        return as_float(x, place)
    if is_sparse(x) and hasattr(x, "tocsr"):
        return rows_of_matrix(x, place)
    return MatrixRows(x, place)  # in a file


def _torch(x: Any, place: Place) -> Converted:
    if isinstance(x, DataLoader):
        return Converted(read_dataset(dataset_of(x, place), place, x.collate_fn))
    return Converted(read_dataset(x, place))


_Reader = Callable[[Any, Place], Converted]
_READERS: dict[str, _Reader] = {
    "numpy": _numpy,
    "pandas": _frame,
    "polars": _frame,
    "scipy": _sparse,
    "xarray": _xarray,
    "anndata": _anndata,
}


def _reader_of(x: Any) -> _Reader | None:
    """The function that reads a value; None if it is no data of another library."""
    if isinstance(x, Dataset | DataLoader):
        return _torch
    library = library_of(x)
    data = {
        "numpy": lambda: isinstance(x, np.ndarray) and not np.ma.isMaskedArray(x),
        "pandas": lambda: is_frame(library, x),
        "polars": lambda: is_frame(library, x),
        "scipy": lambda: is_sparse(x),
        "xarray": lambda: hasattr(x, "dims"),
        "anndata": lambda: hasattr(x, "obs_names"),
    }
    return _READERS[library] if library and data[library]() else None
