"""How far the bound is from the evidence, and whose fault it is.

The inference gap of a datum is the divergence of its guide from its posterior, and it falls in
two:

    log p(x) − ELBO(q)  =  [log p(x) − ELBO(q*)]  +  [ELBO(q*) − ELBO(q)]  =  KL(q ‖ p(z | x)),
                            approximation gap         amortisation gap

q* the best guide of the same family for this datum alone. The first is the fault of the family,
which a richer one would mend; the second that of the encoder, which more capacity or more training
would. In a guide without amortisation the second is what training has left undone.

log p(x) is exact where the model knows it, else a lower bound, so that the approximation gap may
be larger than it is said to be; q* is found by descent, so that the amortisation gap may be too. A
lower bound that starts at the guide does not see what the guide misses: of a posterior of two
modes, the guide at one of them, it finds half, and is log 2 short. So chains are annealed from the
prior as well (for a hundred of the data, if each has latents of its own), and the evidence of a
datum is the largest bound there is: annealed from guide or prior, importance-weighted, or the best
ELBO. One takes the place of a more precise one only where it is larger beyond both their errors,
by datum or in the mean, so that none is picked for its noise. Where the prior's chains find 0.1
nats that the guide's do not, which is a tenth of the posterior, the guide misses part of it.

The delta method's standard error of a log-mean-exp says nothing when fewer than five weights carry
the mean. By Markov's inequality it is b nats too high with a probability of e^{−b} at most, and
too low by anything: its error is told as 2.3 nats (three of which, 6.9, one in a thousand
exceeds), and the verdict is not OK.

References: Inference Suboptimality in Variational Autoencoders, Chris Cremer, Xuechen Li and David
Duvenaud, 2018; Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse,
Ghahramani and Adams, 2015 (the probability by which a lower bound is too high).
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._labels import discrete_latents
from vilvm.diagnostics._time_budget import (
    OutOfTimeError,
    Stop,
    TimeBudget,
    affordable_draws,
    seconds_of,
)
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.pareto_k import check_weighable
from vilvm.evaluation import Estimate, Schedule, ais, evaluate
from vilvm.evaluation.evaluate import exact_log_evidence, in_parts
from vilvm.evaluation.hmc import start
from vilvm.guides import fit_local_guide
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    evaluation_mode,
    fixed_beside,
)
from vilvm.training.step import NonFiniteLossError
from vilvm.weights import Layout, find_layout, log_weights
from vilvm.weights.log_joint import LogJoint

__all__ = ["Bound", "Gaps", "gaps"]

_SMALL, _LARGE = 0.1, 1.0  # nats
_BATCH = 250
# effective draws, below which the error of a log-mean-exp is unknown, and what it is told as
_FEW, _FEW_ERROR = 5.0, 2.3
_FROM_PRIOR = 100  # data of which chains start at the prior too
_PILOT = 100  # draws of the timed evaluation, and the fewest of an ELBO
# below which a fit, or annealing, is not worth its time
_LEAST_STEPS, _LEAST_TEMPERATURES = 50, 20
_GRACE = 0.5  # seconds that a part may take beyond its time
_PASS = 8_000  # chains in a pass of annealing
_COMPILES = 60.0  # seconds that must be left for compiling to pay
# at most, for one weight of all data, of which there is no mean over data; and rows of data in all
_CHAINS, _ROWS = 512, 100_000
GUIDE, PRIOR, IWAE, ELBO, EXACT = (
    "ais from the guide",
    "ais from the prior",
    "iwae",
    "elbo",
    "exact",
)
_WORDS = {
    GUIDE: "by annealed importance sampling from the guide, a lower bound",
    PRIOR: "by annealed importance sampling from the prior, a lower bound",
    IWAE: "by importance weights, a lower bound",
    ELBO: "by the ELBO of the best guide, a lower bound",
    EXACT: "exact",
}
_Sentence = tuple[Severity, str, str]  # how grave, the verdict, and the advice
SOURCE = (
    "Cremer, Li and Duvenaud, 2018; a divergence of 0.1 nats moves no probability by more than "
    "√(KL/2) = 0.22, one of 1 nat by 0.71 (Pinsker)"
)


class Bound(NamedTuple):
    """log p(x), or a lower bound on it.

    Arguments:
        estimate: in nats per datum; NaN for data of which it was not looked for.
        ess: effective number of the draws or chains that carry it, shape (num_data,); ∞ if it is
            exact or a plain mean.
    """

    estimate: Estimate
    ess: Tensor


@dataclass(frozen=True)
class Gaps:
    """The inference gap of every datum, in its two parts, in nats per datum (of all data together
    if they share a latent).

    Arguments:
        bounds: what was found of log p(x), by name: "exact"; or "ais from the guide", "ais from
            the prior", "iwae" and "elbo", lower bounds.
        best: ELBO of the best guide of the family for each datum.
        amortised: ELBO of the guide.
        index: which data these are, shape (num_data,).
        has_amortisation: whether the guide serves data by an encoder; else the second gap is one
            of training.
        false_alarm: how often an exact guide may be given a warning by what is judged datum by
            datum, Bonferroni over the data.
        cut: what was cut short for want of time.
    """

    bounds: dict[str, Bound]
    best: Estimate
    amortised: Estimate
    index: Tensor
    has_amortisation: bool = True
    false_alarm: float = 0.01
    cut: str = ""

    @property
    def evidence(self) -> Estimate:
        """log p(x), or the largest lower bound on it, by datum."""
        return self._chosen[0].estimate

    @property
    def evidence_by(self) -> str:
        """Which of the bounds it is for most data."""
        return list(self.bounds)[int(self._chosen[1].mode().values)]

    @property
    def ess(self) -> Tensor:
        """Effective number of the draws or chains that carry the evidence, shape (num_data,);
        below five its error is unknown.
        """
        return self._chosen[0].ess

    @property
    def approximation(self) -> Estimate:
        """evidence − best: what the family costs."""
        return self.evidence - self.best

    @property
    def amortisation(self) -> Estimate:
        """best − amortised: what the encoder costs."""
        return self.best - self.amortised

    @property
    def total(self) -> Estimate:
        """evidence − amortised: KL(q(z | x) ‖ p(z | x))."""
        return self.evidence - self.amortised

    @property
    def missed(self) -> Estimate | None:
        """What annealing from the prior, or the model itself, finds and what starts at the guide
        does not, of the data where both were looked for.
        """
        high, low = (EXACT, IWAE) if EXACT in self.bounds else (PRIOR, GUIDE)
        if high not in self.bounds or low not in self.bounds:
            return None
        values, errors = self.bounds[high].estimate - self.bounds[low].estimate
        return (
            Estimate(values[values.isfinite()], errors[values.isfinite()])
            if bool(values.isfinite().any())
            else None
        )

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest gap, worst first, as (index, nats)."""
        order = self.total.values.argsort(descending=True)[:count]
        return [(int(self.index[i]), self.total.values[i].item()) for i in order]

    @property
    def unestimated(self) -> Tensor:
        """Whether log p(x) was found no higher than an ELBO, or all annealing fell below it and
        the weights left are fewer than five; (num_data,).
        """
        by_elbo = self._chosen[1] == (list(self.bounds).index(ELBO) if ELBO in self.bounds else -1)
        annealed = [self.bounds[n].estimate for n in (GUIDE, PRIOR) if n in self.bounds]
        fell = [self._is_below(bound) | torch.isnan(bound.values) for bound in annealed]
        return (
            self._is_below(self.evidence)
            | by_elbo
            | ((self.ess < _FEW) & torch.stack(fell or [by_elbo]).all(0))
        )

    def _is_below(self, bound: Estimate) -> Tensor:
        """Where a bound is below the guide's ELBO, beyond their errors."""
        return (self.amortised - bound).values > _SMALL + self._z * (self.amortised - bound).errors

    @property
    def finding(self) -> Finding:
        """The verdict: that of the gravest of its sentences, of the first of them if several are."""
        said = [
            s
            for s in (self._of_missed(), self._of_mean(), self._of_data(), self._of_evidence())
            if s is not None
        ]
        severity, _, advice = max(said, key=lambda sentence: sentence[0])
        source = (
            f"{SOURCE}; data by a test of false-alarm rate {self.false_alarm:g}"
            if len(self.index) > 1
            else SOURCE
        )
        verdict = " ".join([self._told, *(told for _, told, _ in said if told)])
        return Finding("Inference gap", severity, verdict, source, advice)

    @property
    def _told(self) -> str:
        each = "per datum " if len(self.index) > 1 else ""
        second = "amortisation gap" if self.has_amortisation else "what training has left undone"
        others = int((self._chosen[1] != self._chosen[1].mode().values).sum())
        by = _WORDS[self.evidence_by] + (
            f" (for {others} of {len(self.index)} data by another)" if others else ""
        )
        return (
            f"The guide is {_said(self.total)} nats {each}from the posterior: "
            f"{_said(self.approximation)} is its family's (approximation gap), "
            f"{_said(self.amortisation)} {second}; log p(x) {by}."
        )

    def _of_mean(self) -> _Sentence:
        # of these data: their spread is no doubt about them
        certain = self.total.mean - 3 * self.total.mc_se
        return _severity(certain), "", self._advice if certain > _SMALL else ""

    def _of_data(self) -> _Sentence | None:
        certain = self.total.values - self._z * self.total.errors
        severity = _severity(certain.max().item())
        if len(self.index) == 1 or severity == Severity.OK:
            return None
        limit = _LARGE if severity == Severity.WARNING else _SMALL
        worst = ", ".join(
            f"{i} ({gap:.1f} nats)" for i, gap in self.worst(min(5, int((certain > limit).sum())))
        )
        verdict = (
            f"Beyond Monte Carlo error it is above {limit:g} "
            f"nats{self._of_these(certain > limit)}: worst are {worst}."
        )
        return severity, verdict, self._advice

    def _of_missed(self) -> _Sentence | None:
        if (missed := self.missed) is None:
            return (
                (Severity.NOTE, _NOT_ANNEALED, _TIME)
                if "annealing" in self.cut.split(", ")
                else None
            )
        by = "log p(x) itself" if EXACT in self.bounds else "annealing from the prior"
        certain = max(
            missed.mean - 3 * missed.mc_se, (missed.values - self._z * missed.errors).max().item()
        )
        if certain > _SMALL:
            verdict = (
                f"The guide reaches {_said(missed)} nats less than {by}: it misses part of the "
                "posterior, such as a mode of it."
            )
            return Severity.WARNING, verdict, _MULTIMODAL
        if EXACT not in self.bounds and (-missed.mean > _LARGE or 3 * missed.mc_se > math.log(2)):
            verdict = (
                "Whether the guide misses a mode was not seen: annealing from the prior came to "
                f"{_said(missed)} nats from where the guide's did."
            )
            return Severity.NOTE, verdict, _ANNEAL
        return None

    def _of_evidence(self) -> _Sentence | None:
        lost, few = self.unestimated, self.ess < _FEW
        if bool(lost.any()) or self.total.mean < -_SMALL - 3 * self.total.mc_se:
            if EXACT in self.bounds:
                return (
                    Severity.WARNING,
                    "The evidence that the model says is exact is below the ELBO, which cannot be.",
                    _NOT_EXACT,
                )
            return (
                Severity.WARNING,
                f"The evidence could not be estimated{self._of_these(lost)}.",
                _ANNEAL,
            )
        if bool(few.any()):
            verdict = (
                f"Fewer than five effective draws carry the evidence{self._of_these(few)}: it may "
                "be higher by more than any error tells."
            )
            return Severity.NOTE, verdict, _ANNEAL
        return None

    def _of_these(self, which: Tensor) -> str:
        if len(self.index) == 1 or not bool(which.any()):
            return ""
        first = ", ".join(str(int(i)) for i in self.index[which][:5])
        return (
            f" for {int(which.sum())} of {len(self.index)} data "
            f"({first}{', …' if int(which.sum()) > 5 else ''})"
        )

    @property
    def _advice(self) -> str:
        if self.amortisation.mean <= self.approximation.mean:
            return (
                "Take a richer family: a full covariance, a flow, or more than one latent layer."
            )
        if self.has_amortisation:
            return (
                "Train longer, give the encoder more capacity, or refine the guide for the data "
                "that matter (vilvm.guides.fit_local_guide)."
            )
        return "Train longer, or with a smaller learning rate at the end."

    @property
    def _z(self) -> float:
        """Standard errors that the largest of so many data exceeds at the false-alarm rate."""
        return float(-ndtri(self.false_alarm / len(self.index)))

    @property
    def _chosen(self) -> tuple[Bound, Tensor]:
        """The largest bound of each datum, and which it is; one replaces a more precise one where
        it is larger beyond both errors.
        """
        names, bounds = list(self.bounds), list(self.bounds.values())
        # One that was not looked for everywhere, whose mean error is NaN, or that is no
        # log-mean-exp, is not the one to begin with.
        spread = [bound.estimate.errors.mean().nan_to_num(torch.inf).item() for bound in bounds]
        order = sorted(
            range(len(names)), key=lambda i: (names[i] != EXACT, names[i] == ELBO, spread[i])
        )
        (values, errors), ess = bounds[order[0]]
        which = torch.full(ess.shape, order[0])
        for i in order[1:] if EXACT not in names else ():
            above = bounds[i].estimate - Estimate(values, errors)
            most, alike = self._z * above.errors, above.values.abs() <= self._z * above.errors
            there = torch.isfinite(above.errors)
            # a mean that no single datum decides
            clipped = Estimate(above.values.clamp(-most, most)[there], above.errors[there])
            # one that is chosen says that the rest has failed
            limit = _SMALL if names[i] == ELBO else 0.0
            everywhere = bool(there.any()) and clipped.mean > limit + 3 * clipped.mc_se
            take = (above.values > limit + most) | (alike & everywhere)
            values, errors = (
                torch.where(take, a, b)
                for a, b in zip(bounds[i].estimate, (values, errors), strict=True)
            )
            ess, which = torch.where(take, bounds[i].ess, ess), which.masked_fill(take, i)
        return Bound(Estimate(values, errors), ess), which


