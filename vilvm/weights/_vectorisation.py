"""Many samples of a pass through a pair, by the fastest way that equals the single-sample run.

A pair is written for one sample, so its run at one sample, without any further plate, is the
definition of its densities. At many samples there are three ways:

- vectorised: all samples in one run under a plate left of all others. Right where model and guide
  leave leading dimensions alone.
- vmap: the single run traced once, and the graph mapped over samples by ``torch.vmap``. Needs
  nothing of the model's broadcasting.
- one by one: the single run, as often as there are samples.

The first that applies is taken. Before many samples are run, two single runs are compared with a
vectorised run at the same latents; and six samples of the first batch, and two of every other, are
run again one by one, at the latents that were drawn (with two alone, what one sample takes from
the others may be alike by chance). Where a value differs, the next way is taken, and one line
reports the site and the user's line.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from vilvm._compile import UntraceableError, shapes, trace
from vilvm._runtime.memory import is_out_of_memory
from vilvm._runtime.random import preserved_rng, rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import ContractError
from vilvm.weights._reads import Reads
from vilvm.weights._traces import Lines

__all__ = ["ONE_BY_ONE", "VECTORISED", "VMAP", "Pass", "Values", "Ways", "at_samples", "way_of"]

VECTORISED, VMAP, ONE_BY_ONE = "vectorised", "vmap", "one by one"
# relative to the mean size of a term; sums of float32 in another order differ by some 1e-6
_TOLERANCE = 1e-4
# the same, where data and latents are float64; a network within may still be float32
_OF_DOUBLES = 1e-6
# a relative change of the latents, of a few roundings, whose effect on a term is no difference
_ROUNDING = 2.0**-21
_MOST_SLACK = 1e-2  # relative; a term that roundings change by more is taken for another
_FAILURES = (
    ContractError,
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    NotImplementedError,
    AssertionError,
)
# samples that are compared, of a layout's first pass of a kind, and of each later batch
_FIRST, _OFTEN = 6, 2
# samples that are run at once without two being tried before; samples against samples still take
# little memory
_FEW = 64
_MOST_GRAPHS = 32  # of a pair, for each takes memory
_READ = "Python reads a value that depends on the latents"
_ITEM = f"{_READ}, by item()"  # which a trace takes for the tensor itself
_DRAWN = "drawn"

# tensors of shape (num_samples, ...), in dicts by kind and site; those to be given again are in
# "drawn"
Values = dict[str, Any]


class Pass(NamedTuple):
    """A pass through one or both halves of a pair.

    Arguments:
        run: called with a batch, given values by site, shape (num_samples, ...), and the number of
            samples; None stands for a run without a plate over samples, whose results have one
            sample.
        name: what it computes; passes of one name and one pair take the same way.
    """

    run: Callable[[Any, Mapping[str, Tensor], int | None], Values]
    name: str


class _Way(NamedTuple):
    """The way that a pass takes, and the graph of a single run if that is vmap."""

    name: str
    mapped: Callable[..., Values] | None = None


class Ways:
    """What has been found out of a layout's passes, each by its name and the shapes of what it is
    given.

    Arguments:
        taken: the way that a pass takes.
        compared: by pass and way, the numbers of samples at which samples were compared with
            single runs.
        most: how many samples of a pass are run at once, where memory ran out with more.
    """

    def __init__(self) -> None:
        self.taken: dict[Any, _Way] = {}
        self.most: dict[Any, int] = {}
        self.compared: dict[Any, set[int]] = {}


_graphs: "WeakKeyDictionary[Any, dict[Any, Callable[..., Values]]]" = WeakKeyDictionary()
_reported: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()


def at_samples(
    lvm: Any,
    batch: Any,
    num_samples: int,
    one: Pass,
    given: Mapping[str, Tensor] | None = None,
    *,
    ways: Ways,
    check: bool = True,
    traced: bool = False,
    log: Callable[[str], None] = print,
) -> Values:
    """The values of `num_samples` samples of a pass. Where memory runs out they are run half as
    many at a time, and one line says so.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: how many samples.
        one: the pass.
        given: values by site, shape (num_samples, ...), where sites are put.
        ways: of the layout; what is found out of this pass is kept there, so that a seed has one
            meaning in every call.
        check: whether samples are compared with single runs; if not, they are so only where none
            of this number of samples were before.
        traced: whether a tracer looks on: the way is known, nothing is compared, and what fails
            fails.
        log: is given the one line that says that another way is taken.
    """
    given = dict(given or {})
    if num_samples == 1:
        return one.run(batch, given, None)
    key = _key(batch, one, given)
    if num_samples > ways.most.get(key, num_samples):
        return _in_turn(lvm, batch, num_samples, one, given, ways, check, log)
    before = rng_state(_device(batch))
    try:
        return _at_once(lvm, batch, num_samples, one, given, ways, check, traced, log)
    except (MemoryError, RuntimeError) as error:
        if traced or not is_out_of_memory(error):
            raise
    # Beyond the clause, so that what the error held in memory is gone.
    set_rng_state(before, _device(batch))
    ways.most[key] = num_samples // 2
    log(
        f"{type(lvm).__name__}: memory ran out at {num_samples} samples a pass; they are run "
        f"{num_samples // 2} at a time."
    )
    return _in_turn(lvm, batch, num_samples, one, given, ways, check, log)


def _in_turn(
    lvm: Any,
    batch: Any,
    num_samples: int,
    one: Pass,
    given: Mapping[str, Tensor],
    ways: Ways,
    check: bool,
    log: Callable[[str], None],
) -> Values:
    """The values of all samples, as many at a time as memory has been found to hold."""
    size = ways.most[_key(batch, one, given)]
    found = []
    for start in range(0, num_samples, size):
        stop = min(start + size, num_samples)
        put = {n: v[start:stop] for n, v in given.items()}
        found.append(
            at_samples(
                lvm, batch, stop - start, one, put, ways=ways, check=check and not start, log=log
            )
        )
    return _joined(found)


def _at_once(
    lvm: Any,
    batch: Any,
    num_samples: int,
    one: Pass,
    given: dict[str, Tensor],
    ways: Ways,
    check: bool,
    traced: bool,
    log: Callable[[str], None],
) -> Values:
    """The values of all samples, at the same time."""
    key = _key(batch, one, given)
    known = num_samples <= _FEW or key in ways.taken
    way = (
        ways.taken.setdefault(key, _Way(VECTORISED))
        if known
        else _way(lvm, batch, one, given, ways, log)
    )
    if traced:
        return _run(way, batch, num_samples, one, given)
    traced_anew = False
    while True:
        compared = ways.compared.setdefault((key, way.name), set())
        number = (_OFTEN if compared else _FIRST) if check or num_samples not in compared else 0
        found, reason = _taken(way, batch, num_samples, one, given, number)
        if found is not None:
            compared.add(num_samples)
            return found
        # the graph may hold what Python did for another batch
        if way.name == VMAP and not traced_anew:
            traced_anew = True
            with suppress(UntraceableError):
                way = ways.taken[key] = _Way(VMAP, _known_graph(lvm, batch, one, given, anew=True))
                continue
        way = ways.taken[key] = _next(way, lvm, batch, one, given, reason, log)


def way_of(lvm: Any, batch: Any, one: Pass, ways: Ways, log: Callable[[str], None] = print) -> str:
    """The way that a pass takes: "vectorised", "vmap" or "one by one"."""
    return _way(lvm, batch, one, {}, ways, log).name


# Finding the way
# -----------------------------------------------------------------------------------------------------------


def _way(
    lvm: Any,
    batch: Any,
    one: Pass,
    given: Mapping[str, Tensor],
    ways: Ways,
    log: Callable[[str], None],
) -> _Way:
    key = _key(batch, one, given)
    if key not in ways.taken:
        reason = _vectorised_differs(batch, one, given)
        way = _Way(VECTORISED)
        ways.taken[key] = (
            way if reason is None else _next(way, lvm, batch, one, given, reason, log)
        )
    return ways.taken[key]


def _key(batch: Any, one: Pass, given: Mapping[str, Tensor]) -> Any:
    return (
        one.name,
        shapes(tensors_of(batch)),
        tuple((n, tuple(v.shape[1:])) for n, v in given.items()),
    )


def _vectorised_differs(batch: Any, one: Pass, given: Mapping[str, Tensor]) -> str | None:
    """Why two samples at once are not two single runs at the same latents; None if they are."""
    with torch.no_grad(), preserved_rng(_device(batch)):
        put = [{n: v[:1] for n, v in given.items()}, {n: v[-1:] for n, v in given.items()}]
        single = [one.run(batch, p, None) for p in put]
        drawn = [{**p, **s.get(_DRAWN, {})} for p, s in zip(put, single, strict=True)]
        both = {n: torch.cat([d[n] for d in drawn]) for n in drawn[0]}
        if reason := _followed(batch, one, drawn[0])[1]:
            return reason
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that the pair was not written for
                found = one.run(batch, both, 2)
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            return f"under a plate over samples it fails: {_words(error)}"
        return _first_difference(found, range(2), single, batch, one, drawn)


def _followed(batch: Any, one: Pass, drawn: Mapping[str, Tensor]) -> tuple[Values, str | None]:
    """A single run, and whether Python reads a value that depends on what is drawn, in words: two
    samples may not show that it does.
    """
    reads = Reads(drawn.values())
    with pyro.validation_enabled(False), reads:
        values = one.run(batch, drawn, None)
    return values, _ITEM if reads.found == {"item"} else _READ if reads.found else None


def _taken(
    way: _Way, batch: Any, num_samples: int, one: Pass, given: Mapping[str, Tensor], number: int
) -> tuple[Values | None, str]:
    """The values by this way, or None and the reason why they are not those of single runs, of
    which this number is compared.
    """
    if way.name == ONE_BY_ONE:
        return _run(way, batch, num_samples, one, given), ""
    before, found = rng_state(_device(batch)), None
    try:
        with warnings.catch_warnings():
            if number:
                warnings.simplefilter("ignore")  # of shapes that the pair was not written for
            found = _run(way, batch, num_samples, one, given)
        reason = (
            _check(way, found, batch, _spread(num_samples, number), one, given) if number else None
        )
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        reason = f"at {num_samples} samples it fails: {_words(error)}"
    if reason is None:
        return found, ""
    set_rng_state(before, _device(batch))
    return None, reason


def _run(
    way: _Way, batch: Any, num_samples: int, one: Pass, given: Mapping[str, Tensor]
) -> Values:
    if way.name == VECTORISED:
        return one.run(batch, given, num_samples)
    if way.mapped is not None:
        return way.mapped(batch, given, num_samples)
    return _joined(
        [
            one.run(batch, {n: v[i : i + 1] for n, v in given.items()}, None)
            for i in range(num_samples)
        ]
    )


def _spread(num_samples: int, number: int) -> list[int]:
    """So many of the samples, the first and the last among them."""
    return sorted({round(i * (num_samples - 1) / (number - 1)) for i in range(number)})


def _check(
    way: _Way, found: Values, batch: Any, places: list[int], one: Pass, given: Mapping[str, Tensor]
) -> str | None:
    """The first difference of the samples at these places from single runs at the same latents, or
    None.
    """
    drawn = [
        {n: v[i : i + 1].detach() for n, v in {**given, **found.get(_DRAWN, {})}.items()}
        for i in places
    ]
    real = [
        n
        for n, v in drawn[0].items()
        if n not in given and v.is_floating_point() and bool((v != v.round()).any())
    ]
    repeated = [n for n in real if torch.equal(drawn[0][n], drawn[-1][n])]
    if repeated:
        return f"at several samples the draws of site {repeated[0]!r} are one and the same"
    with torch.no_grad(), preserved_rng(_device(batch)):
        first, reason = _followed(batch, one, drawn[0])
        if reason is not None and way.name == VECTORISED:
            return reason
        single = [first, *(one.run(batch, d, None) for d in drawn[1:])]
        reason = _first_difference(found, places, single, batch, one, drawn)
        if reason is None or way.mapped is None:
            return reason
        # A pair may draw noise of its own, beside its sites, which no run repeats; one sample by
        # vmap draws that of a single run.
        before = rng_state(_device(batch))
        put = {n: v[:1] for n, v in given.items()}
        single = [one.run(batch, put, None)]
        set_rng_state(before, _device(batch))
        return (
            reason
            if _first_difference(way.mapped(batch, put, 1), (0,), single, batch, one, [put])
            else None
        )


def _next(
    way: _Way,
    lvm: Any,
    batch: Any,
    one: Pass,
    given: Mapping[str, Tensor],
    reason: str,
    log: Callable[[str], None],
) -> _Way:
    """The way after this one, remembered and reported."""
    new = _Way(ONE_BY_ONE)
    if way.name == VECTORISED and reason != _READ:
        try:
            new = _Way(VMAP, _known_graph(lvm, batch, one, given))
        except UntraceableError as error:
            reason = f"{reason}; and it cannot be traced: {error}"
    if _is_news(lvm, new.name):
        how = "through torch.vmap" if new.name == VMAP else "one by one, which is slow"
        where = _line(batch, one, given, reason)
        log(f"{type(lvm).__name__}: samples are run {how}, for {reason}{where}.")
    return new


def _is_news(lvm: Any, name: str) -> bool:
    """Whether this way has not been reported of this pair before."""
    try:
        said = _reported.setdefault(lvm, set())
    except TypeError:  # it cannot be a key
        return True
    new = name not in said
    said.add(name)
    return new


def _line(batch: Any, one: Pass, given: Mapping[str, Tensor], reason: str) -> str:
    """The user's line of the site that a reason names, in words."""
    with torch.no_grad(), preserved_rng(_device(batch)), Lines() as lines:
        one.run(batch, {n: v[:1] for n, v in given.items()}, None)
    return next(
        (
            place
            for site, place in lines.of.items()
            if f"site {site!r}" in reason and "(in " not in reason
        ),
        "",
    )


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text[:300] or type(error).__name__).rstrip(".")


