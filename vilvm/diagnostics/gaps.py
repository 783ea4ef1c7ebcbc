"""The gap between the ELBO and log p(x), divided into what the guide's family and encoder cost.

The inference gap of a datum is the divergence of its guide from its posterior. It has two parts:

    log p(x) − ELBO(q)  =  [log p(x) − ELBO(q*)]  +  [ELBO(q*) − ELBO(q)]  =  KL(q ‖ p(z | x)),
                            approximation gap         amortisation gap

where q* is the best guide of the same family for this datum alone. A richer family reduces the
first; a larger encoder or more training reduces the second. For a guide without amortisation, the
second measures unfinished training.

log p(x) is exact if the model computes it. Else it is a lower bound, so that the approximation gap
may be larger than stated; q* is found by descent, so that the amortisation gap may be too. A lower
bound that starts at the guide does not detect what the guide misses: if the guide covers one of
two modes of the posterior, the bound is too low by log 2. So chains are annealed from the prior as
well (for a hundred of the data, if each has latents of its own). The evidence of a datum is the
largest bound: annealed from guide or prior, importance-weighted, or the best ELBO. One
replaces a more precise one only if it is larger beyond both their errors, for the datum or in the
mean, so that noise does not decide the choice. If the prior's chains find 0.1 nats more than the
guide's, a tenth of the posterior, the guide misses part of it.

The delta method's standard error of a log-mean-exp is meaningless if fewer than five weights
determine the mean. By Markov's inequality it is b nats too high with a probability of e^{−b} at
most, and too low by any amount. Its error is then stated as 2.3 nats (three times this, 6.9, is
exceeded with probability one in a thousand), and the verdict is not OK.

References: Inference Suboptimality in Variational Autoencoders, Chris Cremer, Xuechen Li and David
Duvenaud, 2018; Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse,
Ghahramani and Adams, 2015 (the probability by which a lower bound is too high).
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, frame_of
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._amortised import all_equal
from vilvm.diagnostics._gap_bounds import (
    ELBO,
    EXACT,
    FEW,
    GUIDE,
    IWAE,
    PRIOR,
    Bound,
    Search,
    best_elbo,
    choose_bounds,
    evaluated,
    in_one_batch,
)
from vilvm.diagnostics._gap_sizes import NO_FIT, Sizes, affordable_sizes
from vilvm.diagnostics._labels import discrete_latents
from vilvm.diagnostics._time_budget import OutOfTimeError, Stop, TimeBudget
from vilvm.diagnostics._verdicts.gaps import SMALL, gaps_finding
from vilvm.diagnostics.finding import Finding
from vilvm.evaluation import Estimate, Schedule
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, evaluation_mode
from vilvm.training.step import NonFiniteLossError
from vilvm.weights import Layout, find_layout, log_weights
from vilvm.weights.prepared import Prepared, prepared_of

__all__ = ["Bound", "Gaps", "gaps"]

_BATCH = 250
_FROM_PRIOR = 100  # data for which chains start at the prior too
_GRACE = 0.5  # seconds by which a step of the search may exceed its time
_COMPILES = 60.0  # seconds that must be left to compile
# for a joint weight, which has no mean over data: most chains, and most chains × data
_CHAINS, _ROWS = 512, 100_000


@dataclass(frozen=True, repr=False)
class Gaps(Result):
    """The inference gap of every datum in its two parts, in nats per datum.

    If the data share a latent, all numbers are those of all data jointly.

    Arguments:
        bounds: bounds on log p(x) by name: "exact"; or "ais from the guide", "ais from the prior",
            "iwae" and "elbo", which are lower bounds.
        best: ELBO of the best guide of the family for each datum.
        amortised: ELBO of the guide.
        index: index of each datum in the full data set, shape (num_data,).
        has_amortisation: whether an encoder makes the guide; if not, the second gap measures
            unfinished training.
        false_alarm: probability of a warning for an exact guide by the tests of single data
            (Bonferroni).
        cut: what is missing for lack of time.
        data_names: name of each datum in the full data set; empty for numbers.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.gaps import Bound, Gaps
        >>> from vilvm.evaluation import Estimate
        >>> zero = Estimate(torch.zeros(2), torch.zeros(2))
        >>> exact = {"exact": Bound(zero, torch.full((2,), torch.inf))}
        >>> Gaps(exact, zero, zero, torch.arange(2)).finding.severity.name
        'OK'
    """

    bounds: dict[str, Bound]
    best: Estimate
    amortised: Estimate
    index: Tensor
    has_amortisation: bool = True
    false_alarm: float = 0.01
    cut: str = ""
    data_names: tuple[str, ...] = ()

    @property
    def evidence(self) -> Estimate:
        """log p(x), or the largest lower bound on it, by datum."""
        return self._chosen[0].estimate

    @property
    def evidence_by(self) -> str:
        """The name of the bound that is the evidence for most data."""
        return list(self.bounds)[int(self._chosen[1].mode().values)]

    @property
    def num_by_others(self) -> int:
        """The number of data whose evidence is another bound."""
        which = self._chosen[1]
        return int((which != which.mode().values).sum())

    @property
    def ess(self) -> Tensor:
        """Effective number of the draws or chains that determine the evidence, (num_data,).

        Below five its error is unknown.
        """
        return self._chosen[0].ess

    @property
    def approximation(self) -> Estimate:
        """evidence − best: what the family costs."""
        return (self.evidence - self.best) if self.is_divided else self._unknown

    @property
    def amortisation(self) -> Estimate:
        """best − amortised: what the encoder costs."""
        return (self.best - self.amortised) if self.is_divided else self._unknown

    @property
    def is_divided(self) -> bool:
        """Whether the best guides were fitted; without them both parts are NaN."""
        return NO_FIT not in self.cut.split(", ")

    @property
    def _unknown(self) -> Estimate:
        nan = torch.full_like(self.total.values, torch.nan)
        return Estimate(nan, nan)

    @property
    def total(self) -> Estimate:
        """evidence − amortised: KL(q(z | x) ‖ p(z | x))."""
        return self.evidence - self.amortised

    @property
    def missed(self) -> Estimate | None:
        """Annealing from the prior minus annealing from the guide, where both are known.

        If log p(x) is exact, it minus the importance-weighted bound. None if either is unknown.
        """
        high, low = PRIOR, GUIDE
        if EXACT in self.bounds:
            high, low = EXACT, IWAE
        if high not in self.bounds or low not in self.bounds:
            return None
        values, errors = self.bounds[high].estimate - self.bounds[low].estimate
        is_known = values.isfinite()
        if not bool(is_known.any()):
            return None
        return Estimate(values[is_known], errors[is_known])

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest gap, worst first, as (index, nats)."""
        order = self.total.values.argsort(descending=True)[:count]
        return [(int(self.index[i]), self.total.values[i].item()) for i in order]

    @property
    def unestimated(self) -> Tensor:
        """For which data the search for log p(x) failed, shape (num_data,).

        It failed if the evidence does not exceed an ELBO, or if all annealed bounds are below the
        guide's ELBO and fewer than five weights determine the evidence.
        """
        by_elbo = torch.zeros_like(self._chosen[1], dtype=torch.bool)
        if ELBO in self.bounds:
            by_elbo = self._chosen[1] == list(self.bounds).index(ELBO)
        annealed = [self.bounds[n].estimate for n in (GUIDE, PRIOR) if n in self.bounds]
        failed = [
            self._is_below(bound) | torch.isnan(bound.values) for bound in annealed
        ]
        all_failed = torch.stack(failed or [by_elbo]).all(0)
        return self._is_below(self.evidence) | by_elbo | ((self.ess < FEW) & all_failed)

    @property
    def finding(self) -> Finding:
        """WARNING above 1 nat, or if part of the posterior is missed; NOTE above 0.1 nats."""
        return gaps_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum, or one for all data jointly; all in nats.

        Columns: datum (index in the full data set), evidence, best and amortised; the gaps
        approximation, amortisation and total, each with its Monte Carlo error ("total_error").
        """
        columns: dict[str, Any] = {
            "datum": self.index,
            "evidence": self.evidence.values,
            "best": self.best.values,
            "amortised": self.amortised.values,
        }
        gaps = {
            "approximation": self.approximation,
            "amortisation": self.amortisation,
            "total": self.total,
        }
        for name, gap in gaps.items():
            columns |= {name: gap.values, f"{name}_error": gap.errors}
        return frame_of(columns)

    @property
    def quantile(self) -> float:
        """Standard errors that the largest error of all data exceeds at the false-alarm rate."""
        return float(-ndtri(self.false_alarm / len(self.index)))

    def _is_below(self, bound: Estimate) -> Tensor:
        """Where a bound is below the guide's ELBO, beyond their errors."""
        gap = self.amortised - bound
        return gap.values > SMALL + self.quantile * gap.errors

    @property
    def _chosen(self) -> tuple[Bound, Tensor]:
        """The largest bound of each datum, and its position in `bounds`."""
        return choose_bounds(self.bounds, self.quantile, margin=SMALL)


