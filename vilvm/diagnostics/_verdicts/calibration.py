"""The findings of SBC, TARP and calibration by refitting."""

from typing import Any, NamedTuple

from torch import Tensor

from vilvm.diagnostics._calibration import shown
from vilvm.diagnostics._components import LIKELIHOOD
from vilvm.diagnostics._uniformity import interval_coverage
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["sbc_finding", "tarp_finding", "vsbc_finding"]

_SMALL, _LARGE = 0.05, 0.15  # errors of coverage
_CONVENTION = (
    f"severity by error of coverage, {_SMALL} and {_LARGE}, a convention of vilvm"
)
_ADVICE = {
    "narrow": "Try a richer guide (full covariance, a flow), or draw by weight (vilvm.resample).",
    "wide": "Train longer, or enlarge the encoder.",
    "shifted": "Train longer, enlarge the encoder, or refine the guide for each datum.",
    "joint": "The latents are wrong jointly: try a guide with dependence (full covariance, a "
    "flow), and check for collapse.",
}


def sbc_finding(found: Any) -> Finding:
    """The finding on an ``SBC``."""
    source = _source(
        "exact ECDF test (Säilynoja et al. 2022)",
        found.false_alarm,
        tests=len(found.names),
    )
    return _finding("Simulation-based calibration", found, found.adjusted, source)


def vsbc_finding(found: Any) -> Finding:
    """The finding on a ``VSBC``."""
    source = _source(
        "exact tests of symmetry (Yao et al. 2018) and uniformity",
        found.false_alarm,
        tests=2 * len(found.names),
    )
    symmetry, smallest = found.adjusted[0], found.adjusted.amin(0)
    judged = _finding("Calibration by refitting", found, smallest, source)
    if judged.severity == Severity.OK:
        return judged
    p_values = zip(found.names, symmetry.tolist(), strict=True)
    shifted = [name for name, p in p_values if p < found.false_alarm]
    location = "no component is shifted"
    if shifted:
        location = f"shifted components: {', '.join(shifted[:5])}"
    verdict = f"{judged.verdict.removesuffix('.')}; {location}."
    return Finding(judged.name, judged.severity, verdict, judged.source, judged.advice)


def tarp_finding(found: Any) -> Finding:
    """The finding on a ``TARP``."""
    level, coverage = found.expected_coverage
    worst = int((coverage - level).abs().argmax())
    error = abs(float((coverage - level)[worst]))
    shortfall = float((level - coverage).max())
    p = f"p {_p(found.p_value)}, {len(found.ranks)} simulations"
    source = (
        "Lemos et al. 2023; exact ECDF test (Säilynoja et al. 2022) at false-alarm rate "
        f"{found.false_alarm:g}; {_CONVENTION}"
    )
    if found.p_value >= found.false_alarm:
        verdict = f"Regions for all latents jointly contain the truth as often as stated ({p})."
        return Finding("TARP", Severity.OK, verdict, source)
    verdict = (
        f"{level[worst]:.0%} regions for all latents jointly contain the truth "
        f"{coverage[worst]:.0%} of the time ({p})."
    )
    return Finding(
        "TARP",
        _severity(error, can_be_critical=shortfall > _LARGE),
        verdict,
        source,
        "Run sbc(lvm) to see which latents are wrong, and how.",
    )


class _Departure(NamedTuple):
    """How ranks depart from uniformity.

    Arguments:
        kind: "narrow", "wide" or "shifted"; "joint" for the log-likelihood.
        error: the largest error of the coverage of central intervals, or of the mean rank.
        severity: NOTE up to an error of 0.05, WARNING up to 0.15, else CRITICAL; at most WARNING
            if too wide, or for the log-likelihood.
        meaning: what the ranks say about the posterior.
    """

    kind: str
    error: float
    severity: Severity
    meaning: str


