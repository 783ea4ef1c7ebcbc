"""Pareto k̂: how heavy the tail of a guide's importance weights is, datum by datum.

Of weights w = p(x, z) / q(z | x), z ~ q, moments exist up to order 1/k, k being the shape of the
generalised Pareto distribution that their largest values follow. It is fitted to the 3√S largest
of S weights, which are then put at its quantiles (Pareto-smoothed importance sampling). With k < ½
weights have a variance; above

    k̂ > min(1 − 1/log₁₀ S, 0.7)

S draws are too few for an estimate to be near what it estimates, and the guide is no stand-in for
the posterior. A known case: for q = N(m, s²) and p = N(m, σ²) with s < σ, k = 1 − s²/σ²; with s ≥
σ the weights are bounded.

The weight is a datum's own. One weight over all data, their product, has a tail that grows with
their number whatever the guide; it is looked at only where the data share a latent, so that there
is no other.

k̂ is noisy: with M values in the tail its standard error is about (1 + k)/√M · M/(M + 10), 0.14
for k = ½ and S = 1000. Of many data, some are above the threshold by chance, so the hundred worst
with k̂ > ½ are looked at again: they share a million draws, in repeats of 10,000 (of S, if that is
more), whose k̂ is averaged (a quarter, of a joint weight), for one fit to all would follow the
tail to where nobody's draws lie. Those that are left, if they are few, once more. An alarm is a
test on a look's own draws. Its hypothesis, that none of these data has k > 0.7, is rejected if k̂
is above for more of them than coins would be heads, or for one by more than noise would make the
largest of so many; each at a quarter of the stated false-alarm rate (of two looks), the second
after Bonferroni over the data. It is grave where a quarter of all data, or the one there is, are
above.

References: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024;
Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and Gelman, 2018.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import bdtrc, logsumexp, ndtri
from torch import Tensor

from vilvm._compile import Compile, check_compile, worth_compiling
from vilvm._runtime.argument_checks import check_number, check_probability, check_seed, optional
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.diagnostics._tail import tail_error, tail_length
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws, seconds_of
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation.evaluate import in_parts, samples_in_a_pass
from vilvm.evaluation.sample_passes import WORTH_COMPILING, SamplePasses
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    device_of,
    evaluation_mode,
    fixed_beside,
)
from vilvm.weights import Layout, find_layout, log_weights

__all__ = ["ParetoK", "Recheck", "Smoothed", "check_weighable", "good_k", "pareto_k", "psis"]

SOURCE = "min(1 − 1/log10 S, 0.7): Vehtari et al., 2024; Yao et al., 2018"
_FEWEST = 25  # draws of which a fifth, five, is still a tail
_FLAT = 0.01  # a tail whose log-weights differ by less is that of equal weights and rounding
# of S: effective sample size of weights whose tail is one lump, above which they do no harm
_LUMP = 0.1
_LEAST, _PILOT = 100, 25  # draws of which k̂ is told, and of a timed pilot
_HALF = 0.5  # k above which weights have no variance
_DRAWS, _REPEAT = 1_000_000, 10_000  # of a further look: draws in all, and of a repeat at least
_JOINT = 4  # by which a draw of all data together is dearer than that of a datum
_LOOKS = 2  # that may follow the first
_MUCH = 0.25  # share of the data from which the guide, and not the data, is at fault
# draws of all data together in a pass, for a joint weight, which is seldom of a network
JOINT_ROWS = 400_000


class Smoothed(NamedTuple):
    """Pareto-smoothed weights.

    Arguments:
        log_weights: log of the weights, which sum to one over samples, float64 on the CPU, of the
            shape that was given; −inf throughout where every weight is zero.
        k: k̂ of each column, shape (N,), or () for a single one. 0 where the largest weights are
            all equal, so that there is no tail; ∞ where every weight is zero, or where a few ones
            carry all.
    """

    log_weights: Tensor
    k: Tensor

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the smoothed weights, 1 / Σₛ wₛ², of the shape of `k`; 0 where
        every weight is zero.
        """
        squares = (2 * self.log_weights).exp().sum(0)
        return torch.where(squares > 0, 1 / squares, 0.0)


