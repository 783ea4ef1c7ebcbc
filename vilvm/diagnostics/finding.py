"""What a diagnostic says: how grave it is, in a sentence, by which threshold, and what to try
next.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

__all__ = ["Finding", "Severity"]


class Severity(IntEnum):
    """How much a finding matters to somebody who is about to use the posterior.

    OK: nothing to object to. NOTE: to know about. WARNING: results may be off; look before you use
    them. CRITICAL: do not trust them.
    """

    OK = 0
    NOTE = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True)
class Finding:
    """The verdict of one diagnostic.

    Arguments:
        name: of the diagnostic, such as "Pareto k̂".
        severity: see ``Severity``.
        verdict: one or two sentences that a scientist understands, the numbers that matter in
            them.
        source: where the threshold comes from (author, year, or the stated false-alarm rate of a
            test).
        advice: what to try next; empty if nothing need be done.
        about: "posterior", how near the guide is to the posterior of this model; or "model",
            whether it is a model of these data.
    """

    name: str
    severity: Severity
    verdict: str
    source: str
    advice: str = ""
    about: Literal["posterior", "model"] = "posterior"

    def __str__(self) -> str:
        return " ".join(
            part
            for part in (
                f"[{self.severity.name}] {self.name}: {self.verdict}",
                self.advice,
                f"({self.source})",
            )
            if part
        )
