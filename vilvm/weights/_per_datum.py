"""Guides with parameters of single data: which they are, and for which data they hold.

An amortised guide computes q(zₙ | xₙ) from the datum, and so serves any data in any order. A guide
with parameters per datum (an autoguide over latents of the data's plate; ``pyro.param("loc",
torch.zeros(N))``) may know a datum by its place in the batch only. It is right for one data set,
whole and in one order; in a batch of others it serves each datum with another's parameters.

How they differ: let gₙ be the gradient of datum n's part of the guide by the parameters, latents
and noise being fixed. If the rows of the batch are moved on by one place, latents with them, gₙ of
an amortised guide stays as it is. So it does where a datum brings its index in the full data, by
which parameters are picked (``torch.nn.Embedding``; an autoguide with ``create_plates`` in the
plate ``pyro.plate("data", N, subsample=index)``). By place, gₙ moves to other parameters.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn import Module

from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    Pair,
    evaluation_mode,
    held_modules,
    module_parameters,
)
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import Put, Sites, can_score, family, log_prob, run, to_put

__all__ = [
    "INSTEAD",
    "Indices",
    "by_position",
    "check_indices",
    "check_known",
    "forget",
    "remember",
    "restart",
    "unset_autoguides",
]

INSTEAD = (
    "use an amortised guide, all data at once, or pyro.plate(..., N, subsample=index) with "
    "indices in the batch (an autoguide's create_plates)"
)
_OTHER = 1e-3  # relative difference of two gradients that no rounding makes
# on the drawn value beside its log-density, so that gradients of the two do not cancel
_FACTOR = 0.7320508


class ByPosition(NamedTuple):
    """A parameter that serves data by their place in the batch.

    Arguments:
        name: in the pair.
        single: whether each of its entries is of one datum. Else the place matters in another way,
            as to a recurrent network over the rows, which needs its batch whole but may be given
            other data.
    """

    name: str
    single: bool


class Known(NamedTuple):
    """What a pair remembers of the data that its parameters per datum are of: a parameter's name,
    and digests of the data.
    """

    parameter: str
    digests: frozenset[str]


def by_position(lvm: Any, batch: Any, layout: Any) -> ByPosition | None:
    """A parameter of the guide that serves data by their place in the batch; None if there is
    none.

    The guide is run three times, or four. Nothing is decided of a batch whose plate is not along
    its rows, or of one datum.

    Arguments:
        lvm: the pair, a ``torch.nn.Module``.
        batch: what the guide is called with.
        layout: the layout of this batch.
    """
    data = Data(batch)
    rows = len(data)
    if not isinstance(lvm, Module) or layout.data_plate is None or not data.divisible or rows < 2:
        return None
    drawn = layout.subsample.get(layout.data_plate)
    # the plate picks some of the rows by itself
    at_random = drawn is not None and drawn["fn"].size == rows
    if not (at_random or layout.num_data == rows):
        return None
    moved = data.subset(torch.arange(rows).roll(1)).x
    step = 0 if at_random else 1  # by which the data move within the plate
    with (
        _differentiable(lvm) as parameters,
        module_parameters(lvm, frozen=True),
        evaluation_mode(lvm),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        drawn = guide_sites(_run(lvm, batch, {}, _held(layout), 0))
        put, put_moved = _values(drawn, layout, 0), _values(drawn, layout, step)
        before = _run(lvm, batch, put, _held(layout), 0)
        after = _run(lvm, moved, put_moved, _held(layout, 1 - step), 0)
        for place in (0, layout.num_data - 1):
            first = _gradients(before, place, layout, parameters)
            then = _gradients(after, (place + step) % layout.num_data, layout, parameters)
            found = [n for n in parameters if _differ(first[n], then[n])]
            if not found:
                continue
            # Where a guide has noise of its own, it may be the noise that differs.
            again = _gradients(_run(lvm, batch, put, _held(layout), 1), place, layout, parameters)
            apart = [
                n
                for n in found
                if _are_apart(first[n], then[n]) and not _are_apart(first[n], again[n])
            ]
            for name in apart or [n for n in found if not _differ(first[n], again[n])]:
                return ByPosition(
                    name.removeprefix("pyro_params.").removeprefix("guide."), bool(apart)
                )
    return None


@contextmanager
def _differentiable(lvm: Module) -> Iterator[Mapping[str, Tensor]]:
    """The floating-point parameters by name, all of them with gradients meanwhile."""
    parameters = {n: p for n, p in lvm.named_parameters() if p.is_floating_point()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield parameters
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _run(
    lvm: Any, batch: Any, put: Mapping[str, Tensor], fixed: poutine.Trace | None, seed: int
) -> poutine.Trace:
    """A trace of the guide, whose sites keep their log-density of the values as constants in
    "score".
    """
    with seeded(seed, Data(batch).device), Put(put, None, None):
        trace = run(lvm.guide, "guide", batch, fixed)
    for site in guide_sites(trace).values():
        if not site["is_observed"]:
            # A transform without an inverse scores the very value that it has computed, and only
            # until it computes the next.
            any_value = can_score(site)
            site["score"] = log_prob(
                "guide", {**site, "value": site["value"].detach()} if any_value else site
            )
    return trace


def _held(layout: Any, step: int = 0) -> poutine.Trace | None:
    """Holds still the indices that plates draw at random; those of the data's plate are moved on
    by `step`.
    """
    trace = poutine.Trace()
    for name, site in layout.subsample.items():
        moved = (
            (site["value"] + step) % site["fn"].size
            if name == layout.data_plate
            else site["value"]
        )
        trace.add_node(name, **{**site, "value": moved})
    return trace if layout.subsample else None


def _values(guide: Sites, layout: Any, step: int) -> dict[str, Tensor]:
    """What the guide draws within the data's plate, moved on by `step` along it; what follows from
    other draws is left to do so.
    """
    drawn = {
        n: s
        for n, s in guide.items()
        if layout.is_in_data(s)
        and not s["is_observed"]
        and family(s["fn"]) not in ("Delta", "Unit")
    }
    put = {n: to_put(n, s, 1, layout.nesting) for n, s in drawn.items()}
    return {
        key: value.detach().roll(step, layout.data_axis(drawn[n]))
        for n, (key, value) in put.items()
    }


def _gradients(
    trace: poutine.Trace, place: int, layout: Any, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """The gradient, by every parameter, of the part of the guide that is of the datum at a place
    of the plate.
    """
    part: Any = 0.0
    for site in guide_sites(trace).values():
        if layout.is_in_data(site) and not site["is_observed"]:
            part = part + _at(site["score"], layout.data_dim, place)
            if site["value"].requires_grad:
                part = part + _FACTOR * _at(
                    site["value"], layout.data_dim - site["fn"].event_dim, place
                )
    if not isinstance(part, Tensor) or not part.requires_grad:
        return dict.fromkeys(parameters)
    found = torch.autograd.grad(
        part, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return dict(zip(parameters, found, strict=True))


def _at(value: Tensor, dim: int, place: int) -> Tensor:
    """The sum of what is at one place of a dimension, or of all of it where that is of size one."""
    in_plate = value.dim() >= -dim and value.shape[dim] > 1
    return (value.select(dim, place) if in_plate else value).sum()


def _differ(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is not second and bool(((first if second is None else second) != 0).any())
    difference, size = (first - second).norm(), torch.maximum(first.norm(), second.norm())
    return bool(difference > _OTHER * size)


def _are_apart(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two gradients are of different entries of a parameter."""
    return (
        first is not None
        and second is not None
        and not bool((first * second).any())
        and bool(first.any() & second.any())
    )


