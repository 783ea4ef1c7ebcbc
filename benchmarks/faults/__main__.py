"""All faults in one table; the exit status is 1 if a fault was not survived.

python -m benchmarks.faults [--kills 200] [--mutations 10000] [--seed 0] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.faults import growth, kills, ranks
from benchmarks.faults.children import ended, one_thread, start
from benchmarks.faults.table import Row, markdown
from benchmarks.results import machine

_HOURS = 3600.0


def count(cases: Iterable[tuple[str, ...]], good: set[str]) -> dict[str, Any]:
    """The number of cases (name, outcome, ...) by outcome, and the first 50 that are not good."""
    found: Counter[str] = Counter()
    trouble = []
    for name, outcome, *message in cases:
        found[outcome] += 1
        if outcome not in good:
            trouble.append(": ".join([name, outcome, *message]))
    return {"outcomes": dict(found), "trouble": trouble[:50]}


def inputs(module: Any) -> Iterable[tuple[str, str]]:
    """The verdict on every bad input."""
    for name, call in module.cases():
        try:
            outcome = call()
        except BaseException as error:
            outcome = error
        yield name, module.verdict(outcome)


def counted(
    fault: str, work: Callable[[], dict[str, Any]], good: set[str], seen: str
) -> list[Row]:
    """The row of `work`, which runs in its own process because it may crash."""
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as base:
        outcome = Path(base) / "outcome.json"
        ending = ended(start(work, outcome), outcome, 6 * _HOURS)
    if ending.how != "done":
        return [Row(fault, 1, 0, seen, (f"{fault}: {ending.how}: {ending.message}",))]
    found = ending.found["outcomes"]
    survived = sum(n for name, n in found.items() if name in good)
    parts = ", ".join(f"{n:,} {name}" for name, n in sorted(found.items()))
    return [
        Row(
            f"{fault} ({parts})",
            sum(found.values()),
            survived,
            seen,
            tuple(ending.found["trouble"]),
        )
    ]


def optional(args: argparse.Namespace) -> list[Row]:
    """Damaged checkpoints and bad inputs."""
    out = []
    if find_spec("benchmarks.faults.forgeries"):
        forgeries = import_module("benchmarks.faults.forgeries")
        good = {"refused", "identical"}
        seen = "one sentence: which file, why, what to do"
        out += counted(
            "mutations of a checkpoint",
            lambda: count(forgeries.forgeries(args.seed, args.mutations), good),
            good,
            seen,
        )
    if find_spec("benchmarks.faults.bad_inputs"):
        module = import_module("benchmarks.faults.bad_inputs")
        good = {"one sentence", "right"}
        out += counted(
            "bad inputs",
            lambda: count(inputs(module), good),
            good,
            "one sentence that names the argument",
        )
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args(argv)
    one_thread()
    parts: list[Callable[[], list[Row]]] = [
        lambda: kills.rows(kills.campaign(args.kills, args.seed)),
        ranks.rows,
        growth.rows,
        partial(optional, args),
    ]
    found: list[Row] = []
    for part in parts:
        found += part()
        if args.json:  # after each part: all together take an hour
            args.json.write_text(
                json.dumps(
                    {"machine": machine(), "rows": [row._asdict() for row in found]},
                    indent=1,
                )
            )
    print(
        ", ".join(f"{k} {v}" for k, v in machine().items()), markdown(found), sep="\n\n"
    )
    trouble = [line for row in found for line in row.trouble]
    print("\n".join(trouble), file=sys.stderr)
    return int(bool(trouble))


if __name__ == "__main__":
    sys.exit(main())
