"""The rate–distortion curve of a VAE as a lossy compressor, from a sweep of β.

    python -m examples.rate_distortion
    python -m examples.rate_distortion --data digits --epochs 30 --betas 0.3 1 3

Each model minimises distortion + β · rate, and is one point of the curve: the rate is the expected
number of bits of a code by bits-back coding, the distortion the number of bits that the picture
needs beside its code. Their sum is the length of a lossless code, at least −log₂ p(x); it is
smallest for β = 1, the ELBO.

Reference: Fixing a Broken ELBO, Alemi et al., 2018.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

import vilvm
from examples._options import (
    add_common,
    console,
    dataset_of,
    device_of,
    finished,
    positive,
    rate,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import plots
from vilvm._runtime.files import write_json
from vilvm.data import StaticBinarisation
from vilvm.data.datasets import Dataset
from vilvm.models.vae import VAE
from vilvm.objectives import BetaELBO
from vilvm.training import one_cycle

TEST = 1000  # test images of each point


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.rate_distortion",
        description=(__doc__ or "").split("\n")[0],
    )
    add_common(parser, "rate_distortion")
    parser.add_argument("--epochs", type=positive, default=5, help="of each model")
    parser.add_argument(
        "--betas", type=rate, nargs="+", default=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    )
    return parser.parse_args(argv)


def point(beta: float, data: Dataset, settings: dict[str, Any]) -> dict[str, float]:
    """Rate, distortion and their sum on test images, in bits."""
    torch.manual_seed(settings["seed"])
    pixels = data.train.x.shape[1]
    lvm = VAE(pixels, 20, encoder_hidden=(400,), decoder_hidden=(400,))
    steps = settings["epochs"] * -(-len(data.train) // 200)
    finished(
        vilvm.fit(
            lvm.start_at(data.train.x.mean(0)),
            data.train,
            objective=BetaELBO(beta),
            epochs=settings["epochs"],
            batch_size=200,
            device=device_of(settings["device"]),
            seed=settings["seed"],
            **one_cycle(4e-3, steps),
        )
    )
    test = data.test.subset(slice(0, TEST))
    found = vilvm.evaluate(lvm, test, num_samples=50, seed=settings["seed"])
    assert found.rate is not None
    nats, bits = found.distortion.mean, 1 / math.log(2)
    return {
        "beta": beta,
        "rate, bits a picture": found.rate.mean * bits,
        "distortion, bits a pixel": nats * bits / pixels,
        "sum, bits a pixel": -found.bounds["elbo"].mean * bits / pixels,
        "se of the sum": found.bounds["elbo"].se * bits / pixels,
    }


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "rate_distortion") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    data = dataset_of(settings["data"], StaticBinarisation())
    settings["dataset"] = data.name
    write_settings(folder, settings)
    points = [point(beta, data, settings) for beta in settings["betas"]]
    rates = [found["rate, bits a picture"] for found in points]
    rows = {
        name: [found[f"{name}, bits a pixel"] for found in points]
        for name in ("distortion", "sum")
    }
    errors = [found["se of the sum"] for found in points]
    figure = plots.curves(
        rates,
        rows,
        dict.fromkeys(rows, errors),
        ("rate (bits a picture)", "bits a pixel"),
        "Rate and distortion, one VAE for each β",
    )
    save({"rate_distortion": figure}, folder / "figures")
    write_json(folder / "results.json", {"points": points})
    for found in points:
        line = "   ".join(f"{name} {value:.4g}" for name, value in found.items())
        console.print(line, highlight=False)
    console.print(f"Figure and numbers are in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    run(main)
