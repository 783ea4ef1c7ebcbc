"""The finding on the convergence of the optimisation."""

from typing import Any

from vilvm.diagnostics._trend import LEAST
from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["convergence_finding"]

_HIDDEN = 20  # tolerances; a note reports a larger gain that noise could hide
_Sentence = tuple[Severity, str, str]


def convergence_finding(found: Any) -> Finding:
    """The finding on a ``Convergence``."""
    severity, verdict, advice = _judge(found)
    return Finding(
        name="Convergence of the optimisation",
        severity=severity,
        verdict=verdict,
        source=f"one-sided trend test with false-alarm rate {found.false_alarm:g}; gain above "
        f"{found.tolerance:g} nats per datum, a convention of vilvm",
        advice=advice,
    )


def _judge(found: Any) -> _Sentence:
    if found.trend is None:
        verdict = (
            f"{found.num_records} records are too few for a test (at least {LEAST})."
        )
        return Severity.NOTE, verdict, "Train longer."
    if found.improving:
        verdict = (
            f"The {_name(found)} is still improving by {found.trend.slope:.2g} nats per datum per "
            f"epoch {_tail(found)}. As many epochs again may gain {found.gain:.2g} nats."
        )
        return (
            Severity.WARNING,
            verdict,
            "Train longer, or with a larger learning rate.",
        )
    if found.falling:
        return _falling(found)
    hidden = max(found.trend.upper * found.epochs, 0.0)
    if hidden > _HIDDEN * found.tolerance:
        verdict = (
            f"The {_name(found)} has no trend beyond its noise {_tail(found)}. The noise could "
            f"hide a gain of {hidden:.2g} nats per datum over as many epochs again."
        )
        advice = (
            "Train longer, or with larger batches or a lower learning rate at the end."
        )
        return Severity.NOTE, verdict, advice
    return _level(found, hidden)


def _falling(found: Any) -> _Sentence:
    verdict = (
        f"The {_name(found)} falls by {-found.trend.slope:.2g} nats per datum per epoch "
        f"{_tail(found)}."
    )
    if found.column == "validation_elbo":
        advice = (
            "The model overfits; fit keeps the parameters of the best record, and patience=... "
            "stops there."
        )
        return Severity.NOTE, verdict, advice
    advice = "Lower the learning rate. During a KL warm-up, count later records only (start=...)."
    return Severity.WARNING, verdict, advice


def _level(found: Any, hidden: float) -> _Sentence:
    verdict = (
        f"The {_name(found)} has levelled off {_tail(found)}. As many epochs again would gain at "
        f"most {hidden:.2g} nats per datum"
    )
    if not found.flattened_by_schedule:
        return Severity.OK, f"{verdict}.", ""
    verdict += (
        f", but the learning rate had fallen to {found.fallen:.2g} of its largest, which flattens "
        "any curve"
    )
    if found.before is not None:
        verdict += f"; before, it was gaining {found.before.slope:.2g} nats per datum per epoch"
    return (
        Severity.NOTE,
        f"{verdict}.",
        "Check whether a schedule twice as long ends higher.",
    )


def _name(found: Any) -> str:
    if found.column == "validation_elbo":
        return "validation ELBO"
    return "ELBO"


def _tail(found: Any) -> str:
    return f"over the last {found.epochs:.3g} epochs ({found.num_records} records)"