def gaps(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    evidence: Literal["exact", "ais", "iwae"] | None = None,
    num_samples: int = 1000,
    steps: int = 400,
    schedule: Schedule | None = None,
    batch_size: int = _BATCH,
    false_alarm: float = 0.01,
    budget: float | None = None,
    seed: int = 0,
) -> Gaps:
    """The gap between log p(x) and the ELBO, divided into approximation and amortisation.

    Arguments:
        lvm: the model and guide, a ``torch.nn.Module``, which is not changed; or a ``Prepared``,
            which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a few
            hundred are enough.
        evidence: how log p(x) is found: by default exactly, if the model has
            ``exact_log_evidence``, else as the largest of AIS (from guide and prior) and
            importance weights; the latter with ten times as many samples if chains cannot move
            the latents.
        num_samples: draws per datum for each ELBO.
        steps: steps that optimise the guide of each datum.
        schedule: schedule of annealed importance sampling, from either base; by default
            ``Schedule()``, with up to 512 chains if the data share a latent.
        batch_size: data that are optimised in parallel.
        false_alarm: probability of a warning for an exact guide by the tests of single data.
        budget: seconds; if short, less is computed by a timed pilot, see `cut`.
        seed: seed of the draws and of the data's transform.

    Returns:
        Gaps, in nats per datum.

    Raises:
        ValueError: an option is out of range.
        NotApplicable: the guide draws a discrete latent, through which no gradient reaches its
            best parameters. It is a ContractError.
        ContractError: the guide is degenerate, a prior is flat, or the guide's parameters cannot
            be optimised.

    Reference: Inference Suboptimality in Variational Autoencoders, Cremer, Li and Duvenaud, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics import gaps
        >>> x = torch.randn(40, 4)
        >>> found = gaps(PPCA(4, 2).maximise(x), x, num_samples=100, steps=20)
        >>> found.evidence_by, abs(found.total.mean) < 1e-3
        ('exact', True)
    """
    false_alarm = check_probability("gaps: false_alarm", false_alarm)
    if evidence is not None and evidence not in ("exact", "ais", "iwae"):
        raise ValueError(
            f"gaps: unknown evidence={evidence!r}; choose 'exact', 'ais' or 'iwae'."
        )
    num_samples = check_number("gaps: num_samples", num_samples)
    steps = check_number("gaps: steps", steps)
    batch_size = check_number("gaps: batch_size", batch_size)
    _check_module(lvm)
    time = TimeBudget(budget)
    prepared = prepared_of("gaps", lvm, data, seed=seed, default_size=batch_size)
    prepared.require_weights("gaps")
    with prepared.drawing():
        _check_continuous(prepared)
        encoded = _is_amortised(prepared)
        whole = Sizes(
            num_samples, steps, schedule or _default_schedule(prepared.layout)
        )
        bounds, best, amortised, sizes = _searched(
            prepared, evidence, whole, time, encoded
        )
        if EXACT not in bounds:
            bounds[ELBO] = Bound(best, torch.full_like(best.values, torch.inf))
    return Gaps(
        bounds,
        best,
        amortised,
        torch.arange(len(best.values)),
        encoded,
        false_alarm,
        sizes.shorter_than(whole),
    )


