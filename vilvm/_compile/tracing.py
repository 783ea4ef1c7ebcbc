"""Pyro under a tracer: a loss and its gradients as one graph of tensor operations, without Pyro's
handlers.

``make_fx`` runs Python once and writes down every tensor operation; what Python decides by the
*value* of a tensor cannot be written down. Pyro reads values in a few places of its own, which are
of no consequence to the loss: a loss is turned into a float, NaN is warned of, a term is left out
if it is zero. ``traceable`` patches these while a trace is taken, and only then. A value that the
user's model reads is found out, for no patch is made there: the tracer raises.

Every tensor that the trace met, parameters, buffers and data that the model closes over, becomes
an input of the graph, by reference, so that what is changed in place is changed for the graph too.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyro
import torch
from pyro.infer import traceenum_elbo, tracegraph_elbo
from pyro.infer.util import Dice
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm._compile.guards import numpy_state

__all__ = [
    "Graph",
    "UntraceableError",
    "mutated_inputs",
    "reason_of",
    "shapes",
    "trace",
    "traceable",
]


_READ = "Python reads the value of a tensor (if, float(), .tolist(), f-string or the like)"


class UntraceableError(RuntimeError):
    """A construct that a graph cannot hold; the message names it."""


class Graph(NamedTuple):
    """A traced function.

    Arguments:
        module: called with the traced arguments and then every tensor of `closed`; gives the list
            that the function gave.
        closed: the tensors that the function closes over, by reference.
    """

    module: GraphModule
    closed: list[Tensor]


def mutated_inputs(graph: Graph) -> list[Tensor]:
    """The tensors of `closed` that the graph writes into, whether or not their values have changed
    in doing so.
    """
    placeholders = list(graph.module.graph.find_nodes(op="placeholder"))
    places = placeholders[len(placeholders) - len(graph.closed) :]
    return [
        t
        for t, place in zip(graph.closed, places, strict=True)
        if any(_writes_into(user, place) for user in place.users)
    ]


def _writes_into(node: Node, place: Node) -> bool:
    """Whether an operation writes into what is at `place`."""
    arguments: Any = getattr(getattr(node.target, "_schema", None), "arguments", ())
    written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    return any(
        writes and given is place for writes, given in zip(written, node.args, strict=False)
    )


def shapes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What a graph depends on: tensors that are alike in it are served by the same one."""
    return tuple((t.shape, t.stride(), t.dtype) for t in tensors)


def trace(function: Callable[..., list[Tensor]], arguments: Sequence[Tensor]) -> Graph:
    """What `function` does with tensors, as a graph that computes it for other values of
    `arguments`, of the same shapes.

    The function is run once, so whatever it changes in place is changed.

    Raises:
        UntraceableError: Python reads the value of a tensor, or something else that cannot be
            written down was met.
    """
    from torch._decomp.decompositions import native_batch_norm_decomposition

    # The operation that eager batch normalisation calls does not say that it changes its running
    # statistics.
    batch_norm = {torch.ops.aten.native_batch_norm.default: native_batch_norm_decomposition}
    noise = _other_noise()
    try:
        # One mode for what is noted of every node: without it make_fx makes a new one for each,
        # which takes as long as the rest.
        with traceable(), tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            module = make_fx(function, decomposition_table=batch_norm)(*arguments)
    except Exception as error:
        raise UntraceableError(reason_of(error)) from error
    if _other_noise() != noise:
        raise UntraceableError(
            "a number drawn by Python's random or by numpy.random, which a program would keep "
            "(draw by torch)"
        )
    graph = Graph(module, _lift(module))
    _check_shapes(graph)
    return graph


def _other_noise() -> tuple[Any, bytes]:
    """Where the generators are that no graph draws from, Python's own and numpy's."""
    return random.getstate(), numpy_state(np.random)


# Their result has a shape that depends on values, of which a graph keeps the one that it met.
_SELECTIONS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.bincount.default,
)


