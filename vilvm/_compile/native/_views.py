"""Tensors within C arrays, and the loops that visit them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

__all__ = [
    "NotNative",
    "View",
    "broadcast",
    "c_type",
    "contiguous",
    "literal",
    "merged",
]

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.uint8: "uint8_t",
    torch.bool: "uint8_t",
}


class NotNative(Exception):
    """A graph that cannot be a native program, or is better none."""


class View(NamedTuple):
    """A tensor within an array: its element (i, j, ...) is array[offset + i·stride₀ + j·stride₁].

    Arguments:
        array: its name in C.
        dtype: of the elements.
        shape: of the tensor.
        strides: in elements; 0 where a dimension is broadcast.
        offset: of the first element.
    """

    array: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def at(self, indices: Sequence[str]) -> str:
        """The element at these indices, in C."""
        terms = [f"{i} * {s}" for i, s in zip(indices, self.strides, strict=True) if s]
        return f"{self.array}[{' + '.join([str(self.offset), *terms])}]"

    def part(self, dim: int, start: int, count: int, step: int = 1) -> "View":
        """`count` entries of a dimension, from `start`."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[dim]
        shape[dim], strides[dim] = count, strides[dim] * step
        return self._replace(shape=tuple(shape), strides=tuple(strides), offset=offset)

    def sliced(
        self,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> "View":
        """As torch slices it: ends beyond the last entry, or from behind."""
        dim %= len(self.shape)
        first, last, _ = slice(start, end).indices(self.shape[dim])
        return self.part(dim, first, max(0, -(-(last - first) // step)), step)

    def selected(self, dim: int, index: int) -> "View":
        """One entry of a dimension."""
        dim %= len(self.shape)
        return self.part(dim, index % self.shape[dim], 1).without(dim)

    def diagonal(self, offset: int = 0, dim1: int = 0, dim2: int = 1) -> "View":
        """The diagonal of two dimensions, as the last dimension."""
        one, two = dim1 % len(self.shape), dim2 % len(self.shape)
        start_one, start_two = max(0, -offset), max(0, offset)
        moved = self.part(one, start_one, 1).part(two, start_two, 1).without(one, two)
        count = min(self.shape[one] - start_one, self.shape[two] - start_two)
        stride = self.strides[one] + self.strides[two]
        return moved._replace(
            shape=(*moved.shape, max(0, count)), strides=(*moved.strides, stride)
        )

    def transposed(self, one: int = 0, two: int = 1) -> "View":
        """With two dimensions exchanged."""
        dims = list(range(len(self.shape)))
        if dims[1:]:
            dims[one], dims[two] = dims[two], dims[one]
        return self.permuted(dims)

    def without(self, *dims: int) -> "View":
        """Without some dimensions, at their first entry."""
        kept = [d for d in range(len(self.shape)) if d not in dims]
        return self.permuted(kept)

    def permuted(self, dims: Sequence[int]) -> "View":
        """With its dimensions in this order."""
        return self._replace(
            shape=tuple(self.shape[d] for d in dims),
            strides=tuple(self.strides[d] for d in dims),
        )

    def expanded(self, dim: int) -> "View":
        """With a new dimension of size 1."""
        return self._replace(
            shape=(*self.shape[:dim], 1, *self.shape[dim:]),
            strides=(*self.strides[:dim], 0, *self.strides[dim:]),
        )


def contiguous(array: str, dtype: torch.dtype, shape: Sequence[int]) -> View:
    """A tensor that fills an array in C order."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    return View(array, dtype, tuple(shape), tuple(strides))


def broadcast(view: View, shape: Sequence[int]) -> View:
    """A view broadcast to a shape."""
    missing = len(shape) - len(view.shape)
    strides = [
        0 if n == 1 else s for n, s in zip(view.shape, view.strides, strict=True)
    ]
    return view._replace(shape=tuple(shape), strides=(*[0] * missing, *strides))


def merged(views: Sequence[View]) -> list[View]:
    """Views of one shape with as few dimensions as all their strides allow."""
    shape: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for d, n in enumerate(views[0].shape):
        if n == 1:
            continue
        follows = bool(shape) and all(
            s[-1] == v.strides[d] * n for s, v in zip(strides, views, strict=True)
        )
        if follows:
            shape[-1] *= n
        else:
            shape.append(n)
        for s, v in zip(strides, views, strict=True):
            if follows:
                s[-1] = v.strides[d]
            else:
                s.append(v.strides[d])
    return [
        v._replace(shape=tuple(shape), strides=tuple(s))
        for v, s in zip(views, strides, strict=True)
    ]


def c_type(dtype: torch.dtype) -> str:
    """The type of an element in C."""
    if dtype not in _TYPES:
        raise NotNative(f"numbers of type {dtype}")
    return _TYPES[dtype]


def literal(number: Any) -> str:
    """A number in C."""
    if isinstance(number, bool | int):
        return f"{int(number)}LL"
    if not isinstance(number, float):
        raise NotNative(f"the argument {number!r}")
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return number.hex()
