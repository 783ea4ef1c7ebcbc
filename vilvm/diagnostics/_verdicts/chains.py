"""The finding on R̂ and effective sample sizes."""

from typing import Any

from torch import Tensor

from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["chains_finding"]

_NAME = "R̂ and effective sample size"
_SOURCE = "R̂ ≤ 1.01 and bulk and tail sizes of at least 400: Vehtari et al., 2021"
_LONGER = "Run longer chains, more of them, or another parametrisation."


def chains_finding(found: Any) -> Finding:
    """The finding on a ``Chains``."""
    severity, verdict, advice = _judge(found)
    return Finding(_NAME, severity, verdict, _SOURCE, advice)


def _judge(found: Any) -> tuple[Severity, str, str]:
    if not found.names:
        verdict = "No component of the latents varies between draws."
        return Severity.WARNING, verdict, "Look for a chain that never moved."
    size = f"{found.num_chains} × {found.num_draws} draws"
    if found.apart.any():
        verdict = (
            f"The chains disagree: R̂ > 1.01 for {_count(found, found.apart)} in {size} "
            f"({_worst(found)})."
        )
        return Severity.WARNING, verdict, _LONGER
    if found.few.any():
        verdict = (
            f"The effective sample size is below 400 for {_count(found, found.few)} in {size} "
            f"({_least(found)})."
        )
        return Severity.WARNING, verdict, _LONGER
    verdict = (
        f"Over {size}, R̂ is at most {found.r_hat.max().item():.3f}, and effective sample sizes "
        f"are at least {_least(found)}. Chains that all miss a mode agree too."
    )
    return Severity.OK, verdict, ""


def _count(found: Any, which: Tensor) -> str:
    return f"{int(which.sum())} of {len(found.names)} components"


def _worst(found: Any) -> str:
    """The three largest R̂."""
    order = found.r_hat.nan_to_num(float("inf")).argsort(descending=True)[:3].tolist()
    return ", ".join(f"{found.names[i]} {found.r_hat[i].item():.3f}" for i in order)


def _least(found: Any) -> str:
    bulk, tail = (
        int(x.nan_to_num(0).argmin()) for x in (found.ess_bulk, found.ess_tail)
    )
    return (
        f"{found.ess_bulk[bulk].item():.0f} (bulk, {found.names[bulk]}) and "
        f"{found.ess_tail[tail].item():.0f} (tail, {found.names[tail]})"
    )