# Comparing
# -----------------------------------------------------------------------------------------------------------------


def _first_difference(
    found: Values,
    places: Any,
    single: list[Values],
    batch: Any,
    one: Pass,
    drawn: list[dict[str, Tensor]],
) -> str | None:
    """In words, the first value of these samples that is not that of its single run."""
    floating = [t for t in (*tensors_of(batch), *drawn[0].values()) if t.is_floating_point()]
    doubles = bool(floating) and all(t.dtype == torch.float64 for t in floating)
    tolerance = _OF_DOUBLES if doubles else _TOLERANCE
    for place, expected, values in zip(places, single, drawn, strict=True):
        extra = {leaf[:2] for leaf in _leaves(found)} - {leaf[:2] for leaf in _leaves(expected)}
        if extra:
            kind, site = min(extra)
            return (
                f"at several samples there is a {_NAMES.get(kind, kind)} of site {site!r}, and "
                "none in a single run"
            )
        for kind, site, other in _leaves(expected):
            mine = _leaf(found, kind, site)
            if mine is None or mine.shape[1:] != other.shape[1:]:
                shape = None if mine is None else tuple(mine.shape[1:])
                return (
                    f"the {_NAMES.get(kind, kind)} of site {site!r} has shape {shape}, and "
                    f"{tuple(other.shape[1:])} in a single run"
                )
            if _close(mine[place : place + 1], other, tolerance):
                continue
            with pyro.validation_enabled(False):
                near = _leaf(
                    one.run(batch, {n: _nudged(v) for n, v in values.items()}, None), kind, site
                )
            slack = (
                0.0
                if near is None
                else torch.minimum(
                    10 * (near - other).abs(), _MOST_SLACK * other.abs()
                ).nan_to_num(0.0, 0.0)
            )
            if not _close(mine[place : place + 1], other, tolerance, slack):
                return (
                    f"at several samples the {_NAMES.get(kind, kind)} of site {site!r} is not "
                    "that of a single run"
                )
    return None


