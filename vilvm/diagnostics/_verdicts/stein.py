"""The finding on Stein's identity."""

from typing import Any

from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["stein_finding"]

_NAME = "Stein's identity"
_LIMITS = (
    "It compares densities only where draws are, so it cannot show a mode or a tail that the "
    "draws miss."
)
_ADVICE = (
    "Check that draws, data and model belong to one posterior (parametrisation, units, order of "
    "components); then run longer chains, or use a richer approximation."
)
_SOURCE = (
    "zero within 5 Monte Carlo standard errors, or more by Bonferroni at false-alarm rate {:g}; "
    "sizes of 0.1 sd and 10 % are conventions of vilvm: Gorham and Mackey, 2015"
)


def stein_finding(found: Any) -> Finding:
    """The finding on a ``Stein``."""
    severity, verdict, advice = _judge(found)
    return Finding(_NAME, severity, verdict, _SOURCE.format(found.false_alarm), advice)


def _judge(found: Any) -> tuple[Severity, str, str]:
    if found.impossible:
        verdict = (
            f"The density is zero or has no finite gradient at {found.impossible} of "
            f"{found.num_draws} draws, where draws of it cannot be."
        )
        return Severity.WARNING, verdict, _ADVICE
    if found.matters.any():
        verdict = (
            f"The draws are not of this density: {_details(found, found.matters)}."
        )
        return Severity.WARNING, verdict, _ADVICE
    if found.differs.any():
        verdict = (
            f"The draws differ from this density by little: {_details(found, found.differs)}. "
            f"{_LIMITS}"
        )
        return Severity.NOTE, verdict, ""
    shift, width = found.resolution
    verdict = (
        f"Nothing speaks against {found.num_draws} draws: none of {found.z.numel()} averages that "
        f"must be zero differs from it (largest: {_largest(found)} standard errors). A coordinate "
        f"shifted by {shift:.2g} sd, or {width:.0%} too wide, would show. {_LIMITS}"
    )
    return Severity.OK, verdict, ""


def _largest(found: Any) -> str:
    if not found.names:
        return "0"
    return f"{found.z.abs().max().item():.1f}"


def _details(found: Any, which: Any) -> str:
    """The three averages that are furthest from zero."""
    far = found.z.abs().where(which, -1.0).flatten()
    order = [i for i in far.argsort(descending=True)[:3].tolist() if far[i] >= 0]
    return "; ".join(_detail(found, *divmod(i, len(found.names))) for i in order)


def _detail(found: Any, kind: int, i: int) -> str:
    name, z = found.names[i], found.z[kind, i].item()
    if kind == 0:
        value, error = found.shift[i].item(), found.shift_se[i].item()
        where = "too low" if value > 0 else "too high"
        return (
            f"{name} lies {where} (slope × sd {value:+.2g} ± {error:.1g}, {z:+.1f} se)"
        )
    value, error = found.width[i].item(), found.width_se[i].item()
    size = "narrow" if value > 0 else "wide"
    return f"{name} is too {size} (1 − r² = {value:+.2g} ± {error:.1g}, {z:+.1f} se)"
