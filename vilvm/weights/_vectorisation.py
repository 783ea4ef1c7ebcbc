"""Many samples of a pass, in the fastest way that equals the single-sample run.

A pair is written for one sample, so its run at one sample, without a plate over samples, defines
its densities. At many samples there are three ways:

- vectorised: all samples in one run under a plate left of all others. Right where model and guide
  leave leading dimensions alone.
- vmap: the single run traced once, and the graph mapped over samples by ``torch.vmap``. Needs
  nothing of the model's broadcasting.
- one by one: one single run per sample.

The first way that agrees with single runs is used. Before many samples are run, two single runs
are compared with a vectorised run at the same latents. Six samples of the first batch, and two of
every other, are also run again one by one at their latents: two samples alone may agree by chance
where one reads from the other. Where a value differs, the next way is used, and one line logs the
site and the user's line.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor

from vilvm._compile import UntraceableError
from vilvm._runtime.memory import is_out_of_memory
from vilvm._runtime.random import preserved_rng, rng_state, set_rng_state
from vilvm.lvm import ContractError
from vilvm.weights._errors import SampleLines
from vilvm.weights._mapped_graph import MappedGraph, known_graph
from vilvm.weights._passes import (
    DRAWN,
    BoundPass,
    Pass,
    Values,
    concatenate,
    error_text,
)
from vilvm.weights._sample_comparison import SingleRun, first_difference
from vilvm.weights._value_reads import ValueReads

__all__ = [
    "ONE_BY_ONE",
    "VECTORISED",
    "VMAP",
    "Vectorisation",
    "run_at_samples",
    "way_of",
]

VECTORISED, VMAP, ONE_BY_ONE = "vectorised", "vmap", "one by one"
_FAILURES = (
    ContractError,
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    NotImplementedError,
    AssertionError,
)
# samples compared in a layout's first pass of a kind, and for each later batch
_FIRST, _LATER = 6, 2
# samples that are run at once before two are compared; they still take little memory
_FEW = 64
_READ = "Python reads a value that depends on the latents"
_ITEM = f"{_READ}, by item()"  # a trace keeps the tensor itself

_reported: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()


class _Way(NamedTuple):
    """The way in which a pass is run, and its mapped graph if that is vmap."""

    name: str
    mapped: MappedGraph | None = None


class Vectorisation:
    """How the passes of a layout are run at many samples, by the key of a pass.

    Arguments:
        ways: the way of each pass.
        compared: by pass and way, the numbers of samples that were compared with single runs.
        most: the samples of a pass that fit in memory at once, where more did not.
    """

    def __init__(self) -> None:
        self.ways: dict[Any, _Way] = {}
        self.most: dict[Any, int] = {}
        self.compared: dict[Any, set[int]] = {}


def run_at_samples(
    lvm: Any,
    batch: Any,
    num_samples: int,
    one: Pass,
    given: Mapping[str, Tensor] | None = None,
    *,
    vectorisation: Vectorisation,
    check: bool = True,
    traced: bool = False,
    log: Callable[[str], None] = print,
) -> Values:
    """The values of a pass at `num_samples` samples.

    Where memory runs out, half as many are run at a time, and one line is logged.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: how many samples.
        one: the pass.
        given: values by site, shape (num_samples, ...), to which sites are set.
        vectorisation: of the layout. It records the way of this pass, so that a seed has one
            meaning in every call.
        check: whether samples are compared with single runs; if not, they are compared only at a
            number of samples that was not compared before.
        traced: whether the call is traced: the way is known, nothing is compared, and errors are
            raised.
        log: called with one line where another way is used.
    """
    runner = _Runner(BoundPass(lvm, batch, one, dict(given or {})), vectorisation, log)
    return runner.run(num_samples, check, traced)


def way_of(
    lvm: Any,
    batch: Any,
    one: Pass,
    vectorisation: Vectorisation,
    log: Callable[[str], None] = print,
) -> str:
    """The way in which a pass is run: "vectorised", "vmap" or "one by one"."""
    return _Runner(BoundPass(lvm, batch, one, {}), vectorisation, log).find_way().name


@dataclass(frozen=True)
class _Runner:
    """Runs one pass at many samples, and records the way that it uses."""

    bound: BoundPass
    vectorisation: Vectorisation
    log: Callable[[str], None]

    def run(self, num_samples: int, check: bool = True, traced: bool = False) -> Values:
        """The values of all samples, in parts where they do not fit in memory."""
        if num_samples == 1:
            return self.bound.single()
        key, device = self.bound.key, self.bound.device
        if num_samples > self.vectorisation.most.get(key, num_samples):
            return self._in_parts(num_samples, check)
        before = rng_state(device)
        try:
            if traced:
                return _run(self._first_way(num_samples), self.bound, num_samples)
            return self._at_once(num_samples, check)
        except (MemoryError, RuntimeError) as error:
            if traced or not is_out_of_memory(error):
                raise
        # after the clause, so that the memory that the error held is free
        set_rng_state(before, device)
        self.vectorisation.most[key] = num_samples // 2
        self.log(
            f"{type(self.bound.lvm).__name__}: memory ran out at {num_samples} samples a pass; "
            f"they are run {num_samples // 2} at a time."
        )
        return self._in_parts(num_samples, check)

    def _in_parts(self, num_samples: int, check: bool) -> Values:
        """The values of all samples, as many at a time as fit in memory."""
        size, parts = self.vectorisation.most[self.bound.key], []
        for start in range(0, num_samples, size):
            stop = min(start + size, num_samples)
            part = _Runner(
                self.bound.of(slice(start, stop)), self.vectorisation, self.log
            )
            parts.append(part.run(stop - start, check and start == 0))
        return concatenate(parts)

    def _at_once(self, num_samples: int, check: bool) -> Values:
        """The values of all samples at once, in the first way that agrees with single runs."""
        way, traced_anew = self._first_way(num_samples), False
        while True:
            compared = self.vectorisation.compared.setdefault(
                (self.bound.key, way.name), set()
            )
            number = _number_to_compare(num_samples, compared, check)
            found, reason = _try(way, self.bound, num_samples, number)
            if found is not None:
                compared.add(num_samples)
                return found
            # Tracing froze the Python control flow of another batch.
            if way.name == VMAP and not traced_anew:
                traced_anew = True
                with suppress(UntraceableError):
                    way = self._set_way(_Way(VMAP, known_graph(self.bound, anew=True)))
                    continue
            way = self._next_way(way, reason)

    def _first_way(self, num_samples: int) -> _Way:
        if num_samples <= _FEW or self.bound.key in self.vectorisation.ways:
            return self.vectorisation.ways.setdefault(self.bound.key, _Way(VECTORISED))
        return self.find_way()

    def find_way(self) -> _Way:
        """The known way of the pass; else that which two samples show to be right."""
        if self.bound.key in self.vectorisation.ways:
            return self.vectorisation.ways[self.bound.key]
        reason = _vectorised_differs(self.bound)
        if reason is None:
            return self._set_way(_Way(VECTORISED))
        return self._next_way(_Way(VECTORISED), reason)

    def _set_way(self, way: _Way) -> _Way:
        self.vectorisation.ways[self.bound.key] = way
        return way

    def _next_way(self, way: _Way, reason: str) -> _Way:
        """The way after this one, recorded and logged."""
        new = _Way(ONE_BY_ONE)
        if way.name == VECTORISED and reason != _READ:
            try:
                new = _Way(VMAP, known_graph(self.bound))
            except UntraceableError as error:
                reason = f"{reason}; and it cannot be traced: {error}"
        if _is_news(self.bound.lvm, new.name):
            self._report(new, reason)
        return self._set_way(new)

    def _report(self, way: _Way, reason: str) -> None:
        how = "one by one, which is slow"
        if way.name == VMAP:
            how = "through torch.vmap"
        name, line = type(self.bound.lvm).__name__, _user_line(self.bound, reason)
        self.log(f"{name}: samples are run {how}, because {reason}{line}.")


def _is_news(lvm: Any, way: str) -> bool:
    """Whether this way of this pair is reported for the first time."""
    try:
        known = _reported.setdefault(lvm, set())
    except TypeError:  # the pair cannot be a key
        return True
    new = way not in known
    known.add(way)
    return new


def _user_line(bound: BoundPass, reason: str) -> str:
    """The user's line of the site that a reason names, unless the reason has a line."""
    if "(in " in reason:
        return ""
    with torch.no_grad(), preserved_rng(bound.device), SampleLines() as lines:
        bound.single(bound.given_of(slice(1)))
    return next(
        (line for site, line in lines.of.items() if f"site {site!r}" in reason), ""
    )


