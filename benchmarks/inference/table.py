"""Rows of inference methods as a table and a summary, in Markdown."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.inference.scores import FAILS, GRADES

__all__ = ["BASE", "BUDGET", "Row", "markdown", "summary", "with_ratios"]

BASE = "nuts"  # the method that times are compared with
BUDGET = 60.0  # CPU seconds


class Row(NamedTuple):
    """One run.

    Arguments:
        posterior, method, seed: what was run.
        mean_error: worst error of a mean in posterior standard deviations, of `mean_scalar`.
        sd_ratio: worst ratio of standard deviations, of `sd_scalar`.
        grade: one of ``scores.GRADES``.
        trusted, verdict, rung: as the method says; None if it says nothing.
        cpu_seconds, wall_seconds: with compiling, without imports.
        gradients: evaluations, one a point.
        ratio: CPU seconds relative to those of ``BASE`` with the same seed; None if unknown.
        error: why there are no draws; None if there are.
    """

    posterior: str
    method: str
    seed: int
    mean_error: float | None = None
    mean_scalar: str | None = None
    sd_ratio: float | None = None
    sd_scalar: str | None = None
    grade: str = FAILS
    trusted: bool | None = None
    verdict: str | None = None
    rung: str | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    gradients: int | None = None
    ratio: float | None = None
    error: str | None = None


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """The rows with the ratios of CPU seconds to those of ``BASE``."""
    rows = list(rows)
    base = {
        (r.posterior, r.seed): r.cpu_seconds
        for r in rows
        if r.method == BASE and not r.error
    }

    def ratio(row: Row) -> float | None:
        mine = None if row.error else row.cpu_seconds
        other = base.get((row.posterior, row.seed))
        return mine / other if mine and other else None

    return [row._replace(ratio=ratio(row)) for row in rows]


# The table
# --------------------------------------------------------------------------------------------


def markdown(rows: list[Row]) -> str:
    """A line a posterior and method: the worst of its seeds, and medians of the costs."""
    lines = [
        "| posterior | method | worst mean (sd) | worst sd (ratio) | grade | trusted | rung "
        "| CPU s | wall s | gradients | × NUTS |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(mine) for mine in _groups(rows)])


def _groups(rows: list[Row]) -> list[list[Row]]:
    """The rows of each posterior and method, in the order in which the methods appear first."""
    methods = list(dict.fromkeys(row.method for row in rows))
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        key = row.posterior, methods.index(row.method)
        found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found)]


def _line(mine: list[Row]) -> str:
    worst = max((r.grade for r in mine), key=GRADES.index)
    errors = [r.error for r in mine if r.error]
    cells = [
        mine[0].posterior,
        mine[0].method,
        _worst(mine, lambda r: abs(r.mean_error), "mean_error", "mean_scalar", "+.3f"),
        _worst(mine, _sd_distance, "sd_ratio", "sd_scalar", ".3f"),
        f"{worst}: {errors[0]}" if errors else worst,
        _trusted(mine),
        ", ".join(dict.fromkeys(r.rung for r in mine if r.rung)) or "-",
        _median([r.cpu_seconds for r in mine], ".1f"),
        _median([r.wall_seconds for r in mine], ".1f"),
        _median([r.gradients for r in mine], ",.0f"),
        _median([r.ratio for r in mine], ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def _sd_distance(row: Any) -> float:
    return max(row.sd_ratio, 1 / row.sd_ratio) if row.sd_ratio > 0 else float("inf")


def _worst(
    mine: list[Row],
    distance: Callable[[Any], float],
    value: str,
    scalar: str,
    form: str,
) -> str:
    known = [r for r in mine if _is_number(getattr(r, value))]
    if not known:
        return "-"
    row = max(known, key=distance)
    return f"{getattr(row, value):{form}} ({getattr(row, scalar)})"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _trusted(mine: list[Row]) -> str:
    said = [r.trusted for r in mine if r.trusted is not None]
    return f"{sum(said)} of {len(said)}" if said else "-"


def _median(values: list[Any], form: str) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.median(known):{form}}" if known else "-"


# The summary
# --------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> str:
    """A line a method: how many are good, how many are trusted and miss, and the cost."""
    lines = [
        "| method | good, by seed | trusted and misses | × NUTS: median, worst "
        f"| within {BUDGET:.0f} CPU s at every seed |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        lines.append(_summary_line(method, [r for r in rows if r.method == method]))
    return "\n".join(lines)


def _summary_line(method: str, mine: list[Row]) -> str:
    good = []
    for seed in sorted({r.seed for r in mine}):
        grades = [r.grade for r in mine if r.seed == seed]
        good.append(f"{grades.count('good')} of {len(grades)}")
    said = any(r.trusted is not None for r in mine)
    wrong = sum(bool(r.trusted) and r.grade in ("misses", FAILS) for r in mine)
    ratios = [r.ratio for r in mine if r.ratio is not None]
    spread = "-"
    if ratios:
        spread = f"{statistics.median(ratios):.2f}, {max(ratios):.2f}"
    late = {r.posterior for r in mine if not _within(r)}
    number = len({r.posterior for r in mine})
    within = f"{number - len(late)} of {number}"
    cells = [method, "; ".join(good), str(wrong) if said else "-", spread, within]
    return f"| {' | '.join(cells)} |"


def _within(row: Row) -> bool:
    seconds = row.cpu_seconds
    return row.error is None and seconds is not None and seconds <= BUDGET