def good_k(num_samples: int) -> float:
    """The k̂ up to which `num_samples` draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def psis(log_weights: Tensor) -> Smoothed:
    """Pareto-smoothed importance sampling (ArviZ's), for every column of log-weights.

    Arguments:
        log_weights: shape (S, N) or (S,), S at least 25, up to a constant for each column; −inf
            for a weight of zero.

    Returns:
        Smoothed: normalised log-weights of that shape, and k̂ of shape (N,) or ().

    Raises:
        ValueError: too few samples, or a log-weight is NaN or +∞.

    Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.

    Example:
        >>> import torch
        >>> from vilvm.diagnostics.pareto_k import psis
        >>> smoothed = psis(torch.zeros(100, 3))
        >>> smoothed.k.tolist(), smoothed.ess.round().tolist()
        ([0.0, 0.0, 0.0], [100.0, 100.0, 100.0])
    """
    if not isinstance(log_weights, Tensor) or log_weights.is_complex():
        raise ValueError(
            "psis: log_weights must be a tensor of real log-weights; got a "
            f"{type(log_weights).__name__} that is none."
        )
    if log_weights.dim() not in (1, 2) or len(log_weights) < _FEWEST:
        raise ValueError(
            f"psis: log-weights must have shape (S, N) or (S,) with at least {_FEWEST} samples S; "
            f"got {tuple(log_weights.shape)}."
        )
    columns = log_weights.detach().cpu().double().numpy().reshape(len(log_weights), -1).T
    if np.isnan(columns).any() or np.isposinf(columns).any():
        raise ValueError(
            "psis: a log-weight is NaN or +inf; look at the densities that it is made of."
        )
    smoothed, k = _smooth(columns)
    shape = log_weights.shape[1:]
    return Smoothed(
        torch.from_numpy(smoothed.T.copy()).reshape(log_weights.shape),
        torch.from_numpy(k).reshape(shape),
    )


def _smooth(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``psis`` of rows (N, S), those that have no tail to fit taken by themselves."""
    from arviz_stats.base import array_stats  # here, for it takes a second to import

    num_samples = columns.shape[1]
    largest = columns.max(1)
    cutoff = np.partition(columns, -tail_length(num_samples) - 1)[:, -tail_length(num_samples) - 1]
    dead = np.isneginf(largest)
    flat = ~dead & (largest - np.where(dead, 0.0, cutoff) < _FLAT)
    plain = np.where(
        dead[:, None],
        -np.inf,
        columns - logsumexp(np.where(dead[:, None], 0.0, columns), 1, keepdims=True),
    )
    smoothed, k = plain.copy(), np.where(dead, np.inf, 0.0)
    # A tail of equal values, as discrete latents make them, is a lump too: no distribution can be
    # fitted to it.
    least = np.partition(columns, -tail_length(num_samples))[:, -tail_length(num_samples)]
    level = ~dead & ~flat & (largest - np.where(dead, 0.0, least) < 1e-9)
    k[level] = np.nan
    rows = ~dead & ~flat & ~level
    if rows.any():
        with np.errstate(all="ignore"):
            # it is the negative that ArviZ calls a weight
            smoothed[rows], k[rows] = array_stats.psislw(-columns[rows])
    undone = np.isnan(smoothed).any(1)
    smoothed[undone] = plain[undone]
    # Where the tail is mostly one lump (zeros, or the few weights of a discrete latent), no Pareto
    # distribution fits.
    lumps = np.isnan(k)
    k[lumps] = np.where(1 / np.exp(2 * plain[lumps]).sum(1) < _LUMP * num_samples, np.inf, 0.0)
    return smoothed, k


class Recheck(NamedTuple):
    """Pareto k̂ of some of the data, from draws of their own.

    Arguments:
        k: k̂ of each, float64, shape (M,), the mean of that of each repeat.
        ess: effective sample size of the smoothed weights of a repeat, their mean, of the same
            shape.
        place: where these data stand in ``ParetoK.k``, of the same shape.
        num_samples: draws of a repeat.
        repeats: independent ones for each datum.
    """

    k: Tensor
    ess: Tensor
    place: Tensor
    num_samples: int
    repeats: int

    @property
    def above(self) -> Tensor:
        """Whether k̂ is above the threshold of a repeat's draws, shape (M,)."""
        return self.k > good_k(self.num_samples)

    def is_beyond_chance(self, false_alarm: float) -> bool:
        """Whether the hypothesis that none of these data has k above the threshold is rejected;
        see the module.
        """
        num, limit = len(self.k), good_k(self.num_samples)
        error = tail_error(self.num_samples, limit) / math.sqrt(self.repeats)
        many = bdtrc(int(self.above.sum()) - 1, num, 0.5) < false_alarm / 2
        return bool(many or self.k.max().item() > limit + error * -ndtri(false_alarm / 2 / num))


@dataclass(frozen=True)
class ParetoK:
    """Pareto k̂ of a guide.

    Arguments:
        k: k̂ of each datum, float64, shape (num_data,); of all data together, shape (1,), if they
            share a latent.
        ess: effective sample size of the smoothed weights, from 0 to num_samples, of the same
            shape.
        index: which data these are, of the same shape.
        num_samples: draws a datum, S.
        joint: whether the weight is that of all data together.
        false_alarm: how often a guide of which no datum has k > 0.7 may be given a warning.
        looks: the further looks at data with k̂ > ½, each with draws of its own; what an alarm is
            raised on.
        cut: what was cut short for want of time.
    """

    k: Tensor
    ess: Tensor
    index: Tensor
    num_samples: int
    joint: bool
    false_alarm: float = 0.01
    looks: tuple[Recheck, ...] = ()
    cut: str = ""

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def share(self) -> float:
        """The share of data above the threshold, at the first look."""
        return (self.k > self.threshold).double().mean().item()

    @property
    def confirmed(self) -> float:
        """The share of data above the threshold also at the last look, as far as those that it
        looked at stand for the rest.
        """
        above = self.looks[-1].above.sum().item() / len(self.looks[0].k) if self.looks else 0.0
        return above * (self.k > _HALF).double().mean().item()

    @property
    def latest(self) -> Tensor:
        """k̂ of each datum at the last look at it, shape (num_data,)."""
        k = self.k.clone()
        for look in self.looks:
            k[look.place] = look.k
        return k

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest k̂ at the last look at each, worst first, as (index, k̂)."""
        latest = self.latest
        order = latest.argsort(descending=True)[:count]
        return [(int(i), k.item()) for i, k in zip(self.index[order], latest[order], strict=True)]

    @property
    def finding(self) -> Finding:
        """The verdict."""
        source = f"{SOURCE}; alarms by a test of false-alarm rate {self.false_alarm:g}"
        if any(look.is_beyond_chance(self.false_alarm / _LOOKS) for look in self.looks):
            severity = Severity.CRITICAL if self.confirmed > _MUCH else Severity.WARNING
            verdict = f"{self._told}: the guide misses part of the posterior{self._named}."
            return Finding("Pareto k̂", severity, verdict, source, _ADVICE)
        if self.latest.median() > _HALF or (self.looks and bool((self.looks[-1].k > _HALF).any())):
            verdict = (
                f"{self._told}: above 0.5 weights have no variance, the guide is not "
                f"exact{self._named}, and its weights correct it."
            )
            return Finding(
                "Pareto k̂",
                Severity.NOTE,
                verdict,
                source,
                "Use importance-weighted estimates (vilvm.resample).",
            )
        return Finding("Pareto k̂", Severity.OK, f"{self._told}.", source)

    @property
    def _told(self) -> str:
        num, above = len(self.k), int((self.k > self.threshold).sum())
        if num == 1:
            whose = "the joint weight of all data" if self.joint else "the one datum"
            told = (
                f"k̂ of {whose} is {self.k[0].item():.2f}; {self.num_samples} draws are enough up "
                f"to {self.threshold:.2f}"
            )
        else:
            told = (
                f"k̂ is above {self.threshold:.2f} for {above} of {num} data ({self.share:.1%}), "
                f"in the median {self.k.median().item():.2f}"
            )
        for look in self.looks:
            again = f"looked at again by {look.repeats} × {look.num_samples:,} draws"
            those = (
                f"of the {len(look.k)} worst, {again} each, {int(look.above.sum())} are above "
                f"{good_k(look.num_samples):.2f}"
            )
            told += f"; {again}, it is {look.k[0].item():.2f}" if num == 1 else f"; {those}"
        return told

    @property
    def _named(self) -> str:
        beyond = int((self.latest > _HALF).sum())
        return (
            f" (worst of data {', '.join(str(i) for i, _ in self.worst(min(5, beyond)))})"
            if len(self.k) > 1 and beyond
            else ""
        )


_ADVICE = (
    "Train on, take a richer guide (full covariance, a flow) or another parametrisation, or see "
    "by the gaps whose fault it is."
)


@torch.no_grad()
def pareto_k(
    lvm: LatentVariableModel,
    data: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    *,
    false_alarm: float = 0.01,
    compile: Compile = "auto",
    budget: float | None = None,
) -> ParetoK:
    """Pareto k̂ and effective sample size of the guide's importance weights, datum by datum.

    Fitting takes about 0.4 ms a datum at 1000 samples, on top of running the pair. Data with k̂ >
    ½ are looked at again, by a million draws in all, at most twice.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once, from `seed`.
        num_samples: draws a datum, at least 100; the tail is about 3√S of them.
        batch_size: data a pass, 50 by default; a model whose data share a latent is given all of
            them at once.
        seed: of samples and transform.
        false_alarm: how often a guide of which no datum has k > 0.7 may be given a warning.
        compile: whether passes are compiled, as in ``evaluate``.
        budget: seconds after which it makes do with less; see `cut`.

    Returns:
        ParetoK, with a finding.

    Raises:
        ValueError: num_samples is below 100, batch_size below 1, or false_alarm not between 0 and
            1.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Reference: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
    Gelman, 2018.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.pareto_k import pareto_k
        >>> x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> found = pareto_k(PPCA(4, 2).maximise(x), x)
        >>> found.k.shape, found.finding.severity.name
        (torch.Size([30]), 'OK')
    """
    seed = check_seed("pareto_k: seed", seed)
    false_alarm = check_probability("pareto_k: false_alarm", false_alarm)
    check_contract(lvm)
    num_samples = check_number("pareto_k: num_samples", num_samples, 100)
    batch_size = optional(check_number, "pareto_k: batch_size", batch_size)
    check_compile("pareto_k", compile)
    clock, cuts = TimeBudget(budget), []
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, device_of(lvm, fixed.device)), evaluation_mode(lvm):
        parts, layout = in_parts(lvm, fixed, batch_size)
        check_weighable("pareto_k", lvm, layout)
        layouts = [
            layout,
            *(find_layout(lvm, part.x, plate=layout.data_plate) for part in parts[1:]),
        ]
        if clock.is_limited:
            wanted, num_samples = num_samples, _affordable(lvm, parts, layout, num_samples, clock)
            cuts += [f"{num_samples} of {wanted} draws"] if num_samples < wanted else []
        a_part = num_samples // _chunk(lvm, parts[0].x, layout)
        passes = SamplePasses(lvm, worth_compiling(compile, len(parts) * a_part, WORTH_COMPILING))
        began = clock.left
        found = [
            _fitted(passes, part.x, num_samples, here)
            for part, here in zip(parts, layouts, strict=True)
        ]
        pace = (began - clock.left) / num_samples / len(parts) if clock.is_limited else 0.0
        k, ess = (torch.cat(values) for values in zip(*found, strict=True))
        looks, fewer = _further_looks(passes, fixed, parts, layouts, k, num_samples, clock, pace)
        cuts += ["further looks"] if fewer else []
    return ParetoK(
        k,
        ess,
        _indices(parts, layouts),
        num_samples,
        not layout.local,
        false_alarm,
        looks,
        ", ".join(cuts),
    )


def _affordable(
    lvm: LatentVariableModel,
    parts: Sequence[Data],
    layout: Layout,
    num_samples: int,
    clock: TimeBudget,
) -> int:
    """Draws that take half of the time, by a timed pass; a hundred at least."""
    size, seconds = min(num_samples, _chunk(lvm, parts[0].x, layout)), clock.left / 2 / len(parts)
    fits = affordable_draws(
        lambda n: log_weights(lvm, parts[0].x, n, layout=layout), min(_PILOT, size), size, seconds
    )
    if fits < size or size == num_samples:
        return max(_LEAST, fits)
    each = seconds_of(lambda: log_weights(lvm, parts[0].x, size, layout=layout))
    return int(min(num_samples, max(_LEAST, clock.affords(each, 0.5) / len(parts) * size)))


def _indices(parts: Sequence[Data], layouts: Sequence[Layout]) -> Tensor:
    """Which data the columns of the weights are: all, save of a plate that subsamples them."""
    if not layouts[0].local:
        return torch.arange(1)
    found, start = [], 0
    for part, layout in zip(parts, layouts, strict=True):
        drawn = layout.subsample.get(
            layout.data_plate or "", {"value": torch.arange(layout.num_data)}
        )["value"]
        found.append(start + drawn.cpu())
        start += len(part)
    return torch.cat(found)


def _further_looks(
    passes: SamplePasses,
    data: Data,
    parts: Sequence[Data],
    layouts: Sequence[Layout],
    k: Tensor,
    num_samples: int,
    clock: TimeBudget,
    pace: float,
) -> tuple[tuple[Recheck, ...], bool]:
    """Looks at the worst of the data with k̂ > ½, and at those of them that remain so, if they are
    half as many or fewer.

    A draw of a part takes `pace` seconds. Second, whether a look, or a repeat of one, was left out
    for want of time.
    """
    fewer = False
    size = max(num_samples, _REPEAT)
    place = (
        k.argsort(descending=True)[: int((k > _HALF).sum())][: max(1, _DRAWS // size)]
        .sort()
        .values
    )
    looks: list[Recheck] = []
    while len(place) and len(looks) < _LOOKS and (not looks or 2 * len(place) <= len(looks[-1].k)):
        runs = _runs(passes.lvm, data, parts, layouts, place)
        wanted = max(
            1,
            _DRAWS
            // (size * sum(layout.num_data if layout.local else _JOINT for _, layout, _ in runs)),
        )
        repeats = int(min(wanted, clock.affords(pace * size * len(runs), 0.5)))
        fewer |= repeats < wanted
        if not repeats:
            break
        found = [
            _fitted(passes, batch, size, layout, repeats, columns)
            for batch, layout, columns in runs
        ]
        again, ess = (torch.cat(values) for values in zip(*found, strict=True))
        looks.append(Recheck(again, ess, place, size, repeats))
        place = place[again > _HALF]
    return tuple(looks), fewer


def _runs(
    lvm: LatentVariableModel,
    data: Data,
    parts: Sequence[Data],
    layouts: Sequence[Layout],
    place: Tensor,
) -> list[tuple[Any, Layout, Tensor]]:
    """The batches of which the data at `place` are columns: these data by themselves, or their
    parts where they cannot be run so.
    """
    if layouts[0].local and data.divisible and not any(layout.subsample for layout in layouts):
        # a guide with parameters for each datum knows them by their place
        with suppress(ContractError):
            few = data.subset(place)
            return [
                (
                    few.x,
                    find_layout(lvm, few.x, plate=layouts[0].data_plate),
                    torch.arange(len(place)),
                )
            ]
    runs, start = [], 0
    for part, layout in zip(parts, layouts, strict=True):
        stop = start + (layout.num_data if layout.local else 1)
        columns = place[(place >= start) & (place < stop)] - start
        runs += [(part.x, layout, columns)] if len(columns) else []
        start = stop
    return runs


def _chunk(lvm: LatentVariableModel, batch: Any, layout: Layout) -> int:
    """Samples a pass."""
    return (
        samples_in_a_pass(lvm, batch, layout)
        if layout.local
        else max(1, JOINT_ROWS // max(layout.num_data, 1))
    )


def _fitted(
    passes: SamplePasses,
    batch: Any,
    num_samples: int,
    layout: Layout,
    repeats: int = 1,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """k̂ and effective sample size of one batch, of every datum or of some of its columns, in the
    mean over repeats.
    """
    logs = []
    for log_w, *_ in passes(
        batch, repeats * num_samples, _chunk(passes.lvm, batch, layout), layout
    ):
        logs.append((log_w if columns is None else log_w[:, columns.to(log_w.device)]).cpu())
    smoothed = psis(
        torch.cat(logs).reshape(repeats, num_samples, -1).movedim(1, 0).reshape(num_samples, -1)
    )
    return smoothed.k.reshape(repeats, -1).mean(0), smoothed.ess.reshape(repeats, -1).mean(0)


def check_weighable(what: str, lvm: object, layout: Layout) -> None:
    """Raises ContractError if draws of the guide have no weight, for want of a density."""
    if layout.degenerate:
        raise ContractError(
            f"{what}: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point (a Delta), where it has no density and its "
            "draws no weight: give it a guide with a density (vilvm.wrappers.fit_guide)."
        )
    if layout.improper:
        raise ContractError(
            f"{what}: the prior of latent {layout.improper[0]!r} of {type(lvm).__name__} is flat: "
            "give it a proper one (vilvm.priors.fit_prior)."
        )
