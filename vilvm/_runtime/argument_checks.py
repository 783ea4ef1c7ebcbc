"""Arguments that are numbers: each check returns the number as Python's own type, or raises one
sentence that names the argument.
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
    """`value` as an int, of whatever integral type it is (NumPy's, a tensor of one integer), but
    not a bool.

    Raises:
        ValueError: it is no whole number, or below `least`.
    """
    number = _whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {_shown(value)}.")
    return number


def check_seed(name: str, value: Any) -> int:
    """`value` as a seed of torch's generators, an int from 0 to 2⁶³ − 1; raises ValueError if it
    is none.
    """
    number = _whole(value)
    if number is None or not 0 <= number < 2**63:
        raise ValueError(f"{name} must be a whole number from 0 to 2^63 - 1; got {_shown(value)}.")
    return number


def check_positive(name: str, value: Any, what: str = "number", *, zero: bool = False) -> float:
    """`value` as a float above 0 (with `zero`, at least 0), infinity among them; raises ValueError
    if it is none.
    """
    number = _real(value)
    if not (number > 0 or (zero and number == 0)):
        raise ValueError(
            f"{name} must be a {'non-negative' if zero else 'positive'} {what}; got "
            f"{_shown(value)}."
        )
    return number


def check_probability(name: str, value: Any) -> float:
    """`value` as a float between 0 and 1, neither included; raises ValueError if it is none."""
    number = _real(value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must be between 0 and 1; got {_shown(value)}.")
    return number


def check_path(name: str, value: Any) -> Path:
    """`value` as a Path; raises ValueError if it is no path, is empty, or holds a NUL byte, which
    no file system takes.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ValueError(f"{name} must be a path, text or a pathlib.Path; got {_shown(value)}.")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError(
            f"{name} is no path of a file: {_shown(value)} is empty or holds a NUL byte; choose "
            "another."
        )
    return Path(value)


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """`value` as a tuple of whole numbers, each at least 1; raises ValueError if it is no list or
    tuple of them.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a tuple of whole numbers; got {_shown(value)}.")
    return tuple(check_number(f"{name}[{i}]", size) for i, size in enumerate(value))


def check_tensor(name: str, value: Any) -> Tensor:
    """`value`, if it is a tensor of finite real numbers with an entry; raises ValueError if it is
    none.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor; got a {type(value).__name__}.")
    if value.is_complex() or not value.numel() or not bool(value.isfinite().all()):
        raise ValueError(
            f"{name} must be a tensor of finite real numbers; this one is empty, complex, or "
            "holds NaN or infinity."
        )
    return value


def optional[T](check: Callable[..., T], name: str, value: Any, *options: Any) -> T | None:
    """What `check` makes of `value`, or None if that is not given."""
    return None if value is None else check(name, value, *options)


def _whole(value: Any) -> int | None:
    try:
        return None if _is_bool(value) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last is a tensor's
        return None


def _real(value: Any) -> float:
    """A real number as a float; NaN, which is in no range, for what is none."""
    number = isinstance(value, Real) or (
        isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0
    )
    try:
        return float(value) if number and not _is_bool(value) and not _is_text(value) else math.nan
    # a complex number, or one larger than floats
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def _is_text(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in ("U", "S", "c", "O")


def _is_bool(value: Any) -> bool:
    return "bool" in str(getattr(value, "dtype", type(value)))


def _shown(value: Any) -> str:
    """A value on one line, cut off where it is long."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 80 else f"{words[:77]}..."