def _check_shapes(graph: Graph) -> None:
    """Raises UntraceableError if a mask that is not constant picks elements, for their number is
    then that of the trace.
    """
    inside = graph.module.graph
    placeholders = inside.find_nodes(op="placeholder")
    closed = list(placeholders)[len(placeholders) - len(graph.closed) :]
    constant = {n: not t.requires_grad for n, t in zip(closed, graph.closed, strict=True)}

    def is_constant(node: Any) -> bool:
        if node not in constant:
            # not those that it reads alone: what draws noise reads none
            inputs = node.all_input_nodes
            constant[node] = (
                bool(inputs) and not _draws(node) and all(is_constant(n) for n in inputs)
            )
        return constant[node]

    for target in _SELECTIONS:
        for node in inside.find_nodes(op="call_function", target=target):
            if not all(is_constant(n) for n in _selectors(node)):
                raise UntraceableError(
                    "a selection by a mask or a value (x[mask], nonzero, unique), whose size may "
                    "change"
                )


def _draws(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _selectors(node: Any) -> list[Any]:
    """The nodes by whose values an operation picks elements, if it picks a number of them that
    depends on these values.
    """
    if node.target in (
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.index_put_.default,
    ):
        masks = [
            i for i in node.args[1] if i is not None and _dtype(i) in (torch.bool, torch.uint8)
        ]
        put = node.args[2] if len(node.args) > 2 else None
        is_one_number = put is not None and _numel(put) == 1  # which fills any number of places
        return (
            []
            if is_one_number and isinstance(put, torch.fx.Node) and not _is_selected(put)
            else masks
        )
    return node.all_input_nodes


def _dtype(node: Any) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _numel(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else None


def _is_selected(node: Any) -> bool:
    """Whether a node is what a selection has picked, whose number may be one today."""
    return node.target in _SELECTIONS or any(_is_selected(n) for n in node.all_input_nodes)


def _lift(module: GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that a graph holds, one for each, and returns them."""
    last = list(module.graph.find_nodes(op="placeholder"))[-1]
    inputs: dict[int, Any] = {}
    closed = []
    for node in list(module.graph.find_nodes(op="get_attr")):
        held = getattr(module, str(node.target))
        if not isinstance(held, Tensor):
            raise UntraceableError(
                f"a {type(held).__name__} that the pair closes over, which is no tensor"
            )
        if id(held) not in inputs:
            with module.graph.inserting_after(last):
                last = inputs[id(held)] = module.graph.placeholder(f"closed_{len(closed)}")
            closed.append(held)
        node.replace_all_uses_with(inputs[id(held)])
        module.graph.erase_node(node)
    # What stays in the module would be passed a second time by the compiler, which would take
    # every change for one of an alias.
    for name in [
        n
        for n, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    ]:
        delattr(module, name)
    for name in [n for n, v in vars(module).items() if isinstance(v, Tensor)]:
        delattr(module, name)
    module.recompile()
    return closed


@contextmanager
def traceable() -> Iterator[None]:
    """While it lasts, Pyro reads no tensor's value: nothing is validated, and what would be a
    float stays a tensor.
    """
    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(_item_as_tensor())
        stack.enter_context(_plates_by_number())
        # A distribution made beforehand by .expand keeps the validation that was on then.
        for validated in _validated():
            stack.enter_context(mock.patch.object(validated, "_validate_sample", _unwatched))
        for name, stand_in in (
            ("warn_if_nan", _unwatched),
            ("warn_if_inf", _unwatched),
            ("is_identically_zero", _is_number(0)),
            ("is_identically_one", _is_number(1)),
        ):
            for module in [
                m for n, m in sys.modules.items() if n.startswith("pyro.") and name in vars(m)
            ]:
                stack.enter_context(mock.patch.object(module, name, stand_in))
        stack.enter_context(mock.patch.object(traceenum_elbo, "_get_common_scale", _common_scale))
        stack.enter_context(mock.patch.object(Dice, "compute_expectation", _expectation))
        stack.enter_context(
            mock.patch.object(tracegraph_elbo, "_construct_baseline", _without_baseline)
        )
        yield


def _validated() -> list[type]:
    """Every class of distributions that checks its samples in a way of its own."""
    found, left = [], [Distribution]
    while left:
        kind = left.pop()
        left += [k for k in kind.__subclasses__() if k not in found]
        found += [kind] if "_validate_sample" in vars(kind) and kind not in found else []
    return found


@contextmanager
def _item_as_tensor() -> Iterator[None]:
    """``x.item()`` is x, without a gradient: Pyro adds such numbers up, which tensors do as well."""

    def read(value: Tensor, *args: Any) -> str:
        raise UntraceableError(_READ)

    torch.Tensor.item = Tensor.detach  # type: ignore[method-assign]
    try:
        # A tensor is written by its item, which would be a tensor again, and so on.
        with (
            mock.patch.object(torch.Tensor, "__format__", read),
            mock.patch.object(torch.Tensor, "__repr__", read),
        ):
            yield
    finally:
        del torch.Tensor.item  # that of its base is seen again


@contextmanager
def _plates_by_number() -> Iterator[None]:
    """A plate over all its data that is gone through one by one, ``for i in pyro.plate(...)``,
    counts in Python.
    """
    whole: list[Tensor] = []
    sample, iterate = _Subsample.sample, IndepMessenger.__iter__

    def sampled(self: Any, *args: Any) -> Tensor:
        drawn = sample(self, *args)
        if self.subsample_size is None or self.subsample_size >= self.size:
            whole.append(drawn)
        return drawn

    def counted(self: Any) -> Iterator[Any]:
        indices = self.indices
        if isinstance(indices, Tensor):
            if not any(indices is w for w in whole):
                raise UntraceableError(
                    f"the plate {self.name!r} goes one by one through indices that are drawn or "
                    "given as a tensor"
                )
            self._indices = range(len(indices))
        return iterate(self)

    with (
        mock.patch.object(_Subsample, "sample", sampled),
        mock.patch.object(IndepMessenger, "__iter__", counted),
    ):
        yield


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
    """Pyro leaves out costs of probability zero, which may be infinite; a graph, whose shapes are
    fixed, puts zero in their place.
    """

    def kept(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0)

    def not_known(mask: Tensor, *args: Any) -> bool:
        if args:
            raise UntraceableError(
                "Tensor.all of a dimension, within the expectation of an enumerated ELBO"
            )
        return False

    with (
        mock.patch.object(torch.Tensor, "masked_select", kept),
        mock.patch.object(torch.Tensor, "all", not_known),
    ):
        return _compute_expectation(dice, costs)


_construct_baseline = tracegraph_elbo._construct_baseline


def _without_baseline(node: Any, guide_site: Any, downstream_cost: Any) -> Any:
    if guide_site["infer"].get("baseline"):
        raise UntraceableError(f"the baseline of {node!r}, which Pyro keeps in Python")
    return _construct_baseline(node, guide_site, downstream_cost)


def reason_of(error: BaseException) -> str:
    """In one line, what a trace or a compiler stumbled over, and where in the user's code."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if (
        "get value out of a tracing tensor" in text
        or "data-dependent" in text
        or "DataDependent" in type(error).__name__
    ):
        first = _READ
    place = _place(error.__traceback__)
    return first[:200].rstrip(".") + (f", at {place}" if place else "")


def _place(traceback: TracebackType | None) -> str:
    """The innermost line that is neither torch's, nor Pyro's, nor ours."""
    found = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        # what libraries generate has no line of its own
        is_file = not traceback.tb_frame.f_code.co_filename.startswith("<")
        if is_file and module.split(".")[0] not in (
            "torch",
            "pyro",
            "vilvm",
            "contextlib",
            "unittest",
        ):
            found = f"line {traceback.tb_lineno} of {traceback.tb_frame.f_code.co_filename}"
        traceback = traceback.tb_next
    return found
