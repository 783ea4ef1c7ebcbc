"""The finding on the evidence from the weights of draws."""

from typing import Any

from vilvm.diagnostics._tail import good_k
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["weighted_evidence_finding"]

_SOURCE = "log mean weight: Burda et al., 2016; k̂: Vehtari et al., 2024"


def weighted_evidence_finding(found: Any) -> Finding:
    """The finding on a ``WeightedEvidence``."""
    verdict = (
        f"log p(x) is {_number(found.log_evidence)} nats and the ELBO {_number(found.elbo)}, so "
        f"KL(q ‖ posterior) is about {found.gap:.2g} nats."
    )
    severity = Severity.OK
    if not found.reliable:
        severity = Severity.NOTE
        verdict += (
            f" With k̂ = {found.k:.2f} > {good_k(found.num_draws):.2f}, log p(x) is only a lower "
            "bound, and its error is not known."
        )
    verdict += " A mode without draws is missing from it."
    return Finding("Evidence", severity, verdict, _SOURCE)


def _number(estimate: Any) -> str:
    return f"{estimate.mean:.2f} ± {estimate.mc_se:.2g}"