_NAMES = {
    "log_likelihoods": "log-likelihood",
    "log_priors": "log-prior",
    "log_guides": "log-guide density",
    "densities": "log-density",
    "latents": "value",
    "drawn": "value",
}


def _nudged(value: Tensor) -> Tensor:
    # a label, which must stay one
    whole = value == value.round() if value.is_floating_point() else True
    return torch.where(torch.as_tensor(whole), value, value * (1 + _ROUNDING)).to(value.dtype)


def _close(mine: Tensor, other: Tensor, tolerance: float, slack: Any = 0.0) -> bool:
    if not other.is_floating_point():
        return torch.equal(mine, other)
    size = other.abs()
    finite = size[size.isfinite()]
    allowed = tolerance * (size + (finite.mean() if finite.numel() else 0.0)) + slack
    same = (mine - other).abs() <= allowed
    return bool((same | (mine == other) | (mine.isnan() & other.isnan())).all())


def _leaves(values: Values) -> list[tuple[str, str, Tensor]]:
    return [(kind, site, value) for kind, sites in values.items() for site, value in sites.items()]


def _leaf(values: Values, kind: str, site: str) -> Tensor | None:
    return values.get(kind, {}).get(site)


def _joined(each: list[Values]) -> Values:
    return {
        kind: {site: torch.cat([v[kind][site] for v in each]) for site in sites}
        for kind, sites in each[0].items()
    }


