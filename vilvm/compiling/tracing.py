"""Pyro under a tracer: a loss and its gradients as one graph of tensor operations, without Pyro's handlers.

``make_fx`` runs Python once and writes down every tensor operation; what Python decides by the *value* of a tensor cannot be written
down. Pyro reads values in a few places of its own, which are of no consequence to the loss: a loss is turned into a float, NaN is
warned of, a term is left out if it is zero. ``traceable`` patches these while a trace is taken, and only then. A value that the user's
model reads is found out, for no patch is made there: the tracer raises.

Every tensor that the trace met, parameters, buffers and data that the model closes over, becomes an input of the graph, by reference, so
that what is changed in place is changed for the graph too.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from pyro.infer import traceenum_elbo, tracegraph_elbo
from pyro.infer.util import Dice
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["Graph", "UntraceableError", "shapes", "trace", "traceable", "why"]


class UntraceableError(RuntimeError):
    """A construct that a graph cannot hold; the message names it."""


class Graph(NamedTuple):
    """A traced function.

    Arguments:
        module: called with the traced arguments and then every tensor of `closed`; gives the list that the function gave.
        closed: the tensors that the function closes over, by reference.
    """

    module: GraphModule
    closed: list[Tensor]


def shapes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What a graph depends on: tensors that are alike in it are served by the same one."""
    return tuple((t.shape, t.stride(), t.dtype) for t in tensors)


def trace(function: Callable[..., list[Tensor]], arguments: Sequence[Tensor]) -> Graph:
    """What `function` does with tensors, as a graph that computes it for other values of `arguments`, of the same shapes.

    The function is run once, so whatever it changes in place is changed.

    Raises:
        UntraceableError: Python reads the value of a tensor, or something else that cannot be written down was met.
    """
    from torch._decomp.decompositions import native_batch_norm_decomposition

    # The operation that eager batch normalisation calls does not say that it changes its running statistics.
    batch_norm = {torch.ops.aten.native_batch_norm.default: native_batch_norm_decomposition}
    try:
        with traceable():
            module = make_fx(function, decomposition_table=batch_norm)(*arguments)
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(why(error)) from error
    return Graph(module, _lift(module))


def _lift(module: GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that a graph holds, one for each, and returns them."""
    last = list(module.graph.find_nodes(op="placeholder"))[-1]
    inputs: dict[int, Any] = {}
    closed = []
    for node in list(module.graph.find_nodes(op="get_attr")):
        held = getattr(module, str(node.target))
        if not isinstance(held, Tensor):
            raise UntraceableError(f"a {type(held).__name__} that the pair closes over, which is no tensor")
        if id(held) not in inputs:
            with module.graph.inserting_after(last):
                last = inputs[id(held)] = module.graph.placeholder(f"closed_{len(closed)}")
            closed.append(held)
        node.replace_all_uses_with(inputs[id(held)])
        module.graph.erase_node(node)
    # What stays in the module would be passed a second time by the compiler, which would take every change for one of an alias.
    for name in [n for n, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]:
        delattr(module, name)
    for name in [n for n, v in vars(module).items() if isinstance(v, Tensor)]:
        delattr(module, name)
    module.recompile()
    return closed


@contextmanager
def traceable() -> Iterator[None]:
    """While it lasts, Pyro reads no tensor's value: nothing is validated, and what would be a float stays a tensor."""
    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(_item_as_tensor())
        for name, stand_in in (
            ("warn_if_nan", _unwatched),
            ("warn_if_inf", _unwatched),
            ("is_identically_zero", _is_number(0)),
            ("is_identically_one", _is_number(1)),
        ):
            for module in [m for n, m in sys.modules.items() if n.startswith("pyro.") and name in vars(m)]:
                stack.enter_context(mock.patch.object(module, name, stand_in))
        stack.enter_context(mock.patch.object(traceenum_elbo, "_get_common_scale", _common_scale))
        stack.enter_context(mock.patch.object(Dice, "compute_expectation", _expectation))
        stack.enter_context(mock.patch.object(tracegraph_elbo, "_construct_baseline", _without_baseline))
        yield


@contextmanager
def _item_as_tensor() -> Iterator[None]:
    """``x.item()`` is x, without a gradient: Pyro adds such numbers up, which tensors do as well."""
    torch.Tensor.item = Tensor.detach  # type: ignore[method-assign]
    try:
        yield
    finally:
        del torch.Tensor.item  # that of its base is seen again


def _unwatched(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _is_number(number: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int | float) and x == number


def _common_scale(scales: list[Any]) -> Any:
    """The scale that all enumerated sites have: one number, or one tensor, told by identity."""
    if len({s if isinstance(s, int | float) else id(s) for s in scales}) != 1:
        raise UntraceableError("enumerated sites under scales that are different tensors")
    return scales[0]


_compute_expectation = Dice.compute_expectation


def _expectation(dice: Any, costs: Any) -> Any:
    """Pyro leaves out costs of probability zero, which may be infinite; a graph, whose shapes are fixed, puts zero in their place."""

    def kept(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0)

    def not_known(mask: Tensor, *args: Any) -> bool:
        if args:
            raise UntraceableError("Tensor.all of a dimension, within the expectation of an enumerated ELBO")
        return False

    with mock.patch.object(torch.Tensor, "masked_select", kept), mock.patch.object(torch.Tensor, "all", not_known):
        return _compute_expectation(dice, costs)


_construct_baseline = tracegraph_elbo._construct_baseline


def _without_baseline(node: Any, guide_site: Any, downstream_cost: Any) -> Any:
    if guide_site["infer"].get("baseline"):
        raise UntraceableError(f"the baseline of {node!r}, which Pyro keeps in Python")
    return _construct_baseline(node, guide_site, downstream_cost)


def why(error: BaseException) -> str:
    """In one line, what a trace or a compiler stumbled over, and where in the user's code."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if "get value out of a tracing tensor" in text or "data-dependent" in text or "DataDependent" in type(error).__name__:
        first = "Python reads the value of a tensor (if, float(), .tolist() or the like)"
    place = _place(error.__traceback__)
    return first[:200].rstrip(".") + (f", at {place}" if place else "")


def _place(traceback: TracebackType | None) -> str:
    """The innermost line that is neither torch's, nor Pyro's, nor ours."""
    found = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] not in ("torch", "pyro", "vilvm", "contextlib", "unittest"):
            found = f"line {traceback.tb_lineno} of {traceback.tb_frame.f_code.co_filename}"
        traceback = traceback.tb_next
    return found
