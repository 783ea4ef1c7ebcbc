"""The finding on the inference gap."""

import math
from typing import Any

from torch import Tensor

from vilvm.diagnostics._coordinates import datum
from vilvm.diagnostics._gap_bounds import ELBO, EXACT, FEW, GUIDE, IWAE, PRIOR
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation import Estimate

__all__ = ["LARGE", "SMALL", "gaps_finding"]

SMALL, LARGE = 0.1, 1.0  # nats
_SOURCE = (
    "Cremer, Li and Duvenaud, 2018; a divergence of 0.1 nats moves no probability by more than "
    "√(KL/2) = 0.22, one of 1 nat by 0.71 (Pinsker)"
)
_EVIDENCE = {
    GUIDE: "bounded below by annealed importance sampling from the guide",
    PRIOR: "bounded below by annealed importance sampling from the prior",
    IWAE: "bounded below by importance weights",
    ELBO: "bounded below by the ELBO of the best guide",
    EXACT: "exact",
}
_ANNEAL = "Anneal in more steps, with more chains (schedule=...)."
_Sentence = tuple[Severity, str, str]  # severity, verdict (may be empty) and advice


def gaps_finding(found: Any) -> Finding:
    """The finding on a ``Gaps``: the gap, and the first of the most severe sentences on it."""
    candidates = (_missed(found), _mean(found), _single_data(found), _evidence(found))
    sentences = [sentence for sentence in candidates if sentence is not None]
    severity, _, advice = max(sentences, key=lambda sentence: sentence[0])
    source = _SOURCE
    if len(found.index) > 1:
        source += f"; data by a test of false-alarm rate {found.false_alarm:g}"
    most_severe = [verdict for level, verdict, _ in sentences if level == severity]
    details = [verdict for verdict in most_severe if verdict][:1]
    verdict = " ".join([_gap(found), *details])
    return Finding("Inference gap", severity, verdict, source, advice)


def _gap(found: Any) -> str:
    """The gap, its two parts, and how log p(x) was found."""
    unit, second = "", "unfinished training"
    if len(found.index) > 1:
        unit = " per datum"
    if found.has_amortisation:
        second = "its encoder (amortisation gap)"
    by = _EVIDENCE[found.evidence_by]
    if found.num_by_others:
        by += (
            f" (by another bound for {found.num_by_others} of {len(found.index)} data)"
        )
    parts = (
        f"{_number(found.approximation)} from its family (approximation gap) and "
        f"{_number(found.amortisation)} from {second}"
    )
    if not found.is_divided:
        parts = f"how much of it is from its family, and how much from {second}, was not measured"
    return (
        f"The guide's divergence from the posterior is {_number(found.total)} nats{unit}: "
        f"{parts}; log p(x) is {by}."
    )


def _missed(found: Any) -> _Sentence | None:
    """Whether the guide misses part of the posterior, by the exact value or the prior's chains."""
    if found.missed is None:
        if "annealing" not in found.cut.split(", "):
            return None
        verdict = "There was no time to anneal from the prior, which could detect a missed mode."
        return Severity.NOTE, verdict, "Give it more time (budget=...)."
    missed, is_exact = found.missed, EXACT in found.bounds
    of_mean = missed.mean - 3 * missed.mc_se
    of_data = (missed.values - found.quantile * missed.errors).max().item()
    if max(of_mean, of_data) > SMALL:
        other = "log p(x)" if is_exact else "the bound from the prior"
        verdict = (
            f"The bound from the guide is {_number(missed)} nats below {other}, so the guide "
            "misses part of the posterior, such as a mode."
        )
        advice = (
            "Use a guide with several modes (a mixture, a flow), start it elsewhere, or remove "
            "the symmetry that makes the posterior multimodal."
        )
        return Severity.WARNING, verdict, advice
    is_imprecise = -missed.mean > LARGE or 3 * missed.mc_se > math.log(2)
    if is_imprecise and not is_exact:
        verdict = (
            "Whether the guide misses a mode is unknown: annealing from prior and guide differ by "
            f"{_number(missed)} nats."
        )
        return Severity.NOTE, verdict, _ANNEAL
    return None


def _mean(found: Any) -> _Sentence:
    # Monte Carlo error only: the spread of the data is no uncertainty about their mean gap.
    certain = found.total.mean - 3 * found.total.mc_se
    if certain > SMALL:
        return _severity(certain), "", _advice(found)
    return Severity.OK, "", ""


def _single_data(found: Any) -> _Sentence | None:
    certain = found.total.values - found.quantile * found.total.errors
    severity = _severity(certain.max().item())
    if len(found.index) == 1 or severity == Severity.OK:
        return None
    limit = {Severity.WARNING: LARGE, Severity.NOTE: SMALL}[severity]
    is_above = certain > limit
    worst = ", ".join(
        f"{datum(found, i)} ({gap:.1f} nats)"
        for i, gap in found.worst(min(5, int(is_above.sum())))
    )
    verdict = (
        f"It exceeds {limit:g} nats beyond Monte Carlo error{_for(found, is_above)}; the worst "
        f"data are {worst}."
    )
    return severity, verdict, _advice(found)


def _evidence(found: Any) -> _Sentence | None:
    """Whether log p(x) could be estimated."""
    lost, few = found.unestimated, found.ess < FEW
    if bool(lost.any()) or found.total.mean < -SMALL - 3 * found.total.mc_se:
        if EXACT in found.bounds:
            verdict = (
                "The model's exact log p(x) is below the ELBO, which is impossible."
            )
            advice = "Correct exact_log_evidence: it is not log p(x) of this model and these data."
            return Severity.WARNING, verdict, advice
        verdict = f"log p(x) could not be estimated{_for(found, lost)}."
        return Severity.WARNING, verdict, _ANNEAL
    if bool(few.any()):
        verdict = (
            f"Fewer than five effective draws determine log p(x){_for(found, few)}, so the "
            "stated error is unreliable."
        )
        return Severity.NOTE, verdict, _ANNEAL
    return None


def _for(found: Any, which: Tensor) -> str:
    """Such as " for 7 of 40 data (3, 8, …)"; empty for a single number."""
    count = int(which.sum())
    if len(found.index) == 1 or count == 0:
        return ""
    names = [datum(found, int(i)) for i in found.index[which][:5]]
    if count > 5:
        names.append("…")
    return f" for {count} of {len(found.index)} data ({', '.join(names)})"


def _advice(found: Any) -> str:
    if not found.is_divided:
        return "Give it more time (budget=...), to learn whether family or training is at fault."
    if found.amortisation.mean <= found.approximation.mean:
        return "Use a richer family: a full covariance, a flow, or more than one latent layer."
    if found.has_amortisation:
        return (
            "Train longer, enlarge the encoder, or refine the guide for the data that matter "
            "(vilvm.guides.fit_local_guide)."
        )
    return "Train longer, or with a smaller learning rate at the end."


def _severity(nats: float) -> Severity:
    if nats > LARGE:
        return Severity.WARNING
    if nats > SMALL:
        return Severity.NOTE
    return Severity.OK


def _number(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} ± {estimate.se:.2f}"
