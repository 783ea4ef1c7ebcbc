"""Comparison of a value in a checkpoint with a template: same structure, or same values."""

import math
from typing import Any

import torch
from torch import Tensor

from vilvm.training.checkpoint import order_of

__all__ = ["AlteredError", "check_like", "check_same", "is_count", "require"]


class AlteredError(Exception):
    """A state in a checkpoint is altered; the message is a clause that says how."""


def require(holds: Any, what: str) -> None:
    """Raises AlteredError with the message `what` unless a condition holds."""
    if not holds:
        raise AlteredError(what)


def is_count(value: Any, least: int = 0, most: float = math.inf) -> bool:
    """Whether a value is an integer in a range."""
    return type(value) is int and least <= value <= most


def check_like(path: str, value: Any, template: Any) -> None:
    """Raises AlteredError unless a value has the structure of a template.

    Numbers may differ, but must be finite where the template's numbers are.

    Arguments:
        path: the name of the value in the error.
        value: a nest of dicts, lists, tuples, tensors and plain values.
        template: likewise.
    """
    if isinstance(template, Tensor):
        _check_tensor(path, value, template)
    elif isinstance(template, dict):
        same_keys = isinstance(value, dict) and set(value) == set(template)
        require(same_keys, f"{path} has other entries")
        for key, part in template.items():
            check_like(f"{path}/{key}", value[key], part)
    elif isinstance(template, list | tuple):
        same_length = type(value) is type(template) and len(value) == len(template)
        require(same_length, f"{path} has another type or length")
        for i, part in enumerate(template):
            check_like(f"{path}/{i}", value[i], part)
    elif type(template) in (int, float):
        _check_number(path, value, template)
    else:
        require(type(value) is type(template), f"{path} is {value!r:.40}")


def _check_number(path: str, value: Any, template: float) -> None:
    right = type(value) in (int, float)
    if right and math.isfinite(template):
        right = math.isfinite(value)
    require(right, f"{path} is {value!r:.40}")


def _check_tensor(path: str, value: Any, template: Tensor) -> None:
    """Raises AlteredError unless shape, type and order in memory are those of the template."""
    require(isinstance(value, Tensor), f"{path} is not a tensor")
    for part, found, proper in (
        ("shape", tuple(value.shape), tuple(template.shape)),
        ("type", value.dtype, template.dtype),
        ("order in memory", order_of(value), order_of(template)),
    ):
        require(
            found == proper, f"{path} has {part} {found}, and this run's has {proper}"
        )


def check_same(path: str, value: Any, template: Any) -> None:
    """Raises AlteredError unless a value is equal to a template, NaN included."""
    check_like(path, value, template)
    if isinstance(template, Tensor):
        equal = torch.where(template.isnan(), value.isnan(), value == template)
        require(bool(equal.all()), f"{path} has other values than it must have")
    else:
        both_nan = value != value
        same = type(value) is type(template) and (value == template or both_nan)
        require(same, f"{path} is {value!r:.40}, and must be {template!r:.40}")
