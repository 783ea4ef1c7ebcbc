"""Arrays and tensors that no model can be called with, in data and in batches alike."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["why_unusable"]


def why_unusable(x: Any) -> str | None:
    """Why one array or tensor cannot be used, and what to pass in its place; None if it can."""
    if np.ma.isMaskedArray(x):
        return (
            "holds a NumPy masked array, whose mask no tensor keeps; pass "
            "torch.from_numpy(x.filled(0)), and the mask to "
            "vilvm.wrappers.partly_observed.partly_observed, poutine.mask or .mask(...) of the "
            "distribution."
        )
    if isinstance(x, np.ndarray):
        return (
            "holds a numpy array; pass torch.from_numpy(...) or vilvm.data.datasets.arrays(...)."
        )
    if not isinstance(x, Tensor):
        return None
    if x.device.type == "meta":
        return "holds a meta tensor; pass a dense one (.to_dense())."
    if x.layout is not torch.strided:
        return "holds a sparse tensor; pass a dense one (.to_dense())."
    if x.is_complex():
        return "holds complex numbers; pass their real and imaginary parts, torch.view_as_real(x)."
    return None