def _device(batch: Any) -> torch.device:
    tensors = tensors_of(batch)
    return tensors[0].device if tensors else torch.device("cpu")


# vmap
# ----------------------------------------------------------------------------------------------------------------------


def _known_graph(
    lvm: Any, batch: Any, one: Pass, given: Mapping[str, Tensor], anew: bool = False
) -> Callable[..., Values]:
    """``_mapped``, from another layout if it was made there; what it gives is compared with single
    runs for every batch.
    """
    try:
        known = _graphs.setdefault(lvm, {})
    except TypeError:  # it cannot be a key
        return _mapped(batch, one, given)
    key = _key(batch, one, given)
    if anew or key not in known:
        if len(known) >= _MOST_GRAPHS:
            known.clear()
        known[key] = _mapped(batch, one, given)
    return known[key]


def _mapped(batch: Any, one: Pass, given: Mapping[str, Tensor]) -> Callable[..., Values]:
    """A function of a batch, given values and a number of samples: the single run, traced once and
    mapped over samples.

    Raises:
        UntraceableError: a graph cannot hold the single run.
    """
    names, device = list(given), _device(batch)
    structure: list[tuple[str, str]] = []

    def single(_: Tensor, *flat: Tensor) -> list[Tensor]:
        inputs = iter(flat)
        values = one.run(
            map_tensors(lambda _: next(inputs), batch),
            {n: v[None] for n, v in zip(names, inputs, strict=True)},
            None,
        )
        structure[:] = [(kind, site) for kind, site, _ in _leaves(values)]
        return [value[0] for _, _, value in _leaves(values)]

    example = [torch.zeros((), device=device), *tensors_of(batch), *(v[0] for v in given.values())]
    # Fused attention is one operation, which vmap cannot map; its sums and softmax are several,
    # which it can.
    with preserved_rng(device), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        graph = trace(single, example)
        module = graph.module
        # which vmap cannot, into what is shared by the samples
        if any(_writes(node) for node in module.graph.nodes):
            try:
                module = make_fx(functionalize(module))(*example, *graph.closed)
            except Exception as error:
                raise UntraceableError(_words(error)) from error
    _make_differentiable(module)
    _draw_for_each_sample(module)

    def mapped(batch: Any, given: Mapping[str, Tensor], num_samples: int) -> Values:
        shared, own = tensors_of(batch), [given[n] for n in names]
        # What is drawn is new for every sample, for it depends on the first input.
        dims = (0, *(None for _ in shared), *(0 for _ in own), *(None for _ in graph.closed))
        run = torch.vmap(lambda *flat: tuple(module(*flat)), in_dims=dims, randomness="different")
        values: Values = {}
        with warnings.catch_warnings():
            # of an operation that vmap runs one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            out = run(torch.zeros(num_samples, device=device), *shared, *own, *graph.closed)
        for (kind, site), value in zip(structure, out, strict=True):
            values.setdefault(kind, {})[site] = value
        return values

    return mapped


