"""The finding on the rate."""

from typing import Any

from vilvm.diagnostics._coordinates import datum
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["rates_finding"]


def rates_finding(found: Any) -> Finding:
    """The finding on a ``Rates``."""
    severity, verdict, advice = _judge(found)
    source = f"KL ≥ 0, by tests of false-alarm rate {found.false_alarm:g}; a convention of vilvm"
    return Finding("Rate", severity, verdict, source, advice)


def _judge(found: Any) -> tuple[Severity, str, str]:
    rate = f"The rate is {found.rate.mean:.3g} ± {found.rate.mc_se:.2g} nats"
    if found.is_negative:
        verdict = (
            f"{rate}{_data(found)}, but a divergence cannot be negative: guide and model are not "
            "densities of the same latents."
        )
        advice = (
            "Look for a mask, a scale or a factor that only one of them has, or a latent that "
            "they score differently."
        )
        return Severity.CRITICAL, verdict, advice
    if found.disagreement is not None and found.disagrees:
        mean, error = found.disagreement
        verdict = (
            f"Training's ELBO exceeds −(rate + distortion) by {mean:+.3g} ± {error:.2g} nats per "
            "datum in the last records, although both estimate one number. The pair's density "
            "under many samples differs from its density in one run."
        )
        advice = (
            "Look for dimensions counted from the left or reshaped, which many samples shift; "
            "count from the right (vilvm.testing.check_lvm names the site)."
        )
        return Severity.CRITICAL, verdict, advice
    return Severity.OK, f"{rate}; a divergence must not be negative.", ""


def _data(found: Any) -> str:
    """How many data are negative; empty for a single number."""
    if len(found.index) == 1:
        return ""
    least = datum(found, int(found.index[int(found.rate.values.argmin())]))
    count = int(found.negative.sum())
    return f" ({count} of {len(found.index)} data are below zero, least: {least})"
