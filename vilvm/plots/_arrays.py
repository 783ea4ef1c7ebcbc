"""Arrays for the plots, from tensors or anything that NumPy accepts."""

from typing import Any

import numpy as np
import torch

__all__ = ["as_array"]


def as_array(values: Any, dims: int, what: str) -> np.ndarray:
    """The values as floating-point numbers; raises ValueError unless they have `dims` dimensions
    and are not empty.
    """
    if isinstance(values, torch.Tensor):
        array = values.detach().cpu().double().numpy()
    else:
        array = np.asarray(values, dtype=float)
    if array.ndim != dims or not len(array):
        plural = "s" if dims > 1 else ""
        raise ValueError(
            f"{what} must have {dims} dimension{plural} and not be empty; its shape is "
            f"{array.shape}."
        )
    return array