# Random operations that vmap draws anew for every sample.
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
# Random operations that write in place, also under the names that they have in a graph without
# such; vmap would draw once for all samples.
_IN_PLACE = {
    "aten::cauchy": "cauchy_",
    "aten::exponential": "exponential_",
    "aten::geometric": "geometric_",
    "aten::log_normal": "log_normal_",
    "aten::normal_functional": "normal_",
    "aten::uniform": "uniform_",
    **{
        f"aten::{m}": m
        for m in ("cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "uniform_")
    },
}


def _writes(node: Any) -> bool:
    """Whether a node of a graph writes in place, other than draws into a tensor of its own."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name not in _IN_PLACE


def _make_differentiable(module: GraphModule) -> None:
    """Replaces what writes in place become without writes, where vmap has no derivative of it or a
    wrong one (PyTorch 2.15).
    """
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _WITH_DERIVATIVE:
            node.target = _WITH_DERIVATIVE[node.target]
    module.recompile()


def _copied(like: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    return value.to(like).expand(like.shape).clone()


def _with_selected(whole: Tensor, value: Tensor, dim: int, index: int) -> Tensor:
    return torch.where(
        _places(whole, dim, torch.tensor(index, device=whole.device)), value.unsqueeze(dim), whole
    )


def _with_filled(whole: Tensor, dim: int, index: Tensor, value: Tensor) -> Tensor:
    return torch.where(_places(whole, dim, index), value, whole)


def _places(whole: Tensor, dim: int, index: Tensor) -> Tensor:
    """Which entries are at these indices of a dimension, broadcastable to the whole."""
    size = whole.shape[dim]
    found = (torch.arange(size, device=whole.device)[:, None] == (index.reshape(-1) % size)).any(
        -1
    )
    return found.reshape(-1, *(1,) * ((-dim - 1) % whole.dim()))


_WITH_DERIVATIVE = {
    torch.ops.aten.copy.default: _copied,
    torch.ops.aten.select_scatter.default: _with_selected,
    torch.ops.aten.index_fill.int_Tensor: _with_filled,
}


def _draw_for_each_sample(module: GraphModule) -> None:
    """Makes random operations depend on the graph's first input, over which it is mapped, so that
    each sample has draws of its own.

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
                arguments = (_IN_PLACE[schema.name], node.args[0], first, *node.args[1:])
                new = graph.call_function(_filled, arguments, node.kwargs)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        elif schema.name not in _DRAWN_BY_VMAP:
            raise UntraceableError(f"torch.vmap cannot draw {schema.name} anew for every sample")
    module.recompile()


def _filled(method: str, like: Tensor, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return getattr(torch.zeros_like(like) + first.to(like.dtype), method)(*args, **kwargs)
