"""The finding on posterior collapse."""

import math
from typing import Any

from torch import Tensor

from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["collapse_finding"]

_SHARE = 0.25  # share of a latent's units in use, below which it is mostly unused
_NOTHING = 0.01  # nats of information that count as none
_REMEDY = (
    "Try KL warm-up (vilvm.objectives.Annealed), a weaker decoder, or a smaller latent."
)
_ADVICE = {
    Severity.OK: "",
    Severity.NOTE: "Unused units do no harm; a smaller latent suffices.",
    Severity.WARNING: _REMEDY,
    Severity.CRITICAL: _REMEDY,
}


def collapse_finding(found: Any) -> Finding:
    """The finding on a ``Collapse``."""
    severity = _severity(found)
    spread = ""
    if found.active and severity < Severity.CRITICAL and not found.any_active:
        spread = "; the latents carry information by their spread only"
    verdict = f"Active: {_units(found)}{spread}. {_rate(found)}."
    return Finding(
        name="Posterior collapse",
        severity=severity,
        verdict=verdict,
        source=f"activity above {found.threshold:g} of the prior's variance (Burda et al. 2016, "
        "for unit variance); information above 0.01 nats and a quarter of a latent's units in "
        "use, conventions of vilvm",
        advice=_ADVICE[severity],
        about="model",
    )


def _severity(found: Any) -> Severity:
    information = found.information
    if information is None:
        information = found.rate
    is_informative = information.mean - 3 * information.mc_se > _NOTHING
    if not (is_informative or found.any_active):
        return Severity.CRITICAL
    idle = [_idle(found, name) for name in found.spread]
    shares = [units.double().mean().item() for units in idle if units.numel()]
    if any(share > 1 - _SHARE for share in shares):
        return Severity.WARNING
    if any(shares):
        return Severity.NOTE
    return Severity.OK


def _idle(found: Any, name: str) -> Tensor:
    """Which units of a latent have a constant posterior mean and a small divergence.

    The divergence bounds the information of a unit. It is compared with that of a Gaussian unit
    whose mean has the threshold's share of its variance.
    """
    active = found.active[name]
    at_threshold = -0.5 * math.log1p(-found.threshold)
    key = name
    if name not in found.kl:
        key = " and ".join(found.moments)  # a divergence of all latents jointly
    is_informative = found.kl[key] - 3 * found.kl_se[key] > at_threshold
    # a divergence of all units jointly is attributed to the active ones, if there are any
    if is_informative.shape != active.shape:
        is_informative = is_informative & ~active.any()
    return ~(active | is_informative)[found.spread[name].isfinite()]


def _units(found: Any) -> str:
    """Such as "3 of 10 units of 'z'"."""
    counts = [
        f"{int(active.sum())} of {int(found.spread[name].isfinite().sum())} units of {name!r}"
        for name, active in found.active.items()
    ]
    return ", ".join(counts) or "no latent with a mean"


def _rate(found: Any) -> str:
    rate = f"The rate is {found.rate.mean:.3g} nats per datum"
    if found.information is None:
        return rate
    if found.saturated:
        return (
            f"{rate}, the mutual information at least {found.information.mean:.3g} (saturated: "
            f"{found.num_data} data can show at most log {found.num_data} = "
            f"{math.log(found.num_data):.3g})"
        )
    return (
        f"{rate}; {found.information.mean:.3g} are information about the datum, and at most "
        f"{found.marginal_kl.mean:.3g} the divergence of the aggregated posterior from the prior"
    )
