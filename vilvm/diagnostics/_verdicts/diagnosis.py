"""The verdict of a diagnosis: one judgement of the posterior, and one of the model.

Both the sentences and the badges are functions of the same findings, so they cannot disagree: a
judgement objects exactly if its badge is WARNING or CRITICAL.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from vilvm._runtime.results import Table
from vilvm.diagnostics.finding import Severity

__all__ = ["Judgement", "diagnosis_report", "judgement_of", "verdict_of"]

_POSTERIOR = {
    Severity.OK: "No diagnostic found evidence against this posterior.",
    Severity.NOTE: "No diagnostic found evidence against using this posterior; there are notes.",
    Severity.WARNING: "Do not trust this posterior as it stands.",
    Severity.CRITICAL: "Do not trust this posterior.",
}
_UNFINISHED, _NOT_RUN = "NOT FINISHED", "NOT JUDGED"
_MODEL_LEVELS = {
    Severity.OK: "No diagnostic found evidence against this model.",
    Severity.NOTE: "No diagnostic found evidence against this model; there are notes.",
}
_REPLICATED = "Posterior predictive check"
_MODEL = {
    _REPLICATED: "The model does not generate data like these.",
    "Prior predictive check": "The model does not generate data like these.",
    "Posterior collapse": "The model makes little use of its latents.",
    "Leave-one-out prediction": "Single data differ from what the model predicts from the others.",
}


class Judgement(NamedTuple):
    """What the findings say of the posterior, or of the model.

    Arguments:
        about: "posterior", the guide or the draws as posterior of this model; or "model", the
            model of these data.
        badge: the severity of the most severe finding; "NOT FINISHED" if none objects to the
            posterior but some diagnostics of it did not run; "NOT JUDGED" if no diagnostic of the
            model ran.
        sentence: says so in words.

    Examples:
        >>> import torch
        >>> from vilvm import Diagnosis
        >>> Diagnosis((), {}, {}, torch.arange(3), 0.0).judgements[1].badge
        'NOT JUDGED'
    """

    about: Literal["posterior", "model"]
    badge: str
    sentence: str

    @property
    def objects(self) -> bool:
        """Whether some finding is a WARNING or CRITICAL."""
        return self.badge in (Severity.WARNING.name, Severity.CRITICAL.name)


def judgement_of(found: Any, about: Literal["posterior", "model"]) -> Judgement:
    """The judgement of a ``Diagnosis`` on its posterior or its model."""
    severity = found.severity(about)
    badge = severity.name
    if about == "posterior":
        if found.unfinished and severity < Severity.WARNING:
            badge = _UNFINISHED
        return Judgement(about, badge, " ".join(_posterior(found)))
    if not any(finding.about == about for finding in found.findings):
        return Judgement(about, _NOT_RUN, "No diagnostic of the model ran.")
    return Judgement(about, badge, " ".join(_model(found)))


def verdict_of(found: Any) -> str:
    """The judgement of the posterior; that of the model too, if it objects."""
    posterior, model = found.judgements
    return " ".join([posterior.sentence, *[model.sentence] * model.objects])


def diagnosis_report(found: Any) -> Iterator[str | Table]:
    """The verdict, the posterior, the findings, and what was cut short or not run."""
    yield found.verdict
    if found.posterior is not None:
        yield f"Posterior ({found.posterior.summary}):"
        yield from found.posterior._contents()
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
    severity = found.severity("model")
    if severity < Severity.WARNING:
        return [_MODEL_LEVELS[severity]]
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
    sentences = (
        _MODEL.get(name, f"{name} speaks against the model.") for name in doubts
    )
    return list(dict.fromkeys(sentences))
