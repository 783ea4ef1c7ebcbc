"""Cholesky factors of matrices that are not positive definite, as NaN instead of an error.

The density of a model whose covariance is not positive definite at some points is zero there, and
the other points of the same call keep theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NaNFactors"]

_CHOLESKY = (torch.linalg.cholesky, torch.cholesky, Tensor.cholesky)


class NaNFactors(TorchFunctionMode):
    """A context in which the Cholesky factor of a matrix that has none is NaN."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _CHOLESKY:
            return func(*args, **kwargs)
        factor, info = torch.linalg.cholesky_ex(*args, **kwargs)
        return torch.where(info[..., None, None] == 0, factor, torch.nan)
