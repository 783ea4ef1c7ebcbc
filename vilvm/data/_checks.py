"""Checks of tensors that a user passes as data or as a batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["check_tensors", "is_rows", "why_unusable"]


def check_tensors(x: Any, name: str) -> None:
    """Checks every tensor of a nesting of tuples, lists and dicts.

    Arguments:
        x: the nesting; values that hold no tensor are ignored.
        name: of the data, for the message.

    Raises:
        ValueError: an array is not a dense real tensor, is empty, or holds NaN or infinity.
    """
    _check_kind(x, name)
    _check_not_rows(x, name)
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, list | tuple):
        for value in x:
            check_tensors(value, name)
    if isinstance(x, Tensor):
        _check_numbers(x, name)


def why_unusable(x: Any) -> str | None:
    """Why an array or tensor cannot be used, and what to pass instead; None if it can be used."""
    if np.ma.isMaskedArray(x):
        return (
            "holds a NumPy masked array, whose mask a tensor cannot keep; pass "
            "vilvm.data.with_missing(...) of it, and vilvm.wrappers.partly_observed(lvm) for the "
            "model, or x.filled(0) with poutine.mask or .mask(...) of the distribution."
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


def _check_kind(x: Any, name: str) -> None:
    if fault := why_unusable(x):
        raise ValueError(f"{name}: {fault}")
    if isinstance(x, PackedSequence):
        raise ValueError(
            f"{name}: holds a PackedSequence, whose rows are time steps of several data; pass the "
            "padded tensor and the lengths "
            "(torch.nn.utils.rnn.pad_packed_sequence(..., batch_first=True)), and pack them in "
            "the model."
        )


def _check_not_rows(x: Any, name: str) -> None:
    """Raises ValueError for a list with one tuple or dict per datum."""
    if not is_rows(x):
        return
    for kind, word in ((Mapping, "dict"), (tuple, "tuple")):
        if all(isinstance(value, kind) for value in x):
            raise ValueError(
                f"{name}: is a list of {len(x)} {word}s; stack them into one {word} of tensors "
                "with a datum a row (torch.utils.data.default_collate)."
            )


def is_rows(x: Any) -> bool:
    """Whether `x` is a list with one tuple or dict per datum."""
    return (
        isinstance(x, list)
        and bool(x)
        and any(all(isinstance(v, kind) for v in x) for kind in (Mapping, tuple))
    )


def _check_numbers(x: Tensor, name: str) -> None:
    if x.numel() == 0:
        raise ValueError(
            f"{name}: is empty (a tensor of shape {tuple(x.shape)}); pass at least one datum."
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        where = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(
            f"{name}: holds NaN or infinity, first at index {where}; remove such values, or leave "
            "them out of the likelihood: vilvm.data.with_missing(...) for the data and "
            "vilvm.wrappers.partly_observed(lvm) for the model, poutine.mask, or .mask(...) of "
            "its distribution."
        )
