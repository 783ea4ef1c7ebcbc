"""Published results, trained and measured here: one row of the literature's table at a time.

    VILVM_DATA=... python -m benchmarks.published --row NAME [--share 0.1] [--hours 2]
        [--device cuda] [--seed 0] [--out DIR]
    python -m benchmarks.published --table [--out DIR]

A row is the paper's data, architecture, objective and schedule (``rows``). Its training is kept
in a folder of DIR, and the same command continues it. Training stops after the given hours, at the
end of an epoch; the row is measured as it is, which takes some minutes more, and the JSON file
says how much of the schedule it had. ``--share`` multiplies all lengths of the schedule.

``--table`` prints the JSON files of DIR beside the published numbers, as Markdown.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import vilvm
from benchmarks.published.measuring import measure
from benchmarks.published.rows import ROWS, Row
from benchmarks.published.table import markdown, results_in
from benchmarks.published.training import Deadline, train, training_data
from vilvm import report
from vilvm._runtime.files import write_json

__all__ = ["main", "run_row"]


def run_row(row: Row, args: argparse.Namespace, **effort: Any) -> Path | None:
    """Trains a row as far as it goes, measures it, and writes its JSON file.

    Arguments:
        row: the row.
        args: the options of the command line.
        effort: arguments of ``measure``.

    Returns:
        The JSON file; None if the user interrupted training.
    """
    name = f"{args.row}-share{args.share:g}-seed{args.seed}"
    data = row.data()
    torch.manual_seed(args.seed)
    lvm = row.model(training_data(row, data).x)
    deadline = Deadline(args.hours)
    fitted = train(
        row,
        lvm,
        data,
        args.out / name,
        deadline=deadline,
        share=args.share,
        device=args.device,
        seed=args.seed,
    )
    if fitted.stopped == "interrupted" and not deadline.passed:
        return None
    file = args.out / f"{name}.json"
    found = measure(lvm, data, **effort)
    write_json(file, {**_description(row, args, fitted), **found})
    return file


def _description(
    row: Row, args: argparse.Namespace, fitted: vilvm.Fit
) -> dict[str, Any]:
    """What was trained, how far, where and when."""
    last = fitted.history[-1]
    return {
        "row": args.row,
        "seed": args.seed,
        "paper": row.paper,
        "published": row.published,
        "schedule": asdict(row.schedule),
        "share": args.share,
        "epochs": last.step / (last.step // last.epoch if last.epoch else last.step),
        "stopped": fitted.stopped,
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "training_seconds": fitted.seconds,
        "environment": report.environment(args.device, args.seed),
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published",
        description=(__doc__ or "").split("\n\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", choices=ROWS, help="trains and measures this row")
    what.add_argument("--table", action="store_true", help="prints all rows of DIR")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the schedule, above 0, at most 1"
    )
    parser.add_argument(
        "--hours", type=float, default=math.inf, help="of training, in this call"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        parser.error(f"--share must be above 0 and at most 1; got {args.share:g}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    if args.table:
        print(markdown(results_in(args.out)))
        return
    file = run_row(ROWS[args.row], args)
    if file is None:
        raise SystemExit(130)
    print(
        f"{file}\n\n{markdown([r for r in results_in(args.out) if r['row'] == args.row])}"
    )


if __name__ == "__main__":
    main()
