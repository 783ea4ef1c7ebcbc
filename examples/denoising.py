"""Compares denoising auto-encoders on four corruptions of MNIST with a plain auto-encoder.

    python -m examples.denoising
    python -m examples.denoising --epochs 2 --out runs/quick

For each corruption it prints the PSNR, in decibels, of the corrupted test images, of their
reconstructions by a plain auto-encoder of the same networks, and of those by a denoising
auto-encoder trained on this corruption; and it draws a picture.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

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
from vilvm.data import (
    BlockMasking,
    Blur,
    Corrupted,
    Data,
    GaussianNoise,
    PixelErasure,
    Transform,
)
from vilvm.evaluation import Decibels, psnr, reconstruct
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.training import one_cycle


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.denoising", description=(__doc__ or "").split("\n")[0]
    )
    add_common(parser, "denoising")
    parser.add_argument("--latent", type=positive, default=64, help="size of a code")
    parser.add_argument(
        "--epochs", type=positive, help="default: 10 on MNIST, 100 on digits"
    )
    parser.add_argument("--batch-size", type=positive, default=200)
    parser.add_argument(
        "--lr",
        type=rate,
        default=2e-3,
        help="peak learning rate of a one-cycle schedule",
    )
    return parser.parse_args(argv)


def corruptions_of(shape: tuple[int, ...]) -> list[Transform]:
    """The four corruptions, in proportion to the picture."""
    side = min(shape[-2:])
    return [
        GaussianNoise(0.5),
        PixelErasure(0.5),
        BlockMasking(round(side * 12 / 28), shape),
        Blur(side * 2 / 28, shape),
    ]


def train(lvm: Any, data: Data, settings: dict[str, Any], device: str) -> vilvm.Fit:
    total = settings["epochs"] * -(-len(data) // settings["batch_size"])
    fitted = vilvm.fit(
        lvm,
        data,
        **one_cycle(settings["lr"], total),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        device=device,
        seed=settings["seed"],
    )
    return finished(fitted)


def table(rows: dict[str, dict[str, Decibels]], title: str) -> Table:
    out = Table(title=title, title_justify="left")
    for i, head in enumerate(
        ["PSNR (dB)", "corrupted", "plain auto-encoder", "denoising auto-encoder"]
    ):
        out.add_column(head, justify="right" if i else "left")
    for name, found in rows.items():
        out.add_row(name, *(f"{e.value:.2f} ± {e.se:.2f}" for e in found.values()))
    return out


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "denoising") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    data, device = dataset_of(settings["data"], None), device_of(settings["device"])
    settings |= {
        "dataset": data.name,
        "epochs": settings["epochs"] or (10 if data.name == "mnist" else 100),
    }
    write_settings(folder, settings)
    pixels, shape = (
        data.train.x.shape[1],
        data.train.image_shape or (1, data.train.x.shape[1]),
    )
    torch.manual_seed(settings["seed"])
    plain = Autoencoder(pixels, settings["latent"]).start_at(data.train.x.mean(0))
    seconds = {"plain": train(plain, data.train, settings, device).seconds}
    rows, figures = {}, {}
    for corruption in corruptions_of(shape):
        name = corruption.name
        pairs = data.with_transform(Corrupted(corruption))
        torch.manual_seed(settings["seed"])
        lvm = DenoisingAutoencoder(pixels, settings["latent"]).start_at(
            data.train.x.mean(0)
        )
        fitted = train(lvm, pairs.train, settings, device)
        seconds[name] = fitted.seconds
        corrupted, clean = pairs.test.to(device).fixed(settings["seed"]).x
        rows[name] = {
            "corrupted": psnr(corrupted, clean),
            "plain": psnr(reconstruct(plain, corrupted), clean),
            "denoising": psnr(reconstruct(lvm, corrupted), clean),
        }
        figures[name.replace(" ", "_")] = plots.restorations(lvm.to("cpu"), pairs.test)
    save(figures, folder / "figures")
    numbers = {
        name: {k: e._asdict() for k, e in found.items()} for name, found in rows.items()
    }
    write_json(
        folder / "results.json",
        {"psnr": numbers, "seconds": seconds, "num_test": len(data.test)},
    )
    console.print(
        table(
            rows,
            f"{data.name}, {len(data.test):,} test images, codes of {settings['latent']}",
        )
    )
    console.print(
        f"Trained in {sum(seconds.values()):.0f} s; figures and numbers are in {folder}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    run(main)
