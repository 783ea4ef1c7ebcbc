"""Data frames and series of pandas and polars as tensors.

Numeric columns become one matrix. Categorical columns become their codes, int64, with the levels
that the codes stand for.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.data._numbers import Place, as_float, as_tensor

__all__ = ["Columns", "Levels", "is_frame", "read_frame"]

Levels = dict[str, tuple[Any, ...]]


class Columns(NamedTuple):
    """A frame or series as a tensor.

    Arguments:
        values: shape (N, columns), (N,) for a series; floats or codes.
        names: of the columns.
        levels: of categorical columns, by name.
        index: the row labels, a pandas Index; None if the rows have numbers only.
        missing: Boolean, the shape of `values`, if missing values were allowed.
    """

    values: Tensor
    names: tuple[str, ...]
    levels: Levels
    index: Any
    missing: Tensor | None


class _Column(NamedTuple):
    name: str
    values: np.ndarray
    missing: np.ndarray
    levels: tuple[Any, ...] | None


def is_frame(library: str, x: Any) -> bool:
    """Whether a value is a frame or series of `library`, pandas or polars."""
    names = {base.__name__ for base in type(x).__mro__}
    frames = {"DataFrame", "LazyFrame", "Series"}
    return library in ("pandas", "polars") and bool(names & frames)


def read_frame(frame: Any, place: Place, allow_missing: bool = False) -> Columns:
    """Reads a frame or series.

    Arguments:
        frame: of pandas or polars.
        place: for messages, and the type of floats.
        allow_missing: whether missing values are read as 0 and marked.

    Raises:
        ValueError: a column holds no numbers, or values are missing; or columns are of two kinds.
    """
    columns = _read_columns(frame, place)
    series = not hasattr(frame, "columns")
    missing = np.stack([c.missing for c in columns], 1)
    if not allow_missing:
        _check_complete(columns, missing, place)
    levels = {c.name: c.levels for c in columns if c.levels is not None}
    if levels and len(levels) < len(columns):
        raise _mixed(columns, place)
    values = _values(columns, series, bool(levels), place)
    marked = None
    if allow_missing:
        marked = torch.from_numpy(missing).reshape(values.shape)
    names = tuple(c.name for c in columns)
    return Columns(values, names, levels, _labels(frame), marked)


def _read_columns(frame: Any, place: Place) -> list[_Column]:
    if type(frame).__name__ == "LazyFrame":
        raise place.error("is a polars LazyFrame; pass frame.collect().")
    columns = list(_columns(frame, place))
    if not columns:
        raise place.error("is a frame without columns; pass at least one.")
    return columns


def _values(
    columns: list[_Column], series: bool, categorical: bool, place: Place
) -> Tensor:
    """The vector of a series, the codes of categorical columns, or a matrix of floats."""
    if series:
        (column,) = columns
        return as_tensor(column.values, place.at(f"column {column.name!r}"))
    if categorical:
        return torch.from_numpy(np.stack([c.values for c in columns], 1))
    return torch.stack(
        [as_float(c.values, place.at(f"column {c.name!r}")) for c in columns], 1
    )


def _labels(frame: Any) -> Any:
    """The row labels of a pandas object; None for numbers from 0, and for polars."""
    index: Any = getattr(frame, "index", None)
    if type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1:
        return None
    return index


def _columns(frame: Any, place: Place) -> Iterator[_Column]:
    pandas = hasattr(frame, "iloc")
    parts = [frame]
    if hasattr(frame, "columns"):
        names = [str(name) for name in frame.columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise place.error(f"has several columns named {min(twice)!r}; rename them.")
        parts = [frame.iloc[:, i] for i in range(len(names))] if pandas else list(frame)
    for part in parts:
        read = _pandas_column if pandas else _polars_column
        yield read(str(part.name), part, place.at(_label(part)))


def _label(series: Any) -> str:
    return "" if series.name in (None, "") else f"column {str(series.name)!r}"


def _pandas_column(name: str, series: Any, place: Place) -> _Column:
    missing = series.isna().to_numpy(dtype=bool)
    if hasattr(series, "cat"):
        codes = np.where(missing, 0, series.cat.codes.to_numpy()).astype(np.int64)
        return _Column(name, codes, missing, tuple(series.cat.categories))
    kind = getattr(series.dtype, "kind", "O")
    if kind not in "fiub":
        raise _not_numbers(str(series.dtype), place)
    if missing.any():
        series = series.fillna(False if kind == "b" else 0)
    numpy_type = getattr(series.dtype, "numpy_dtype", None) or series.to_numpy().dtype
    return _Column(name, series.to_numpy(dtype=numpy_type), missing, None)


def _polars_column(name: str, series: Any, place: Place) -> _Column:
    missing = series.is_null().to_numpy()
    kind = str(series.dtype)
    if kind.startswith(("Categorical", "Enum")):
        # The codes of a Categorical depend on what the process read before.
        levels = sorted(set(series.drop_nulls().to_list()))
        if kind.startswith("Enum"):
            levels = series.dtype.categories.to_list()
        code = {level: i for i, level in enumerate(levels)}
        codes = [code.get(value, 0) for value in series.to_list()]
        return _Column(name, np.array(codes, np.int64), missing, tuple(levels))
    if kind.startswith("Decimal") or not (
        series.dtype.is_numeric() or kind == "Boolean"
    ):
        raise _not_numbers(kind, place)
    values = series.fill_null(False if kind == "Boolean" else 0).to_numpy()
    if values.dtype.kind == "f":
        missing = missing | np.isnan(values)
        values = np.where(missing, 0, values)
    return _Column(name, values, missing, None)


def _not_numbers(kind: str, place: Place) -> ValueError:
    return place.error(
        f"holds no numbers (type {kind}); drop it, make it categorical (pandas: "
        ".astype('category'), polars: .cast(pl.Categorical)), or turn it into numbers."
    )


def _check_complete(columns: list[_Column], missing: np.ndarray, place: Place) -> None:
    counts = [(c.name, int(n)) for c, n in zip(columns, missing.sum(0), strict=True)]
    counts = [(name, n) for name, n in counts if n]
    if not counts:
        return
    listed = ", ".join(f"{n} in column {name!r}" for name, n in counts[:5])
    more = f" and {len(counts) - 5} more columns" * (len(counts) > 5)
    raise place.error(
        f"values are missing: {listed}{more}. Fill or drop them, or leave them out of the "
        "likelihood: vilvm.data.with_missing(...) for the data, "
        "vilvm.wrappers.partly_observed(lvm) for the model."
    )


def _mixed(columns: list[_Column], place: Place) -> ValueError:
    numeric = [c.name for c in columns if c.levels is None]
    codes = [c.name for c in columns if c.levels is not None]
    return place.error(
        f"has numeric columns ({_some(numeric)}) and categorical ones ({_some(codes)}), which "
        f'make no one matrix; pass a dict, such as {{"x": frame[[{numeric[0]!r}, ...]], '
        f"{codes[0]!r}: frame[{codes[0]!r}]}}."
    )


def _some(names: list[str]) -> str:
    more = f", … {len(names) - 4} more" * (len(names) > 4)
    return ", ".join(names[:4]) + more
