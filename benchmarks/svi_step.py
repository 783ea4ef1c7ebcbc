"""A training step: vilvm, eager and compiled, beside PyTorch by hand, Pyro's SVI, NumPyro, and the
matrix products alone.

    uv run --group bench python -m benchmarks.svi_step [--json FILE] [--workload vae]
        [--batch 128] [--rounds 15]

All contenders start from the same parameters, draw batches from the same data and are timed in
turn, round after round, in one process, whose heap is widened for all (vilvm._runtime.memory).
Before the timing, each trains for some hundred steps and must reach the loss of the others.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.interleaved import race
from benchmarks.results import Row, machine, markdown, rows_of, write
from benchmarks.svi.contenders import BASE, FLOOR, Steps, contenders
from benchmarks.svi.workloads import SCHOOLS, WORKLOADS, Workload
from vilvm._runtime.memory import widen_heap
from vilvm.data import StaticBinarisation
from vilvm.data.datasets import mnist

__all__ = ["compare", "main", "pictures"]

# steps before the timing, fewer of large batches; the loss of the last third is compared
_TRAINED = 300


def compare(
    workload: Workload,
    batch: int | None,
    rounds: int,
    device: str = "cpu",
    trained: int = _TRAINED,
) -> list[Row]:
    """Times the contenders of one workload.

    Raises:
        AssertionError: one of them does not reach the loss of the others.
    """
    widen_heap()
    data = _data(workload, device)
    steps = _made(workload, data, batch, device)
    _check_losses(
        {name: take(trained)[-trained // 3 :] for name, take in steps.items()}
    )
    count = max(4, workload.steps * 128 // (batch or 128))
    seconds = race({name: partial(take, count) for name, take in steps.items()}, rounds)
    ms = {name: [s / count * 1e3 for s in taken] for name, taken in seconds.items()}
    return rows_of(workload.name, batch, ms, BASE, FLOOR)


def _data(workload: Workload, device: str) -> Any:
    return (
        tuple(t.to(device) for t in SCHOOLS)
        if workload.name == "eight_schools"
        else pictures(device)
    )


def pictures(device: str) -> Tensor:
    """Binary pictures: MNIST if it is on disk, else independent pixels."""
    try:
        return mnist(transform=StaticBinarisation()).train.x[:25_600].to(device)
    except FileNotFoundError:
        print("MNIST is not here: independent pixels take its place.", file=sys.stderr)
        return torch.bernoulli(torch.rand(784).square().expand(25_600, 784)).to(device)


def _made(
    workload: Workload, data: Any, batch: int | None, device: str
) -> dict[str, Steps]:
    found = dict(contenders(workload, data, batch, device))
    if device == "cpu" and workload.objective is Trace_ELBO:
        try:
            from benchmarks.svi.peers import contenders as peers

            torch.manual_seed(0)
            found.update(peers(workload, data, batch, workload.make()))
        except ModuleNotFoundError as error:
            print(
                f"NOT TIMED: NumPyro ({error}); uv run --group bench has it.",
                file=sys.stderr,
            )
    made = {}
    for name, make in found.items():
        began = time.perf_counter()
        made[name] = make()
        made[name](2)
        print(
            f"  {name}: ready in {time.perf_counter() - began:.1f} s", file=sys.stderr
        )
    return made


def _check_losses(losses: Mapping[str, list[float]]) -> None:
    """Checks that all mean losses are within 5 standard errors of the base's.

    Noise and batches differ between contenders.
    """
    means = {
        name: (statistics.mean(v), statistics.stdev(v) / len(v) ** 0.5)
        for name, v in losses.items()
        if v
    }
    mean, se = means[BASE]
    for name, (other, error) in means.items():
        allowed = 5 * (se**2 + error**2) ** 0.5
        assert abs(other - mean) < allowed, (
            f"{name} reaches a loss of {other:.3f}, and {BASE} one of {mean:.3f} ± {allowed:.3f}"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.svi_step", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument(
        "--workload", choices=[*WORKLOADS], action="append", help="default: all"
    )
    parser.add_argument(
        "--batch", type=int, action="append", help="default: 128 and 1024"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three rounds at batch 128, to see that it works",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.batch = 3, [128]
    print(machine(args.device))
    rows: list[Row] = []
    for workload, batch in _chosen(args.workload, args.batch):
        trained = min(_TRAINED, max(90, _TRAINED * 128 // (batch or 128)))
        found = compare(workload, batch, args.rounds, args.device, trained)
        print(markdown(found), flush=True)
        rows += found
        if args.json:
            write(args.json, rows, args.device)


def _chosen(
    names: list[str] | None, batches: list[int] | None
) -> Iterator[tuple[Workload, int | None]]:
    """The chosen workloads and batches; workloads without a batch are always included."""
    for name in names or WORKLOADS:
        for batch in WORKLOADS[name].batches:
            if batch is None or not batches or batch in batches:
                yield WORKLOADS[name], batch


if __name__ == "__main__":
    main()
