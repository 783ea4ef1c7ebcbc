"""Guides with parameters per datum: which parameters these are, and which data they belong to.

An amortised guide computes q(zₙ | xₙ) from the datum, and so serves any data in any order. A guide
with parameters per datum (an autoguide over latents of the data's plate; ``pyro.param("loc",
torch.zeros(N))``) may know a datum only by its position in the batch. It is right for one data
set, whole and in one order; in a batch of other data, each datum gets another's parameters.

How they differ: let gₙ be the gradient of datum n's part of the guide by the parameters, latents
and noise being fixed. If the rows of the batch are moved on by one position, latents with them, gₙ
of an amortised guide does not change. The same holds if a datum brings its index in the full data,
by which parameters are selected (``torch.nn.Embedding``; an autoguide with ``create_plates`` in
the plate ``pyro.plate("data", N, subsample=index)``). By position, gₙ moves to other parameters.
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

from vilvm._runtime.deferred_loading import (
    autoguides_without_parameters,
    restart_autoguide,
)
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
from vilvm.weights._conditioning import BEFORE, at_draw, can_score, drawn_values
from vilvm.weights._sites import log_prob
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import run, trace_of

__all__ = [
    "INSTEAD",
    "ByPosition",
    "PlateIndices",
    "by_position",
    "check_indices",
    "check_known",
    "forget",
    "remember",
    "restart",
    "unset_autoguides",
]

INSTEAD = (
    "use an amortised guide (vilvm.guides), all data at once, or pyro.plate(..., N, "
    "subsample=index) with indices in the batch (an autoguide's create_plates)"
)
_DIFFERENT = 1e-3  # relative difference of two gradients that rounding does not explain
# weight of the drawn value beside its log-density, so that gradients of the two do not cancel
_FACTOR = 0.7320508


class ByPosition(NamedTuple):
    """A parameter that depends on the position of a datum in the batch.

    Arguments:
        name: in the pair.
        single: whether each of its entries belongs to one datum. Otherwise the guide depends on
            the position in another way, such as a recurrent network over the rows, which needs
            the whole batch but accepts other data.
    """

    name: str
    single: bool


def by_position(lvm: Any, batch: Any, layout: Any) -> ByPosition | None:
    """A parameter of the guide that depends on the position of a datum in the batch, or None.

    The guide is run three or four times. Batches of one datum, and those whose data plate is not
    along their rows, are not tested.

    Arguments:
        lvm: the pair, a ``torch.nn.Module``.
        batch: what the guide is called with.
        layout: the layout of this batch.
    """
    data = Data(batch)
    rows = len(data)
    if (
        not isinstance(lvm, Module)
        or layout.data_plate is None
        or not data.divisible
        or rows < 2
    ):
        return None
    subsample = layout.subsample.get(layout.data_plate)
    at_random = subsample is not None and subsample["fn"].size == rows
    if not at_random and layout.num_data != rows:
        return None
    with (
        _differentiable(lvm) as parameters,
        module_parameters(lvm, frozen=True),
        evaluation_mode(lvm),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        return _Rotation(lvm, batch, layout, parameters, at_random).test()


@contextmanager
def _differentiable(lvm: Module) -> Iterator[Mapping[str, Tensor]]:
    """The floating-point parameters by name; within the context all require gradients."""
    parameters = {n: p for n, p in lvm.named_parameters() if p.is_floating_point()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield parameters
    finally:
        for p in frozen:
            p.requires_grad_(False)


_Gradients = dict[str, Tensor | None]


class _Rotation:
    """Compares the gradients of a datum before and after the batch's rows are moved on by one.

    Arguments:
        lvm, batch, layout: as for ``by_position``.
        parameters: of the pair, by name.
        at_random: whether the data plate draws a random subsample of the rows. Then the indices
            move with the rows, and the data keep their position in the plate.
    """

    def __init__(
        self,
        lvm: Any,
        batch: Any,
        layout: Any,
        parameters: Mapping[str, Tensor],
        at_random: bool,
    ):
        self.lvm, self.batch, self.layout = lvm, batch, layout
        self.parameters = parameters
        self.step = 1 - int(at_random)  # the shift of the data within the plate

    def test(self) -> ByPosition | None:
        """The first parameter whose gradients move, at the first and the last datum."""
        layout = self.layout
        moved = Data(self.batch).subset(torch.arange(len(Data(self.batch))).roll(1)).x
        drawn = self._run(self.batch, {})
        values = self._values(drawn)
        before = self._run(self.batch, values)
        after = self._run(moved, self._moved(values, drawn), shift=1 - self.step)
        for position in (0, layout.num_data - 1):
            first = self._gradients(before, position)
            then = self._gradients(after, (position + self.step) % layout.num_data)
            found = [n for n in self.parameters if _differ(first[n], then[n])]
            if found and (
                parameter := self._confirmed(found, position, values, (first, then))
            ):
                return parameter
        return None

    def _confirmed(
        self,
        found: list[str],
        position: int,
        values: Mapping[str, Tensor],
        gradients: tuple[_Gradients, _Gradients],
    ) -> ByPosition | None:
        """A parameter whose gradients differ by more than the guide's own noise."""
        first, then = gradients
        again = self._gradients(self._run(self.batch, values, seed=1), position)
        apart = [
            name
            for name in found
            if _are_apart(first[name], then[name])
            and not _are_apart(first[name], again[name])
        ]
        for name in apart or [n for n in found if not _differ(first[n], again[n])]:
            short = name.removeprefix("pyro_params.").removeprefix("guide.")
            return ByPosition(short, bool(apart))
        return None

    def _run(
        self,
        batch: Any,
        values: Mapping[str, Tensor],
        seed: int = 0,
        shift: int = 0,
    ) -> poutine.Trace:
        """A trace of the guide at given values of its sites.

        Each site keeps the log-density of its value, as a constant, in "score".
        """
        with seeded(seed, Data(batch).device), at_draw(values):
            trace = run(self.lvm.guide, "guide", batch, self._subsample(shift))
        for site in guide_sites(trace).values():
            if site["is_observed"]:
                continue
            scored = site
            # a transform without an inverse can score only the tensor that it has just computed
            if can_score(site):
                scored = {**site, "value": site["value"].detach()}
            site["score"] = log_prob("guide", scored)
        return trace

    def _subsample(self, shift: int) -> poutine.Trace | None:
        """Fixes random subsamples; the indices of the data plate are moved on by `shift`."""
        if not self.layout.subsample:
            return None
        sites = dict(self.layout.subsample)
        name = self.layout.data_plate
        if name in sites:
            site = sites[name]
            value = (site["value"] + shift) % site["fn"].size
            sites[name] = {**site, "value": value}
        return trace_of(sites)

    def _values(self, trace: poutine.Trace) -> dict[str, Tensor]:
        """The values that the guide draws within the data plate."""
        sites = {
            n: s for n, s in guide_sites(trace).items() if self.layout.is_in_data(s)
        }
        values = drawn_values(sites, 1, self.layout.nesting)
        return {name: value.detach() for name, value in values.items()}

    def _moved(
        self, values: Mapping[str, Tensor], trace: poutine.Trace
    ) -> dict[str, Tensor]:
        """The values after the rows are moved on by one."""
        sites = guide_sites(trace)
        axes = {n: self.layout.data_axis(sites[n.removesuffix(BEFORE)]) for n in values}
        return {
            name: value.roll(self.step, axes[name]) for name, value in values.items()
        }

    def _gradients(self, trace: poutine.Trace, position: int) -> _Gradients:
        """The gradient of one datum's part of the guide, by every parameter."""
        part: Any = 0.0
        dim = self.layout.data_dim
        for site in guide_sites(trace).values():
            if not self.layout.is_in_data(site) or site["is_observed"]:
                continue
            part = part + _sum_at(site["score"], dim, position)
            if site["value"].requires_grad:
                value = _sum_at(site["value"], dim - site["fn"].event_dim, position)
                part = part + _FACTOR * value
        if not isinstance(part, Tensor) or not part.requires_grad:
            return dict.fromkeys(self.parameters)
        found = torch.autograd.grad(
            part,
            list(self.parameters.values()),
            retain_graph=True,
            allow_unused=True,
        )
        return dict(zip(self.parameters, found, strict=True))