# Indices of the model's plate
# -----------------------------------------------------------------------------------------------


class Indices(Messenger):
    """Notes the indices that a model gives to its plates, before those of the guide's plates take
    their place; by plate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.given[msg["name"]] = msg["value"]


def check_indices(lvm: Any, indices: Indices, guide_trace: Any) -> None:
    """Raises ContractError if a plate of an autoguide has other indices than the model has given
    to its plate of that name.
    """
    if not isinstance(lvm.guide, AutoGuide):
        return
    for name, given in indices.given.items():
        site = guide_trace.nodes.get(name)
        if site is None or (
            isinstance(given, Tensor) and torch.equal(given, site["value"].to(given))
        ):
            continue
        size, length = site["fn"].size, len(site["value"])
        # A plate may be given anything of the batch's length; of the full size, anything but
        # indices in another order is as good.
        if length < size or (isinstance(given, Tensor) and not given.is_floating_point()):
            raise ContractError(
                f"The autoguide takes {length} of the {size} data of plate {name!r} in an order "
                "of its own, and the batch gives the model another: "
                f"make it with create_plates=lambda batch: pyro.plate({name!r}, {size}, "
                "subsample=index), or use an amortised guide."
            )


# Which data the parameters are of
# -------------------------------------------------------------------------------------------


def remember(lvm: Module, parameter: str, batch: Any) -> None:
    """Notes that a parameter of the pair is of the single data of this batch, whole and in this
    order.
    """
    digest = Data(batch).fingerprint()
    for pair in _pairs_of_guide(lvm):
        known = pair.__dict__.get("_per_datum", Known(parameter, frozenset()))
        pair.__dict__["_per_datum"] = Known(parameter, known.digests | {digest})


def forget(lvm: Module) -> None:
    """Forgets what ``remember`` noted, for the pair is about to be fitted to other data."""
    for pair in _pairs_of_guide(lvm):
        pair.__dict__.pop("_per_datum", None)


def check_known(lvm: Any, batch: Any) -> None:
    """Raises NotApplicable if the guide's parameters are of single data, and the batch is not
    these very data.
    """
    if not isinstance(lvm, Module) or not any("_per_datum" in vars(m) for m in lvm.modules()):
        return
    known = next(
        (vars(pair)["_per_datum"] for pair in _pairs_of_guide(lvm) if "_per_datum" in vars(pair)),
        None,
    )
    if known is not None and Data(batch).fingerprint() not in known.digests:
        raise NotApplicable(
            f"The guide of {type(lvm).__name__} has parameters of the single data that it was "
            f"fitted to ({known.parameter!r}), and this batch is not "
            "all of these in their order: pass those, fit a guide to the new data, or use an "
            "amortised guide."
        )


def _pairs_of_guide(lvm: Module) -> Iterator[Module]:
    """A pair, and the pairs within it whose guide it runs."""
    yield lvm
    for part in _parts_of_guide(lvm):
        yield from (
            inner for inner in _pairs_of_guide(part) if isinstance(inner, LatentVariableModel)
        )


def _parts_of_guide(lvm: Module) -> list[Module]:
    """The modules at the next level that the guide may run."""
    if not getattr(lvm, "keeps_guide", True) or isinstance(lvm, AutoGuide):
        return []
    if not isinstance(lvm, Pair):
        return list(lvm.children())
    guide = lvm.guide.__wrapped__
    parts = [
        guide,
        getattr(guide, "__self__", None),
        *([] if isinstance(guide, AutoGuide) else held_modules(guide=guide).values()),
    ]
    return list({id(m): m for m in parts if isinstance(m, Module)}.values())


def unset_autoguides(lvm: Any) -> list[AutoGuide]:
    """The autoguides of a pair that have not been called yet, and so make their parameters for the
    batch that they meet first.
    """
    return (
        [m for m in lvm.modules() if isinstance(m, AutoGuide) and m.prototype_trace is None]
        if isinstance(lvm, Module)
        else []
    )


def restart(guides: list[AutoGuide]) -> None:
    """Lets autoguides make their parameters anew for the batch that they meet next."""
    for guide in guides:
        guide.prototype_trace = None
