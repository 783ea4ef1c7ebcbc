"""Posteriors of posteriordb, and hierarchical ones, by ``vilvm.infer`` and by NumPyro: errors
against references, the verdict, and the cost.

    VILVM_DATA=... python -m benchmarks.posteriordb [NAME ...] [--seeds 0 1 2]
        [--methods infer unrefined nuts normal mvn] [--out FILE.json] [--again]

Methods: ``infer``, and ``unrefined``, which is the same with ``refine=False``, both with defaults;
``nuts``, ``normal`` and ``mvn`` of ``benchmarks.numpyro_models.methods``. Grades: see
``benchmarks.inference.scores``.

Cost. Every run has a fresh process, one thread, and empty caches of compiled programs. It imports
what it needs, reads the data, and starts its clocks: user CPU seconds, of its children too, and
wall seconds. The methods take turns.

FILE.json is rewritten after every run. Rows that are there are not run again without --again.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.inference.child import METHODS, known_posteriors, run_one
from benchmarks.inference.table import Row, markdown, summary, with_ratios
from benchmarks.results import machine
from vilvm._runtime.files import write_json

__all__ = ["main"]

_SINGLE_THREADED = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    ),
    "PJRT_NPROC": "1",  # the threads of XLA
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_parallel_codegen_split_count=1",
    "JAX_PLATFORMS": "cpu",
    # in this process, since the CPU seconds of workers that go on are not counted
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def run(name: str, method: str, seed: int, limit: float) -> Row:
    """The row of one run in a fresh process."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **os.environ,
            **_SINGLE_THREADED,
            "TORCHINDUCTOR_CACHE_DIR": empty,
        }
        one = ["--one", name, method, str(seed)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.posteriordb", *one],
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            error = f"it was stopped after {limit:.0f} s of wall time"
            return Row(name, method, seed, error=error)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        error = f"its process ended with {done.returncode}: {last}"
        return Row(name, method, seed, error=error)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def read_rows(file: Path | None) -> list[Row]:
    """The rows of a file; none if there is no such file."""
    if file is None or not file.exists():
        return []
    return [Row(**row) for row in json.loads(file.read_text())["rows"]]


def run_all(args: argparse.Namespace) -> Iterator[list[Row]]:
    """All rows so far, after every run."""
    rows = {row[:3]: row for row in read_rows(args.out)}
    for name in args.names:
        for seed in args.seeds:
            for method in args.methods:
                if (name, method, seed) not in rows or args.again:
                    row = run(name, method, seed, args.limit)
                    rows[name, method, seed] = row
                    yield with_ratios(rows.values())
    yield with_ratios(rows.values())


def _chosen(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """The rows that were asked for, in the order of the methods."""
    asked = [
        row
        for row in rows
        if row.posterior in args.names
        and row.method in args.methods
        and row.seed in args.seeds
    ]
    return sorted(asked, key=lambda row: args.methods.index(row.method))


def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    if args.one:
        name, method, seed = args.one
        print(json.dumps(run_one(name, method, int(seed))._asdict()))
        return
    rows: list[Row] = []
    torch.set_num_threads(1)  # as the runs; it is part of the machine's description
    for rows in run_all(args):
        if args.out:
            content = {"machine": machine(), "rows": [row._asdict() for row in rows]}
            write_json(args.out, content)
    rows = _chosen(rows, args)
    print(f"{markdown(rows)}\n\n{summary(rows)}")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    known = sorted(known_posteriors())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posteriordb",
        description=(__doc__ or "").split("\n\n")[0],
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    parser.add_argument("--again", action="store_true", help="run existing rows again")
    parser.add_argument(
        "--limit", type=float, default=1800.0, help="wall seconds of a run"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no posterior {unknown[0]!r}; choose from {known}")
    args.names = args.names or known
    return args


if __name__ == "__main__":
    main()
