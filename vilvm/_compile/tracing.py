"""Tracing: a loss and its gradients as one graph of tensor operations, without Pyro's handlers.

``make_fx`` runs Python once and records every tensor operation. It cannot record a Python decision
that depends on the *value* of a tensor. Such decisions of Pyro are patched
(``vilvm._compile.patches``); for those of the user's model the tracer raises.

Every tensor that the traced code closes over (parameters, buffers, data) becomes an input of the
graph, by reference, so that the graph sees changes in place.
"""

import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from vilvm._compile.patches import VALUE_IS_READ, UntraceableError, traceable
from vilvm._compile.places import numpy_state

__all__ = ["Graph", "mutated_inputs", "reason_of", "shapes", "trace"]

_NOT_USER = ("torch", "pyro", "vilvm", "contextlib", "unittest")


class Graph(NamedTuple):
    """A traced function.

    Arguments:
        module: takes the traced arguments and then every tensor of `closed`; returns a list, as
            the function does.
        closed: the tensors that the function closes over, by reference.
    """

    module: GraphModule
    closed: list[Tensor]


def mutated_inputs(graph: Graph) -> list[Tensor]:
    """The tensors of `closed` that the graph writes into, even if their values stay the same."""
    placeholders = list(graph.module.graph.find_nodes(op="placeholder"))
    places = placeholders[len(placeholders) - len(graph.closed) :]
    return [
        t
        for t, place in zip(graph.closed, places, strict=True)
        if any(_writes_into(user, place) for user in place.users)
    ]


def _writes_into(node: Node, place: Node) -> bool:
    """Whether an operation writes into the tensor at `place`."""
    arguments: Any = getattr(getattr(node.target, "_schema", None), "arguments", ())
    written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    return any(
        writes and given is place
        for writes, given in zip(written, node.args, strict=False)
    )


def shapes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The shapes, strides and types of tensors, on which a graph depends."""
    return tuple((t.shape, t.stride(), t.dtype) for t in tensors)


def trace(function: Callable[..., list[Tensor]], arguments: Sequence[Tensor]) -> Graph:
    """A function as a graph, for arguments of the same shapes.

    The function is run once, with all its effects.

    Arguments:
        function: of tensors.
        arguments: such tensors.

    Raises:
        UntraceableError: Python reads the value of a tensor, or does something else that cannot be
            recorded.
    """
    from torch._decomp.decompositions import native_batch_norm_decomposition

    # The operation of eager batch normalisation does not declare that it changes its running
    # statistics.
    batch_norm = {
        torch.ops.aten.native_batch_norm.default: native_batch_norm_decomposition
    }
    noise = _other_noise()
    try:
        # One mode for the metadata of all nodes: make_fx would create one for each node, which
        # takes as long as the rest.
        with (
            traceable(),
            _LabelsUnread(),
            tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
        ):
            module = make_fx(function, decomposition_table=batch_norm)(*arguments)
    except Exception as error:
        raise UntraceableError(reason_of(error)) from error
    if _other_noise() != noise:
        raise UntraceableError(
            "a number drawn by Python's random or by numpy.random, which a program would freeze "
            "(draw with torch)"
        )
    graph = Graph(module, _lift(module))
    _check_shapes(graph)
    return graph


class _LabelsUnread(TorchFunctionMode):
    """``one_hot`` without its check of the labels, which reads them; scatter has its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.one_hot:
            func = _one_hot
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:  # as many as the largest label says
        return torch.nn.functional.one_hot(tensor)
    zeros = tensor.new_zeros(*tensor.shape, num_classes)
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


def _other_noise() -> tuple[Any, bytes]:
    """The states of the generators that no graph draws from: Python's and numpy's."""
    return random.getstate(), numpy_state(np.random)


_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
# The shapes of their results depend on values; a graph keeps the shape of the trace.
_SELECTIONS = (
    *_INDEXING,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.bincount.default,
)


