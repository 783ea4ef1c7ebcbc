"""Operations of a native program that are not one expression an element: views, copies of parts,
indexing, products of matrices, constants and noise.

Each function takes the call, and then the arguments of torch's operation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from vilvm._compile.native._views import (
    NotNative,
    View,
    broadcast,
    c_type,
    contiguous,
    merged,
)
from vilvm._compile.native._writer import (
    Writer,
    accumulator,
    loops,
    numbers_of,
    reduced_dims,
)

__all__ = ["SPECIAL", "Call"]


class Call(NamedTuple):
    """A call of an operation.

    Arguments:
        writer: writes its statements.
        found: an example of its result, or a tuple of examples.
    """

    writer: Writer
    found: Any

    def new(self) -> View:
        """A new array for the result."""
        return self.writer.new(self.found.dtype, self.found.shape)

    def filled(self, expression: str, operands: Sequence[Any]) -> View:
        """The result, with an expression of the operands' elements; see ``Writer.fill``."""
        return self.writer.fill(self.new(), expression, operands)


# Views
# ----------------------------------------------------------------------------------------


def _same(call: Call, view: View) -> View:
    return view


def _expand(call: Call, view: View, size: Any, implicit: bool = False) -> View:
    return broadcast(view, tuple(call.found.shape))


def _reshape(call: Call, view: View, size: Any) -> View:
    plain = contiguous(view.array, view.dtype, view.shape)._replace(offset=view.offset)
    if math.prod(view.shape) > 1 and merged([view])[0] != merged([plain])[0]:
        view = call.writer.copied(view)
    new = contiguous(view.array, view.dtype, tuple(call.found.shape))
    return new._replace(offset=view.offset)


def _permute(call: Call, view: View, dims: Sequence[int]) -> View:
    return view.permuted([d % len(view.shape) for d in dims])


def _squeeze(call: Call, view: View, dims: Any = None) -> View:
    rank = len(view.shape)
    given = range(rank) if dims is None else numbers_of(dims)
    ones = {d % rank for d in given if rank and view.shape[d % rank] == 1}
    return view.without(*ones)


def _transpose(call: Call, view: View, *dims: int) -> View:
    return view.transposed(*dims)


def _select(call: Call, view: View, dim: int, index: int) -> View:
    return view.selected(dim, index)


def _slice(call: Call, view: View, *where: Any) -> View:
    return view.sliced(*where)


def _diagonal(call: Call, view: View, *where: int, **named: int) -> View:
    return view.diagonal(*where, **named)


def _unsqueeze(call: Call, view: View, dim: int) -> View:
    return view.expanded(dim % (len(view.shape) + 1))


def _flip(call: Call, view: View, dims: Sequence[int]) -> View:
    for d in dims:
        view = view.part(d, view.shape[d] - 1, view.shape[d], -1)
    return view


def _unbind(call: Call, view: View, dim: int = 0) -> list[View]:
    dim %= len(view.shape)
    return [view.part(dim, i, 1).without(dim) for i in range(view.shape[dim])]


def _split(call: Call, view: View, sizes: Any, dim: int = 0) -> list[View]:
    dim %= len(view.shape)
    parts = []
    start = 0
    for part in call.found:
        parts.append(view.part(dim, start, part.shape[dim]))
        start += part.shape[dim]
    return parts


# Copies
# ----------------------------------------------------------------------------------------


def _clone(call: Call, view: View, **_: Any) -> View:
    return call.writer.copied(view, call.found.dtype)


def _copy(call: Call, to: View, view: View, non_blocking: bool = False) -> View:
    return call.filled("{0}", [view])


def _copy_in_place(
    call: Call, to: View, view: View, non_blocking: bool = False
) -> View:
    return call.writer.fill(to, "{0}", [view])


def _where(call: Call, chosen: View, one: Any, other: Any) -> View:
    # The truth value is read in the type of the result, where it is 0 or 1.
    return call.filled("{0} != 0 ? {1} : {2}", [chosen, one, other])


def _abs(call: Call, view: View) -> View:
    if call.found.dtype.is_floating_point:
        return call.filled("fabs{f}({0})", [view])
    return call.filled("({0} < 0 ? -{0} : {0})", [view])


