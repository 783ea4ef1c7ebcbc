"""The finding on leave-one-out prediction."""

from typing import Any

from vilvm.diagnostics._coordinates import datum
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["loo_finding"]

_NAME = "Leave-one-out prediction"
_SOURCE = "min(1 − 1/log10 S, 0.7): Vehtari et al., 2017 and 2024"


def loo_finding(found: Any) -> Finding:
    """The finding on a ``LOO``; it is about the guide if that is too far from the posterior."""
    if found.joint_k > found.threshold:
        verdict = (
            f"k̂ of the guide's weights is {found.joint_k:.2f}, above {found.threshold:.2f}: its "
            "draws do not represent the posterior, with or without a datum."
        )
        return Finding(
            _NAME, Severity.CRITICAL, verdict, _SOURCE, "Use a richer guide first."
        )
    severity, verdict, advice = _judge(found)
    return Finding(_NAME, severity, verdict, _SOURCE, advice, about="model")


def _judge(found: Any) -> tuple[Severity, str, str]:
    elpd = (
        f"elpd is {found.elpd:.1f} ± {found.se:.1f} nats over {len(found.k)} data, with "
        f"{found.p:.1f} effective parameters"
    )
    bad = (found.k > found.threshold).nonzero()[:, 0].tolist()
    if not bad:
        return Severity.OK, f"{elpd}. No datum's k̂ is above {found.threshold:.2f}.", ""
    above = f"{elpd}, but k̂ is above {found.threshold:.2f} for {len(bad)} data"
    is_single = 2 * len(bad) <= len(found.k) and bool((found.k > found.certain).any())
    if found.own or not is_single:
        advice = (
            "Make more draws (num_samples=...); to compare models, fit without some of the data "
            "and evaluate on those."
        )
        return (
            Severity.NOTE,
            f"{above}. Weights cannot leave these out, so elpd is unreliable.",
            advice,
        )
    worst = ", ".join(
        datum(found, i) for i in sorted(bad, key=lambda i: -found.k[i].item())[:5]
    )
    verdict = (
        f"{above} ({worst} the worst). Each of them moves the posterior so much that weights "
        "cannot leave it out."
    )
    advice = "Check these data, use a likelihood with heavier tails, or fit without each of them."
    return Severity.WARNING, verdict, advice
