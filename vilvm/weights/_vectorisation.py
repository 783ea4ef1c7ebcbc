"""Runs a pass at many samples, by the fastest strategy that equals the single-sample run.

A pair is written for one sample, so its run at one sample, without a plate over samples, defines
its densities. There are three strategies for many samples:

- vectorised: all samples in one run under a plate left of all others. Correct if model and guide
  leave leading dimensions unchanged.
- vmap: the single run is traced once, and ``torch.vmap`` maps the graph over samples. It does not
  depend on how the model broadcasts.
- one by one: one single run per sample.

The first strategy that agrees with single runs is used. Before many samples are run, two single
runs are compared with a vectorised run at the same latents. Six samples of the first batch, and
two of every other batch, are also run again one by one at their latents, because two samples may
agree by chance if one reads from the other. If a value differs, the next strategy is used, and one
line logs the site and the user's line.
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
from vilvm.lvm import ContractError, Wrapped
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
    "strategy_of",
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
# samples compared in the first pass of a kind, and in each later batch
_FIRST, _LATER = 6, 2
# up to so many samples, which take little memory, are run without comparing two before
_FEW = 64
_READ = "Python reads a value that depends on the latents"
_ITEM = f"{_READ}, by item()"  # a trace keeps the tensor itself

_reported: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()


class _Strategy(NamedTuple):
    """A strategy for a pass, with the mapped graph for vmap."""

    name: str
    mapped: MappedGraph | None = None


class Vectorisation:
    """The strategies for the passes of a layout at many samples, by the key of a pass.

    Arguments:
        strategies: the strategy of each pass.
        compared: by pass and strategy, the numbers of samples that were compared with single runs.
        most: the number of samples of a pass that fit in memory, for passes that ran out of it.
    """

    def __init__(self) -> None:
        self.strategies: dict[Any, _Strategy] = {}
        self.most: dict[Any, int] = {}
        self.compared: dict[Any, set[int]] = {}


def run_at_samples(
    lvm: Any,
    batch: Any,
    num_samples: int,
    pass_: Pass,
    given: Mapping[str, Tensor] | None = None,
    *,
    vectorisation: Vectorisation,
    check: bool = True,
    traced: bool = False,
    log: Callable[[str], None] = print,
) -> Values:
    """The values of a pass at `num_samples` samples.

    If memory runs out, half as many are run at a time, and one line is logged.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: how many samples.
        pass_: the pass.
        given: values by site, shape (num_samples, ...), to which sites are set.
        vectorisation: of the layout. It records the strategy of this pass, so that a seed gives
            the same draws in every call.
        check: whether samples are compared with single runs; if not, they are compared only at a
            number of samples that was not compared before.
        traced: whether the call is traced: the strategy is known, nothing is compared, and errors
            are raised.
        log: called with one line if another strategy is used.
    """
    runner = _Runner(
        BoundPass(lvm, batch, pass_, dict(given or {})), vectorisation, log
    )
    return runner.run(num_samples, check, traced)


def strategy_of(
    lvm: Any,
    batch: Any,
    pass_: Pass,
    vectorisation: Vectorisation,
    log: Callable[[str], None] = print,
) -> str:
    """The strategy for a pass: "vectorised", "vmap" or "one by one"."""
    return (
        _Runner(BoundPass(lvm, batch, pass_, {}), vectorisation, log)
        .find_strategy()
        .name
    )


@dataclass(frozen=True)
class _Runner:
    """Runs one pass at many samples, and records the strategy that it uses."""

    bound: BoundPass
    vectorisation: Vectorisation
    log: Callable[[str], None]

    def run(self, num_samples: int, check: bool = True, traced: bool = False) -> Values:
        """The values of all samples, in parts if they do not fit in memory."""
        if num_samples == 1:
            return self.bound.single()
        key, device = self.bound.key, self.bound.device
        if num_samples > self.vectorisation.most.get(key, num_samples):
            return self._in_parts(num_samples, check)
        before = rng_state(device)
        try:
            if traced:
                return _run(self._first_strategy(num_samples), self.bound, num_samples)
            return self._at_once(num_samples, check)
        except (MemoryError, RuntimeError) as error:
            if traced or not is_out_of_memory(error):
                raise
        # after the except clause, so that the memory that the error held is free
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
        """The values of all samples, by the first strategy that agrees with single runs."""
        strategy, traced_anew = self._first_strategy(num_samples), False
        while True:
            compared = self.vectorisation.compared.setdefault(
                (self.bound.key, strategy.name), set()
            )
            number = _number_to_compare(num_samples, compared, check)
            found, reason = _try(strategy, self.bound, num_samples, number)
            if found is not None:
                compared.add(num_samples)
                return found
            # the graph may hold the Python control flow of another batch
            if strategy.name == VMAP and not traced_anew:
                traced_anew = True
                with suppress(UntraceableError):
                    strategy = self._set_strategy(
                        _Strategy(VMAP, known_graph(self.bound, anew=True))
                    )
                    continue
            strategy = self._next_strategy(strategy, reason)

    def _first_strategy(self, num_samples: int) -> _Strategy:
        if num_samples <= _FEW or self.bound.key in self.vectorisation.strategies:
            return self.vectorisation.strategies.setdefault(
                self.bound.key, _Strategy(VECTORISED)
            )
        return self.find_strategy()

    def find_strategy(self) -> _Strategy:
        """The known strategy of the pass; else the one that passes a comparison of two samples."""
        if self.bound.key in self.vectorisation.strategies:
            return self.vectorisation.strategies[self.bound.key]
        reason = _vectorised_differs(self.bound)
        if reason is None:
            return self._set_strategy(_Strategy(VECTORISED))
        return self._next_strategy(_Strategy(VECTORISED), reason)

    def _set_strategy(self, strategy: _Strategy) -> _Strategy:
        self.vectorisation.strategies[self.bound.key] = strategy
        return strategy

    def _next_strategy(self, strategy: _Strategy, reason: str) -> _Strategy:
        """The strategy after this one, recorded and logged."""
        new = _Strategy(ONE_BY_ONE)
        if strategy.name == VECTORISED and reason != _READ:
            try:
                new = _Strategy(VMAP, known_graph(self.bound))
            except UntraceableError as error:
                reason = f"{reason}; and it cannot be traced: {error}"
        if _is_news(self.bound.lvm, new.name):
            self._report(new, reason)
        return self._set_strategy(new)

    def _report(self, strategy: _Strategy, reason: str) -> None:
        how = "one by one, which is slow"
        if strategy.name == VMAP:
            how = "through torch.vmap"
        name, line = _class_of(self.bound.lvm), _user_line(self.bound, reason)
        self.log(f"{name}: samples are run {how}, because {reason}{line}.")


def _class_of(lvm: Any) -> str:
    """The name of the user's class, within wrappers."""
    while isinstance(lvm, Wrapped):
        lvm = lvm.lvm
    return type(lvm).__name__


