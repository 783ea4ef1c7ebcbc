"""The time of a training step against latent size, batch and number of data, and the time of an
evaluation against samples, each with the exponent of a power law.

python -m benchmarks.scaling [--figure FILE.png]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.interleaved import race
from benchmarks.results import machine
from benchmarks.svi.contenders import vilvm_fit
from benchmarks.svi.workloads import Net
from vilvm import evaluate
from vilvm._runtime.memory import widen_heap
from vilvm.networks import mlp
from vilvm.plots._style import hide_spines

ROUNDS = 7
Cases = dict[tuple[str, int], tuple[Callable[[], object], int]]


def net(latent: int = 20) -> Net:
    torch.manual_seed(0)
    return Net(mlp(784, [400], 2 * latent), mlp(latent, [400], 784), latent)


def pixels(count: int) -> torch.Tensor:
    return torch.bernoulli(torch.full((count, 784), 0.2))


def steps_of(
    latent: int, batch: int, count: int, compiled: bool
) -> tuple[Callable[[], object], int]:
    """Training steps after a warm-up, and their number."""
    steps = vilvm_fit(net(latent), pixels(count), batch, compiled)
    steps(count // batch + 30)  # the first epoch is eager
    number = max(4, 4000 // batch)
    return partial(steps, number), number


def evaluation_of(samples: int) -> tuple[Callable[[], object], int]:
    return partial(evaluate, net(), pixels(50), num_samples=samples, progress=False), 1


def exponent(times: dict[int, float]) -> float:
    """b of time ∝ size^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args(argv)
    widen_heap()
    found = milliseconds(all_cases())
    print(machine())
    print("\n| ms against | | exponent |\n|---|---|---|")
    for name, times in found.items():
        print(
            f"| {name} | {', '.join(f'{k}: {v:.3g}' for k, v in times.items())} | "
            f"{exponent(times):.2f} |",
            flush=True,
        )
    if args.figure:
        figure(found).savefig(args.figure, dpi=110)


def all_cases() -> Cases:
    """The function to time and its number of steps, by name and size."""
    cases: Cases = {}
    for way, compiled in (("eager", False), ("compiled", True)):
        for d in (2, 8, 32, 128, 512):
            cases[f"latent size, batch 128, {way}", d] = steps_of(
                d, 128, 1280, compiled
            )
        for b in (32, 128, 512, 2048):
            cases[f"batch, {way}", b] = steps_of(20, b, 10 * b, compiled)
        for n in (1280, 12_800, 64_000):
            cases[f"number of data, batch 128, {way}", n] = steps_of(
                20, 128, n, compiled
            )
    for s in (100, 400, 1600, 6400):
        cases["samples of an evaluation of 50 images", s] = evaluation_of(s)
    return cases


def milliseconds(cases: Cases) -> dict[str, dict[int, float]]:
    """The median time of a step, by name and size."""
    found: dict[str, dict[int, float]] = {}
    seconds = race(
        {f"{name}|{size}": case for (name, size), (case, _) in cases.items()},
        ROUNDS,
        warmup=1,
    )
    for ((name, size), (_, number)), taken in zip(
        cases.items(), seconds.values(), strict=True
    ):
        found.setdefault(name, {})[size] = statistics.median(taken) / number * 1e3
    return found


def figure(found: dict[str, dict[int, float]]) -> Figure:
    out = Figure(figsize=(9, 5.5), layout="constrained")
    kinds = list(dict.fromkeys(name.split(",")[0] for name in found))
    for axes, kind in zip(out.subplots(2, 2).flat, kinds, strict=True):
        for name, times in found.items():
            if name.split(",")[0] == kind:
                label = f"exponent {exponent(times):.2f}"
                if "," in name:
                    label = f"{name.split(', ')[-1]}, {label}"
                axes.loglog(
                    list(times), list(times.values()), "o-", markersize=4, label=label
                )
        sizes = list(
            next(times for name, times in found.items() if name.split(",")[0] == kind)
        )
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(FuncFormatter(lambda ms, _: f"{ms:g}"))
        axes.tick_params(labelsize=8, which="both")
        axes.set_xlabel(kind, fontsize=9)
        axes.set_ylabel("ms", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        hide_spines(axes)
    return out


if __name__ == "__main__":
    main()
