"""Predictive checks: whether data that the model generates resemble the observed data.

With statistics T₁ … T_K of a whole data set, the data are replicated,

    posterior:  z ~ q(z | x),  x_rep ~ p(x | z);      prior:  z ~ p(z),  x_rep ~ p(x | z),

and T(x) is compared with the D values T(x_rep). The two-sided p-value of a statistic is twice the
smaller of the shares of replicates on either side of it, the data included.

Among K statistics some are extreme by chance. Over all D + 1 data sets, a statistic's deviation
from the median is measured in units of the distance of the 95 % (5 %, below) quantile from it; M
is the largest deviation of a data set over its statistics. The adjusted p-value of T_k(x) is the
share of data sets with M at least as large as the deviation of T_k(x) (max-T). So the model is
rejected by any statistic with at most the stated false-alarm rate, without the many replicates
that Bonferroni's method needs.

The rate is exact for the prior check, where the model is given. With a posterior, data are used
twice: p-values tend to the middle (conservative: a false alarm is less likely than a miss), and
are at most twice too small. The prior check detects a wrong distribution of a datum's own latents,
the posterior check a wrong likelihood.

References: Bayesianly Justifiable and Relevant Frequency Calculations for the Applied
Statistician, Donald B. Rubin, 1984; Posterior Predictive Assessment of Model Fitness via Realized
Discrepancies, Gelman, Meng and Stern, 1996; Posterior Predictive p-Values, Xiao-Li Meng, 1994 (at
most twice); Resampling-Based Multiple Testing, Westfall and Young, 1993 (max-T).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.results import Result, frame_of
from vilvm.data.data import Data
from vilvm.diagnostics._components import indexed
from vilvm.diagnostics._time_budget import TimeBudget
from vilvm.diagnostics._verdicts.predictive_check import predictive_check_finding
from vilvm.diagnostics.finding import Finding
from vilvm.diagnostics.predictive_statistics import (
    CORRELATION,
    Statistic,
    default_statistics,
    has_columns,
)
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable
from vilvm.weights import observed, replicate, sample
from vilvm.weights.guide_draws import latent_draws
from vilvm.weights.prepared import Prepared, prepared_of
from vilvm.weights.simulation import undrawable

__all__ = ["PredictiveCheck", "default_statistics", "predictive_check"]

_NUMBERS = 20_000_000  # numbers replicated at a time
_ROWS = 10_000  # data per pass


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Result):
    """Statistics of the data and of replicated data, by name.

    Arguments:
        observed: T(x), float64, shape (...) of the statistic.
        replicated: T(x_rep), shape (num_draws, ...).
        kind: "posterior" or "prior".
        false_alarm: probability of a warning for a right model, over all statistics.
        cut: what is missing for lack of time; with fewer than 1 / false_alarm replicates no
            statistic is rejected.
        labels: what each number of a statistic is of, by the statistic's name, such as a column.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.predictive_check import PredictiveCheck
        >>> replicated = {"mean": torch.arange(200.0).double()}
        >>> check = PredictiveCheck({"mean": torch.tensor(100.0).double()}, replicated, "prior")
        >>> check.finding.severity.name
        'OK'
    """

    observed: dict[str, Tensor]
    replicated: dict[str, Tensor]
    kind: str
    false_alarm: float = 0.01
    cut: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def num_draws(self) -> int:
        """The number of replicated data sets."""
        return len(next(iter(self.replicated.values())))

    @property
    def num_statistics(self) -> int:
        """The number of numbers that are compared, over which p-values are adjusted."""
        return sum(value.numel() for value in self.observed.values())

    def label(self, name: str, i: int) -> str:
        """A number of a statistic in words, such as "skewness of age" or "T[3]".

        Arguments:
            name: of the statistic.
            i: index of the number in the flattened statistic.
        """
        if name in self.labels:
            return f"{name} of {self.labels[name][i]}"
        return name if self.observed[name].numel() == 1 else f"{name}[{i}]"

    @property
    def p_values(self) -> dict[str, Tensor]:
        """Two-sided p-value of each statistic alone, of the statistic's shape."""
        found = {}
        for name, value in self._all.items():
            above = (value >= value[0]).double().mean(0)
            below = (value <= value[0]).double().mean(0)
            found[name] = (2 * torch.minimum(above, below)).clamp(max=1)
        return found

    @property
    def adjusted(self) -> dict[str, Tensor]:
        """p-value of each statistic as one of many (max-T), of the statistic's shape."""
        deviations = {name: _deviations(value) for name, value in self._all.items()}
        largest = torch.stack(
            [d.reshape(len(d), -1).amax(1) for d in deviations.values()]
        ).amax(0)
        return {
            name: (largest.reshape(-1, *[1] * (d.dim() - 1)) >= d[0]).double().mean(0)
            for name, d in deviations.items()
        }

    @property
    def _all(self) -> dict[str, Tensor]:
        """Statistics of the data, then of the replicates, shape (num_draws + 1, ...)."""
        return {
            name: torch.cat([value.unsqueeze(0), self.replicated[name]])
            for name, value in self.observed.items()
        }

    @property
    def finding(self) -> Finding:
        """WARNING if a statistic of the data differs from those of replicates; else OK."""
        return predictive_check_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a statistic of the data.

        Columns: statistic; observed, and the mean and standard deviation over replicates
        (replicated_mean, replicated_sd), in the statistic's unit; p_value, and adjusted for their
        number (max-T).
        """
        p_values, adjusted = self.p_values, self.adjusted
        columns: dict[str, list[Any]] = {"statistic": []}
        for name, observed_value in self.observed.items():
            shape = observed_value.shape
            columns["statistic"] += [indexed(name, i) for i in np.ndindex(*shape)]
            replicated = self.replicated[name].double()
            parts = {
                "observed": observed_value,
                "replicated_mean": replicated.mean(0),
                "replicated_sd": replicated.std(0),
                "p_value": p_values[name],
                "adjusted": adjusted[name],
            }
            for column, value in parts.items():
                columns.setdefault(column, []).extend(value.flatten().tolist())
        return frame_of(columns)


def _deviations(values: Tensor) -> Tensor:
    """Distances from the median, in units of the distance of the 95 % or 5 % quantile."""
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95]).to(values), 0)
    off = values - median
    above = _unit(high - median, off.clamp(min=0))
    below = _unit(median - low, off.clamp(max=0))
    units = torch.where(off > 0, above, below)
    return torch.where(off == 0, 0.0, off.abs() / units)


def _unit(quantile: Tensor, side: Tensor) -> Tensor:
    """The quantile's distance; the root mean square if most data sets have the same value."""
    return torch.where(quantile > 0, quantile, side.square().mean(0).sqrt())