# Running
# --------------------------------------------------------------------------------------------


def _run(way: _Way, bound: BoundPass, num_samples: int) -> Values:
    if way.name == VECTORISED:
        return bound.at(num_samples)
    if way.mapped is not None:
        return way.mapped(bound.batch, bound.given, num_samples)
    samples = (slice(i, i + 1) for i in range(num_samples))
    return concatenate([bound.single(bound.given_of(sample)) for sample in samples])


def _try(
    way: _Way, bound: BoundPass, num_samples: int, number: int
) -> tuple[Values | None, str]:
    """The values in this way, or None and the reason why they are not those of single runs.

    `number` of the samples are compared.
    """
    if way.name == ONE_BY_ONE:
        return _run(way, bound, num_samples), ""
    before, found, reason = rng_state(bound.device), None, None
    try:
        with warnings.catch_warnings():
            if number:
                warnings.simplefilter(
                    "ignore"
                )  # of shapes that the pair was not written for
            found = _run(way, bound, num_samples)
        if number:
            reason = _check(way, found, bound, _spread(num_samples, number))
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        reason = f"at {num_samples} samples it fails: {error_text(error)}"
    if reason is None:
        return found, ""
    set_rng_state(before, bound.device)
    return None, reason


def _number_to_compare(num_samples: int, compared: set[int], check: bool) -> int:
    if num_samples in compared and not check:
        return 0
    if compared:
        return _LATER
    return _FIRST


