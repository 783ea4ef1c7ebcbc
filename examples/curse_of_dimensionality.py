"""Shows the error of three estimates of log p(x) against the dimension of the latent.

The estimates are naive Monte Carlo, the importance-weighted bound and annealing.

    python -m examples.curse_of_dimensionality
    python -m examples.curse_of_dimensionality --dimensions 2 10 50 --samples 2000

The model is linear and Gaussian, x = W z + noise, with twice as many observed dimensions as latent
ones, so that log p(x) is known in closed form. Each method uses S draws. Naive Monte Carlo
computes log (1/S) Σ p(x | z) with z from the prior. In more than a few dimensions its draws miss
the posterior, and nothing in its result shows this. The importance-weighted bound draws from a
fitted guide. Annealed importance sampling takes S gradients from the prior to the posterior, and
needs no guide.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import vilvm
from examples._options import console, positive, run, run_folder, save, write_settings
from vilvm import plots
from vilvm._runtime.files import write_json
from vilvm.evaluation import Estimate, Schedule, ais, evaluate
from vilvm.models.ppca import PPCA
from vilvm.wrappers import fit_guide, with_prior_guide

METHODS = {
    "naive": "naive Monte Carlo",
    "iwae": "importance-weighted",
    "ais": "annealed (AIS)",
}
_CHAINS, _LEAPFROG = 16, 5


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.curse_of_dimensionality",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument(
        "--dimensions",
        type=positive,
        nargs="+",
        default=[1, 2, 5, 10, 20, 50, 100],
        help="of the latent",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=8000,
        help="draws, or gradients of AIS, for each datum",
    )
    parser.add_argument(
        "--data",
        type=positive,
        default=20,
        help="number of data over which errors are averaged",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        default=100,
        help="of the guide's training, on 2,000 draws from the model",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder; default: runs/curse_of_dimensionality-DATE-TIME",
    )
    return parser.parse_args(argv)


def linear_model(dimension: int) -> PPCA:
    """A random linear Gaussian model of two observed dimensions for each latent one."""
    lvm = PPCA(2 * dimension, dimension)
    with torch.no_grad():
        lvm.W.copy_(torch.randn(2 * dimension, dimension) / dimension**0.5)
        lvm.log_sigma.fill_(-1.0)
    return lvm


def errors(dimension: int, settings: dict[str, Any]) -> dict[str, Estimate]:
    """Estimate − log p(x) of every datum, by method, in nats."""
    seed, samples = settings["seed"], settings["samples"]
    torch.manual_seed(seed)
    model = linear_model(dimension)
    train, x = (
        vilvm.sample(model, 2000)["x"],
        vilvm.sample(model, settings["data"])["x"],
    )
    encoder = torch.nn.Linear(2 * dimension, 2 * dimension)
    lvm, _ = fit_guide(
        model,
        train,
        encoder,
        epochs=settings["epochs"],
        lr=0.02,
        seed=seed,
        progress=False,
    )
    schedule = Schedule(
        _CHAINS, max(2, samples // (_CHAINS * _LEAPFROG)), _LEAPFROG, base="prior"
    )
    guided = evaluate(lvm, x, num_samples=samples, seed=seed, progress=False).bounds
    found = {
        "naive": evaluate(
            with_prior_guide(model),
            x,
            bounds="iwae",
            num_samples=samples,
            seed=seed,
            progress=False,
        ).bounds["iwae"],
        "iwae": guided["iwae"],
        "ais": ais(model, x, schedule, seed=seed, progress=False).bound,
    }
    return {
        name: Estimate(bound.values - guided["exact"].values, bound.errors)
        for name, bound in found.items()
    }


def table(found: dict[int, dict[str, Estimate]]) -> Table:
    out = Table(title="Estimate − log p(x), nats per datum", title_justify="left")
    out.add_column("dimensions", justify="right")
    for name in METHODS.values():
        out.add_column(name, justify="right")
    for dimension, row in found.items():
        out.add_row(
            str(dimension), *(f"{row[m].mean:.2f} ± {row[m].se:.2f}" for m in METHODS)
        )
    return out


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "curse_of_dimensionality") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    write_settings(folder, settings)
    found = {
        dimension: errors(dimension, settings)
        for dimension in sorted(set(settings["dimensions"]))
    }
    results = {
        d: {m: {"error": e.mean, "se": e.se, "mc_se": e.mc_se} for m, e in row.items()}
        for d, row in found.items()
    }
    write_json(folder / "results.json", {str(d): row for d, row in results.items()})
    curves = {name: [found[d][m].mean for d in found] for m, name in METHODS.items()}
    spread = {name: [found[d][m].se for d in found] for m, name in METHODS.items()}
    figure = plots.curves(
        list(found),
        curves,
        spread,
        labels=("dimensions of z", "estimate − log p(x), nats"),
        title="Where log p(x) is known",
        log_x=True,
    )
    save({"errors": figure}, folder / "figures")
    console.print(table(found))
    console.print(f"Figure and numbers are in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    run(main)
