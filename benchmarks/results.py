"""Results of a benchmark: times and ratios as a table, a figure and JSON, with date, machine and
versions.

python -m benchmarks.results FILE.json FIGURE.png    # the bars of a file of svi_step
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm._runtime.files import write_json
from vilvm.plots._style import hide_spines

__all__ = ["Row", "bars", "figure", "machine", "markdown", "rows_of", "write"]


class Row(NamedTuple):
    """One contender in one workload.

    Arguments:
        contender, workload: names.
        batch: data a step; None for all.
        median_ms, min_ms: milliseconds a step, over the rounds.
        ratio_to_eager: speed relative to the handwritten eager step: median over rounds of the
            ratio within a round.
        low, high: quartiles of that ratio.
        ratio_to_floor: duration relative to the floor, likewise; None without a floor.
    """

    contender: str
    workload: str
    batch: int | None
    median_ms: float
    min_ms: float
    ratio_to_eager: float
    low: float
    high: float
    ratio_to_floor: float | None


def rows_of(
    workload: str,
    batch: int | None,
    ms: Mapping[str, list[float]],
    base: str,
    floor: str,
) -> list[Row]:
    """The rows of contenders timed in the same rounds, in order of their times.

    Arguments:
        workload: its name.
        batch: data a step.
        ms: milliseconds a step, by contender and round.
        base, floor: the contenders of reference.
    """
    rows = []
    for name, mine in ms.items():
        low, middle, high = _quartiles(
            [b / m for b, m in zip(ms[base], mine, strict=True)]
        )
        to_floor = None
        if floor in ms:
            to_floor = statistics.median(
                m / f for m, f in zip(mine, ms[floor], strict=True)
            )
        rows.append(
            Row(
                contender=name,
                workload=workload,
                batch=batch,
                median_ms=statistics.median(mine),
                min_ms=min(mine),
                ratio_to_eager=middle,
                low=low,
                high=high,
                ratio_to_floor=to_floor,
            )
        )
    return sorted(rows, key=lambda row: row.median_ms)


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Date, machine and versions."""
    versions = {}
    for package in ("torch", "pyro-ppl", "numpyro", "jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"date": str(datetime.date.today()), "device": _device(device), **versions}


def _device(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return (
        f"{_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def markdown(rows: list[Row]) -> str:
    """A table for each workload and batch, in Markdown."""
    out = []
    for title, mine in _by_workload(rows).items():
        out += [
            f"\n**{title}**\n",
            "| | ms a step | least | × by hand, eager (quartiles) | of the floor |",
            "|---|---|---|---|---|",
        ]
        for r in mine:
            to_floor = "" if r.ratio_to_floor is None else f"{r.ratio_to_floor:.2f}"
            spread = f"{r.ratio_to_eager:.2f} ({r.low:.2f} to {r.high:.2f})"
            out.append(
                f"| {r.contender} | {r.median_ms:.3g} | {r.min_ms:.3g} | {spread} | {to_floor} |"
            )
    return "\n".join(out)


def _by_workload(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each workload and batch."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = (
            row.workload if row.batch is None else f"{row.workload}, batch {row.batch}"
        )
        found.setdefault(title, []).append(row)
    return found


def write(file: Path, rows: list[Row], device: str = "cpu") -> None:
    """Rows and machine as JSON."""
    write_json(
        file, {"machine": machine(device), "rows": [row._asdict() for row in rows]}
    )


def figure(rows: list[Row]) -> Figure:
    """Bars of the speed relative to eager PyTorch, with quartiles, one panel a workload."""
    panels = _by_workload(rows)
    out = Figure(figsize=(9, 1.0 + 2.3 * len(panels)), layout="constrained")
    columns = out.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, mine) in zip(columns, panels.items(), strict=True):
        ordered = sorted(mine, key=lambda row: row.ratio_to_eager)
        bars(axes, {r.contender: (r.low, r.ratio_to_eager, r.high) for r in ordered})
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(title.replace("_", " "), loc="left", fontsize=10)
    out.supxlabel("times as fast as PyTorch by hand, eager", fontsize=9)
    return out


def bars(axes: Axes, spreads: Mapping[str, tuple[float, float, float]]) -> None:
    """Draws the middle of each contender's spread (low, middle, high) as a bar."""
    values = [middle for _, middle, _ in spreads.values()]
    below = [max(0.0, middle - low) for low, middle, _ in spreads.values()]
    above = [max(0.0, high - middle) for _, middle, high in spreads.values()]
    colours = [_colour(name) for name in spreads]
    axes.barh([*spreads], values, xerr=[below, above], color=colours, height=0.7)
    axes.tick_params(labelsize=8)
    hide_spines(axes)


def _colour(contender: str) -> str:
    if "vilvm" in contender:
        return "#c03a2b"
    if contender.startswith("floor"):
        return "#b8b8b8"
    return "#4a6fa5"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    rows = [Row(**row) for row in json.loads(args.file.read_text())["rows"]]
    figure(rows).savefig(args.figure, dpi=110)
    print(markdown(rows))


if __name__ == "__main__":
    main()
