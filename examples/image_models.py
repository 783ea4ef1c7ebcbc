"""Trains a model of images on MNIST, prints its numbers and draws its figure.

    python -m examples.image_models conv_vae
    python -m examples.image_models hierarchical_vae
    python -m examples.image_models ladder_vae
    python -m examples.image_models top_down_vae
    python -m examples.image_models vq_vae
    python -m examples.image_models conditional_vae
    python -m examples.image_models semi_supervised_vae

A convolutional VAE; VAEs of two layers of latents, of a ladder of three, and of two levels with a
VampPrior; a VQ-VAE, with the bits of its codes; a conditional VAE, which completes a picture from
its left half; the semi-supervised VAE M2, from 1,000 labels. Pixels are 0 or 1, drawn once from
the grey levels. Bounds are of the first 1,000 test images.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import vilvm
from examples._options import (
    add_common,
    console,
    dataset_of,
    device_of,
    finished,
    labels_of,
    positive,
    rate,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import plots
from vilvm._runtime.files import write_json
from vilvm.data import Data, StaticBinarisation
from vilvm.data.datasets import Dataset
from vilvm.evaluation import reconstruct
from vilvm.models.conditional_vae import ConditionalVAE
from vilvm.models.conv_vae import ConvVAE
from vilvm.models.hierarchical_vae import HierarchicalVAE
from vilvm.models.ladder_vae import LadderVAE
from vilvm.models.semi_supervised_vae import SemiSupervisedVAE, objective
from vilvm.models.top_down_vae import TopDownVAE
from vilvm.models.vq_vae import VQVAE
from vilvm.networks import mlp
from vilvm.objectives import Annealed
from vilvm.priors import VampPrior
from vilvm.training import one_cycle

LABELS = 1000  # labelled data of the semi-supervised model
TEST = 1000  # test images of the bounds
BITS = torch.log2(torch.tensor(torch.e)).item()  # in a nat

Numbers = dict[str, float]


class Result(NamedTuple):
    """The numbers of a trained model, and its figure."""

    numbers: Numbers
    figure: Figure


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.image_models",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("model", choices=MODELS)
    add_common(parser, "image_models")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=200)
    parser.add_argument(
        "--lr",
        type=rate,
        default=2e-3,
        help="peak learning rate of a one-cycle schedule",
    )
    parser.add_argument("--samples", type=positive, default=500)
    return parser.parse_args(argv)


def train(
    lvm: Any,
    data: Any,
    settings: dict[str, Any],
    loss: Any = None,
    folder: Path | None = None,
) -> float:
    """Trains on the CPU or the GPU, with checkpoints if there is a folder; returns the seconds."""
    sources = data.sources if isinstance(data, vilvm.Interleaved) else (data,)
    steps = sum(-(-len(source) // settings["batch_size"]) for source in sources)
    steps *= settings["epochs"]
    fitted = vilvm.fit(
        lvm,
        data,
        objective=loss or Annealed(Trace_ELBO(), max(1, steps // 4)),
        **one_cycle(settings["lr"], steps),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        device=device_of(settings["device"]),
        seed=settings["seed"],
        run_dir=folder,
        resume=folder is not None,
    )
    lvm.to("cpu")
    return finished(fitted).seconds


def bounds(lvm: Any, data: Data, settings: dict[str, Any]) -> Numbers:
    found = vilvm.evaluate(
        lvm,
        data.subset(slice(0, TEST)),
        num_samples=settings["samples"],
        seed=settings["seed"],
    )
    iwae = found.bounds["iwae"]
    assert found.rate is not None
    return {
        f"IWAE-{settings['samples']} (nats)": iwae.mean,
        "standard error": iwae.se,
        "ELBO (nats)": found.bounds["elbo"].mean,
        "rate (nats)": found.rate.mean,
        "distortion (nats)": found.distortion.mean,
    }


# Models
# --------------------------------------------------------------------------------------------


def conv_vae(x: Tensor) -> ConvVAE:
    return ConvVAE(math.isqrt(x.shape[1]))


def hierarchical_vae(x: Tensor) -> HierarchicalVAE:
    return HierarchicalVAE(x.shape[1], network=partial(mlp, activation=nn.Tanh))


def ladder_vae(x: Tensor) -> LadderVAE:
    return LadderVAE(x.shape[1])


def top_down_vae(x: Tensor) -> TopDownVAE:
    return TopDownVAE(x.shape[1], prior=VampPrior(x[:500], bounds=(0, 1)))


def sampled(
    make: Callable[[Tensor], Any], data: Dataset, settings: dict[str, Any]
) -> Result:
    """A generative model, pictured by draws from its prior."""
    x = data.train.x
    lvm = make(x).start_at(x.mean(0))
    train(lvm, data.train, settings)
    numbers = bounds(lvm, data.test, settings)
    numbers["parameters"] = sum(p.numel() for p in lvm.parameters())
    return Result(numbers, plots.prior_samples(lvm, data.test, 64, settings["seed"]))


def vq_vae(data: Dataset, settings: dict[str, Any]) -> Result:
    lvm = VQVAE(data.train.x.shape[1], memory=4).start_at(data.train.x)
    train(lvm, data.train, settings, Trace_ELBO())
    numbers = bounds(lvm, data.test, settings)
    pixels = data.test.x.shape[1]
    used = lvm.codes(data.test.x).unique()
    numbers |= {
        "bits of the codes, a picture": numbers["rate (nats)"] * BITS,
        "bits if all codes were equally probable": 16 * 6.0,
        "bits of codes and remainder, a pixel": -numbers["ELBO (nats)"] * BITS / pixels,
        "vectors of the codebook in use": len(used),
    }
    shown = data.test.subset(torch.linspace(0, len(data.test) - 1, 12).long()).x
    torch.manual_seed(settings["seed"])
    drawn = vilvm.sample(lvm, 12, mean=True)["x"]
    k = torch.randint(len(lvm.codebook), (12, lvm.event[0]))
    rows = {
        "data": shown,
        "decoded from its codes": reconstruct(lvm, shown),
        "codes from the prior": drawn,
        "codes at random": lvm.decode(lvm.codebook[k]).mean.detach(),
    }
    return Result(numbers, plots.picture_rows(rows, image_shape(data)))


def conditional_vae(data: Dataset, settings: dict[str, Any]) -> Result:
    height, width = image_shape(data)
    half = height * (width // 2)
    train_pair, test_pair = (
        halves(split.x, height, width) for split in (data.train, data.test)
    )
    lvm = ConditionalVAE(height * width - half, half)
    lvm.start_at(train_pair[1].mean(0))
    train(lvm, Data(train_pair, data.name, "train"), settings)
    numbers = bounds(lvm, Data(test_pair, data.name, "test"), settings)
    shown = torch.linspace(0, len(data.test) - 1, 12).long()
    left, right = (part[shown] for part in test_pair)
    torch.manual_seed(settings["seed"])
    rows = {
        "data": whole(left, right, height),
        "left half": whole(left, torch.zeros_like(right), height),
    }
    for i, drawn in enumerate(lvm.generate(left, 4), start=1):
        rows[f"completion {i}"] = whole(left, drawn, height)
    return Result(numbers, plots.picture_rows(rows, (height, width)))


def halves(x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The left and the right halves of pictures, as rows."""
    left, right = x.reshape(-1, height, width).tensor_split([width // 2], -1)
    return left.flatten(1), right.flatten(1)


def whole(left: Tensor, right: Tensor, height: int) -> Tensor:
    parts = [part.reshape(len(part), height, -1) for part in (left, right)]
    return torch.cat(parts, -1).flatten(1)


def ssl(data: Dataset, settings: dict[str, Any]) -> Result:
    x = data.train.x
    lvm = SemiSupervisedVAE(x.shape[1]).start_at(x.mean(0))
    train(lvm, partly_labelled(data.train), settings, objective())
    numbers = bounds(lvm, Data({"x": data.test.x}, data.name, "test"), settings)
    with torch.no_grad():
        wrong = lvm.classify(data.test.x).argmax(-1) != labels_of(data.test)
    numbers |= {
        "labels": len(evenly_labelled(data.train)),
        "test error of q(y | x)": wrong.double().mean().item(),
    }
    return Result(numbers, analogies(lvm, data))


def partly_labelled(data: Data) -> vilvm.Interleaved:
    """All images without their labels; and LABELS of them, often repeated, with."""
    x, y, labelled = data.x, labels_of(data), evenly_labelled(data)
    repeats = max(1, len(x) // len(labelled) // 4)
    return vilvm.Interleaved(
        {"x": x},
        {"x": x[labelled].repeat(repeats, 1), "y": y[labelled].repeat(repeats)},
    )


def evenly_labelled(data: Data) -> Tensor:
    """Indices of the first data of every class: LABELS in all, or a quarter of the data."""
    y = labels_of(data)
    each = min(LABELS, len(y) // 4) // len(y.unique())
    return torch.cat([(y == k).nonzero()[:each, 0] for k in y.unique()])


@torch.no_grad()
def analogies(lvm: SemiSupervisedVAE, data: Dataset, count: int = 8) -> Figure:
    """The style z of a test image in every class; the image stands at the left."""
    x = data.test.x[:count]
    y = lvm.classify(x).argmax(-1)
    z = vilvm.posterior_mean(lvm, {"x": x, "y": y})["z"]
    classes = [
        lvm.decode(torch.full((count,), k), z).mean for k in range(lvm.num_classes)
    ]
    sheet = torch.stack([x, *classes], 1)
    rows = {f"image {i + 1}": row for i, row in enumerate(sheet)}
    return plots.picture_rows(
        rows, image_shape(data), "The style of an image, in every class"
    )


def image_shape(data: Dataset) -> tuple[int, int]:
    assert data.train.image_shape is not None
    height, width = data.train.image_shape[-2:]
    return height, width


MODELS: dict[str, Callable[[Dataset, dict[str, Any]], Result]] = {
    "conv_vae": partial(sampled, conv_vae),
    "hierarchical_vae": partial(sampled, hierarchical_vae),
    "ladder_vae": partial(sampled, ladder_vae),
    "top_down_vae": partial(sampled, top_down_vae),
    "vq_vae": vq_vae,
    "conditional_vae": conditional_vae,
    "semi_supervised_vae": ssl,
}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "image_models") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    data = dataset_of(settings["data"], StaticBinarisation())
    settings["dataset"] = data.name
    write_settings(folder, settings)
    torch.manual_seed(settings["seed"])
    found = MODELS[settings["model"]](data, settings)
    write_json(folder / "results.json", found.numbers)
    save({settings["model"]: found.figure}, folder / "figures")
    for name, value in found.numbers.items():
        console.print(f"{name:<42}{value:10.4g}", highlight=False)
    console.print(f"Figure and numbers are in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    run(main)
