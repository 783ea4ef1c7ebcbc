"""What the dimensions of a latent space mean, and what can be done with them.

    python -m examples.latent_spaces
    python -m examples.latent_spaces --data digits --epochs 20 --out runs/quick

- Disentanglement: a VAE and a β-VAE of shapes whose factors are known; the mutual information gap
  of each, and traversals of their dimensions.
- Arithmetic: the difference of the mean codes of bold and of thin digits is added to codes.
- Design: from the code of a digit, gradient ascent of the probability of another class, plus the
  log-density of the prior, which keeps the code where the decoder was trained. A second network,
  which sees pictures and no codes, judges the results.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import vilvm
from examples._options import (
    add_common,
    console,
    dataset_of,
    finished,
    labels_of,
    positive,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import plots
from vilvm._runtime.files import write_json
from vilvm.data import Data, DynamicBinarisation, StaticBinarisation
from vilvm.data.datasets import Dataset, shape_factors, shapes
from vilvm.evaluation import mig
from vilvm.models.vae import VAE
from vilvm.networks import mlp
from vilvm.objectives import BetaELBO
from vilvm.training import one_cycle

BETAS = (1.0, 4.0)
TARGET = 3  # the class that design aims at

Numbers = dict[str, float]
Figures = dict[str, Figure]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.latent_spaces",
        description=(__doc__ or "").split("\n")[0],
    )
    add_common(parser, "latent_spaces")
    parser.add_argument("--epochs", type=positive, default=5, help="on the digits")
    parser.add_argument("--steps", type=positive, default=4000, help="on the shapes")
    return parser.parse_args(argv)


# Disentanglement
# --------------------------------------------------------------------------------------------


def disentanglement(settings: dict[str, Any]) -> tuple[Numbers, Figures]:
    """The mutual information gap of a VAE and a β-VAE, and traversals from one picture."""
    everything = all_shapes()
    numbers, figures = {}, {}
    for beta in BETAS:
        torch.manual_seed(settings["seed"])
        lvm = VAE(256, 6, encoder_hidden=(128, 128), decoder_hidden=(128, 128))
        finished(
            vilvm.fit(
                lvm.start_at(everything.x.mean(0)),
                everything,
                objective=BetaELBO(beta),
                steps=settings["steps"],
                batch_size=100,
                seed=settings["seed"],
                **one_cycle(2e-3, settings["steps"]),
            )
        )
        found = information_gap(lvm, everything)
        numbers[f"MIG, β = {beta:g}"] = found.score
        for name, gap in found.gaps.items():
            numbers[f"gap of {name}, β = {beta:g}"] = gap
        middle = everything.subset(torch.tensor([526]))  # a disc in the middle
        figures[f"traversal_beta_{beta:g}"] = plots.traversal(lvm, middle, steps=13)
    return numbers, figures


def all_shapes() -> Data:
    splits = shapes()
    labels = torch.cat([labels_of(split) for split in splits])
    x = torch.cat([split.x for split in splits])[labels.argsort()]
    binarise = DynamicBinarisation()
    return Data(x, "shapes", "all", binarise, labels.sort().values, (16, 16))


def information_gap(lvm: VAE, data: Data, num_draws: int = 10) -> Any:
    codes = vilvm.posterior(lvm, data.fixed().x, num_draws)["z"].flatten(0, 1)
    return mig(codes, shape_factors(labels_of(data).repeat(num_draws)))


# Arithmetic
# --------------------------------------------------------------------------------------------


def arithmetic(lvm: VAE, data: Dataset) -> tuple[Numbers, Figures]:
    """Adds multiples of mean code (bold) − mean code (thin), within each class, to test codes."""
    x, y = data.train.x, labels_of(data.train)
    bold = torch.zeros(len(x), dtype=torch.bool)
    for k in y.unique():
        bold[y == k] = x[y == k].sum(1) > x[y == k].sum(1).median()
    z = codes_of(lvm, x)
    direction = z[bold].mean(0) - z[~bold].mean(0)
    one_each = torch.stack(
        [(labels_of(data.test) == k).nonzero()[0, 0] for k in range(8)]
    )
    start = codes_of(lvm, data.test.x[one_each])
    rows, ink = {}, {}
    for factor in (-3, -2, -1, 0, 1, 2, 3):
        pictures = decoded(lvm, start + factor * direction)
        rows[f"{factor:+d}" if factor else "code"] = pictures
        ink[f"ink at {factor:+d} times bold − thin"] = pictures.sum(1).mean().item()
    return ink, {"arithmetic": plots.picture_rows(rows, data.test.image_shape)}


# Design
# --------------------------------------------------------------------------------------------


def design(lvm: VAE, data: Dataset) -> tuple[Numbers, Figures]:
    """Moves test digits of every class to the target class, by gradient ascent in the code."""
    x, y = data.train.x, labels_of(data.train)
    predictor = classifier(codes_of(lvm, x), y)
    judge = classifier(x, y)
    others = labels_of(data.test) != TARGET
    z = codes_of(lvm, data.test.x[others][:200])
    path = [z, *ascent(predictor, z)]
    shown = torch.linspace(0, len(z) - 1, 12).long()
    rows = {
        f"step {step}": decoded(lvm, path[step][shown])
        for step in (0, 5, 10, 15, 20, 30, 40)
    }
    numbers = {}
    for step in (0, 40):
        probability = judge(decoded(lvm, path[step])).softmax(-1)[:, TARGET]
        numbers[f"p({TARGET}) by the judge, step {step}"] = probability.mean().item()
        numbers[f"mean of |z|² per dimension, step {step}"] = (
            path[step].square().mean().item()
        )
    return numbers, {"design": plots.picture_rows(rows, data.test.image_shape)}


def ascent(predictor: nn.Module, z: Tensor, steps: int = 40, rate: float = 0.1) -> list:
    """The codes after each step of gradient ascent of log p(target | z) + log p(z) / 10."""
    path = []
    for _ in range(steps):
        z = z.detach().requires_grad_()
        log_p = predictor(z).log_softmax(-1)[:, TARGET]
        value = log_p - 0.1 * z.square().sum(-1) / 2
        z = z + rate * torch.autograd.grad(value.sum(), z)[0]
        path.append(z.detach())
    return path


def classifier(x: Tensor, y: Tensor, steps: int = 1000) -> nn.Module:
    network = mlp(x.shape[1], (128,), 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (200,))
        loss = cross_entropy(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def codes_of(lvm: VAE, x: Tensor) -> Tensor:
    return vilvm.posterior_mean(lvm, x)["z"]


@torch.no_grad()
def decoded(lvm: VAE, z: Tensor) -> Tensor:
    return lvm.decode(z).mean


# The run
# --------------------------------------------------------------------------------------------


def digit_model(data: Dataset, settings: dict[str, Any]) -> VAE:
    torch.manual_seed(settings["seed"])
    lvm = VAE(data.train.x.shape[1], 10, encoder_hidden=(400,), decoder_hidden=(400,))
    steps = settings["epochs"] * -(-len(data.train) // 200)
    finished(
        vilvm.fit(
            lvm.start_at(data.train.x.mean(0)),
            data.train,
            epochs=settings["epochs"],
            batch_size=200,
            seed=settings["seed"],
            **one_cycle(4e-3, steps),
        )
    )
    return lvm


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "latent_spaces") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    data = dataset_of(settings["data"], StaticBinarisation())
    settings["dataset"] = data.name
    write_settings(folder, settings)
    numbers, figures = disentanglement(settings)
    lvm = digit_model(data, settings)
    for part in (arithmetic, design):
        found, drawn = part(lvm, data)
        numbers |= found
        figures |= drawn
    save(figures, folder / "figures")
    write_json(folder / "results.json", numbers)
    for name, value in numbers.items():
        console.print(f"{name:<42}{value:10.3f}", highlight=False)
    console.print(f"Figures and numbers are in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    run(main)
