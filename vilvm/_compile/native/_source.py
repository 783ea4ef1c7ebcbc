"""A graph of torch operations as the text of a C function.

Each result is a local array, or a view of one, which costs nothing. Every other operation is a
loop of its own; the C compiler removes what it can.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from vilvm._compile.native._operations import (
    COMPARISONS,
    POINTWISE,
    PRELUDE,
    REDUCTIONS,
)
from vilvm._compile.native._special import SPECIAL, Call
from vilvm._compile.native._views import NotNative, View, c_type, contiguous
from vilvm._compile.native._writer import Writer

__all__ = ["is_known", "source_of"]

_MOST_NODES = 3000  # The time of the C compiler grows faster than the function.
# whose results are 0 or 1 if the operands are
_OF_TRUTH_VALUES = (
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "maximum",
    "minimum",
    "mul",
)

_RUN = """
extern "C" int run(char** in, const int64_t* in_step, int64_t num_in, char** out,
                   const int64_t* out_step, int64_t num_out, int64_t count, const Torch* torch,
                   Generator* own) {
    for (int64_t k = 0; k < count; k++) {
        const int failed = once(in, out, torch, own);
        if (failed) return failed;
        for (int64_t i = 0; i < num_in; i++) in[i] += in_step[i];
        for (int64_t i = 0; i < num_out; i++) out[i] += out_step[i];
    }
    return 0;
}
"""


def source_of(graph: Graph, inputs: Sequence[Tensor]) -> str:
    """The C source of a graph whose only operations in place are copies into its inputs.

    Its function ``run`` takes the addresses of inputs and outputs, and calls the graph `count`
    times; after each call, every address grows by its step in bytes. It returns 0, or the number
    of a failure (``_library``).

    Arguments:
        graph: each node with an example of its result (``meta["val"]``).
        inputs: examples, which set shapes, strides and types.

    Raises:
        NotNative: it is too large, or has an unknown operation.
    """
    if len(graph.nodes) > _MOST_NODES:
        raise NotNative("many operations")
    writer = _GraphWriter()
    remaining = iter(enumerate(inputs))
    for node in graph.nodes:
        if node.op == "placeholder":
            writer.take_input(node, *next(remaining))
        elif node.op == "call_function":
            writer.values[node] = writer.called(node)
        elif node.op == "output":
            writer.give_outputs(writer.value(node.args[0]))
        else:
            raise NotNative(f"a node of kind {node.op}")
    body = "\n    ".join(writer.lines)
    head = (
        f'extern "C" const int32_t draws_by_torch = {int(writer.draws_by_torch)};\n'
        "static int once(char** in, char** out, const Torch* torch, Generator* own) {"
    )
    return f"{PRELUDE}\n{head}\n    {body}\n    return 0;\n}}\n{_RUN}"


def is_known(target: Any) -> bool:
    """Whether native programs have an operation of torch."""
    known = (SPECIAL, REDUCTIONS, COMPARISONS, POINTWISE)
    return any(_name(target) in names for names in known)


class _GraphWriter(Writer):
    """Writes a graph, node by node."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Node, Any] = {}

    def value(self, given: Any) -> Any:
        """Views instead of nodes, also in lists."""
        if isinstance(given, Node):
            return self.values[given]
        if isinstance(given, list | tuple):
            return [self.value(v) for v in given]
        return given

    def take_input(self, node: Node, number: int, example: Tensor) -> None:
        """An input, read and written at its own address."""
        c = c_type(example.dtype)
        self.lines.append(f"{c}* in{number} = ({c}*)in[{number}];")
        self.values[node] = View(
            f"in{number}", example.dtype, tuple(example.shape), example.stride()
        )

    def give_outputs(self, outputs: Sequence[Any]) -> None:
        """Writes the outputs, contiguous, to their addresses."""
        for i, view in enumerate(outputs):
            if not isinstance(view, View):
                raise NotNative("an output that is not a tensor")
            c = c_type(view.dtype)
            self.lines.append(f"{c}* out{i} = ({c}*)out[{i}];")
            self.fill(contiguous(f"out{i}", view.dtype, view.shape), "{0}", [view])

    def called(self, node: Node) -> Any:
        """The result of an operation: a view, or a list of them.

        Raises:
            NotNative: the operation, or one of its options, is unknown.
        """
        target: Any = node.target
        arguments = [self.value(a) for a in node.args]
        options = {k: self.value(v) for k, v in node.kwargs.items()}
        if getattr(target, "__name__", "") == "getitem":
            return arguments[0][arguments[1]]
        name = _name(target)
        found = node.meta.get("val")
        try:
            if name in SPECIAL:
                return SPECIAL[name](Call(self, found), *arguments, **options)
            if not name or not isinstance(found, Tensor):
                raise NotNative(f"the operation {target}")
            if name in REDUCTIONS:
                dims = arguments[1] if arguments[1:] else options.get("dim")
                return self.reduced(name, found, arguments[0], dims)
            return self._pointwise(name, found, arguments, **options)
        except TypeError as error:
            raise NotNative(f"{target}: {error}") from None

    def _pointwise(
        self, name: str, found: Tensor, operands: list[Any], alpha: float = 1
    ) -> View:
        """An operation on every element; `alpha` multiplies the second operand of a sum."""
        to = self.new(found.dtype, found.shape)
        if name in COMPARISONS and (found.dtype is torch.bool):
            return self.fill(to, COMPARISONS[name], operands, _common(operands))
        expression = POINTWISE.get(name)
        if (
            expression is None
            or ("{f}" in expression and not found.dtype.is_floating_point)
            or (found.dtype is torch.bool and name not in _OF_TRUTH_VALUES)
        ):
            raise NotNative(f"the operation {name} with a result of type {found.dtype}")
        if alpha != 1:
            expression = expression.replace("{1}", "({1} * {2})")
            operands = [*operands, alpha]
        return self.fill(to, expression, operands)


def _name(target: Any) -> str:
    """The name of an operation of torch; empty for any other function."""
    return target._opname if getattr(target, "namespace", "") == "aten" else ""


def _common(operands: Sequence[Any]) -> torch.dtype:
    """The type in which torch compares operands."""
    examples = [
        torch.empty((1,) * bool(o.shape), dtype=o.dtype) if isinstance(o, View) else o
        for o in operands
    ]
    if len(examples) == 1:
        return examples[0].dtype
    return torch.result_type(*examples)
