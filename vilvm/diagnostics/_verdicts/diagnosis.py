"""The verdict of a diagnosis: trust in the posterior, and doubts about the model."""

from collections.abc import Iterator
from typing import Any

from vilvm.diagnostics.finding import Severity

__all__ = ["diagnosis_report", "diagnosis_verdict"]

_POSTERIOR = {
    Severity.OK: "No diagnostic found evidence against this posterior.",
    Severity.NOTE: "No diagnostic found evidence against using this posterior; there are notes.",
    Severity.WARNING: "Do not trust this posterior as it stands.",
    Severity.CRITICAL: "Do not trust this posterior.",
}
_REPLICATED = "Posterior predictive check"
_MODEL = {
    _REPLICATED: "The model does not generate data like these.",
    "Prior predictive check": "The model does not generate data like these.",
    "Posterior collapse": "The model makes little use of its latents.",
    "Leave-one-out prediction": "Single data differ from what the model predicts from the others.",
}


def diagnosis_verdict(found: Any) -> str:
    """One sentence on the posterior of a ``Diagnosis``, and one for each doubt about the model."""
    return " ".join([*_posterior(found), *_model(found)])


def diagnosis_report(found: Any) -> Iterator[str]:
    """The verdict, the findings, and what was cut short or not run."""
    yield diagnosis_verdict(found)
    yield from map(str, found.findings)
    for name, what in found.cut.items():
        yield f"[cut short] {name}: {what}; more time (budget=...) completes it."
    for name, why in found.skipped.items():
        yield f"[not run] {name}: {why}"


def _posterior(found: Any) -> list[str]:
    sentences = [_POSTERIOR[found.severity()]]
    if found.unfinished and found.severity() < Severity.WARNING:
        reasons = "; ".join(
            f"{name}: {found.skipped[name].rstrip('.')}" for name in found.unfinished
        )
        sentences = [
            f"This posterior is not fully examined: some diagnostics did not run ({reasons})."
        ]
    if found.tempered:
        factors = ", ".join(
            f"{name!r} by {x:.3g}" for name, x in found.tempered.items()
        )
        sentences.append(
            f"It is compared with the model without its poutine.scale ({factors}), whose "
            "posterior differs."
        )
    return sentences


def _model(found: Any) -> list[str]:
    doubts = [
        f.name
        for f in found.findings
        if f.about == "model" and f.severity >= Severity.WARNING
    ]
    # With a bad guide, replicates may differ from the data although the model is right.
    if found.severity() >= Severity.WARNING and doubts == [_REPLICATED]:
        return [
            "Data replicated from it differ from these: the guide or the model is wrong."
        ]
    return list(dict.fromkeys(_MODEL[name] for name in doubts))
