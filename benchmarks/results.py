"""Results of a benchmark: rows with their ratios, as a table and as JSON, under date, machine and
versions.

python -m benchmarks.rows FILE.json FIGURE.png    # the bars of a file of svi_step
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
from matplotlib.figure import Figure

from vilvm._runtime.files import write_json

__all__ = ["Row", "figure", "machine", "markdown", "rows_of", "write"]


class Row(NamedTuple):
    """One contender in one workload.

    Arguments:
        contender, workload: names.
        batch: data a step; None for all.
        median_ms, min_ms: a step, over the rounds.
        ratio_to_eager: how many times as fast as the eager one written by hand: median over rounds
            of the ratio within a round.
        low, high: quartiles of that ratio.
        ratio_to_floor: how many times as long as the floor, likewise; None where there is none.
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
    workload: str, batch: int | None, ms: Mapping[str, list[float]], base: str, floor: str
) -> list[Row]:
    """The rows of contenders timed in the same rounds, the fastest first; `ms` a step, by
    contender and round.
    """
    rows = []
    for name, mine in ms.items():
        faster = [b / m for b, m in zip(ms[base], mine, strict=True)]
        low, middle, high = statistics.quantiles(faster, n=4) if len(faster) > 1 else faster * 3
        longer = [m / f for m, f in zip(mine, ms[floor], strict=True)] if floor in ms else None
        to_floor = None if longer is None else statistics.median(longer)
        rows.append(
            Row(
                name,
                workload,
                batch,
                statistics.median(mine),
                min(mine),
                middle,
                low,
                high,
                to_floor,
            )
        )
    return sorted(rows, key=lambda row: row.median_ms)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Date, machine and versions."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    versions = {}
    for package in ("torch", "pyro-ppl", "numpyro", "jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    on = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{cpu}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )
    return {"date": str(datetime.date.today()), "device": on, **versions}


def markdown(rows: list[Row]) -> str:
    """A table a workload and batch, in Markdown."""
    out = []
    for key in dict.fromkeys((r.workload, r.batch) for r in rows):
        size = "" if key[1] is None else f", batch {key[1]}"
        out += [
            f"\n**{key[0]}{size}**\n",
            "| | ms a step | least | × by hand, eager (quartiles) | of the floor |",
            "|---|---|---|---|---|",
        ]
        for r in (r for r in rows if (r.workload, r.batch) == key):
            to_floor = "" if r.ratio_to_floor is None else f"{r.ratio_to_floor:.2f}"
            spread = f"{r.ratio_to_eager:.2f} ({r.low:.2f} to {r.high:.2f})"
            out.append(
                f"| {r.contender} | {r.median_ms:.3g} | {r.min_ms:.3g} | {spread} | {to_floor} |"
            )
    return "\n".join(out)


def write(file: Path, rows: list[Row], device: str = "cpu") -> None:
    """Rows and machine as JSON."""
    write_json(file, {"machine": machine(device), "rows": [row._asdict() for row in rows]})


def figure(rows: list[Row]) -> Figure:
    """Bars of the speed against eager PyTorch, with quartiles, a panel a workload."""
    keys = list(dict.fromkeys((r.workload, r.batch) for r in rows))
    out = Figure(figsize=(9, 1.0 + 2.3 * len(keys)), layout="constrained")
    for axes, key in zip(out.subplots(len(keys), 1, squeeze=False)[:, 0], keys, strict=True):
        mine = sorted(
            (r for r in rows if (r.workload, r.batch) == key), key=lambda r: r.ratio_to_eager
        )
        values = [r.ratio_to_eager for r in mine]
        spread = [
            [max(0.0, r.ratio_to_eager - r.low) for r in mine],
            [max(0.0, r.high - r.ratio_to_eager) for r in mine],
        ]
        colours = [
            "#c03a2b"
            if r.contender.startswith("vilvm")
            else "#b8b8b8"
            if r.contender.startswith("floor")
            else "#4a6fa5"
            for r in mine
        ]
        axes.barh([r.contender for r in mine], values, xerr=spread, color=colours, height=0.7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(
            key[0].replace("_", " ") + ("" if key[1] is None else f", batch {key[1]}"),
            loc="left",
            fontsize=10,
        )
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    out.supxlabel("times as fast as PyTorch by hand, eager", fontsize=9)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rows", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    rows = [Row(**row) for row in json.loads(args.file.read_text())["rows"]]
    figure(rows).savefig(args.figure, dpi=110)
    print(markdown(rows))


if __name__ == "__main__":
    main()
