"""Whether memory stays what it was: over many compiled steps, and in an evaluation of ever more
samples.

python -m benchmarks.faults.growth [--steps 10000] [--samples 1000000]
"""

import argparse
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

_GROWTH = 8.0  # MB that a run may grow by, after its programs are made
_SPREAD = 1.15  # by which the peaks of evaluations may differ


def resident() -> float:
    """Memory that this process holds now, in MB."""
    return (
        int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


def training(steps: int, **options: Any) -> dict[str, Any]:
    """Trains, and returns what the process held after a fifth of the steps, and at the end."""
    torch.manual_seed(0)
    held: dict[int, float] = {}

    def look(event: vilvm.Event) -> None:
        held[event.history[-1].step] = resident()

    data = vilvm.Data(torch.rand(1000, 64), transform=DynamicBinarisation())
    vilvm.fit(
        VAE(64, 4), data, steps=steps, batch_size=20, callbacks=[look], progress=False, **options
    )
    first = min(step for step in held if step >= steps // 5)
    return {"early": held[first], "late": held[max(held)]}


def evaluation(samples: int) -> dict[str, Any]:
    """The largest memory of an evaluation, in MB."""
    torch.manual_seed(0)
    vilvm.evaluate(Normalised(), torch.randn(10, 6), num_samples=samples)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _child(work: Callable[[], dict[str, Any]], folder: Path) -> Ending:
    outcome = folder / "outcome.json"
    return ended(start(work, outcome), outcome, 1800.0)


def rows(steps: int = 10_000, samples: int = 1_000_000, verbose: bool = True) -> list[Row]:
    """A row for compiled steps, one for eager steps, and one for samples."""
    out = []
    with tempfile.TemporaryDirectory(prefix="vilvm-faults-") as base:
        for name, options in {"compiled": {"compile": True}, "eager": {"compile": False}}.items():
            told = _child(partial(training, steps, **options), Path(base))
            grown = (
                told.found["late"] - told.found["early"] if told.how == "done" else float("nan")
            )
            good = grown < _GROWTH
            seen = f"memory grows by {max(0.0, grown):.1f} MB over the last four fifths"
            out.append(
                Row(
                    f"{steps:,} {name} steps",
                    1,
                    int(good),
                    seen,
                    (f"{name}: {told}",) * (not good),
                )
            )
        counts = [samples // 100, samples // 10, samples]
        told = [_child(partial(evaluation, n), Path(base)) for n in counts]
        peaks = [t.found.get("peak", float("nan")) for t in told]
        good = max(peaks) <= _SPREAD * min(peaks)
        sizes = ", ".join(f"{n:,}" for n in counts)
        seen = f"the peak is {', '.join(f'{p:.0f}' for p in peaks)} MB"
        out.append(
            Row(
                f"evaluation with {sizes} samples",
                len(counts),
                len(counts) * good,
                seen,
                (f"{told}",) * (not good),
            )
        )
    if verbose:
        print(out, file=sys.stderr, flush=True)
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.growth", description=(__doc__ or "").split("\n")[0]
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
