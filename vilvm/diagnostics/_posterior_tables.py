"""How the table of the posterior is made, of a pair's draws or of given ones."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.diagnostics._components import indexed
from vilvm.diagnostics._coordinates import Coordinates, own_name
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics.chains import R_HAT
from vilvm.diagnostics.posterior_table import PosteriorTable, Scalar
from vilvm.lvm import ContractError
from vilvm.weights import posterior
from vilvm.weights.generated_quantities import replay
from vilvm.weights.prepared import Part, Prepared

__all__ = ["table_of_draws", "table_of_pair"]

_ALL, _WORST = 40, 10  # scalars of shared latents, and of the others
_DRAWS, _LEAST = 4000, 100
_KEPT = 20_000_000  # numbers in all draws
_TOO_HEAVY = 0.7  # k̂


class _Site(NamedTuple):
    """Scalars of one latent or deterministic site.

    Arguments:
        name: of the site.
        labels: of its C scalars.
        draws: shape (S, C).
        is_shared: whether the data share it.
        quality: k̂, R̂, effective sample size and badness of each scalar, shape (C, 4).
        datum: the name of its datum, if each has latents of its own.
    """

    name: str
    labels: Sequence[str]
    draws: Tensor
    is_shared: bool
    quality: Tensor
    datum: str = ""

    def at(self, index: Tensor) -> "_Site":
        """Some of the scalars."""
        labels = [self.labels[i] for i in index.tolist()]
        return self._replace(
            labels=labels, draws=self.draws[:, index], quality=self.quality[index]
        )


class _Known:
    """What the diagnostics found of each scalar, by its name.

    Arguments:
        results: of the diagnostics.
        names: of data and components.
    """

    def __init__(self, results: Mapping[str, Any], names: Coordinates):
        self.names = names
        self.pareto: Any = results.get("Pareto k̂")
        self.moments: Any = results.get("Means and standard deviations")
        self.chains: Any = results.get("R̂ and effective sample size")
        self._column = _positions(self.moments)
        self._of_chain = _positions(self.chains)
        self._excess = None if self.moments is None else self.moments.excess()

    def site(
        self, name: str, draws: Tensor, is_shared: bool, datum: int | None = None
    ) -> _Site:
        """A site with its quality.

        Arguments:
            name: of the site.
            draws: shape (S, *event).
            is_shared: whether the data share it.
            datum: position of its datum, if each has latents of its own.
        """
        own = [
            self.names.renamed(indexed(name, index))
            for index in np.ndindex(*draws.shape[1:])
        ]
        quality = torch.tensor(
            [self._quality(label, datum or 0) for label in own], dtype=torch.float64
        )
        flat = draws.detach().double().cpu().reshape(len(draws), -1)
        return _Site(name, own, flat, is_shared, quality.reshape(-1, 4))

    def _quality(self, label: str, row: int) -> tuple[float, ...]:
        """k̂, R̂, effective sample size and badness."""
        k, excess, r_hat, ess = math.nan, 0.0, math.nan, math.nan
        if self.pareto is not None and row < len(self.pareto.k):
            k = self.pareto.latest[row].item()
        if label in self._column and self._excess is not None:
            column = self._column[label]
            k = self.moments.k[row, column].item()
            excess = self._excess[row, column].nan_to_num(math.inf).item()
        if label in self._of_chain:
            column = self._of_chain[label]
            r_hat = self.chains.r_hat[column].item()
            ess = self.chains.ess_bulk[column].item()
        badness = [excess, *(x for x in (k / _TOO_HEAVY, r_hat / R_HAT) if x == x)]
        return k, r_hat, ess, max(badness)

    def by_datum(self, num_data: int) -> Tensor:
        """How bad each datum looks, shape (num_data,)."""
        if self.pareto is not None and len(self.pareto.k) == num_data:
            return self.pareto.latest
        return torch.zeros(num_data, dtype=torch.float64)


def _positions(found: Any) -> dict[str, int]:
    return {} if found is None else {name: i for i, name in enumerate(found.names)}


def table_of_draws(
    latents: Mapping[str, Tensor],
    of_data: Mapping[str, Any],
    results: Mapping[str, Any],
    names: Coordinates,
) -> PosteriorTable:
    """The table of given draws.

    Arguments:
        latents: draws by latent, shape (S, *event).
        of_data: the latents that belong to single data.
        results: of the diagnostics, whose components have their final names.
        names: of the components.
    """
    known = _Known(results, names)
    sites = [
        known.site(name, value, name not in of_data) for name, value in latents.items()
    ]
    return _table(sites, "given draws")


def table_of_pair(
    prepared: Prepared, results: Mapping[str, Any], names: Coordinates, seconds: float
) -> PosteriorTable:
    """The table of the guide's draws.

    Arguments:
        prepared: the pair and its data.
        results: of the diagnostics, whose components and data have their final names.
        names: of the data and components.
        seconds: for the draws; at least 100 are made.
    """
    time, known = TimeBudget(seconds), _Known(results, names)
    with prepared.running():
        if prepared.local:
            return _of_single_data(prepared, known, time)
        return _of_all_data(prepared, known, time)


def _of_all_data(prepared: Prepared, known: _Known, time: TimeBudget) -> PosteriorTable:
    """The latents of a model whose data share some, and its deterministic values."""
    part, layout = prepared.part(0), prepared.layout
    latents = _drawn(part, time)
    axes, values = dict(layout.data_axes), dict(latents)
    # A model that reads what it observes, or a likelihood without a sampler, cannot be replayed.
    with suppress(ContractError):
        run = replay(prepared.lvm, part.batch, latents, layout=layout)
        values = _own_values(latents, run.observed)
        axes |= run.data_axes
    sites = [known.site(name, v, name not in axes) for name, v in values.items()]
    return _table(sites, "draws of the guide")


def _own_values(
    latents: Mapping[str, Tensor], observed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The latents; in place of one in standard units, the latent that the user wrote."""
    found = {}
    for name, value in latents.items():
        own = own_name(name)
        found[own if own in observed else name] = observed.get(own, value)
    return found


