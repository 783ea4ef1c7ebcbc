"""Memory over many training steps, and in evaluations with more and more samples.

python -m benchmarks.faults.growth [--steps 10000] [--samples 1000000]
"""

import argparse
import math
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vilvm
from benchmarks.faults.children import Ending, ended, one_thread, start
from benchmarks.faults.configurations import Normalised
from benchmarks.faults.table import Row, markdown
from vilvm.data import DynamicBinarisation
from vilvm.models.vae import VAE

__all__ = ["rows"]

_GROWTH = 8.0  # MB that a run may grow by, after its programs are compiled
_SPREAD = 1.15  # largest ratio of the peaks of evaluations


def resident() -> float:
    """Resident memory of this process, in MB."""
    return (
        int(Path("/proc/self/statm").read_text().split()[1])
        * os.sysconf("SC_PAGE_SIZE")
        / 2**20
    )


def training(steps: int, **options: Any) -> dict[str, Any]:
    """Trains; returns the resident memory after a fifth of the steps, and at the end."""
    torch.manual_seed(0)
    held: dict[int, float] = {}

    def record(event: vilvm.Event) -> None:
        held[event.history[-1].step] = resident()

    data = vilvm.Data(torch.rand(1000, 64), transform=DynamicBinarisation())
    vilvm.fit(
        VAE(64, 4),
        data,
        steps=steps,
        batch_size=20,
        callbacks=[record],
        progress=False,
        **options,
    )
    first = min(step for step in held if step >= steps // 5)
    return {"early": held[first], "late": held[max(held)]}


def evaluation(samples: int) -> dict[str, Any]:
    """The peak memory of an evaluation, in MB."""
    torch.manual_seed(0)
    vilvm.evaluate(Normalised(), torch.randn(10, 6), num_samples=samples)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _child(work: Callable[[], dict[str, Any]], folder: Path) -> Ending:
    outcome = folder / "outcome.json"
    return ended(start(work, outcome), outcome, 1800.0)


def rows(
    steps: int = 10_000, samples: int = 1_000_000, verbose: bool = True
) -> list[Row]:
    """A row for compiled steps, one for eager steps, and one for samples."""
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as folder:
        out = [
            _training_row("compiled", steps, Path(folder), compile=True),
            _training_row("eager", steps, Path(folder), compile=False),
            _evaluation_row(samples, Path(folder)),
        ]
    if verbose:
        print(out, file=sys.stderr, flush=True)
    return out


def _training_row(name: str, steps: int, folder: Path, **options: Any) -> Row:
    ending = _child(partial(training, steps, **options), folder)
    grown = math.nan
    if ending.how == "done":
        grown = ending.found["late"] - ending.found["early"]
    good = grown < _GROWTH
    seen = f"memory grows by {max(0.0, grown):.1f} MB over the last four fifths"
    trouble = (f"{name}: {ending}",) * (not good)
    return Row(f"{steps:,} {name} steps", 1, int(good), seen, trouble)


def _evaluation_row(samples: int, folder: Path) -> Row:
    counts = [samples // 100, samples // 10, samples]
    endings = [_child(partial(evaluation, count), folder) for count in counts]
    peaks = [ending.found.get("peak", math.nan) for ending in endings]
    good = max(peaks) <= _SPREAD * min(peaks)
    sizes = ", ".join(f"{count:,}" for count in counts)
    seen = f"the peak is {', '.join(f'{peak:.0f}' for peak in peaks)} MB"
    trouble = (f"{endings}",) * (not good)
    name = f"evaluation with {sizes} samples"
    return Row(name, len(counts), len(counts) * good, seen, trouble)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.growth",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    args = parser.parse_args(argv)
    one_thread()
    found = rows(args.steps, args.samples)
    print(markdown(found))
    sys.exit(any(row.trouble for row in found))


if __name__ == "__main__":
    main()
