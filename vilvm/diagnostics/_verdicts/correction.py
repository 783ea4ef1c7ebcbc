"""The finding on the guide's means and standard deviations."""

from typing import Any

from torch import Tensor

from vilvm.diagnostics._coordinates import datum
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["correction_finding"]

_NAME = "Means and standard deviations"
_SOURCE = (
    "tolerances of 0.1 posterior standard deviations, of 10 %, and of 0.05 in the probability of "
    "a label, conventions of vilvm after Huggins et al., 2020; false-alarm rate {:g}; "
    "k̂: Vehtari et al., 2024"
)


def correction_finding(found: Any) -> Finding:
    """The finding on a ``Correction``."""
    severity, verdict, advice = _judge(found)
    return Finding(_NAME, severity, verdict, _SOURCE.format(found.false_alarm), advice)


def _judge(found: Any) -> tuple[Severity, str, str]:
    if not found.names:
        verdict = "No component of the latents varies between draws: there is nothing to correct."
        return Severity.NOTE, verdict, ""
    if found.undefined.any():
        count, which = _count(found, found.undefined), _which(found, found.undefined)
        advice = "Look for an overflow, or the logarithm of a negative number."
        return Severity.WARNING, f"{count} not finite in some draw: {which}.", advice
    if found.off.any():
        verdict = (
            f"{_count(found, found.off)} beyond a tolerance: {_details(found, found.off)}."
            f"{_share(found)}"
        )
        advice = (
            "Report weighted draws in place of the guide's own (vilvm.resample), or use a richer "
            "guide."
        )
        return Severity.WARNING, verdict, advice
    if found.uneven.any():
        largest = found.k[found.uneven].max().item()
        verdict = (
            f"The weights are too uneven (k̂ up to {largest:.2f}) to correct means and standard "
            f"deviations: {_count(found, found.uneven)} affected ({_which(found, found.uneven)})."
        )
        return (
            Severity.WARNING,
            verdict,
            "Use a richer guide, or another parametrisation.",
        )
    if found.undecided.any():
        verdict = (
            f"With {int(found.num_samples.max())} draws the weights cannot decide whether "
            f"{_count(found, found.undecided)} within the tolerances: "
            f"{_details(found, found.undecided)}.{_share(found)}"
        )
        advice = "Make more draws (num_samples=...) to decide."
        if found.given:
            advice = "Give more draws to decide."
        return Severity.NOTE, verdict, advice
    return Severity.OK, _within_tolerance(found), ""


def _within_tolerance(found: Any) -> str:
    """The largest corrections, all within their tolerances."""
    sentences = []
    if not bool(found.probabilities.all()):
        shift = found.shift.abs().where(~found.probabilities, 0.0)
        i, j = _largest(shift)
        row, column = _largest(found.ratio.log().abs())
        sentences.append(
            f"Importance weights move no mean by more than {shift[i, j].item():.2f} standard "
            f"deviations ({_label(found, i, j)}). The guide's standard deviations are "
            f"{found.ratio.min().item():.2f} to {found.ratio.max().item():.2f} times the "
            f"corrected ones ({_label(found, row, column)})."
        )
    if bool(found.probabilities.any()):
        change = found.shift.abs().where(found.probabilities, 0.0)
        i, j = _largest(change)
        sentences.append(
            "Importance weights move no probability of a label by more than "
            f"{change[i, j].item():.2f} ({_label(found, i, j)})."
        )
    return " ".join(sentences)


def _largest(values: Tensor) -> tuple[int, int]:
    return divmod(int(values.argmax()), values.shape[1])


def _details(found: Any, which: Tensor) -> str:
    return "; ".join(_detail(found, i, j) for i, j in found.worst(which))


def _detail(found: Any, i: int, j: int) -> str:
    """The guide's numbers for a component beside the corrected ones."""
    label, shift_se = _label(found, i, j), found.shift_se[i, j].item()
    if bool(found.probabilities[j]):
        return (
            f"{label}: the guide's probability is {found.mean[i, j].item():.2f}, the corrected "
            f"one {found.corrected_mean[i, j].item():.2f} ± {shift_se:.2f}"
        )
    return (
        f"{label}: the corrected mean differs by {found.shift[i, j].item():+.2f} ± {shift_se:.2f} "
        f"standard deviations; the guide's standard deviation is {found.ratio[i, j].item():.2f} ± "
        f"{found.ratio_se[i, j].item():.2f} times the corrected one"
    )


def _label(found: Any, row: int, column: int) -> str:
    if found.joint:
        return found.names[column]
    return f"{found.names[column]} of datum {datum(found, int(found.index[row]))}"


def _count(found: Any, which: Tensor) -> str:
    """Such as "2 of 5 components are"."""
    affected, noun = which.any(1), "data"
    if found.joint:
        affected, noun = which[0], "components"
    count = int(affected.sum())
    verb = "is" if count == 1 else "are"
    return f"{count} of {len(affected)} {noun} {verb}"


def _which(found: Any, which: Tensor) -> str:
    return ", ".join(_label(found, i, j) for i, j in found.worst(which))


def _share(found: Any) -> str:
    if found.joint:
        return ""
    return f" By point estimates, {found.share:.1%} of the data exceed a tolerance."
