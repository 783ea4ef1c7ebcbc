"""The finding on Pareto k̂."""

from typing import Any

from vilvm.diagnostics._coordinates import datum
from vilvm.diagnostics._tail import good_k
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["pareto_k_finding"]

_NAME = "Pareto k̂"
_SOURCE = "min(1 − 1/log10 S, 0.7): Vehtari et al., 2024; Yao et al., 2018"
_HALF = 0.5  # k above which weights have no variance
_MUCH = 0.25  # share of the data above which the guide as a whole is at fault
_ADVICE = (
    "Train longer, or use a richer guide (full covariance, a flow) or another "
    "parametrisation; vilvm.diagnostics.gaps shows which is at fault."
)


def pareto_k_finding(found: Any) -> Finding:
    """The finding on a ``ParetoK``."""
    source = f"{_SOURCE}; alarms by a test of false-alarm rate {found.false_alarm:g}"
    numbers = _numbers(found)
    if found.is_beyond_chance:
        severity = Severity.WARNING
        if found.confirmed > _MUCH:
            severity = Severity.CRITICAL
        verdict = f"{numbers} The guide misses part of the posterior{_worst(found)}."
        return Finding(_NAME, severity, verdict, source, _ADVICE)
    if found.given and found.confirmed > 0:
        verdict = f"{numbers} Weights of so few draws cannot show that they are of the posterior."
        advice = "Give more draws, or draws of a richer approximation."
        return Finding(_NAME, Severity.WARNING, verdict, _SOURCE, advice)
    if found.is_unconfirmed:
        verdict = (
            f"{numbers} There was no time to re-examine the data above the threshold."
        )
        advice = "Give it more time (budget=...)."
        return Finding(_NAME, Severity.NOTE, verdict, source, advice)
    if _has_no_variance(found):
        verdict = (
            f"{numbers} The guide is not exact, and above 0.5 its weights have no variance"
            f"{_worst(found)}."
        )
        advice = "Use importance-weighted estimates (vilvm.resample)."
        return Finding(_NAME, Severity.NOTE, verdict, source, advice)
    return Finding(_NAME, Severity.OK, numbers, source)


def _has_no_variance(found: Any) -> bool:
    if bool(found.latest.median() > _HALF):
        return True
    return bool(found.rechecks) and bool((found.rechecks[-1].k > _HALF).any())


def _numbers(found: Any) -> str:
    """k̂ and its threshold, before and after re-examination."""
    if len(found.k) == 1:
        return _one_weight(found)
    above = int((found.k > found.threshold).sum())
    text = (
        f"k̂ is above {found.threshold:.2f} for {above} of {len(found.k)} data "
        f"({found.share:.1%}); the median is {found.k.median().item():.2f}"
    )
    for recheck in found.rechecks:
        text += (
            f"; re-examined with {recheck.repeats} × {recheck.num_samples:,} draws each, "
            f"{int(recheck.above.sum())} of the {len(recheck.k)} worst are above "
            f"{good_k(recheck.num_samples):.2f}"
        )
    return f"{text}."


def _one_weight(found: Any) -> str:
    owner = "the one datum"
    if found.joint:
        owner = "the joint weight of all data"
    text = (
        f"k̂ of {owner} is {found.k[0].item():.2f}; {found.num_samples} draws are enough up to "
        f"{found.threshold:.2f}"
    )
    for recheck in found.rechecks:
        if found.given and recheck.num_samples == found.num_samples:
            continue  # the given draws, all at once
        way = "in parts of" if found.given else "re-examined with"
        text += (
            f"; {way} {recheck.repeats} × {recheck.num_samples:,} draws, it is "
            f"{recheck.k[0].item():.2f}"
        )
    return f"{text}."


def _worst(found: Any) -> str:
    """The worst data, in parentheses; empty if there is a single weight or none is above ½."""
    count = int((found.latest > _HALF).sum())
    if len(found.k) == 1 or count == 0:
        return ""
    worst = ", ".join(datum(found, i) for i, _ in found.worst(min(5, count)))
    return f" (worst data: {worst})"