_NOT_ANNEALED = (
    "Whether the guide misses a mode was not seen, for there was no time to anneal from the prior."
)
_TIME = "To be sure, give it more time (budget=...)."
_NOT_EXACT = "Look at exact_log_evidence: it is not that of this model and these data."
_ANNEAL = "To be sure, anneal in more steps, with more chains (schedule=...)."
_MULTIMODAL = (
    "Take a guide that holds several modes (a mixture, a flow), start it elsewhere, or mend what "
    "makes the posterior multimodal (a symmetry)."
)


def _severity(nats: float) -> Severity:
    return Severity.WARNING if nats > _LARGE else Severity.NOTE if nats > _SMALL else Severity.OK


def _said(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} ± {estimate.se:.2f}"


def gaps(
    lvm: LatentVariableModel,
    data: Any,
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
    """The gap between log p(x) and the ELBO, and how much of it is due to the guide's family and
    how much to amortisation.

    Arguments:
        lvm: the model and guide, a ``torch.nn.Module``; left as it is.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a few hundred
            tell enough.
        evidence: where log p(x) is taken from: by default the model itself, if it has
            ``exact_log_evidence``, else the largest of AIS (from guide and prior) and importance
            weights; of ten times as many samples for latents that no chain can move.
        num_samples: draws a datum for each ELBO.
        steps: by which the guide of each datum is optimised.
        schedule: of annealed importance sampling, from either base; by default ``Schedule()``, of
            up to 512 chains if the data share a latent.
        batch_size: data that are optimised in parallel.
        false_alarm: how often an exact guide may be given a warning by what is judged datum by
            datum.
        budget: seconds; samples, steps, temperatures and chains are chosen from a timed pilot, or
            chains are left out; see `cut`.
        seed: of the draws, and of the data's transform.

    Returns:
        Gaps, with a finding.

    Raises:
        ValueError: an option is out of range.
        NotApplicable: a ContractError: the guide draws a discrete latent, through which no
            gradient goes to its best parameters.
        ContractError: the guide is degenerate, a prior is flat, or the guide's parameters cannot
            be optimised.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics import gaps
        >>> x = torch.randn(40, 4)
        >>> found = gaps(PPCA(4, 2).maximise(x), x, num_samples=100, steps=20)
        >>> found.evidence_by, abs(found.total.mean) < 1e-3
        ('exact', True)
    """
    seed = check_seed("gaps: seed", seed)
    false_alarm = check_probability("gaps: false_alarm", false_alarm)
    if evidence is not None and evidence not in ("exact", "ais", "iwae"):
        raise ValueError(f"gaps: unknown evidence={evidence!r}; choose 'exact', 'ais' or 'iwae'.")
    num_samples = check_number("gaps: num_samples", num_samples)
    steps = check_number("gaps: steps", steps)
    batch_size = check_number("gaps: batch_size", batch_size)
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"gaps: {type(lvm).__name__} is no torch.nn.Module, which is needed to copy it; wrap "
            "it as vilvm.Pair(model, guide)."
        )
    clock, fixed = TimeBudget(budget), fixed_beside(lvm, data, seed)
    with seeded(seed, fixed.device):
        parts, layout = in_parts(lvm, fixed, batch_size)
        check_weighable("gaps", lvm, layout)
        _check_continuous(lvm, parts[0], layout)
        many = max(Schedule.num_chains, min(_CHAINS, _ROWS // max(layout.num_data, 1)))
        whole = schedule or Schedule(num_chains=Schedule.num_chains if layout.local else many)
        encoded = _is_amortised(lvm, parts[0], layout, seed)
        chosen = _Sizes(num_samples, steps, whole)
        if clock.is_limited:
            chosen = _affordable(lvm, fixed, parts, chosen, clock, seed)
        amortised, weighed = _evaluated(lvm, fixed, chosen.num_samples, seed)
        best, chosen = _best_in_time(lvm, parts, amortised, chosen, clock, seed)
        most, compiled = (
            _FROM_PRIOR if encoded else len(fixed),
            "auto" if clock.left > _COMPILES else False,
        )
        try:
            with Stop(clock.left + _GRACE):
                bounds = _bounds(lvm, fixed, evidence, chosen, most, seed, compiled, weighed)
        except OutOfTimeError:
            bounds, chosen = {IWAE: weighed}, chosen._replace(schedule=None)
        if evidence != "ais":
            bounds.setdefault(IWAE, weighed)
        if EXACT not in bounds:
            bounds[ELBO] = Bound(best, torch.full_like(best.values, torch.inf))
        cut = chosen.shorter_than(_Sizes(num_samples, steps, whole))
        return Gaps(
            bounds, best, amortised, torch.arange(len(best.values)), encoded, false_alarm, cut
        )


class _Sizes(NamedTuple):
    """How much is looked at: draws of an ELBO, steps of a fit (0 for none), and how chains are
    annealed (None for not at all).
    """

    num_samples: int
    steps: int
    schedule: Schedule | None

    def shorter_than(self, whole: "_Sizes") -> str:
        """What of the whole is left out, in words."""
        cuts = (
            [f"{self.num_samples} of {whole.num_samples} draws"]
            if self.num_samples < whole.num_samples
            else []
        )
        if self.steps < whole.steps:
            cuts.append(
                f"{self.steps} of {whole.steps} steps of the best guide's fit"
                if self.steps
                else "the best guide's fit"
            )
        if self.schedule is None:
            cuts.append("annealing")
        elif whole.schedule is not None and self.schedule != whole.schedule:
            made, meant = self.schedule, whole.schedule
            cuts.append(
                f"annealing by {made.num_chains} of {meant.num_chains} chains, "
                f"{made.num_temperatures} of {meant.num_temperatures} temperatures and "
                f"{made.leapfrog} of {meant.leapfrog} leapfrog steps"
            )
        return ", ".join(cuts)


def _affordable(
    lvm: Any, data: Data, parts: Any, wanted: _Sizes, clock: TimeBudget, seed: int
) -> _Sizes:
    """Sizes that take nine tenths of the time, by a timed evaluation, fit and gradient: of draws,
    of steps, and about half of it of chains.
    """
    num_samples = affordable_draws(
        lambda n: _evaluated(lvm, data, n, seed), _PILOT, wanted.num_samples, clock.left * 0.15
    )
    assert wanted.schedule is not None
    joint = LogJoint(lvm, parts[0].x, "guide")
    few = joint.draw(4)
    start(joint, few)
    gradient = min(seconds_of(lambda: start(joint, few)) for _ in range(2))
    steps = int(min(wanted.steps, clock.affords(2 * gradient, 0.3) / len(parts)))
    # what a step takes is more than a gradient, where samples are not run at once
    if steps >= _LEAST_STEPS:
        seconds = clock.left * 0.25 / len(parts)
        try:
            steps = affordable_draws(
                lambda n: fit_local_guide(lvm, parts[0].x, steps=n, seed=seed), 2, steps, seconds
            )
        except NonFiniteLossError:
            steps = 0
    steps = steps if steps >= _LEAST_STEPS else 0
    seconds = clock.left * (0.45 if steps else 0.7)  # annealing alone sees what the guide misses
    return _Sizes(
        num_samples, steps, _affordable_schedule(lvm, data, wanted.schedule, seconds, gradient)
    )


def _affordable_schedule(
    lvm: Any, data: Data, whole: Schedule, seconds: float, gradient: float
) -> Schedule | None:
    """The longest annealing, of half as many chains and temperatures at a time, that goes both
    bases within so many seconds, or None.
    """
    made = whole
    while True:
        again = min(gradient, seconds)
        if again * _gradients(made) <= seconds:
            again = _gradient_of_all(lvm, data, made.num_chains)
            if again * _gradients(made) <= seconds:
                return made
        if made.num_temperatures <= _LEAST_TEMPERATURES and made.leapfrog <= 2:
            return None
        made = replace(
            made,
            num_chains=max(16, made.num_chains // 2) if made.num_chains > 16 else made.num_chains,
            num_temperatures=max(_LEAST_TEMPERATURES, made.num_temperatures // 2),
            leapfrog=max(2, made.leapfrog - 1),
        )


def _gradient_of_all(lvm: Any, data: Data, num_chains: int) -> float:
    """Seconds of a gradient of so many chains for all data, by that of as many data as go in a
    pass.
    """
    few = max(1, _PASS // num_chains)
    joint = LogJoint(
        lvm,
        data.subset(slice(0, few)).x if data.divisible and few < len(data) else data.x,
        "guide",
    )
    u = joint.draw(num_chains)
    passes = math.ceil(len(data) * num_chains / _PASS) if joint.layout.local else 1
    return seconds_of(lambda: start(joint, u)) * passes


def _gradients(schedule: Schedule) -> int:
    """Gradients of a part, from both bases: those of the pilot, which makes 180 transitions or as
    many as there are temperatures, and of the chains.
    """
    return (
        2
        * schedule.leapfrog
        * (max(180, schedule.num_temperatures + 30) + schedule.num_temperatures)
    )


def _best_in_time(
    lvm: Any, parts: Any, amortised: Estimate, sizes: _Sizes, clock: TimeBudget, seed: int
) -> tuple[Estimate, _Sizes]:
    """The ELBO of the best guide for each datum, and the sizes; the guide's own, and no steps,
    where half of the time does not do.

    So it is where a step leaves the support of the prior, at whose edge the guide may end.
    """
    if not sizes.steps:
        return amortised, sizes
    try:
        with Stop(clock.left / 2 + _GRACE):
            return _best(lvm, parts, sizes, seed), sizes
    except (OutOfTimeError, NonFiniteLossError):
        return amortised, sizes._replace(steps=0)


def _best(lvm: Any, parts: Any, sizes: _Sizes, seed: int) -> Estimate:
    """The ELBO of the best guide of the family for each datum."""
    found = [
        _evaluated(
            fit_local_guide(lvm, p.x, steps=sizes.steps, seed=seed)[0], p, sizes.num_samples, seed
        )[0]
        for p in parts
    ]
    values, errors = (torch.cat(part) for part in zip(*found, strict=True))
    return Estimate(values, errors)


def _check_continuous(lvm: Any, data: Data, layout: Layout) -> None:
    for name in discrete_latents(lvm, data.x, layout):
        raise NotApplicable(
            f"gaps: the guide of {type(lvm).__name__} draws the discrete latent {name!r}, by "
            "which the best guide of its family cannot be found by descent, "
            "nor chains be annealed; see Pareto k̂ and the probabilities of its values."
        )


def _is_amortised(lvm: Any, data: Data, layout: Layout, seed: int) -> bool:
    """Whether each datum's guide is made from it: one that ignores its batch, or knows the data by
    their places, is not.
    """
    if not layout.local or not data.divisible or len(data) == 1:
        return layout.local
    with suppress(ContractError), torch.no_grad(), evaluation_mode(lvm):
        find_layout(lvm, data.subset(slice(0, 1)).x)
        batches, looks = [data.x, data.subset(torch.arange(len(data)).roll(1)).x], []
        for batch in batches:
            with seeded(seed, data.device):
                weights = log_weights(lvm, batch, 10, layout=layout)
            looks.append([weights.log_guide, *weights.latents.values()])
        return not _equal(*looks) or _equal(*map(tensors_of, batches))
    return False


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _evaluated(lvm: Any, data: Data, num_samples: int, seed: int) -> tuple[Estimate, Bound]:
    """The ELBO, and the importance-weighted bound of as many draws."""
    # a guide for each datum knows its batch by the places in it
    size = len(data) if data.divisible else None
    found = evaluate(
        lvm,
        data,
        bounds=("elbo", "iwae"),
        num_samples=num_samples,
        batch_size=size,
        seed=seed,
        progress=False,
    )
    assert found.ess is not None
    return found.bounds["elbo"], _bound(found.bounds["iwae"], found.ess)


def _bounds(
    lvm: LatentVariableModel,
    data: Data,
    wanted: str | None,
    sizes: _Sizes,
    most: int,
    seed: int,
    compiled: Any,
    weighed: Bound,
) -> dict[str, Bound]:
    if wanted == "exact" or (wanted is None and exact_log_evidence(lvm) is not None):
        exact = evaluate(
            lvm, data, bounds="exact", num_samples=2, seed=seed, progress=False
        ).bounds["exact"]
        return {EXACT: Bound(exact, torch.full_like(exact.values, torch.inf))}
    if sizes.schedule is None:
        return {IWAE: weighed}
    found = (
        {}
        if wanted == "iwae"
        else _annealed(lvm, data, sizes.schedule, most, seed, wanted == "ais", compiled)
    )
    return found or {IWAE: _evaluated(lvm, data, 10 * sizes.num_samples, seed)[1]}


def _annealed(
    lvm: LatentVariableModel,
    data: Data,
    schedule: Schedule,
    most: int,
    seed: int,
    needed: bool,
    compiled: Any,
) -> dict[str, Bound]:
    """AIS from the guide, and from the prior for `most` of the data, evenly among them; what
    cannot be run is left out.
    """
    found = {}
    for base, name in (("guide", GUIDE), ("prior", PRIOR)):
        few = base == "prior" and data.divisible and len(data) > most
        picked = torch.linspace(0, len(data) - 1, most).long() if few else None
        part = data if picked is None else data.subset(picked)
        try:
            run = ais(
                lvm,
                part,
                replace(schedule, base=base),
                compile=compiled,
                seed=seed,
                progress=False,
            )
        except ContractError:
            if needed and base == "guide":
                raise
            continue
        bound = _bound(run.bound, run.ess)
        if picked is not None:
            nothing = torch.full((len(data),), torch.nan, dtype=torch.float64)
            values, errors, ess = (
                nothing.index_copy(0, picked, v.double()) for v in (*bound.estimate, bound.ess)
            )
            bound = Bound(Estimate(values, errors), ess)
        found[name] = bound
        seed += 1  # chains of one base owe nothing to those of the other
    return found


def _bound(estimate: Estimate, ess: Tensor) -> Bound:
    """A bound by a log-mean-exp, whose error is not told from fewer than five effective draws."""
    return Bound(
        Estimate(estimate.values, torch.where(ess < _FEW, _FEW_ERROR, estimate.errors)), ess
    )