def _clamp(call: Call, view: View, low: Any = None, high: Any = None) -> View:
    if low is None and high is None:
        return call.filled("{0}", [view])
    if high is None:
        return call.filled("({0} < {1} ? {1} : {0})", [view, low])
    if low is None:
        return call.filled("({0} > {1} ? {1} : {0})", [view, high])
    between = "({0} < {1} ? {1} : {0})"
    return call.filled(f"({between} > {{2}} ? {{2}} : {between})", [view, low, high])


def _power(call: Call, base: Any, exponent: Any) -> View:
    short = {0.5: "sqrt{f}({0})", 1: "{0}", 2: "{0} * {0}", 3: "{0} * {0} * {0}"}
    short |= {-0.5: "1 / sqrt{f}({0})", -1: "1 / {0}", -2: "1 / ({0} * {0})"}
    if not call.found.dtype.is_floating_point:
        raise NotNative("powers of integers")
    if isinstance(exponent, int | float) and exponent in short:
        return call.filled(short[exponent], [base])
    return call.filled("pow{f}({0}, {1})", [base, exponent])


def _cat(call: Call, views: Sequence[View], dim: int = 0) -> View:
    to = call.new()
    start = 0
    for view in views:
        if view.shape == (0,):  # torch ignores it, whatever the other shapes
            continue
        size = view.shape[dim]
        call.writer.fill(to.part(dim % len(to.shape), start, size), "{0}", [view])
        start += size
    return to


def _scatter_into(part: Callable[..., View]) -> Callable[..., View]:
    """A copy of a tensor with a part of it replaced."""

    def replaced(
        call: Call, view: View, source: View, *where: Any, **named: Any
    ) -> View:
        to = call.writer.copied(view)
        call.writer.fill(part(call, to, *where, **named), "{0}", [source])
        return to

    return replaced