def _sum_at(value: Tensor, dim: int, position: int) -> Tensor:
    """The sum of a value at one index of a dimension; of all of it if that has size one."""
    if value.dim() >= -dim and value.shape[dim] > 1:
        value = value.select(dim, position)
    return value.sum()


def _differ(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return any(bool((g != 0).any()) for g in (first, second) if g is not None)
    size = torch.maximum(first.norm(), second.norm())
    return bool((first - second).norm() > _DIFFERENT * size)


def _are_apart(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two gradients are non-zero at different entries of a parameter."""
    if first is None or second is None:
        return False
    return not bool((first * second).any()) and bool(first.any() & second.any())


# Indices of the model's plate
# --------------------------------------------------------------------------------------------


class PlateIndices(Messenger):
    """Records the indices that a model gives to its plates, by plate.

    The indices of the guide's plates replace them afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.given[msg["name"]] = msg["value"]


def check_indices(lvm: Any, indices: PlateIndices, guide_trace: Any) -> None:
    """Raises ContractError if a plate of an autoguide has other indices than the model's plate."""
    if not isinstance(lvm.guide, AutoGuide):
        return
    for name, given in indices.given.items():
        site = guide_trace.nodes.get(name)
        if site is None or not _are_other_indices(given, site):
            continue
        size, length = site["fn"].size, len(site["value"])
        raise ContractError(
            f"The autoguide takes {length} of the {size} data of plate {name!r} in its own order, "
            "and the batch gives the model another order: pass it create_plates=lambda "
            f"batch: pyro.plate({name!r}, {size}, subsample=index), or use an amortised guide."
        )


def _are_other_indices(given: Any, site: Any) -> bool:
    if isinstance(given, Tensor) and torch.equal(given, site["value"].to(given)):
        return False
    # A plate accepts any object of the batch's length; at full size only integers are an order.
    if len(site["value"]) < site["fn"].size:
        return True
    return isinstance(given, Tensor) and not given.is_floating_point()


# The data that parameters belong to
# --------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A parameter per datum, and digests of the data that it belongs to."""

    parameter: str
    digests: frozenset[str]


def remember(lvm: Module, parameter: str, batch: Any) -> None:
    """Records that a parameter of the pair belongs to this batch, whole and in this order."""
    digest = Data(batch).fingerprint()
    for pair in _pairs_of_guide(lvm):
        known = pair.__dict__.get("_per_datum", _Known(parameter, frozenset()))
        pair.__dict__["_per_datum"] = _Known(parameter, known.digests | {digest})


def forget(lvm: Module) -> None:
    """Deletes what ``remember`` recorded, before the pair is fitted to other data."""
    for pair in _pairs_of_guide(lvm):
        pair.__dict__.pop("_per_datum", None)


def check_known(lvm: Any, batch: Any) -> None:
    """Raises NotApplicable if the guide has parameters per datum, and the batch is other data."""
    if not isinstance(lvm, Module) or not any(
        "_per_datum" in vars(m) for m in lvm.modules()
    ):
        return
    pairs = (pair for pair in _pairs_of_guide(lvm) if "_per_datum" in vars(pair))
    known = next((vars(pair)["_per_datum"] for pair in pairs), None)
    if known is not None and Data(batch).fingerprint() not in known.digests:
        raise NotApplicable(
            f"The guide of {type(lvm).__name__} has parameters per datum ({known.parameter!r}), "
            "and this batch is not the whole data set that it was fitted to, in the same order: "
            "pass that, fit a guide to the new data, or use an amortised guide."
        )


def _pairs_of_guide(lvm: Module) -> Iterator[Module]:
    """A pair, and the pairs within it whose guide it runs."""
    yield lvm
    for part in _parts_of_guide(lvm):
        for inner in _pairs_of_guide(part):
            if isinstance(inner, LatentVariableModel):
                yield inner


def _parts_of_guide(lvm: Module) -> list[Module]:
    """The modules at the next level that the guide may run."""
    if not getattr(lvm, "keeps_guide", True) or isinstance(lvm, AutoGuide):
        return []
    if not isinstance(lvm, Pair):
        return list(lvm.children())
    guide = lvm.guide.__wrapped__
    parts = [guide, getattr(guide, "__self__", None)]
    if not isinstance(guide, AutoGuide):
        parts += held_modules(guide=guide).values()
    return list({id(part): part for part in parts if isinstance(part, Module)}.values())


def unset_autoguides(lvm: Any) -> list[AutoGuide]:
    """The autoguides of a pair that have no parameters yet.

    They create them for the first batch that they are called with.
    """
    if not isinstance(lvm, Module):
        return []
    return list(autoguides_without_parameters(lvm).values())


def restart(guides: list[AutoGuide]) -> None:
    """Lets autoguides create their parameters again, for the next batch."""
    for guide in guides:
        restart_autoguide(guide)
