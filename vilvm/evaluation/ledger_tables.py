"""What a ledger prints: the rows of one group as a table, and a row as plain numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vilvm.evaluation.evaluate import Estimate
from vilvm.evaluation.ledger_rows import Protocol, Row, difference

__all__ = ["filled", "markdown", "record", "rich_tables"]

_NOTHING, _GAP = "–", 3


def rich_tables(protocol: Protocol, rows: Sequence[Row], width: int) -> Iterator[Table]:
    """A group as a table for the terminal, its protocol above; as several, one below the other,
    where it is wider than `width`.
    """
    head, lines = filled(rows)
    columns = list(zip(head, *lines, strict=True))
    sizes = [max(map(len, column)) + _GAP for column in columns]
    kept, title = [0], str(protocol)
    for i in range(1, len(columns) + 1):
        if i == len(columns) or (
            len(kept) > 1 and sum(sizes[k] for k in kept) + sizes[i] + _GAP > width
        ):
            yield _table([columns[k] for k in kept], title)
            kept, title = [0], ""
        if i < len(columns):
            kept.append(i)


def _table(columns: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for i, (head, *_) in enumerate(columns):
        table.add_column(Text(head), justify="right" if i else "left", no_wrap=True)
    for line in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, line))  # not as markup, in which square brackets mean something
    return table


def markdown(protocol: Protocol, rows: Sequence[Row]) -> str:
    """A group as a table in Markdown, its protocol above."""
    head, lines = filled(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    table = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, rule, *lines)
    ]
    return "\n".join([f"**{protocol}**", "", *table])


def filled(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the columns that say something of any row."""
    lines = [_cells(row, rows[0]) for row in rows]
    head = [name for name in lines[0] if any(line[name] != _NOTHING for line in lines)]
    return head, [[line[name] for name in head] for line in lines]


def _cells(row: Row, best: Row) -> dict[str, str]:
    """What a row says, by the head of its column."""

    def pair(mean: float | None, se: float | None = None, digits: int = 2) -> str:
        return (
            _NOTHING
            if mean is None
            else f"{mean:.{digits}f}"
            + ("" if se is None or math.isnan(se) else f" ± {se:.{digits}f}")
        )

    def estimate(found: Estimate | None) -> str:
        return _NOTHING if found is None else pair(found.mean, found.se)

    e = row.evaluation
    behind = (
        _NOTHING
        if row.bound is None or best.bound is None or row is best
        else str(difference(best.bound, row.bound))
    )
    return {
        "model": row.name,
        f"IWAE-{e.num_samples}": estimate(row.bound),
        "behind the best": behind,
        "ELBO": estimate(e.bounds.get("elbo")),
        "exact": estimate(e.bounds.get("exact")),
        "rate": estimate(e.rate),
        "distortion": estimate(e.distortion),
        "ESS": _NOTHING if e.ess is None else f"{e.ess.mean().item():.1f}",
        "SSE": estimate(row.sse),
        "two-sample": _NOTHING
        if row.two_sample is None
        else pair(row.two_sample.accuracy, row.two_sample.se, 3),
        "Fréchet": pair(row.frechet),
        "parameters": f"{row.parameters:,}",
        "train (s)": pair(row.seconds, digits=0),
    }


def record(row: Row, best: Row) -> dict[str, Any]:
    """A row as plain numbers, None where there is none, and its protocol; `best` is that of its
    group.
    """
    e = row.evaluation
    behind = None if row.bound is None or best.bound is None else difference(best.bound, row.bound)
    estimates = {
        "distortion": e.distortion,
        "rate": e.rate,
        "elbo": e.bounds.get("elbo"),
        "iwae": e.bounds.get("iwae"),
        "exact": e.bounds.get("exact"),
        "sse": row.sse,
    }
    numbers: dict[str, Any] = {"model": row.name, "parameters": row.parameters}
    for name, found in estimates.items():
        numbers |= {
            name: None if found is None else found.mean,
            f"{name}_se": None if found is None else found.se,
        }
    return numbers | {
        "behind_best": None if behind is None else behind.mean,
        "behind_best_se": None if behind is None else behind.se,
        "ess": None if e.ess is None else e.ess.mean().item(),
        "two_sample": None if row.two_sample is None else row.two_sample.accuracy,
        "two_sample_se": None if row.two_sample is None else row.two_sample.se,
        "num_draws": None if row.two_sample is None else row.two_sample.num_draws,
        "frechet": row.frechet,
        "seconds": row.seconds,
        **row.protocol._asdict(),
    }
