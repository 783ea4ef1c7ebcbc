"""The finding on the signal-to-noise ratio of gradients."""

import math
from typing import Any

from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["BETTER", "LOW", "gradient_snr_finding"]

LOW, BETTER = 0.1, 10.0  # a low ratio, and how many times larger another one is


def gradient_snr_finding(found: Any) -> Finding:
    """The finding on a ``GradientSNR``."""
    severity, verdict, advice = _judge(found)
    source = (
        f"SNR after Rainforth et al. 2018; below {LOW:g} and a tenth of the others', a "
        f"convention of vilvm; false-alarm rate {found.false_alarm:g}"
    )
    return Finding("Gradient signal-to-noise", severity, verdict, source, advice)


def _judge(found: Any) -> tuple[Severity, str, str]:
    if found.drowned:
        where = ", ".join(
            f"{group!r} under {objective} (SNR {found.groups[objective][group].snr:.2g})"
            for objective, group in found.drowned
        )
        verdict = (
            f"Noise dominates the gradient of {where}: steps are nearly random there, although "
            "the optimum is not reached."
        )
        advice = (
            "Use fewer importance samples or a lower-variance estimator, more samples "
            "(num_particles) or larger batches."
        )
        return Severity.WARNING, verdict, advice
    lowest = f"The lowest signal-to-noise ratio is {_lowest(found)}."
    if found.all_noise:
        verdict = (
            f"{lowest} No gradient differs from zero in {found.num_draws} draws: the parameters "
            "are at an optimum, or noise hides the gradients."
        )
        advice = "Run vilvm.diagnostics.convergence to decide, or make more draws."
        return Severity.NOTE, verdict, advice
    return Severity.OK, lowest, ""


def _lowest(found: Any) -> str:
    """The lowest ratio, with its group and objective."""
    ratios = [
        (value.snr, f"for {group!r} under {objective}")
        for objective, groups in found.groups.items()
        for group, value in groups.items()
    ]
    snr, where = min(ratios, default=(math.nan, "without groups"))
    return f"{snr:.2g}, {where}"