def _searched(
    prepared: Prepared,
    evidence: str | None,
    whole: Sizes,
    time: TimeBudget,
    encoded: bool,
) -> tuple[dict[str, Bound], Estimate, Estimate, Sizes]:
    """Bounds on log p(x), the best guides' ELBO, the guide's ELBO, and the sizes of each."""
    in_one, sizes = in_one_batch(prepared), whole
    if time.is_limited:
        sizes = affordable_sizes(
            prepared, whole, time, lambda n: evaluated(in_one, None, n)
        )
    amortised, weighted = evaluated(in_one, None, sizes.num_samples)
    best, sizes = _best_in_time(prepared, amortised, sizes, time)
    most, compiled = len(prepared.data), False
    if encoded:
        most = _FROM_PRIOR
    if time.left > _COMPILES:
        compiled = "auto"
    try:
        with Stop(time.left + _GRACE):
            bounds = Search(prepared, evidence, most, compiled).bounds(sizes, weighted)
    except OutOfTimeError:
        bounds, sizes = {IWAE: weighted}, sizes._replace(schedule=None)
    if evidence != "ais":
        bounds.setdefault(IWAE, weighted)
    return bounds, best, amortised, sizes


def _default_schedule(layout: Layout) -> Schedule:
    """The default schedule, with more chains if the data share one weight."""
    if layout.local:
        return Schedule(num_chains=Schedule.num_chains)
    affordable = min(_CHAINS, _ROWS // max(layout.num_data, 1))
    return Schedule(num_chains=max(Schedule.num_chains, affordable))


def _best_in_time(
    prepared: Prepared, amortised: Estimate, sizes: Sizes, time: TimeBudget
) -> tuple[Estimate, Sizes]:
    """The ELBO of the best guides, and the sizes.

    Falls back to the guide's own ELBO, without steps, if half of the time is too short, or if a
    step leaves the support of the prior, whose edge the guide may touch.
    """
    if not sizes.steps:
        return amortised, sizes
    try:
        with Stop(time.left / 2 + _GRACE):
            return best_elbo(prepared, sizes), sizes
    except (OutOfTimeError, NonFiniteLossError):
        return amortised, sizes._replace(steps=0)


def _check_module(lvm: object) -> None:
    if isinstance(lvm, Prepared):
        lvm = lvm.lvm
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"gaps: {type(lvm).__name__} is not a torch.nn.Module, which is needed to copy it; "
            "wrap it as vilvm.Pair(model, guide)."
        )


