"""What bfloat16 networks do to the bound, and to the time: the VAE of the main job, trained in
both precisions from three seeds.

    python -m benchmarks.precision [--epochs 3]

The same parameters are also evaluated in both, on the same noise, so that the difference has a
small standard error.
"""

import argparse
import statistics

import torch

import vilvm
from benchmarks.rows import machine
from vilvm._runtime.precision import PRECISIONS
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import digits, mnist
from vilvm.evaluation import Estimate
from vilvm.models.vae import VAE

SAMPLES, TEST = 500, 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=(__doc__ or "").split("\n")[0]
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
            torch.manual_seed(seed)
            lvm = VAE(data.train.x.shape[1], 20, decoder_hidden=(400,)).start_at(
                data.train.x.mean(0)
            )
            options = {"epochs": args.epochs, "batch_size": 200, "seed": seed, "device": device}
            fitted = vilvm.fit(lvm, data.train, precision=precision, **options)
            found = {
                p: vilvm.evaluate(lvm, test, num_samples=SAMPLES, precision=p) for p in PRECISIONS
            }
            bounds = {p: e.bounds["iwae"] for p, e in found.items()}
            apart = bounds["bf16"].values - bounds["float32"].values
            difference = Estimate(apart, torch.zeros_like(apart))  # noise is the same in both
            trained[precision].append(bounds["float32"].mean)
            times = " / ".join(f"{e.seconds:.1f}" for e in found.values())
            print(
                f"| {seed} | {precision} | {fitted.seconds:.0f} | {bounds['float32'].mean:.3f} ± "
                f"{bounds['float32'].se:.2f} | {bounds['bf16'].mean:.3f} | "
                f"{difference.mean:+.4f} ± {difference.se:.4f} | largest {apart.abs().max():.3f} "
                f"| {times} |",
                flush=True,
            )
    apart_trained = [b - a for a, b in zip(*trained.values(), strict=True)]
    spread = statistics.stdev(apart_trained) / len(apart_trained) ** 0.5
    print(
        f"\ntrained in bf16 − in float32, over seeds: {statistics.mean(apart_trained):+.3f} ± "
        f"{spread:.3f}"
    )


if __name__ == "__main__":
    main()
