"""The verdict of a diagnostic: its severity, a sentence with its numbers, and what to do next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Literal

from vilvm._runtime.results import Result, frame_of

__all__ = ["Finding", "Severity", "findings_frame"]


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
class Finding(Result):
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

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row, and the fields as columns."""
        return findings_frame([self])

    def _headline(self) -> Mapping[str, Any]:
        return {"name": self.name, "severity": self.severity.name}

    def _contents(self) -> Iterator[str]:
        head = f"[{self.severity.name}] {self.name}: {self.verdict}"
        parts = (head, self.advice, f"({self.source})")
        yield " ".join(part for part in parts if part)


def findings_frame(findings: Sequence[Finding]) -> Any:
    """A pandas DataFrame with one row a finding, and the fields of ``Finding`` as columns.

    Arguments:
        findings: in the order of the rows; severity becomes its name.

    Examples:
        >>> from vilvm.diagnostics.finding import Finding, Severity, findings_frame
        >>> found = Finding("Rate", Severity.OK, "The rate is 2 nats.", "KL ≥ 0")
        >>> findings_frame([found])["severity"].tolist()
        ['OK']
    """
    columns: dict[str, list[Any]] = {
        field.name: [getattr(finding, field.name) for finding in findings]
        for field in fields(Finding)
    }
    columns["severity"] = [finding.severity.name for finding in findings]
    return frame_of(columns)
