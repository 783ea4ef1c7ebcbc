"""Tables of a ledger: the rows of one group, and a row as plain numbers."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vilvm.evaluation.estimates import Estimate
from vilvm.evaluation.ledger_rows import Protocol, Row, difference
from vilvm.evaluation.two_sample import TwoSample

__all__ = ["filled", "markdown", "record"]

_NOTHING = "–"


def markdown(protocol: Protocol, rows: Sequence[Row]) -> str:
    """A group as a table in Markdown, under its protocol.

    Arguments:
        protocol: the protocol of the group.
        rows: the rows of the group, the best first.

    Returns:
        The text of the table.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import compare
        >>> from vilvm.evaluation.ledger_tables import markdown
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(60, 4)
        >>> ledger = compare({"one": PPCA(4, 1).maximise(x)}, x, num_samples=50, num_draws=0)
        >>> [(protocol, rows)] = ledger.groups().items()
        >>> markdown(protocol, rows).startswith("**x ~ Normal")
        True
    """
    head, lines = filled(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    table = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, rule, *lines)
    ]
    return "\n".join([f"**{protocol}**", "", *table])


def filled(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The columns that are not empty, as text.

    Arguments:
        rows: the rows of a group, the best first.

    Returns:
        Heads, and the cells of each row.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import compare
        >>> from vilvm.evaluation.ledger_tables import filled
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(60, 4)
        >>> ledger = compare({"one": PPCA(4, 1).maximise(x)}, x, num_samples=50, num_draws=0)
        >>> heads, cells = filled(ledger.rows)
        >>> heads[:2], cells[0][0]
        (['model', 'IWAE-50'], 'one')
    """
    lines = [_cells(row, rows[0]) for row in rows]
    head = [name for name in lines[0] if any(line[name] != _NOTHING for line in lines)]
    return head, [[line[name] for name in head] for line in lines]


def _cells(row: Row, best: Row) -> dict[str, str]:
    """The cells of a row, by the head of their column."""
    e, behind = row.evaluation, _NOTHING
    if row is not best and row.bound is not None and best.bound is not None:
        behind = str(difference(best.bound, row.bound))
    return {
        "model": row.name,
        f"IWAE-{e.num_samples}": _estimate(row.bound),
        "behind the best": behind,
        "AIS": _estimate(row.ais),
        "ELBO": _estimate(e.bounds.get("elbo")),
        "exact": _estimate(e.bounds.get("exact")),
        "rate": _estimate(e.rate),
        "distortion": _estimate(e.distortion),
        "ESS": _number(_mean(e.ess), digits=1),
        "SSE": _estimate(row.sse),
        "two-sample": _accuracy(row.two_sample),
        "Fréchet": _number(row.frechet),
        "parameters": f"{row.parameters:,}",
        "train (s)": _number(row.seconds, digits=0),
    }


def _number(value: float | None, se: float = math.nan, digits: int = 2) -> str:
    """A number with its standard error, if it has one."""
    if value is None:
        return _NOTHING
    text = f"{value:.{digits}f}"
    return text if math.isnan(se) else f"{text} ± {se:.{digits}f}"


def _estimate(found: Estimate | None) -> str:
    return _NOTHING if found is None else _number(found.mean, found.se)


def _accuracy(found: TwoSample | None) -> str:
    return _NOTHING if found is None else _number(found.accuracy, found.se, 3)


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else values.mean().item()


def record(row: Row, best: Row) -> dict[str, Any]:
    """A row as plain numbers, None for what is missing, with its protocol.

    Arguments:
        row: the row.
        best: the best row of its group.

    Returns:
        Numbers and texts by name.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import compare
        >>> from vilvm.evaluation.ledger_tables import record
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(60, 4)
        >>> ledger = compare({"one": PPCA(4, 1).maximise(x)}, x, num_samples=50, num_draws=0)
        >>> record(ledger["one"], ledger["one"])["behind_best"]
        0.0
    """
    e, behind = row.evaluation, None
    if row.bound is not None and best.bound is not None:
        behind = difference(best.bound, row.bound)
    estimates = {
        "distortion": e.distortion,
        "rate": e.rate,
        "elbo": e.bounds.get("elbo"),
        "iwae": e.bounds.get("iwae"),
        "exact": e.bounds.get("exact"),
        "ais": row.ais,
        "sse": row.sse,
        "behind_best": behind,
    }
    numbers: dict[str, Any] = {"model": row.name, "parameters": row.parameters}
    for name, found in estimates.items():
        numbers[name] = getattr(found, "mean", None)
        numbers[f"{name}_se"] = getattr(found, "se", None)
    return numbers | {
        "ess": _mean(e.ess),
        "two_sample": getattr(row.two_sample, "accuracy", None),
        "two_sample_se": getattr(row.two_sample, "se", None),
        "num_draws": getattr(row.two_sample, "num_draws", None),
        "frechet": row.frechet,
        "seconds": row.seconds,
        **row.protocol._asdict(),
    }
