"""AnnData: a matrix of observations, with covariates of the observations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vilvm._runtime.argument_checks import check_path
from vilvm._runtime.extras import require
from vilvm.data._foreign import converted, matrix_of
from vilvm.data._numbers import Place
from vilvm.data.data import Data, as_data

__all__ = ["from_anndata"]


def from_anndata(
    adata: Any,
    *,
    layer: str | None = None,
    obs: Sequence[str] = (),
    name: str = "AnnData",
    split: str = "all",
    dtype: torch.dtype | None = None,
) -> Data:
    """Data of an AnnData object, or of a ``.h5ad`` file that stays on disk.

    A sparse matrix becomes dense a batch at a time, and a file is read a batch at a time; then
    ``fit`` needs a batch_size.

    Arguments:
        adata: an AnnData, in memory or backed, or the path of a ``.h5ad`` file.
        layer: the name of a layer in place of X.
        obs: names of columns of `adata.obs`, the covariates. Categorical ones become their codes,
            int64, whose meaning is in ``Data.levels``.
        name: of the data set.
        split: "train", "validation", "test" or "all".
        dtype: of floats; torch's default by default.

    Returns:
        The data: the matrix, or with `obs` a dict of the matrix, "x", and the covariates by name.
        Their index is `adata.obs_names`.

    Raises:
        ImportError: `adata` is a path, and anndata is not installed.
        ValueError: there is no such file, layer or column; or values are missing or no numbers.

    Examples:
        >>> import numpy, pandas
        >>> from vilvm.data import from_anndata
        >>> class Cells:  # stands for an AnnData
        ...     X, layers = numpy.ones((2, 3), "f4"), {}
        ...     obs = pandas.DataFrame({"lab": pandas.Categorical(["a", "b"])}, index=["c1", "c2"])
        ...     obs_names, var_names = obs.index, ["g1", "g2", "g3"]
        >>> data = from_anndata(Cells(), obs=["lab"])
        >>> data.x["lab"], data.levels, list(data.index)
        (tensor([0, 1]), {'lab': ('a', 'b')}, ['c1', 'c2'])
    """
    if isinstance(adata, str | Path):
        adata = _opened(check_path("from_anndata: adata", adata))
    place = Place("from_anndata", dtype)
    x = matrix_of(_matrix(adata, layer), place.at(f"layer {layer!r}" if layer else "X"))
    if not obs:
        columns = tuple(map(str, adata.var_names))
        data = Data(x, name, split, index=adata.obs_names, columns=columns)
        return as_data(data, "from_anndata")
    absent = [column for column in obs if column not in adata.obs.columns]
    if absent or "x" in obs:
        raise ValueError(
            f"from_anndata: obs has no column {absent[0]!r}; it has {list(adata.obs.columns)}."
            if absent
            else "from_anndata: a covariate cannot be called 'x', the name of the matrix."
        )
    covariates = converted(
        {column: adata.obs[column] for column in obs}, "from_anndata", dtype
    )
    data = Data(
        {"x": x, **covariates.x},
        name,
        split,
        index=adata.obs_names,
        columns={"x['x']": tuple(map(str, adata.var_names))},
        levels=covariates.levels,
    )
    return as_data(data, "from_anndata")


def _opened(path: Path) -> Any:
    """The AnnData of a file, its matrices left there."""
    require("anndata", "anndata")
    import anndata

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    try:
        return anndata.read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read as an .h5ad file ({str(error).splitlines()[0]}); write it "
            "again with adata.write_h5ad."
        ) from None


def _matrix(adata: Any, layer: str | None) -> Any:
    if layer is None:
        if adata.X is None:
            raise ValueError("from_anndata: there is no X; choose one of the layers.")
        return adata.X
    if layer not in adata.layers:
        known = [name for name in adata.layers if name is not None]
        raise ValueError(
            f"from_anndata: there is no layer {layer!r}; there are {known}."
        )
    return adata.layers[layer]
