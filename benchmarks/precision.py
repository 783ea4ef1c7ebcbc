"""The effect of bfloat16 networks on bound and time: the VAE of the main example, trained in both
precisions from three seeds.

    python -m benchmarks.precision [--epochs 3]

The same parameters are also evaluated in both precisions with the same noise, so that the
difference has a small standard error.
"""

import argparse
import statistics
from typing import Any

import torch

import vilvm
from benchmarks.results import machine
from vilvm._runtime.precision import PRECISIONS
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import Dataset, digits, mnist
from vilvm.evaluation import Estimate
from vilvm.models.vae import VAE

SAMPLES, TEST = 500, 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)
    try:
        data = mnist(transform=DynamicBinarisation())
    except FileNotFoundError:
        data = digits(transform=DynamicBinarisation())
    test = data.test.subset(slice(0, TEST))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        machine(device),
        f"{data.name}, {args.epochs} epochs, IWAE-{SAMPLES} of {len(test)} test images, nats an "
        "image\n",
    )
    print(
        "| seed | trained in | seconds | evaluated in float32 | in bf16 | bf16 − float32, same "
        "parameters | | seconds |\n|---|---|---|---|---|---|---|---|"
    )
    trained: dict[str, list[float]] = {p: [] for p in PRECISIONS}
    for seed in range(3):
        for precision in PRECISIONS:
            options = {
                "epochs": args.epochs,
                "batch_size": 200,
                "seed": seed,
                "device": device,
            }
            lvm, seconds = train(data, precision, **options)
            bound, row = compare(lvm, test)
            trained[precision].append(bound)
            print(f"| {seed} | {precision} | {seconds:.0f} | {row}", flush=True)
    differences = [b - a for a, b in zip(*trained.values(), strict=True)]
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    print(
        f"\ntrained in bf16 − in float32, over seeds: {statistics.mean(differences):+.3f} ± "
        f"{spread:.3f}"
    )


def train(
    data: Dataset, precision: Any, seed: int, **options: Any
) -> tuple[VAE, float]:
    """A trained model, and the seconds of its training."""
    torch.manual_seed(seed)
    lvm = VAE(data.train.x.shape[1], 20, decoder_hidden=(400,)).start_at(
        data.train.x.mean(0)
    )
    fitted = vilvm.fit(lvm, data.train, precision=precision, seed=seed, **options)
    return lvm, fitted.seconds


def compare(lvm: VAE, test: vilvm.Data) -> tuple[float, str]:
    """The bound in float32, and the cells of a row that compares both precisions."""
    found = {
        p: vilvm.evaluate(lvm, test, num_samples=SAMPLES, precision=p)
        for p in PRECISIONS
    }
    full, half = (found[p].bounds["iwae"] for p in ("float32", "bf16"))
    apart = half.values - full.values
    difference = Estimate(
        apart, torch.zeros_like(apart)
    )  # the noise is the same in both
    times = " / ".join(f"{e.seconds:.1f}" for e in found.values())
    return full.mean, (
        f"{full.mean:.3f} ± {full.se:.2f} | {half.mean:.3f} | "
        f"{difference.mean:+.4f} ± {difference.se:.4f} | largest {apart.abs().max():.3f} "
        f"| {times} |"
    )


if __name__ == "__main__":
    main()