def _spread(num_samples: int, number: int) -> list[int]:
    """The indices of `number` samples, the first and the last among them."""
    return sorted({round(i * (num_samples - 1) / (number - 1)) for i in range(number)})


# Comparing
# --------------------------------------------------------------------------------------------


def _vectorised_differs(bound: BoundPass) -> str | None:
    """Why two samples at once differ from two single runs at the same latents, or None."""
    with torch.no_grad(), preserved_rng(bound.device):
        runs = []
        for given in (bound.given_of(slice(1)), bound.given_of(slice(-1, None))):
            values = bound.single(given)
            runs.append(SingleRun({**given, **values.get(DRAWN, {})}, values))
        reason = _follow_reads(bound, runs[0].given)[1]
        if reason is not None:
            return reason
        both = {n: torch.cat([run.given[n] for run in runs]) for n in runs[0].given}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of shapes that the pair was not written for
                found = bound.at(2, both)
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            return f"under a plate over samples it fails: {error_text(error)}"
        return first_difference(found, range(2), runs, bound)


def _check(way: _Way, found: Values, bound: BoundPass, places: list[int]) -> str | None:
    """The first difference of some samples from single runs at the same latents, or None."""
    drawn = _samples_of({**bound.given, **found.get(DRAWN, {})}, places)
    new = [name for name in drawn[0] if name not in bound.given]
    for name in new:
        if _is_repeated(drawn[0][name], drawn[-1][name]):
            return f"at several samples the draws of site {name!r} are one and the same"
    with torch.no_grad(), preserved_rng(bound.device):
        first, reason = _follow_reads(bound, drawn[0])
        if reason is not None and way.name == VECTORISED:
            return reason
        runs = [SingleRun(drawn[0], first)]
        runs += [SingleRun(given, bound.single(given)) for given in drawn[1:]]
        reason = first_difference(found, places, runs, bound)
        if reason is not None and way.mapped is not None:
            return _unless_own_noise(reason, way.mapped, bound)
        return reason


def _samples_of(
    values: Mapping[str, Tensor], places: list[int]
) -> list[dict[str, Tensor]]:
    """Some samples of values of many, each of shape (1, ...)."""
    return [{name: v[i : i + 1].detach() for name, v in values.items()} for i in places]


def _is_repeated(first: Tensor, last: Tensor) -> bool:
    """Whether two samples of a continuous site are equal."""
    if not first.is_floating_point() or bool((first == first.round()).all()):
        return False
    return torch.equal(first, last)


def _unless_own_noise(reason: str, mapped: MappedGraph, bound: BoundPass) -> str | None:
    """The reason, unless one mapped sample equals a single run with the same random numbers.

    A pair may draw noise outside its sites, which a run at given latents does not repeat.
    """
    before = rng_state(bound.device)
    given = bound.given_of(slice(1))
    single = bound.single(given)
    set_rng_state(before, bound.device)
    found = mapped(bound.batch, given, 1)
    if first_difference(found, (0,), [SingleRun(given, single)], bound) is None:
        return None
    return reason


def _follow_reads(
    bound: BoundPass, drawn: Mapping[str, Tensor]
) -> tuple[Values, str | None]:
    """A single run, and a sentence if Python reads a value that depends on what is drawn.

    The values of two samples may not show that it does.
    """
    reads = ValueReads(drawn.values())
    with pyro.validation_enabled(False), reads:
        values = bound.single(drawn)
    if not reads.found:
        return values, None
    if reads.found == {"item"}:
        return values, _ITEM
    return values, _READ