def _check_continuous(prepared: Prepared) -> None:
    for name in discrete_latents(prepared.lvm, prepared.batches[0].x, prepared.layout):
        raise NotApplicable(
            f"gaps: the guide of {type(prepared.lvm).__name__} draws the discrete latent "
            f"{name!r}, so neither descent to the best guide nor annealing works; see Pareto k̂ "
            "and the probabilities of its values."
        )


def _is_amortised(prepared: Prepared) -> bool:
    """Whether the guide of each datum depends on it, and not on its position in the batch."""
    lvm, data, layout = prepared.lvm, prepared.batches[0], prepared.layout
    if not layout.local or not data.divisible or len(data) == 1:
        return layout.local
    rolled = data.subset(torch.arange(len(data)).roll(1))
    with suppress(ContractError), torch.no_grad(), evaluation_mode(lvm):
        find_layout(lvm, data.subset(slice(0, 1)).x)
        first, second = (_guide_at(prepared, batch) for batch in (data, rolled))
        return not all_equal(first, second) or all_equal(
            tensors_of(data.x), tensors_of(rolled.x)
        )
    return False


def _guide_at(prepared: Prepared, batch: Data) -> list[Tensor]:
    """The density and the draws of the guide on a batch, from the same seed each time."""
    with seeded(prepared.seed, batch.device):
        weights = log_weights(prepared.lvm, batch.x, 10, layout=prepared.layout)
    return [weights.log_guide, *weights.latents.values()]
