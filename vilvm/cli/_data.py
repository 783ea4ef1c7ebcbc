"""Reads a data file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vilvm._runtime.extras import require
from vilvm.data._column_names import few
from vilvm.data.data import Data
from vilvm.data.datasets import on_disk

__all__ = ["read_data"]

_IN_MEMORY = 2**30  # bytes; larger arrays stay on disk


def read_data(
    path: Path,
    columns: list[str] | None = None,
    target: str | None = None,
    each: bool = False,
    *,
    trained: list[str] | None = None,
) -> Data:
    """The data in a file, as float32.

    Arguments:
        path: of a .npy, .csv, .parquet, .zarr or .h5ad file.
        columns: of a table, in their order; by default those in `trained`, else all numeric ones.
        target: the column y of (x, y).
        each: whether the data are a tuple with one vector for each column.
        trained: the columns that the model was trained on, if they are known.

    Raises:
        ValueError: the file or a column is missing or of another kind, or a value is missing.
    """
    kind = path.suffix.lower()
    if kind not in (".npy", ".csv", ".parquet", ".zarr", ".h5ad"):
        raise ValueError(
            f"{path}: unknown kind of file {kind!r}; give .npy, .csv, .parquet, .zarr or .h5ad."
        )
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    if kind in (".npy", ".zarr"):
        if columns or target or each:
            raise ValueError(
                f"{path}: an array has no names of columns; leave out --columns, --target and "
                "--each, or give a table."
            )
        return _array(path)
    chosen = _chosen(path, _table(path), columns or trained, target)
    names = tuple(map(str, chosen.columns))
    print(f"{path}: {len(names)} columns used: {few(names, 8)}")
    return Data(
        _tensors(path, chosen, target, each),
        path.stem,
        index=None if isinstance(chosen.index, pd.RangeIndex) else chosen.index,
        columns=_by_place(names, target, each),
    )


def _by_place(names: tuple[str, ...], target: str | None, each: bool) -> Any:
    """The names as ``Data.columns`` has them."""
    if each:
        return {f"x[{i}]": (name,) for i, name in enumerate(names)}
    if target is not None:
        return {"x[0]": names[:-1], "x[1]": names[-1:]}
    return names


def _array(path: Path) -> Data:
    data = on_disk(path)
    if 4 * data.x.shape.numel() <= _IN_MEMORY:
        return data.loaded()
    return data


def _table(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    if kind == ".h5ad":
        data = on_disk(path).loaded()
        return pd.DataFrame(data.x.numpy(), data.index, pd.Index(data.columns))
    if kind == ".parquet":
        require("pyarrow", extra="parquet")
    read = pd.read_csv if kind == ".csv" else pd.read_parquet
    try:
        return read(path)
    except (ValueError, OSError) as error:  # pandas' parsing errors are ValueErrors
        raise ValueError(
            f"{path}: cannot be read as a table ({str(error).splitlines()[0]:.120})."
        ) from None


def _chosen(
    path: Path, frame: pd.DataFrame, columns: list[str] | None, target: str | None
) -> pd.DataFrame:
    """The columns to use, complete and numeric; the target last."""
    wanted = _wanted(path, frame, columns, target)
    numeric = [n for n in wanted if pd.api.types.is_numeric_dtype(frame[n])]
    other = [n for n in wanted if n not in numeric]
    if other and (columns or target in other):
        raise ValueError(f"{path}: column {other[0]!r} is not numeric; leave it out.")
    if other:
        print(f"{path}: left out, not numeric: {few(other, 8)}")
    if frame[numeric].empty:
        raise ValueError(f"{path}: has no rows, or no numeric column.")
    chosen = frame.loc[:, numeric]
    _check_complete(path, chosen)
    return chosen


def _wanted(
    path: Path, frame: pd.DataFrame, columns: list[str] | None, target: str | None
) -> list[str]:
    """The names of the columns to use, the target last."""
    wanted = list(columns or frame.columns)
    if target is not None:
        wanted = [name for name in wanted if name != target] + [target]
    for name in wanted:
        if name not in frame:
            raise ValueError(
                f"{path}: has no column {name!r}; its columns are "
                f"{', '.join(map(str, frame.columns[:8]))}."
            )
    return wanted


def _check_complete(path: Path, frame: pd.DataFrame) -> None:
    values = frame.to_numpy(float, na_value=np.nan)
    counts = (~np.isfinite(values)).sum(0)
    faulty = np.flatnonzero(counts)
    if len(faulty):
        raise ValueError(
            f"{path}: column {frame.columns[faulty[0]]!r} has {counts[faulty[0]]} missing or "
            f"infinite values ({len(faulty)} such columns in all); remove those rows, or impute "
            "them."
        )


def _tensors(path: Path, frame: pd.DataFrame, target: str | None, each: bool) -> Any:
    values = torch.tensor(frame.to_numpy(np.float32))
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{path}: holds a number that float32 cannot hold; rescale it."
        )
    if each:
        return tuple(values.T.contiguous())
    if target is not None:
        return values[:, :-1].contiguous(), values[:, -1].contiguous()
    return values
