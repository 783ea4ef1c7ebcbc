"""The verdict of a diagnostic: its severity, a sentence with its numbers, and what to do next."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

__all__ = ["Finding", "Severity"]


class Severity(IntEnum):
    """How much a finding matters to a user of the posterior.

    OK: no objection. NOTE: worth knowing. WARNING: results may be wrong; check before you use
    them. CRITICAL: do not trust the results.

    Examples:
        >>> from vilvm.diagnostics.finding import Severity
        >>> Severity.CRITICAL > Severity.WARNING
        True
    """

    OK = 0
    NOTE = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True)
class Finding:
    """The verdict of one diagnostic.

    Arguments:
        name: the diagnostic, such as "Pareto k̂".
        severity: how much it matters, see ``Severity``.
        verdict: one or two sentences with the numbers that matter.
        source: where the threshold comes from: author and year, or the false-alarm rate of a test.
        advice: what to try next; empty if nothing is needed.
        about: "posterior" if it judges the guide as posterior of this model, "model" if it judges
            the model of these data.

    Examples:
        >>> from vilvm.diagnostics.finding import Finding, Severity
        >>> print(Finding("Rate", Severity.OK, "The rate is 2 nats.", "KL ≥ 0"))
        [OK] Rate: The rate is 2 nats. (KL ≥ 0)
    """

    name: str
    severity: Severity
    verdict: str
    source: str
    advice: str = ""
    about: Literal["posterior", "model"] = "posterior"

    def __str__(self) -> str:
        head = f"[{self.severity.name}] {self.name}: {self.verdict}"
        return " ".join(
            part for part in (head, self.advice, f"({self.source})") if part
        )