def _of_single_data(
    prepared: Prepared, known: _Known, time: TimeBudget
) -> PosteriorTable:
    """The latents of the data that look worst."""
    parts = prepared.parts()
    total = sum(part.num_columns for part in parts)
    badness = known.by_datum(total)
    width = sum(v[0].numel() for v in _drawn(parts[0], TimeBudget(0)).values())
    width = max(1, width // max(parts[0].num_columns, 1))
    count = min(total, max(1, _ALL // width))
    worst = badness.argsort(descending=True, stable=True)[:count].sort().values
    sites: list[_Site] = []
    done = 0
    for part, columns in prepared.parts_of(worst, parts):
        latents, axes = _drawn(part, time), part.layout.data_axes
        for row, column in zip(
            worst[done : done + len(columns)].tolist(), columns.tolist(), strict=True
        ):
            for name, value in latents.items():
                own = value.movedim(axes.get(name, 1), 1)[:, column]
                sites.append(_named(known, known.site(name, own, False, row), row))
        done += len(columns)
    table = _table(sites, "draws of the guide", most=_ALL)
    if count == total:
        return table
    shown = f"The table shows {count} of {total} data, those of largest k̂."
    return replace(table, left_out=" ".join(filter(None, [shown, table.left_out])))


def _named(known: _Known, site: _Site, row: int) -> _Site:
    """The site of one datum, with its name."""
    datum = _datum(known, row)
    labels = [f"{label} of {datum}" for label in site.labels]
    return site._replace(labels=labels, datum=datum)


def _datum(known: _Known, row: int) -> str:
    """The name of a datum by its position."""
    index = row
    if known.pareto is not None and row < len(known.pareto.index):
        index = int(known.pareto.index[row])
    of_data = known.names.of_data
    return of_data[index] if of_data else f"datum {index}"


def _drawn(part: Part, time: TimeBudget) -> dict[str, Tensor]:
    """As many draws of the guide as time and memory allow, a pass at a time."""

    def draw(count: int) -> dict[str, Tensor]:
        return posterior(part.lvm, part.batch, count)

    first = draw(_LEAST)
    numbers = sum(value[0].numel() for value in first.values())
    most = max(_LEAST, min(_DRAWS, _KEPT // max(numbers, 1)))
    if time.is_spent or most == _LEAST:
        return first
    count = affordable_draws(draw, _LEAST, most, time.left / 2)
    size = max(_LEAST, part.samples_in_a_pass())
    passes = [draw(min(size, count - done)) for done in range(0, count, size)]
    return {name: torch.cat([p[name] for p in passes]) for name in first}


def _table(sites: Sequence[_Site], origin: str, most: int = _WORST) -> PosteriorTable:
    """The table of all sites, or of the scalars that look worst if there are too many.

    Arguments:
        sites: all scalars.
        origin: where the draws come from.
        most: scalars of latents that the data do not share.
    """
    kept, notes = _shown(sites, most)
    quality = torch.cat([site.quality for site in kept])
    draws = torch.cat([site.draws for site in kept], 1)
    labels = [(label, site.datum) for site in kept for label in site.labels]
    columns = (
        draws.mean(0),
        draws.std(0),
        *draws.quantile(draws.new_tensor([0.05, 0.95]), 0),
        *quality[:, :3].T,
    )
    numbers = torch.stack(columns, 1).tolist()
    rows = tuple(
        Scalar(name, *row, datum=datum)
        for (name, datum), row in zip(labels, numbers, strict=True)
    )
    return PosteriorTable(rows, draws, quality[:, 3], origin, " ".join(notes))


def _shown(sites: Sequence[_Site], most: int) -> tuple[list[_Site], list[str]]:
    """The scalars that the table shows, and what it leaves out."""
    if sum(len(site.labels) for site in sites) <= _ALL:
        return list(sites), []
    shared = _worst_of([s for s in sites if s.is_shared], _ALL)
    others = _worst_of([s for s in sites if not s.is_shared], most)
    return shared[0] + others[0], shared[1] + others[1]


def _worst_of(sites: Sequence[_Site], count: int) -> tuple[list[_Site], list[str]]:
    """The scalars that look worst, in order, and what is left out."""
    sizes = [len(site.labels) for site in sites]
    if sum(sizes) <= count:
        return list(sites), []
    badness = torch.cat([site.quality[:, 3] for site in sites])
    worst = badness.argsort(descending=True, stable=True)[:count]
    chosen = torch.zeros_like(badness, dtype=torch.bool).index_fill(0, worst, True)
    parts = chosen.split(sizes)
    kept = [
        site.at(part.nonzero()[:, 0])
        for site, part in zip(sites, parts, strict=True)
        if bool(part.any())
    ]
    of = ", ".join(dict.fromkeys(site.name for site in sites))
    return kept, [
        f"Of {sum(sizes):,} scalars of {of}, it shows the {count} that look worst."
    ]
