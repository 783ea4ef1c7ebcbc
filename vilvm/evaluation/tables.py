"""What a ledger prints: the rows of one group as a table, and a row as plain numbers."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from vilvm.evaluation.bounds import Estimate
from vilvm.evaluation.rows import Protocol, Row, difference

__all__ = ["markdown", "record", "rich_table"]

_NOTHING = "–"


def rich_table(protocol: Protocol, rows: Sequence[Row]) -> Table:
    """A group as a table for the terminal, its protocol above."""
    head, lines = _filled(protocol, rows)
    table = Table(title=str(protocol), title_justify="left", padding=(0, 1))
    for i, text in enumerate(head):
        table.add_column(text, justify="right" if i else "left", no_wrap=i == 0)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(protocol: Protocol, rows: Sequence[Row]) -> str:
    """A group as a table in Markdown, its protocol above."""
    head, lines = _filled(protocol, rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, rule, *lines)]
    return "\n".join([f"**{protocol}**", "", *table])


def _filled(protocol: Protocol, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the columns that say something of any row."""
    head, lines = _heads(protocol), [_cells(row, rows[0]) for row in rows]
    kept = [i for i in range(len(head)) if any(line[i] != _NOTHING for line in lines)]
    return [head[i] for i in kept], [[line[i] for i in kept] for line in lines]


def _heads(protocol: Protocol) -> list[str]:
    bound = f"IWAE-{protocol.num_samples}" if protocol.bound == "iwae" else "bound"
    return [
        "model",
        "parameters",
        "distortion",
        "rate",
        "ELBO",
        bound,
        "behind the best",
        "ESS",
        "SSE",
        "two-sample",
        "Fréchet",
        "train (s)",
    ]


def _cells(row: Row, best: Row) -> list[str]:
    def pair(mean: float | None, se: float | None = None, digits: int = 2) -> str:
        return _NOTHING if mean is None else f"{mean:.{digits}f}" + ("" if se is None or math.isnan(se) else f" ± {se:.{digits}f}")

    def estimate(found: Estimate | None) -> str:
        return _NOTHING if found is None else pair(found.mean, found.se)

    e = row.evaluation
    behind = _NOTHING if row.bound is None or best.bound is None or row is best else str(difference(best.bound, row.bound))
    return [
        row.name,
        f"{row.parameters:,}",
        estimate(e.distortion),
        estimate(e.rate),
        estimate(e.bounds.get("elbo")),
        estimate(row.bound),
        behind,
        _NOTHING if e.ess is None else f"{e.ess.mean().item():.1f}",
        estimate(row.sse),
        _NOTHING if row.two_sample is None else pair(row.two_sample.accuracy, row.two_sample.se, 3),
        pair(row.frechet),
        pair(row.seconds, digits=0),
    ]


def record(row: Row, best: Row) -> dict[str, Any]:
    """A row as plain numbers, None where there is none, and its protocol; `best` is that of its group."""
    e = row.evaluation
    behind = None if row.bound is None or best.bound is None else difference(best.bound, row.bound)
    estimates = {
        "distortion": e.distortion,
        "rate": e.rate,
        "elbo": e.bounds.get("elbo"),
        "iwae": e.bounds.get("iwae"),
        "sse": row.sse,
    }
    numbers: dict[str, Any] = {"model": row.name, "parameters": row.parameters}
    for name, found in estimates.items():
        numbers |= {name: None if found is None else found.mean, f"{name}_se": None if found is None else found.se}
    return numbers | {
        "behind_best": None if behind is None else behind.mean,
        "behind_best_se": None if behind is None else behind.se,
        "ess": None if e.ess is None else e.ess.mean().item(),
        "two_sample": None if row.two_sample is None else row.two_sample.accuracy,
        "two_sample_se": None if row.two_sample is None else row.two_sample.se,
        "frechet": row.frechet,
        "seconds": row.seconds,
        **row.protocol._asdict(),
    }
