"""A single-sample run, traced once, as a graph that ``torch.vmap`` maps over samples."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from vilvm._compile import UntraceableError, trace
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.weights._passes import BoundPass, Values, error_text, leaves

__all__ = ["MappedGraph", "known_graph"]

MappedGraph = Callable[[Any, Mapping[str, Tensor], int], Values]

_MOST_GRAPHS = 32  # of a pair, since each takes memory
_graphs: "WeakKeyDictionary[Any, dict[Any, MappedGraph]]" = WeakKeyDictionary()


def known_graph(bound: BoundPass, anew: bool = False) -> MappedGraph:
    """The mapped graph of a pass, traced unless a pass with the same key was traced before.

    The caller compares its values with single runs for every batch.

    Arguments:
        bound: the pass.
        anew: whether to trace it even if its graph is known.
    """
    try:
        known = _graphs.setdefault(bound.lvm, {})
    except TypeError:  # the pair cannot be a key
        return _mapped(bound)
    if anew or bound.key not in known:
        if len(known) >= _MOST_GRAPHS:
            known.clear()
        known[bound.key] = _mapped(bound)
    return known[bound.key]


def _mapped(bound: BoundPass) -> MappedGraph:
    """A function of a batch, given values and a number of samples.

    Raises:
        UntraceableError: the single run cannot be traced.
    """
    names, device, batch = list(bound.given), bound.device, bound.batch
    structure: list[tuple[str, str]] = []

    def single(_: Tensor, *flat: Tensor) -> list[Tensor]:
        inputs = iter(flat)
        values = bound.pass_.run(
            map_tensors(lambda _: next(inputs), batch),
            {name: value[None] for name, value in zip(names, inputs, strict=True)},
            None,
        )
        structure[:] = [(kind, site) for kind, site, _ in leaves(values)]
        return [value[0] for _, _, value in leaves(values)]

    first = [value[0] for value in bound.given.values()]
    module, closed = _traced(
        single, [torch.zeros((), device=device), *tensors_of(batch), *first]
    )

    def mapped(batch: Any, given: Mapping[str, Tensor], num_samples: int) -> Values:
        shared, own = tensors_of(batch), [given[name] for name in names]
        # Draws depend on the first input, so that they are new for every sample.
        dims = (
            0,
            *(None for _ in shared),
            *(0 for _ in own),
            *(None for _ in closed),
        )
        run = torch.vmap(
            lambda *flat: tuple(module(*flat)), in_dims=dims, randomness="different"
        )
        values: Values = {}
        with warnings.catch_warnings():
            # vmap warns of an operation that it runs one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            out = run(torch.zeros(num_samples, device=device), *shared, *own, *closed)
        for (kind, site), value in zip(structure, out, strict=True):
            values.setdefault(kind, {})[site] = value
        return values

    return mapped


def _traced(
    single: Callable[..., list[Tensor]], example: list[Tensor]
) -> tuple[GraphModule, list[Tensor]]:
    """The graph of a single run, ready to be mapped, and the tensors that it closes over."""
    # vmap cannot map fused attention, which is one operation, but can map its sums and softmax.
    with (
        preserved_rng(example[0].device),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        graph = trace(single, example)
        module = graph.module
        # vmap cannot write in place into tensors that the samples share
        if any(_writes(node) for node in module.graph.nodes):
            try:
                module = make_fx(functionalize(module))(*example, *graph.closed)
            except Exception as error:
                raise UntraceableError(error_text(error)) from error
    _make_differentiable(module)
    _draw_for_each_sample(module)
    return module, list(graph.closed)


# Random operations that vmap repeats for every sample.
_DRAWN_BY_VMAP = {
    "aten::_sample_dirichlet",
    "aten::_standard_gamma",
    "aten::bernoulli",
    "aten::binomial",
    "aten::multinomial",
    "aten::normal",
    "aten::poisson",
    "aten::rand",
    "aten::rand_like",
    "aten::randint",
    "aten::randint_like",
    "aten::randn",
    "aten::randn_like",
    "aten::randperm",
}
_IN_PLACE_METHODS = (
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "uniform_",
)
# Random operations that write in place, also under their names in a functionalised graph; vmap
# would draw once for all samples.
_IN_PLACE = {f"aten::{method}": method for method in _IN_PLACE_METHODS} | {
    "aten::cauchy": "cauchy_",
    "aten::exponential": "exponential_",
    "aten::geometric": "geometric_",
    "aten::log_normal": "log_normal_",
    "aten::normal_functional": "normal_",
    "aten::uniform": "uniform_",
}


def _writes(node: Any) -> bool:
    """Whether a node writes in place, other than a draw into a tensor of its own."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name not in _IN_PLACE


def _make_differentiable(module: GraphModule) -> None:
    """Replaces functionalised writes for which vmap has no derivative or a wrong one.

    Seen in PyTorch 2.15.
    """
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _WITH_DERIVATIVE:
            node.target = _WITH_DERIVATIVE[node.target]
    module.recompile()


def _copied(like: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    return value.to(like).expand(like.shape).clone()


def _with_selected(whole: Tensor, value: Tensor, dim: int, index: int) -> Tensor:
    at_index = _is_at(whole, dim, torch.tensor(index, device=whole.device))
    return torch.where(at_index, value.unsqueeze(dim), whole)


def _with_filled(whole: Tensor, dim: int, index: Tensor, value: Tensor) -> Tensor:
    return torch.where(_is_at(whole, dim, index), value, whole)


def _is_at(whole: Tensor, dim: int, index: Tensor) -> Tensor:
    """The entries at these indices of a dimension, broadcastable to the whole."""
    size = whole.shape[dim]
    positions = torch.arange(size, device=whole.device)[:, None]
    found = (positions == (index.reshape(-1) % size)).any(-1)
    return found.reshape(-1, *(1,) * ((-dim - 1) % whole.dim()))


_WITH_DERIVATIVE = {
    torch.ops.aten.copy.default: _copied,
    torch.ops.aten.select_scatter.default: _with_selected,
    torch.ops.aten.index_fill.int_Tensor: _with_filled,
}


def _draw_for_each_sample(module: GraphModule) -> None:
    """Makes random operations depend on the graph's first input, which differs between samples.

    Raises:
        UntraceableError: the graph holds a random operation of another kind.
    """
    graph, first = module.graph, next(iter(module.graph.nodes))
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or torch.Tag.nondeterministic_seeded not in node.target.tags:
            continue
        if schema.name in _IN_PLACE:
            with graph.inserting_after(node):
                arguments = (
                    _IN_PLACE[schema.name],
                    node.args[0],
                    first,
                    *node.args[1:],
                )
                new = graph.call_function(_filled, arguments, node.kwargs)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        elif schema.name not in _DRAWN_BY_VMAP:
            raise UntraceableError(
                f"torch.vmap cannot draw {schema.name} anew for every sample"
            )
    module.recompile()


def _filled(
    method: str, like: Tensor, first: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    return getattr(torch.zeros_like(like) + first.to(like.dtype), method)(
        *args, **kwargs
    )