@torch.no_grad()
def predictive_check(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    *,
    kind: Literal["posterior", "prior"] = "posterior",
    false_alarm: float = 0.01,
    batch_size: int | None = None,
    budget: float | None = None,
    draws: Mapping[str, Tensor] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> PredictiveCheck:
    """Compares statistics of the data with those of data that the model replicates.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once, from `seed`.
        statistics: functions by name, each called with all data of an observed site, a tensor of
            shape (num_data, ...), and returning a number or a tensor; by default those of
            ``default_statistics``. With several observed sites, each is computed for every site.
        num_draws: number of replicated data sets, at least 1 / false_alarm.
        seed: seed of the draws and the transform.
        kind: "posterior" draws latents from the guide, given these data; "prior" from the prior.
        false_alarm: probability of a warning for a right model, over all statistics; approximate
            or lower with "posterior".
        batch_size: data per pass, 10,000 by default; data that share a latent stay together.
        budget: seconds after which no more data sets are replicated; see `cut`.
        draws: draws of all latents in place of the guide's, as ``posterior`` returns them; each
            serves as often as the others, in random order.
        columns: by observed site, the names of its columns.

    Returns:
        PredictiveCheck, with num_draws replicates.

    Raises:
        ValueError: an unknown kind, too few draws, a statistic that is not finite or changes
            shape, or another number of names than columns.
        NotApplicable: the model observes factors only, or a likelihood cannot be drawn from. It is
            a ContractError.
        ContractError: a site is scored in part only, a plate subsamples its data, the prior is
            flat (with "prior"), or the pair breaks the contract.

    Reference: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman,
    Meng and Stern, 1996.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.predictive_check import predictive_check
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> spread = {"range": lambda x: x.max() - x.min()}
        >>> check = predictive_check(PPCA(4, 2).maximise(x), x, spread, num_draws=100)
        >>> check.replicated["range"].shape, check.finding.severity.name
        (torch.Size([100]), 'OK')
    """
    false_alarm = check_probability("predictive_check: false_alarm", false_alarm)
    if kind not in ("posterior", "prior"):
        raise ValueError(
            f"predictive_check: kind must be 'posterior' or 'prior'; got {kind!r}."
        )
    num_draws = check_number(
        "predictive_check: num_draws", num_draws, math.ceil(1 / false_alarm)
    )
    time, cut = TimeBudget(budget), ""
    prepared = prepared_of(
        "predictive_check",
        lvm,
        data,
        batch_size=batch_size,
        seed=seed,
        default_size=_ROWS,
    )
    with prepared.running():
        _check_replicable(prepared)
        replicates = _Replicates.of(prepared, kind, draws)
        named = _checked_columns(columns or {}, replicates.observed)
        chosen = {
            site: statistics or default_statistics(x, site in named)
            for site, x in replicates.observed.items()
        }
        of_data = _measure(chosen, replicates.observed)
        of_draws = []
        for x in replicates.draw(num_draws):
            of_draws.append(_measure(chosen, x))
            if time.is_spent:
                break
    if len(of_draws) < num_draws:
        cut = f"{len(of_draws)} of {num_draws} replicates"
    replicated = {
        name: _stacked(name, value, of_draws) for name, value in of_data.items()
    }
    labels = {} if statistics else _labels(chosen, replicates.observed, named)
    return PredictiveCheck(of_data, replicated, kind, false_alarm, cut, labels)


def _checked_columns(
    columns: Mapping[str, Sequence[str]], observed: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """The names of columns; raises ValueError unless each site has as many columns."""
    for site, names in columns.items():
        shape = tuple(observed[site].shape) if site in observed else ()
        if len(shape) != 2 or shape[1] != len(names):
            raise ValueError(
                f"predictive_check: columns names {len(names)} columns of {site!r}, whose values "
                f"have shape {shape}; it must observe (num_data, {len(names)})."
            )
    return {site: tuple(map(str, names)) for site, names in columns.items()}


def _labels(
    chosen: Mapping[str, Mapping[str, Statistic]],
    observed: Mapping[str, Tensor],
    named: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """What the numbers of default statistics are of: a column, or two of them."""
    found = {}
    for site, statistics in chosen.items():
        if not has_columns(observed[site], site in named):
            continue
        numbered = (f"column {i}" for i in range(observed[site].shape[1]))
        own = named.get(site) or tuple(numbered)
        together = tuple(f"{a} and {b}" for a, b in combinations(own, 2))
        for name in statistics:
            label = name if len(chosen) == 1 else f"{site}: {name}"
            found[label] = together if name == CORRELATION else own
    return found


def _check_replicable(prepared: Prepared) -> None:
    """Raises unless the model can replicate all of its data."""
    name, layout = type(prepared.lvm).__name__, prepared.layout
    if all(family == "Unit" for family in layout.families.values()):
        raise NotApplicable(
            f"predictive_check: {name} observes nothing but factors, so there are no data to "
            "replicate."
        )
    sites = undrawable(prepared.lvm, prepared.batches[0].x)
    if sites:
        raise NotApplicable(
            f"predictive_check: the distribution of site {sites[0]!r} of {name} cannot be drawn "
            "from, so its data cannot be replicated: give it a method sample."
        )
    if layout.subsample:
        raise ContractError(
            f"predictive_check: {name} subsamples its plate {next(iter(layout.subsample))!r} at "
            "random, so replicates would be of other data: check a model whose plate contains "
            "all data."
        )
    partly = [
        site for site, words in layout.families.items() if " in part, mask " in words
    ]
    if partly:
        raise ContractError(
            f"predictive_check: site {partly[0]!r} of {name} is scored in part only (a mask), so "
            "not all of its values are data: check the model without the mask, or on complete "
            "data."
        )


class _Replicates(NamedTuple):
    """Replicates the data of a pair.

    Arguments:
        lvm: the model and guide.
        parts: the data, in batches.
        kind: "posterior" or "prior".
        observed: the data themselves, by site.
        given: draws of the latents in place of the guide's, in random order.
    """

    lvm: LatentVariableModel
    parts: Sequence[Data]
    kind: str
    observed: dict[str, Tensor]
    given: dict[str, Tensor] | None = None

    @classmethod
    def of(
        cls, prepared: Prepared, kind: str, given: Mapping[str, Tensor] | None
    ) -> "_Replicates":
        """Chooses batches that can be joined; without latents, the posterior is the prior."""
        lvm, layout, parts = prepared.lvm, prepared.layout, prepared.batches
        # With another plate left of the data plate, batches cannot be joined along the first axis.
        if given is not None or layout.data_dim != -layout.nesting:
            parts = [prepared.data.loaded()]
        if not layout.latents:
            kind = "prior"
        own = _joined([observed(lvm, part.x) for part in parts], 0)
        return cls(lvm, parts, kind, own, _shuffled(given, prepared.data.device))

    def draw(self, num_draws: int) -> Iterator[dict[str, Tensor]]:
        """Replicated data by site, one data set after the other."""
        at_once = max(1, _NUMBERS // sum(x.numel() for x in self.observed.values()))
        for done in range(0, num_draws, at_once):
            size = min(at_once, num_draws - done)
            pieces = [self._of_part(part, done, size) for part in self.parts]
            whole = _joined(pieces, 1)
            yield from ({site: x[i] for site, x in whole.items()} for i in range(size))

    def _of_part(self, part: Data, done: int, size: int) -> dict[str, Tensor]:
        if self.kind == "posterior" and self.given is not None:
            index = torch.arange(done, done + size)
            latents = {n: v[index % len(v)] for n, v in self.given.items()}
            return replicate(self.lvm, latents, like=part.x)
        if self.kind == "posterior":
            return replicate(
                self.lvm, latent_draws(self.lvm, part.x, size), like=part.x
            )
        drawn = sample(self.lvm, size, like=part.x)
        return {site: drawn[site] for site in self.observed}


def _shuffled(
    draws: Mapping[str, Tensor] | None, device: torch.device
) -> dict[str, Tensor] | None:
    """The draws in random order, the same for all latents."""
    if not draws:
        return None
    order = torch.randperm(len(next(iter(draws.values()))))
    return {n: v[order].to(device) for n, v in draws.items()}


def _joined(pieces: list[dict[str, Tensor]], axis: int) -> dict[str, Tensor]:
    if len(pieces) == 1:
        return pieces[0]
    return {site: torch.cat([p[site] for p in pieces], axis) for site in pieces[0]}


def _measure(
    chosen: Mapping[str, Mapping[str, Statistic]], sites: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every statistic of one data set, float64, on the CPU."""
    found = {}
    for site, statistics in chosen.items():
        for name, statistic in statistics.items():
            label = f"{site}: {name}"
            if len(chosen) == 1:
                label = name
            value = torch.as_tensor(statistic(sites[site])).double().cpu()
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"predictive_check: statistic {label!r} is not finite for all data sets; give "
                    "one that is."
                )
            found[label] = value
    return found


def _stacked(name: str, of_data: Tensor, of_draws: list[dict[str, Tensor]]) -> Tensor:
    """A statistic of all replicates, shape (num_draws, ...)."""
    if any(each[name].shape != of_data.shape for each in of_draws):
        raise ValueError(
            f"predictive_check: statistic {name!r} does not have the same shape for all data sets."
        )
    return torch.stack([each[name] for each in of_draws])
