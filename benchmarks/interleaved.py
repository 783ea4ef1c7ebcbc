"""Cases timed in turn, round after round in one process, so that a slow minute of the machine
affects all cases equally.
"""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["race", "report"]


def race(
    cases: Mapping[str, Callable[[], object]], rounds: int = 11, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every case in every round; the first `warmup` rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + rounds):
        for name, case in cases.items():
            _wait()
            began = time.perf_counter()
            case()
            _wait()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(
    title: str, seconds: Mapping[str, list[float]], per: float = 1.0, unit: str = "s"
) -> None:
    """Prints median seconds divided by `per`, and median and quartiles of the ratio to the first
    case.
    """
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    first = next(iter(seconds.values()))
    print(
        f"\n**{title}**, {datetime.date.today()}, {device}, torch {torch.__version__}, "
        f"{platform.machine()}\n"
    )
    print(f"| | {unit} | times the first (quartiles) |\n|---|---|---|")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(
            [v / f for v, f in zip(values, first, strict=True)], n=4
        )
        print(
            f"| {name} | {statistics.median(values) / per:.3g} | {middle:.2f} ({low:.2f} to "
            f"{high:.2f}) |"
        )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