def _is_news(lvm: Any, strategy: str) -> bool:
    """Whether this strategy of this pair is reported for the first time."""
    try:
        known = _reported.setdefault(lvm, set())
    except TypeError:  # the pair cannot be a key
        return True
    new = strategy not in known
    known.add(strategy)
    return new


def _user_line(bound: BoundPass, reason: str) -> str:
    """The user's line of the site that a reason names, unless the reason has a line."""
    if "(in " in reason:
        return ""
    with torch.no_grad(), preserved_rng(bound.device), SampleLines() as lines:
        bound.single(bound.given_of(slice(1)))
    return next(
        (line for site, line in lines.by_site.items() if f"site {site!r}" in reason), ""
    )


# Running
# --------------------------------------------------------------------------------------------


def _run(strategy: _Strategy, bound: BoundPass, num_samples: int) -> Values:
    if strategy.name == VECTORISED:
        return bound.at(num_samples)
    if strategy.mapped is not None:
        return strategy.mapped(bound.batch, bound.given, num_samples)
    samples = (slice(i, i + 1) for i in range(num_samples))
    return concatenate([bound.single(bound.given_of(sample)) for sample in samples])


def _try(
    strategy: _Strategy, bound: BoundPass, num_samples: int, number: int
) -> tuple[Values | None, str]:
    """The values by this strategy, or None and the reason why they differ from single runs.

    `number` of the samples are compared.
    """
    if strategy.name == ONE_BY_ONE:
        return _run(strategy, bound, num_samples), ""
    before, found, reason = rng_state(bound.device), None, None
    try:
        with warnings.catch_warnings():
            if number:
                # of shapes that the pair was not written for
                warnings.simplefilter("ignore")
            found = _run(strategy, bound, num_samples)
        if number:
            reason = _check(strategy, found, bound, _spread(num_samples, number))
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
                # of shapes that the pair was not written for
                warnings.simplefilter("ignore")
                found = bound.at(2, both)
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            return f"under a plate over samples it fails: {error_text(error)}"
        return first_difference(found, range(2), runs, bound)


def _check(
    strategy: _Strategy, found: Values, bound: BoundPass, indices: list[int]
) -> str | None:
    """The first difference of some samples from single runs at the same latents, or None."""
    drawn = _samples_of({**bound.given, **found.get(DRAWN, {})}, indices)
    new = [name for name in drawn[0] if name not in bound.given]
    for name in new:
        if _is_repeated(drawn[0][name], drawn[-1][name]):
            return f"at several samples the draws of site {name!r} are one and the same"
    with torch.no_grad(), preserved_rng(bound.device):
        first, reason = _follow_reads(bound, drawn[0])
        if reason is not None and strategy.name == VECTORISED:
            return reason
        runs = [SingleRun(drawn[0], first)]
        runs += [SingleRun(given, bound.single(given)) for given in drawn[1:]]
        reason = first_difference(found, indices, runs, bound)
        if reason is not None and strategy.mapped is not None:
            return _unless_own_noise(reason, strategy.mapped, bound)
        return reason


def _samples_of(
    values: Mapping[str, Tensor], indices: list[int]
) -> list[dict[str, Tensor]]:
    """The values of each of some samples, shape (1, ...)."""
    return [
        {name: v[i : i + 1].detach() for name, v in values.items()} for i in indices
    ]


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
    """A single run, and a sentence if Python reads a value that depends on the draws.

    A comparison of two samples may not reveal such a read.
    """
    reads = ValueReads(drawn.values())
    with pyro.validation_enabled(False), reads:
        values = bound.single(drawn)
    if not reads.found:
        return values, None
    if reads.found == {"item"}:
        return values, _ITEM
    return values, _READ
