"""The first seconds of a training run: from a fresh process to its first step, and to many steps.

    uv run --group bench python -m benchmarks.first_seconds [--workload eight_schools]
        [--steps 10000] [--rounds 3] [--json FILE]
    uv run python -m benchmarks.first_seconds --draw FILE [FILE ...] --figure FIGURE

Every run has a process of its own. "Imports" are those of the contender's libraries alone; the
other times begin after them, so what a library imports later counts. A cold run has empty caches
of compiled programs; a warm one has those that a cold one filled. Contenders take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.results import bars
from vilvm._runtime.files import write_json

__all__ = ["CONTENDERS", "figure", "main", "table"]

# By contender, what it imports.
CONTENDERS = {
    "vilvm compiled": "torch, pyro, vilvm, vilvm.training",
    "vilvm eager": "torch, pyro, vilvm, vilvm.training",
    "Pyro SVI.step": "torch, pyro",
    "PyTorch by hand, torch.compile, fused Adam": "torch",
    "NumPyro, jitted update a step": "jax, numpyro",
    "NumPyro, lax.scan over the steps": "jax, numpyro",
}
_TIMES = ("imports", "first step", "all steps")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_seconds",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument(
        "--workload", choices=["eight_schools", "vae"], default="eight_schools"
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[*CONTENDERS])
    parser.add_argument("--json", type=Path, help="file for the times")
    parser.add_argument("--draw", type=Path, nargs="+", help="files of times")
    parser.add_argument("--figure", type=Path, help="the picture of --draw")
    parser.add_argument("--child", choices=[*CONTENDERS], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        run_child(args.child, args.workload, args.steps)
        return
    if args.draw:
        given = {f.stem.replace("_", " "): json.loads(f.read_text()) for f in args.draw}
        figure(given).savefig(args.figure, dpi=110)
        return
    times = measure(args.only or [*CONTENDERS], args.workload, args.steps, args.rounds)
    print(table(times))
    if args.json:
        write_json(args.json, times)


def measure(
    names: list[str], workload: str, steps: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by run, such as "cold, vilvm compiled", and kind of time, over the rounds."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm"):
                for name in names:
                    # their own caches, so that none warms another
                    own = Path(folder, str(names.index(name)))
                    own.mkdir(exist_ok=True)
                    for kind, seconds in _timed(name, workload, steps, own).items():
                        times[f"{state}, {name}"][kind].append(seconds)
                    print(f"  {state}, {name}: done", file=sys.stderr)
    return {run: dict(kinds) for run, kinds in times.items()}


def _timed(name: str, workload: str, steps: int, caches: Path) -> dict[str, float]:
    """The times of one run in a process of its own, which finds compiled programs in `caches`."""
    environment = {
        **os.environ,
        "TMPDIR": str(caches),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "VILVM_CACHE": str(caches / "vilvm"),
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    began = time.perf_counter()
    _run([sys.executable, "-c", f"import {CONTENDERS[name]}"], environment)
    imports = time.perf_counter() - began
    command = [sys.executable, "-m", "benchmarks.first_seconds", "--child", name]
    options = ["--workload", workload, "--steps", str(steps)]
    first, last = _run([*command, *options], environment).split()[-2:]
    return dict(zip(_TIMES, (imports, float(first), float(last)), strict=True))


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} fails:\n{done.stderr[-2000:]}")
    return done.stdout


def run_child(name: str, workload: str, steps: int) -> None:
    """Prints the seconds to the first step and to all steps."""
    make = _maker(name, workload)
    began = time.perf_counter()
    take: Any = make()
    take(1)
    first = time.perf_counter() - began
    take(steps - 1)
    print(first, time.perf_counter() - began)


def _maker(name: str, workload: str) -> Any:
    """Makes the steps of a contender; its libraries are imported before."""
    import torch

    from benchmarks.svi.contenders import contenders
    from benchmarks.svi.workloads import SCHOOLS, WORKLOADS
    from benchmarks.svi_step import pictures
    from vilvm._runtime.memory import widen_heap

    widen_heap()
    chosen = WORKLOADS[workload]
    batch = None if workload == "eight_schools" else 128
    data: Any = SCHOOLS if batch is None else pictures("cpu")
    torch.manual_seed(0)
    if name.startswith("NumPyro"):
        from benchmarks.svi.peers import contenders as peers

        return peers(chosen, data, batch, chosen.make())[name]
    return contenders(chosen, data, batch)[name]


def table(times: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The median of each time, with the least and largest, as Markdown."""
    rows = [f"| | {' | '.join(_TIMES)} |", "|---|---|---|---|"]
    for run, kinds in times.items():
        cells = [
            f"{statistics.median(kinds[k]):.3g} ({min(kinds[k]):.3g} to {max(kinds[k]):.3g})"
            for k in _TIMES
        ]
        rows.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(panels: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Figure:
    """Bars of the seconds to the first step, with least and largest, one panel a workload."""
    out = Figure(figsize=(9, 0.6 + 2.2 * len(panels)), layout="constrained")
    columns = out.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, times) in zip(columns, panels.items(), strict=True):
        seconds = {run: kinds[_TIMES[1]] for run, kinds in times.items()}
        spreads = {
            run: (min(s), statistics.median(s), max(s))
            for run, s in sorted(
                seconds.items(), key=lambda item: -statistics.median(item[1])
            )
        }
        bars(axes, spreads)
        axes.set_title(title, loc="left", fontsize=10)
    out.supxlabel("seconds from the imports to the end of the first step", fontsize=9)
    return out


if __name__ == "__main__":
    main()