def _pad(call: Call, view: View, pad: Sequence[int], value: Any = 0.0) -> View:
    to = call.filled("{0}", [value])
    inner = to
    for i in range(len(pad) // 2):  # from the last dimension on
        dim = len(view.shape) - 1 - i
        before, after = pad[2 * i : 2 * i + 2]
        inner = inner.part(
            dim, max(before, 0), to.shape[dim] - max(before, 0) - max(after, 0)
        )
        view = view.part(dim, max(-before, 0), inner.shape[dim])
    call.writer.fill(inner, "{0}", [view])
    return to


# Along one dimension
# ----------------------------------------------------------------------------------------


def _line(view: View, dim: int) -> tuple[list[int], list[str], str]:
    """The loops over all lines along `dim`: their shape, the indices on a line, its loop."""
    dim %= len(view.shape)
    indices = [f"i{d}" if d != dim else "j0" for d in range(len(view.shape))]
    outer = [n if d != dim else 1 for d, n in enumerate(view.shape)]
    return outer, indices, loops("j", [(0, view.shape[dim])])[0]


def _cumulative(start: int, sign: str) -> Callable[..., View]:
    def summed(call: Call, view: View, dim: int, dtype: Any = None) -> View:
        if not view.shape:
            return call.writer.copied(view, call.found.dtype)
        to = call.new()
        outer, indices, line = _line(view, dim)
        statement = (
            f"{{ {c_type(accumulator(call.found.dtype))} s = {start}; {line}"
            f"{{ s {sign} {view.at(indices)}; {to.at(indices)} = s; }} }}"
        )
        call.writer.loop(outer, statement, work=math.prod(view.shape))
        return to

    return summed


def _extreme(sign: str, only_index: bool) -> Callable[..., Any]:
    """The first largest or smallest element of every line, and its index; NaN counts as such."""

    def chosen(call: Call, view: View, dim: Any = None, keepdim: bool = False) -> Any:
        example = call.found if only_index else call.found[0]
        if dim is None or not view.shape or 0 in view.shape:
            raise NotNative("an extreme of all elements, or of none")
        outer, indices, line = _line(view, dim)
        values = call.writer.new(view.dtype, outer)
        places = call.writer.new(torch.int64, outer)
        own = [f"i{d}" for d in range(len(view.shape))]
        element = view.at(indices)
        statement = (
            f"{{ {c_type(view.dtype)} s = 0; int64_t place = 0; {line}"
            f"{{ const {c_type(view.dtype)} e = {element}; "
            f"if (j0 == 0 || e {sign} s || (e != e && s == s)) {{ s = e; place = j0; }} }} "
            f"{values.at(own)} = s; {places.at(own)} = place; }}"
        )
        call.writer.loop(outer, statement, work=2 * math.prod(view.shape))
        shaped = [
            contiguous(v.array, v.dtype, tuple(example.shape)) for v in (values, places)
        ]
        return shaped[1] if only_index else shaped

    return chosen


# Indexing; the program fails at an index that is out of bounds
# ----------------------------------------------------------------------------------------


def _checked(name: str, index: str, size: int) -> str:
    """Declares a checked index into a dimension of `size`, as eager torch would take it."""
    return (
        f"int64_t {name} = {index}; if ({name} < 0) {name} += {size}; "
        f"if ({name} < 0 || {name} >= {size}) return 2; "
    )


def _at_indices(
    whole: View, chosen: Sequence[View | None]
) -> tuple[tuple[int, ...], str, str]:
    """What ``whole[chosen]`` visits: the shape, the checks of a visit, and its element."""
    named = [(d, v) for d, v in enumerate(chosen) if v is not None]
    first, last = named[0][0], named[-1][0] + 1
    if last - first != len(named) or {v.dtype for _, v in named} != {torch.int64}:
        raise NotNative("indices of separate dimensions, or not int64")
    shape = torch.broadcast_shapes(*(v.shape for _, v in named))
    visited = (*whole.shape[:first], *shape, *whole.shape[last:])
    letters = [f"i{d}" for d in range(len(visited))]
    end = first + len(shape)
    checks = "".join(
        _checked(f"x{d}", broadcast(v, shape).at(letters[first:end]), whole.shape[d])
        for d, v in named
    )
    letters[first:end] = [f"x{d}" for d, _ in named]
    return visited, checks, whole.at(letters)


def _index(call: Call, view: View, chosen: Sequence[View | None]) -> View:
    shape, checks, element = _at_indices(view, chosen)
    to = call.writer.new(call.found.dtype, shape)
    place = to.at([f"i{d}" for d in range(len(shape))])
    call.writer.loop(
        shape, f"{{ {checks}{place} = {element}; }}", work=math.prod(shape)
    )
    return to


def _index_select(call: Call, view: View, dim: int, index: View) -> View:
    if not view.shape:
        raise NotNative("an index into a number")
    return _index(call, view, [None] * (dim % len(view.shape)) + [index])


def _index_put(
    call: Call,
    view: View,
    chosen: Sequence[View | None],
    values: View,
    accumulate: bool = False,
) -> View:
    first = chosen[0]
    if first is not None and first.dtype is torch.bool and first.shape == view.shape:
        if accumulate or chosen[1:] or math.prod(values.shape) != 1:
            raise NotNative("several values where a mask is true")
        value = values.without(*range(len(values.shape)))
        return _where(call, first, value, view)
    to = call.writer.copied(view)
    shape, checks, element = _at_indices(to, chosen)
    value = broadcast(values, shape).at([f"i{d}" for d in range(len(shape))])
    sign = "+=" if accumulate else "="
    call.writer.loop(
        shape, f"{{ {checks}{element} {sign} {value}; }}", work=math.prod(shape)
    )
    return to


def _along(view: View, dim: int, index: View) -> tuple[str, str, list[str]]:
    """A visit of ``gather`` and ``scatter``: its checks, its element of `view`, its indices."""
    if not view.shape or not index.shape:
        raise NotNative("an index into a number")
    indices = [f"i{d}" for d in range(len(index.shape))]
    dim %= len(view.shape)
    checks = _checked("x", index.at(indices), view.shape[dim])
    inner = [*indices]
    inner[dim] = "x"
    return checks, view.at(inner), indices


def _gather(call: Call, view: View, dim: int, index: View, **_: Any) -> View:
    checks, element, indices = _along(view, dim, index)
    to = call.new()
    statement = f"{{ {checks}{to.at(indices)} = {element}; }}"
    call.writer.loop(index.shape, statement, work=math.prod(index.shape))
    return to


def _scatter(sign: str) -> Callable[..., View]:
    def scattered(call: Call, view: View, dim: int, index: View, source: Any) -> View:
        to = call.writer.copied(view)
        checks, element, indices = _along(to, dim, index)
        if not isinstance(source, View):
            source = call.writer.fill(
                call.writer.new(call.found.dtype, ()), "{0}", [source]
            )
            source = broadcast(source, index.shape)
        statement = f"{{ {checks}{element} {sign} {source.at(indices)}; }}"
        call.writer.loop(index.shape, statement, work=math.prod(index.shape))
        return to

    return scattered


# Products of matrices
# ----------------------------------------------------------------------------------------


def _product(call: Call, left: View, right: View) -> View:
    *batch, rows, inner = left.shape
    columns = right.shape[-1]
    to = call.new()
    outer = [f"i{d}" for d in range(len(batch))]
    row, column = f"i{len(batch)}", f"i{len(batch) + 1}"
    c = c_type(call.found.dtype)
    statement = (
        f"{{ {c} s = 0; {''.join(loops('k', [(0, inner)]))}"
        f"s += {left.at([*outer, row, 'k0'])} * {right.at([*outer, 'k0', column])}; "
        f"{to.at([*outer, row, column])} = s; }}"
    )
    call.writer.loop(
        call.found.shape, statement, work=4 * math.prod([*batch, rows, inner, columns])
    )
    return to


def _solve_triangular(
    call: Call,
    matrix: View,
    right: View,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> View:
    to = solution = call.new()
    if not left:  # X A = B is Aᵀ Xᵀ = Bᵀ
        matrix, right, solution = (v.transposed(-2, -1) for v in (matrix, right, to))
        upper = not upper
    *batch, size, columns = right.shape
    matrix = broadcast(matrix, (*batch, size, size))
    outer = [f"i{d}" for d in range(len(batch))]
    column = f"i{len(batch)}"
    row = f"{size - 1} - j0" if upper else "j0"
    known = f"int64_t k = r + 1; k < {size}" if upper else "int64_t k = 0; k < r"
    divided = "s" if unitriangular else f"s / {matrix.at([*outer, 'r', 'r'])}"
    statement = (
        f"{loops('j', [(0, size)])[0]}{{ const int64_t r = {row}; "
        f"{c_type(call.found.dtype)} s = {right.at([*outer, 'r', column])}; "
        f"for ({known}; k++) s -= {matrix.at([*outer, 'r', 'k'])} * "
        f"{solution.at([*outer, 'k', column])}; "
        f"{solution.at([*outer, 'r', column])} = {divided}; }}"
    )
    work = 4 * math.prod([*batch, size, size, columns])
    call.writer.loop([*batch, columns], statement, work=work)
    return to


def _mean(
    call: Call,
    view: View,
    dims: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> View:
    total = call.writer.reduced("sum", call.found, view, dims)
    count = math.prod(view.shape) / max(1, math.prod(call.found.shape))
    return call.filled("{0} / {1}", [total, count])


def _var(
    call: Call,
    view: View,
    dims: Any = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> View:
    chosen, kept = reduced_dims(view.shape, dims)
    example = torch.empty(kept, dtype=call.found.dtype, device="meta")
    middle = _mean(call._replace(found=example), view, sorted(chosen))
    squares = call.writer.fill(
        call.writer.new(call.found.dtype, view.shape),
        "({0} - {1}) * ({0} - {1})",
        [view, middle],
    )
    count = math.prod(view.shape) / max(1, math.prod(kept))
    total = call.writer.reduced("sum", call.found, squares, sorted(chosen))
    free = max(0.0, count - (1 if correction is None else correction))
    return call.filled("{0} / {1}", [total, free])


def _std(call: Call, *given: Any, **options: Any) -> View:
    variance = _var(call, *given, **options)
    return call.writer.fill(variance, "sqrt{f}({0})", [variance])


def _var_mean(call: Call, *given: Any, **options: Any) -> list[View]:
    variance, mean = call.found
    found = _mean(call._replace(found=mean), *given[:2])
    return [_var(call._replace(found=variance), *given, **options), found]


# Constants and noise
# ----------------------------------------------------------------------------------------


def _full(call: Call, size: Any, value: Any, **_: Any) -> View:
    return call.filled("{0}", [value])


def _scalar_tensor(call: Call, value: Any, **_: Any) -> View:
    return call.filled("{0}", [value])


def _empty(call: Call, *_: Any, **__: Any) -> View:
    return call.new()


def _arange(call: Call, start: Any, end: Any = None, step: Any = 1, **_: Any) -> View:
    if end is None:
        start = 0
    to = call.new()
    c = c_type(call.found.dtype)
    call.writer.loop(
        call.found.shape,
        f"{to.at(['i0'])} = ({c}){start} + ({c}){step} * i0;",
        work=call.found.numel(),
    )
    return to


def _noise(kind: str) -> Callable[..., View]:
    """Noise by torch's own function, from its own generator."""

    def drawn(
        call: Call,
        given: Any,
        low: float = 0,
        high: float = 1,
        **options: Any,
    ) -> View:
        if options.get("generator") is not None:
            raise NotNative("noise of a generator of its own")
        if (low, high) != (0, 1) or call.found.dtype not in _CODES:
            raise NotNative(f"noise of type {call.found.dtype} from {low} and {high}")
        to = call.new()
        code = _CODES[call.found.dtype]
        sizes = ", ".join(map(str, call.found.shape)) or "0"
        count = call.found.numel()
        own = ""
        if kind == "normal" and count < _DRAWN_SINGLY:
            own = f"if (own) for (int i = 0; i < {count}; i++) {to.array}[i] = normal(own); else "
        else:
            call.writer.draws_by_torch = True
        call.writer.lines.append(
            f"{own}{{ const int64_t shape[] = {{{sizes}}}; if (draw(torch, torch->{kind}, {code}, "
            f"shape, {call.found.dim()}, {to.array}, {count * to.dtype.itemsize})) return 1; }}"
        )
        return to

    return drawn


_DRAWN_SINGLY = 16  # torch draws so many normal numbers, or more, another way
# the numbers of types in torch's C interface
_CODES = {torch.float32: 6, torch.float64: 7}

SPECIAL: dict[str, Callable[..., Any]] = {
    "_to_copy": _clone,
    "_unsafe_view": _reshape,
    "abs": _abs,
    "alias": _same,
    "arange": _arange,
    "argmax": _extreme(">", only_index=True),
    "argmin": _extreme("<", only_index=True),
    "bmm": _product,
    "cat": _cat,
    "clamp": _clamp,
    "clamp_max": lambda call, view, high: _clamp(call, view, None, high),
    "clamp_min": _clamp,
    "clone": _clone,
    "constant_pad_nd": _pad,
    "copy": _copy,
    "copy_": _copy_in_place,
    "cumprod": _cumulative(1, "*="),
    "cumsum": _cumulative(0, "+="),
    "detach": _same,
    "diagonal": _diagonal,
    "diagonal_scatter": _scatter_into(_diagonal),
    "empty": _empty,
    "empty_like": _empty,
    "expand": _expand,
    "flip": _flip,
    "full": _full,
    "full_like": _full,
    "gather": _gather,
    "index": _index,
    "index_put": _index_put,
    "index_select": _index_select,
    "lift_fresh_copy": _clone,
    "linalg_solve_triangular": _solve_triangular,
    "mean": _mean,
    "max": _extreme(">", only_index=False),
    "min": _extreme("<", only_index=False),
    "mm": _product,
    "new_empty": _empty,
    "normal_functional": _noise("normal"),
    "permute": _permute,
    "pow": _power,
    "rand": _noise("uniform"),
    "rand_like": _noise("uniform"),
    "randn": _noise("normal"),
    "randn_like": _noise("normal"),
    "scalar_tensor": _scalar_tensor,
    "scatter": _scatter("="),
    "scatter_add": _scatter("+="),
    "select": _select,
    "select_scatter": _scatter_into(_select),
    "slice": _slice,
    "slice_scatter": _scatter_into(_slice),
    "split": _split,
    "split_with_sizes": _split,
    "squeeze": _squeeze,
    "std": _std,
    "t": _transpose,
    "transpose": _transpose,
    "unbind": _unbind,
    "uniform": _noise("uniform"),
    "unsqueeze": _unsqueeze,
    "var": _var,
    "var_mean": _var_mean,
    "view": _reshape,
    "where": _where,
}
