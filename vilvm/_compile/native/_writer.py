"""Arrays and loops of a C function: the text of the operations that a graph is made of."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile.native._operations import REDUCTIONS
from vilvm._compile.native._views import (
    NotNative,
    View,
    broadcast,
    c_type,
    contiguous,
    literal,
    merged,
)

__all__ = ["Writer", "accumulator", "loops", "numbers_of", "reduced_dims"]

_MOST_BYTES = 2**17  # of all local arrays, which lie on the stack
# of arithmetic; for more, the loops that Inductor vectorises and fuses are worth its import
_MOST_WORK = 2**17


class Writer:
    """Writes the lines of a function, one operation after the other."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.draws_by_torch = False  # noise that the C source itself cannot draw
        self._bytes = 0
        self._work = 0
        self._arrays = 0

    def new(self, dtype: torch.dtype, shape: Sequence[int]) -> View:
        """A new array."""
        count = max(1, math.prod(shape))
        self._bytes += count * dtype.itemsize
        if self._bytes > _MOST_BYTES:
            raise NotNative("large tensors")
        name = f"v{self._arrays}"
        self._arrays += 1
        self.lines.append(f"{c_type(dtype)} {name}[{count}];")
        return contiguous(name, dtype, shape)

    # Loops
    # ------------------------------------------------------------------------------------

    def fill(
        self,
        to: View,
        expression: str,
        operands: Sequence[Any],
        compute: torch.dtype | None = None,
    ) -> View:
        """Writes an expression of the operands' elements to every element of `to`; returns `to`.

        Arguments:
            to: where.
            expression: in C, of {0}, {1}, ...
            operands: views, broadcast to the shape of `to`, and numbers.
            compute: the type that operands are converted to; by default that of `to`.
        """
        compute = compute or to.dtype
        given = [broadcast(o, to.shape) for o in operands if isinstance(o, View)]
        to_place, *places = merged([to, *given])
        indices = [f"i{d}" for d in range(len(to_place.shape))]
        elements = iter(converted(p.at(indices), p.dtype, compute) for p in places)
        terms = [
            next(elements)
            if isinstance(o, View)
            else f"(({c_type(compute)}){literal(o)})"
            for o in operands
        ]
        suffix = "f" if compute is torch.float32 else ""
        result = expression.format(*terms, f=suffix)
        statement = f"{to_place.at(indices)} = {result};"
        # a mathematical function counts as eight operators
        each = 8 if "{f}" in expression else 1
        self.loop(to_place.shape, statement, work=each * math.prod(to.shape))
        return to

    def loop(self, shape: Sequence[int], statement: str, work: int) -> None:
        """A statement within loops over i0, i1, ...

        Arguments:
            shape: of the loops.
            statement: in C.
            work: how many operations of arithmetic it does in all.
        """
        self._work += work
        if self._work > _MOST_WORK:
            raise NotNative("much arithmetic")
        self.lines.append("".join([*loops("i", enumerate(shape)), statement]))

    def copied(self, view: View, dtype: torch.dtype | None = None) -> View:
        """A contiguous copy, perhaps of another type."""
        return self.fill(self.new(dtype or view.dtype, view.shape), "{0}", [view])

    def reduced(
        self,
        name: str,
        found: Tensor,
        view: View,
        dims: Any = None,
    ) -> View:
        """A reduction over `dims`, or over all if there are none.

        Arguments:
            name: of ``REDUCTIONS``.
            found: an example of the result.
            view: what is reduced.
            dims: a number, or a list of them.
        """
        if name.startswith("am") and not (
            view.dtype.is_floating_point and math.prod(view.shape)
        ):
            raise NotNative(f"{name} of nothing, or of integers")
        rank = len(view.shape)
        chosen, kept = reduced_dims(view.shape, dims)
        to = self.new(found.dtype, kept)
        inner = accumulator(found.dtype)
        start, further = REDUCTIONS[name]
        element = view.at([f"{'ji'[d not in chosen]}{d}" for d in range(rank)])
        element = converted(element, view.dtype, inner)
        inside = loops("j", ((d, view.shape[d]) for d in sorted(chosen)))
        place = to.at([f"i{d}" for d in range(rank)])
        c = c_type(inner)
        statement = (
            f"{{ {c} s = {start}; {''.join(inside)}{{ const {c} e = {element}; "
            f"s = {further.format('s', 'e')}; }} {place} = s; }}"
        )
        self.loop(kept, statement, work=math.prod(view.shape))
        return contiguous(to.array, to.dtype, found.shape)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are taken: double precision is as exact as torch's sums by pairs."""
    return torch.float64 if dtype is torch.float32 else dtype


def reduced_dims(shape: Sequence[int], dims: Any) -> tuple[set[int], list[int]]:
    """The dimensions of a reduction, all if none are named, and the shape with 1 for each."""
    rank = len(shape)
    chosen = {d % rank for d in numbers_of(dims) or range(rank)} if rank else set()
    return chosen, [1 if d in chosen else n for d, n in enumerate(shape)]


def numbers_of(given: Any) -> list[int]:
    """A number, a list of numbers or None, as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, int) else list(given)


def loops(letter: str, sizes: Iterable[tuple[int, int]]) -> list[str]:
    """The heads of loops over pairs of number and size."""
    return [
        f"for (int64_t {letter}{d} = 0; {letter}{d} < {n}; {letter}{d}++) "
        for d, n in sizes
    ]


def converted(element: str, dtype: torch.dtype, to: torch.dtype) -> str:
    """An element as a number of another type."""
    if to is torch.bool and dtype is not torch.bool:
        return f"({element} != 0)"
    return f"(({c_type(to)}){element})"
