"""Missing values: a mask that travels with the data, batch by batch.

With x_O the observed entries of a datum, p(x_O | z) = Π_{j ∈ O} p(x_j | z) if the likelihood
factorises. ``with_missing`` makes data of the values and the mask, and
``vilvm.wrappers.partly_observed(lvm)`` a model that scores the observed entries alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.data._foreign import Converted, converted, library_of
from vilvm.data._frames import is_frame, read_frame
from vilvm.data._numbers import Place, as_tensor
from vilvm.data.data import Data, as_data

__all__ = ["Masked", "with_missing"]


class Masked(NamedTuple):
    """Data with a mask.

    Arguments:
        x: what the model is called with, missing values filled.
        observed: Boolean, the shape of the tensor with missing values, True where it is observed.

    Examples:
        >>> import torch
        >>> from vilvm.data import Masked
        >>> Masked(torch.zeros(2, 1), torch.tensor([[True], [False]])).observed.sum()
        tensor(1)
    """

    x: Any
    observed: Tensor


def with_missing(
    data: Any,
    *,
    fill: float | str = 0.0,
    of: str | int | None = None,
    dtype: torch.dtype | None = None,
) -> Data:
    """Data of which some values are missing.

    Missing are NaN in tensors and arrays, masked entries of NumPy arrays, and NaN, NA and null in
    frames. Their batches are ``Masked``; wrap the model in ``partly_observed``.

    Arguments:
        data: a tensor, array, frame or series, or a tuple or dict of them, or a ``Data`` without a
            transform.
        fill: what a guide reads in place of a missing value, a number in the support of the
            likelihood, or "mean", the mean of the observed values of that column.
        of: which element of a tuple or dict has missing values.
        dtype: of floats that are not tensors; torch's default by default.

    Returns:
        The data, whose `x` is a ``Masked``; row labels and names of columns are kept.

    Raises:
        ValueError: a value is infinite, nothing is observed, or `of` names no element.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.data import with_missing
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import partly_observed
        >>> data = with_missing(torch.tensor([[1.0, float("nan"), 0.0], [2.0, 3.0, 1.0]]))
        >>> data.x.observed.tolist()
        [[True, False, True], [True, True, True]]
        >>> vilvm.log_weights(partly_observed(PPCA(3, 1)), data.x, 5).log_weight.shape
        torch.Size([5, 2])
    """
    given = data if isinstance(data, Data) else Data(())
    if given.transform is not None:
        raise ValueError(
            "with_missing: the data have a transform, which would change the mask too; give them "
            "without it, or transform them first."
        )
    x = given.x if isinstance(data, Data) else data
    read = _read(_element(x, of), Place("with_missing", dtype), _is_number(fill))
    values, observed = read.x
    if not bool(observed.any()):
        raise ValueError("with_missing: no value is observed; pass at least one.")
    values = _filled(values, observed, fill)
    index = given.index if given.index is not None else read.index
    found = read._replace(x=values)
    if of is not None:
        found = _beside_others(found, x, of, dtype)
        _check_labels(index, found.index)
    return as_data(
        replace(
            given,
            x=Masked(found.x, observed),
            index=found.index if index is None else index,
            columns=given.columns or found.columns,
            levels={**given.levels, **found.levels},
        ),
        "with_missing",
    )


def _beside_others(
    found: Converted, x: Any, of: str | int, dtype: torch.dtype | None
) -> Converted:
    """The tuple or dict `x` as tensors, with the values found in place of element `of`."""
    nested = converted(_replaced(x, of, found.x), "with_missing", dtype)
    own = {f"x[{of!r}]": found.columns} if found.columns else {}
    return nested._replace(
        columns={**(nested.columns or {}), **own} or None,
        levels={**found.levels, **nested.levels},
    )


def _is_number(fill: Any) -> bool:
    """Whether missing values are filled by a number; raises ValueError if by neither kind."""
    if fill == "mean":
        return False
    if isinstance(fill, bool) or not isinstance(fill, int | float):
        raise ValueError(
            f"with_missing: fill must be a number or 'mean'; got {fill!r}."
        )
    return True


def _element(x: Any, of: Any) -> Any:
    """The part of the data with missing values."""
    nested = isinstance(x, Mapping | list | tuple) and not library_of(x)
    if of is None and not nested:
        return x
    parts: Any = x
    try:
        return parts[of]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            "with_missing: name the element of the tuple or dict that has missing values with "
            f"of=...; got {of!r}."
        ) from None


def _replaced(x: Any, of: Any, value: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: value if key == of else part for key, part in x.items()}
    parts = list(x)
    parts[of] = value
    return tuple(parts)


def _check_labels(index: Any, other: Any) -> None:
    if index is not None and other is not None and not index.equals(other):
        raise ValueError(
            "with_missing: the parts of the data have different row labels; align them first."
        )


def _read(x: Any, place: Place, any_type: bool) -> Converted:
    """Values, zero where missing, and the mask, as the `x` of the result."""
    if is_frame(library_of(x), x):
        read = read_frame(x, place, allow_missing=True)
        assert read.missing is not None
        if read.levels and not any_type:
            raise place.error("codes of categories have no mean; give fill=0.")
        names = read.names if read.values.dim() > 1 else None
        return Converted((read.values, ~read.missing), read.index, names, read.levels)
    if np.ma.isMaskedArray(x):
        seen = torch.from_numpy(~np.ma.getmaskarray(x))
        values = _zero_at_nan(as_tensor(x.filled(0), place))
        return Converted((values[0], seen & values[1]))
    if isinstance(x, Tensor):
        return Converted(_zero_at_nan(x.detach()))
    read = converted(x, place.what, place.dtype)
    if not isinstance(read.x, Tensor):
        raise place.error(
            f"got a {type(x).__name__}; pass a tensor, an array or a frame, or of=... with a "
            "tuple or dict of them."
        )
    return read._replace(x=_zero_at_nan(read.x))


def _zero_at_nan(x: Tensor) -> tuple[Tensor, Tensor]:
    seen = ~x.isnan()
    return torch.where(seen, x, torch.zeros_like(x)), seen


def _filled(values: Tensor, observed: Tensor, fill: Any) -> Tensor:
    if fill != "mean":
        return torch.where(observed, values, torch.full_like(values, fill))
    count = observed.sum(0)
    mean = (values * observed).sum(0) / count.clamp(min=1)
    return torch.where(observed, values, mean.to(values.dtype))
