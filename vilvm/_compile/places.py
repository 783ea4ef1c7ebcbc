"""Places of Python state: where a value is read, and the value recorded there."""

import enum
import random
import types
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = [
    "ABSENT",
    "SCALARS",
    "Cell",
    "Count",
    "Items",
    "Place",
    "Slot",
    "Whole",
    "numpy_state",
]

ABSENT: Any = object()
SCALARS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    types.NoneType,
    torch.dtype,
    torch.device,
    enum.Enum,
)


class Cell:
    """A variable of a closure, read as the one item of a mapping."""

    def __init__(self, cell: Any):
        self.cell = cell

    def get(self, key: Any, default: Any) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not bound yet
            return default


class Items:
    """A list, read by its indices."""

    def __init__(self, items: Any):
        self.items = items

    def get(self, key: int, default: Any) -> Any:
        return self.items[key] if key < len(self.items) else default


class Count:
    """The number of items of a list or dict."""

    def __init__(self, items: Any):
        self.items = items

    def get(self, key: Any, default: Any) -> Any:
        return len(self.items)


class Slot:
    """The slots of an object, read as a mapping."""

    def __init__(self, value: Any):
        self.value = value

    def get(self, key: str, default: Any) -> Any:
        return getattr(self.value, key, default)


class Whole:
    """All of a value that changes in place: a set, a small array, a random number generator."""

    def __init__(self, value: Any):
        self.value = value

    def get(self, key: Any, default: Any) -> Any:
        if isinstance(self.value, np.ndarray):
            return self.value.tobytes()
        if isinstance(self.value, np.random.Generator):
            return str(self.value.bit_generator.state)
        if isinstance(self.value, np.random.RandomState):
            return numpy_state(self.value)
        if isinstance(self.value, random.Random):
            return hash(self.value.getstate())
        return tuple(self.value)


def numpy_state(source: Any) -> bytes:
    """The state of a ``np.random.RandomState``, or of ``np.random`` itself."""
    _, key, position, *_ = source.get_state()
    return key.tobytes() + bytes(str(position), "ascii")


class Place(NamedTuple):
    """A place of Python state.

    Arguments:
        holder: has a ``get`` like that of a dict.
        key: of the place in the holder.
        value: the recorded value.
        name: for users.
    """

    holder: Any
    key: Any
    value: Any
    name: str

    def now(self) -> Any:
        """The present value."""
        return self.holder.get(self.key, ABSENT)

    @property
    def is_unchanged(self) -> bool:
        """Whether the value is the same object, or an equal scalar or tuple of scalars."""
        now = self.now()
        value = self.value
        if now is value:
            return True
        if type(now) is not type(value) or not isinstance(now, (*SCALARS, tuple)):
            return False
        return _equal(now, value)


def _equal(a: Any, b: Any) -> bool:
    """Whether two scalars, or two tuples, of the same type are equal."""
    if not isinstance(a, tuple):
        return bool(a == b)
    return len(a) == len(b) and all(map(_same_scalar, a, b))


def _same_scalar(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, SCALARS) and a == b)