def _finding(name: str, found: Any, adjusted: Tensor, source: str) -> Finding:
    """The finding, by the worst quantity whose adjusted p-value is too small."""
    smallest = f"smallest adjusted p {_p(adjusted.min().item())}, {len(found.ranks)} simulations"
    failing = (adjusted < found.false_alarm).nonzero()[:, 0].tolist()
    if not failing:
        verdict = (
            f"The ranks of the truth among the guide's draws are uniform ({smallest})."
        )
        return Finding(name, Severity.OK, verdict, source)
    departures = {
        found.names[i]: _departure(found.names[i], found.ranks[:, i], found.num_draws)
        for i in failing
    }
    worst, departure = max(departures.items(), key=_badness)
    verdict = (
        f"{worst}: {departure.meaning}. {len(failing)} of {len(found.names)} quantities depart "
        f"from uniform ranks ({smallest})."
    )
    advice = _ADVICE[departure.kind]
    if departure.severity == Severity.NOTE:
        advice = "An error this small seldom matters; with many simulations, any fit shows one."
    return Finding(name, departure.severity, verdict, source, advice)


def _badness(item: tuple[str, _Departure]) -> tuple[Severity, bool, float]:
    """The order of departures: a latent comes before the log-likelihood of equal severity."""
    name, departure = item
    return departure.severity, name != LIKELIHOOD, departure.error


def _departure(name: str, ranks: Tensor, num_draws: int) -> _Departure:
    """Describes ranks, shape (L,), that a test found not to be uniform."""
    ranks = shown(ranks)
    u = (ranks.double() + 0.5) / (num_draws + 1) - 0.5
    shift, spread = u.mean().item(), u.var(correction=0).item() - 1 / 12
    coverage = interval_coverage(ranks, num_draws)
    error = max(
        (coverage.shares[:, 0] - coverage.levels).abs().max().item(), abs(shift)
    )
    share, se = coverage.shares[2, 0].item(), coverage.errors[2, 0].item()
    intervals = (
        f"its 90 % intervals contain the truth {share:.0%} ± {se:.1%} of the time"
    )
    # In standard errors: a uniform u has variance 1/12, and (u − ½)² has variance 1/180.
    is_shift = abs(shift) * 12**0.5 >= abs(spread) * 180**0.5
    if name == LIKELIHOOD:
        severity = _severity(error, can_be_critical=False)
        meaning = _joint_meaning(shift, is_shift)
        return _Departure("joint", error, severity, meaning)
    if is_shift:
        meaning = (
            f"the posterior lies too {_side(shift)}: the truth is above a draw "
            f"{0.5 + shift:.0%} of the time, and {intervals}"
        )
        return _Departure("shifted", error, _severity(error), meaning)
    kind = "wide"
    if spread > 0:
        kind = "narrow"
    severity = _severity(error, can_be_critical=kind == "narrow")
    return _Departure(
        kind, error, severity, f"the posterior is too {kind}: {intervals}"
    )


def _joint_meaning(shift: float, is_shift: bool) -> str:
    comparison = "not as well as"
    if shift > 0:
        comparison = "worse than"
    elif is_shift:
        comparison = "better than"
    return (
        f"the posterior's draws explain the data {comparison} the truth does; the truth has the "
        f"higher likelihood {0.5 + shift:.0%} of the time"
    )


def _side(shift: float) -> str:
    if shift > 0:
        return "low"
    return "high"


def _severity(error: float, can_be_critical: bool = True) -> Severity:
    if error <= _SMALL:
        return Severity.NOTE
    if error <= _LARGE or not can_be_critical:
        return Severity.WARNING
    return Severity.CRITICAL


def _source(test: str, false_alarm: float, *, tests: int) -> str:
    return f"{test} at false-alarm rate {false_alarm:g} over {tests} tests (Holm); {_CONVENTION}"


def _p(value: float) -> str:
    if value < 1e-12:
        return "< 1e-12"
    return f"= {value:.2g}"