def _check_shapes(graph: Graph) -> None:
    """Raises UntraceableError if a mask that is not constant selects elements, whose number the
    trace would freeze.
    """
    inside = graph.module.graph
    placeholders = inside.find_nodes(op="placeholder")
    closed = list(placeholders)[len(placeholders) - len(graph.closed) :]
    constant = {
        n: not t.requires_grad for n, t in zip(closed, graph.closed, strict=True)
    }

    def is_constant(node: Any) -> bool:
        if node not in constant:
            inputs = node.all_input_nodes
            # An operation that draws noise may have no inputs.
            fixed = bool(inputs) and not _draws(node)
            constant[node] = fixed and all(map(is_constant, inputs))
        return constant[node]

    for target in _SELECTIONS:
        for node in inside.find_nodes(op="call_function", target=target):
            if not all(is_constant(n) for n in _selectors(node)):
                raise UntraceableError(
                    "a selection by a mask or a value (x[mask], nonzero, unique), whose size may "
                    "change"
                )


def _draws(node: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _selectors(node: Any) -> list[Any]:
    """The nodes whose values determine how many elements an operation selects."""
    if node.target not in _INDEXING:
        return node.all_input_nodes
    if len(node.args) > 2 and _fills(node.args[2]):
        return []
    given = [i for i in node.args[1] if i is not None]
    return [i for i in given if _dtype(i) in (torch.bool, torch.uint8)]


def _fills(put: Any) -> bool:
    """Whether an assigned value is one number, which fills any number of elements."""
    is_number = isinstance(put, torch.fx.Node) and _numel(put) == 1
    return is_number and not _is_selected(put)


def _dtype(node: Any) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _numel(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else None


def _is_selected(node: Any) -> bool:
    """Whether a node depends on a selection, whose number of elements may be one by chance."""
    return node.target in _SELECTIONS or any(
        _is_selected(n) for n in node.all_input_nodes
    )


def _lift(module: GraphModule) -> list[Tensor]:
    """Turns the tensors that a graph holds into inputs, and returns them."""
    last = list(module.graph.find_nodes(op="placeholder"))[-1]
    inputs: dict[int, Any] = {}
    closed = []
    for node in list(module.graph.find_nodes(op="get_attr")):
        held = getattr(module, str(node.target))
        if not isinstance(held, Tensor):
            raise UntraceableError(
                f"a {type(held).__name__} that the pair closes over, which is not a tensor"
            )
        if id(held) not in inputs:
            with module.graph.inserting_after(last):
                last = inputs[id(held)] = module.graph.placeholder(
                    f"closed_{len(closed)}"
                )
            closed.append(held)
        node.replace_all_uses_with(inputs[id(held)])
        module.graph.erase_node(node)
    # The compiler would pass tensors that stay in the module a second time, and treat every change
    # of them as a change of an alias.
    named = [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]
    for name, _ in named:
        delattr(module, name)
    for name in [n for n, v in vars(module).items() if isinstance(v, Tensor)]:
        delattr(module, name)
    module.recompile()
    return closed


def reason_of(error: BaseException) -> str:
    """Why a trace or a compiler failed, and at which line of the user's code, in one line."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    reads = "get value out of a tracing tensor" in text or "data-dependent" in text
    if reads or "DataDependent" in type(error).__name__:
        reason = VALUE_IS_READ
    reason = reason[:200].rstrip(".")
    line = _user_line(error.__traceback__)
    return f"{reason}, at {line}" if line else reason


def _user_line(traceback: TracebackType | None) -> str:
    """The innermost line that is not torch's, Pyro's or ours; empty if there is none."""
    found = ""
    while traceback is not None:
        frame = traceback.tb_frame
        package = frame.f_globals.get("__name__", "").split(".")[0]
        file = frame.f_code.co_filename
        # Code that libraries generate is in no file.
        if package not in _NOT_USER and not file.startswith("<"):
            found = f"line {traceback.tb_lineno} of {file}"
        traceback = traceback.tb_next
    return found
