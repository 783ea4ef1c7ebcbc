"""Checks of arguments.

Each returns the value as a Python type, or raises a ValueError of one sentence that names the
argument.
"""

import math
import operator
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

__all__ = [
    "check_number",
    "check_path",
    "check_positive",
    "check_probability",
    "check_seed",
    "check_sizes",
    "check_tensor",
    "optional",
]


def check_number(name: str, value: Any, least: int = 1) -> int:
    """Returns `value` as an int.

    Any integral type is accepted (NumPy's, a tensor of one integer), except bool.

    Raises:
        ValueError: `value` is not a whole number, or is below `least`.
    """
    number = _whole(value)
    if number is None or number < least:
        raise ValueError(
            f"{name} must be a whole number, at least {least}; got {_shown(value)}."
        )
    return number


def check_seed(name: str, value: Any) -> int:
    """Returns `value` as a seed of torch's generators, an int from 0 to 2⁶³ − 1.

    Raises ValueError otherwise.
    """
    number = _whole(value)
    if number is None or not 0 <= number < 2**63:
        raise ValueError(
            f"{name} must be a whole number from 0 to 2^63 - 1; got {_shown(value)}."
        )
    return number


def check_positive(
    name: str, value: Any, what: str = "number", *, zero: bool = False
) -> float:
    """Returns `value` as a float above 0 (with `zero`, at least 0), infinity included.

    Raises ValueError otherwise.
    """
    number = _real(value)
    if number > 0 or (zero and number == 0):
        return number
    sign = "positive"
    if zero:
        sign = "non-negative"
    raise ValueError(f"{name} must be a {sign} {what}; got {_shown(value)}.")


def check_probability(name: str, value: Any) -> float:
    """Returns `value` as a float strictly between 0 and 1; raises ValueError otherwise."""
    number = _real(value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be between 0 and 1; got {_shown(value)}.")
    return number


def check_path(name: str, value: Any) -> Path:
    """Returns `value` as a Path.

    Raises ValueError if it is not a path, is empty, or holds a NUL byte, which no file system
    accepts.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ValueError(
            f"{name} must be a path, text or a pathlib.Path; got {_shown(value)}."
        )
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError(
            f"{name} is not a path: {_shown(value)} is empty or holds a NUL byte; choose another."
        )
    return Path(value)


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """Returns a list or tuple of whole numbers, each at least 1, as a tuple.

    Raises ValueError otherwise.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{name} must be a tuple of whole numbers; got {_shown(value)}."
        )
    return tuple(check_number(f"{name}[{i}]", size) for i, size in enumerate(value))


def check_tensor(name: str, value: Any) -> Tensor:
    """Returns `value` if it is a non-empty tensor of finite real numbers.

    Raises ValueError otherwise.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor; got a {type(value).__name__}.")
    if value.is_complex() or not value.numel() or not bool(value.isfinite().all()):
        raise ValueError(
            f"{name} must be a tensor of finite real numbers; this one is empty, complex, or "
            "holds NaN or infinity."
        )
    return value


def optional[T](
    check: Callable[..., T], name: str, value: Any, *options: Any
) -> T | None:
    """Returns None for None, else what `check` returns."""
    if value is None:
        return None
    return check(name, value, *options)


def _whole(value: Any) -> int | None:
    if _is_bool(value):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor raises RuntimeError
        return None


def _real(value: Any) -> float:
    """A real number as a float; NaN, which no range contains, for anything else."""
    if not _is_real(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan  # complex, or too large


def _is_real(value: Any) -> bool:
    if isinstance(value, np.generic | np.ndarray | Tensor):
        scalar = value.ndim == 0
    else:
        scalar = isinstance(value, Real)
    return scalar and not _is_bool(value) and not _is_text(value)


def _is_text(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in ("U", "S", "c", "O")


def _is_bool(value: Any) -> bool:
    return "bool" in str(getattr(value, "dtype", type(value)))


def _shown(value: Any) -> str:
    """The value on one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    if len(text) <= 80:
        return text
    return f"{text[:77]}..."
