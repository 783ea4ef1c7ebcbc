"""The rows of the campaign, and their table."""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Row", "markdown"]


class Row(NamedTuple):
    """One kind of fault.

    Arguments:
        fault: its name.
        tried: number of trials.
        survived: number of trials with a right outcome.
        seen: what the user sees.
        trouble: a line for each trial that was not survived.
    """

    fault: str
    tried: int
    survived: int
    seen: str
    trouble: tuple[str, ...] = ()


def markdown(rows: Iterable[Row]) -> str:
    """The table in Markdown, a row a fault."""
    out = ["| fault | tried | survived | what the user sees |", "|---|---|---|---|"]
    return "\n".join(
        [
            *out,
            *(f"| {r.fault} | {r.tried:,} | {r.survived:,} | {r.seen} |" for r in rows),
        ]
    )
