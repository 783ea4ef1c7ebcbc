"""Trains a variational auto-encoder on MNIST, evaluates it, and writes a run folder.

    python -m examples.vae_mnist
    python -m examples.vae_mnist --latent 2 --epochs 20 --out runs/plane
    python -m examples.vae_mnist --resume runs/plane
    torchrun --nproc-per-node 4 -m examples.vae_mnist

Without MNIST on disk or on the network it uses scikit-learn's digits, with a warning.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from rich.table import Table

import vilvm
from examples._options import (
    add_common,
    add_resume,
    console,
    dataset_of_run,
    device_of,
    positive,
    rate,
    run,
    run_folder,
    save,
    share,
    write_settings,
)
from vilvm import plots, report
from vilvm._runtime.files import read, write_json
from vilvm._runtime.precision import PRECISIONS
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import Dataset
from vilvm.diagnostics import active_units, collapse, convergence
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.report import Page
from vilvm.training import one_cycle

CAPTIONS = {
    "reconstructions": "Test images above; below each, E[x | z] at the posterior mean of its z.",
    "prior_samples": "E[x | z] for z drawn from the prior.",
    "interpolations": "From one test image to another, on a straight line between the posterior "
    "means of their z.",
    "latents": "Posterior means of the test images' z, by label.",
    "manifold": "E[x | z] over the plane of z, in equal steps of prior probability.",
}
COMPILE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "on": True, "off": False}
OBJECTIVES = {"elbo": Trace_ELBO, "mean-field": TraceMeanField_ELBO}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.vae_mnist", description=(__doc__ or "").split("\n")[0]
    )
    add_common(parser, "vae_mnist")
    parser.add_argument(
        "--likelihood", choices=["bernoulli", "gaussian"], default="bernoulli"
    )
    parser.add_argument("--latent", type=positive, default=40, help="dimensions of z")
    parser.add_argument(
        "--epochs", type=positive, help="default: 30 on MNIST, 200 on digits"
    )
    parser.add_argument("--batch-size", type=positive, default=200)
    parser.add_argument(
        "--lr",
        type=rate,
        default=4e-3,
        help="peak learning rate of a one-cycle schedule",
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="elbo")
    parser.add_argument(
        "--warmup",
        type=share,
        default=0.25,
        help="share of training over which the KL term is phased in; 0 for none",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=500,
        help="importance samples for each test image; the literature takes 5000",
    )
    parser.add_argument(
        "--compile",
        choices=COMPILE,
        default="auto",
        help="the training step: auto from 5,000 steps on",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the networks"
    )
    add_resume(parser)
    return parser.parse_args(argv)


def objective_of(settings: dict[str, Any], total: int) -> Any:
    # Without a warm-up, units become inactive in the first steps and stay so: a loss of 2 nats.
    objective, warmup = (
        OBJECTIVES[settings["objective"]](),
        round(settings["warmup"] * total),
    )
    if not warmup:
        return objective
    return Annealed(objective, warmup)


def figures(lvm: VAE, data: Dataset) -> dict[str, Figure]:
    pictures = {
        "reconstructions": plots.reconstructions(lvm, data.test),
        "prior_samples": plots.prior_samples(lvm, data.test),
        "interpolations": plots.interpolations(lvm, data.test),
        "latents": plots.latent_scatter(lvm, data.test),
    }
    if lvm.origin.numel() == 2:
        pictures["manifold"] = plots.manifold(lvm, data.test)
    return pictures


def page(
    settings: dict[str, Any],
    results: dict[str, Any],
    data: Dataset,
    *,
    fitted: vilvm.Fit,
    evaluation: vilvm.Evaluation,
    diagnostics: dict[str, Any],
    pictures: dict[str, Figure],
) -> Page:
    device = device_of(settings["device"])
    name, epochs = {"mnist": "MNIST"}.get(data.name, data.name), settings["epochs"]
    options = {**settings, "data": data.name, "device": device}
    return Page(
        f"Variational auto-encoder on {name}",
        f"{settings['latent']} latent dimensions under a {settings['likelihood'].capitalize()} "
        f"likelihood: {epochs} epoch{'s' if epochs > 1 else ''} on "
        f"{len(data.train):,} images, judged on {len(data.test):,} test images, "
        f"{results['data']['transform']}.",
        summary={
            "ELBO (nats per image)": evaluation.bounds["elbo"],
            f"IWAE-{evaluation.num_samples} (nats per image)": evaluation.bounds[
                "iwae"
            ],
            "rate (nats per image)": evaluation.rate,
            "distortion (nats per image)": evaluation.distortion,
            "active units": f"{results['active_units']} of {settings['latent']}",
            "parameters": f"{results['parameters']:,}",
            "seconds of training": f"{fitted.seconds:,.0f}",
            "images/s in training": f"{results['images_per_second']:,.0f}",
        },
        findings=[result.finding for result in diagnostics.values()],
        finding_figures=plots.diagnosis_figures(diagnostics, fitted),
        history=fitted.history,
        figures={CAPTIONS[name]: picture for name, picture in pictures.items()},
        settings=settings,
        command=report.command(
            "examples.vae_mnist", {k: v for k, v in options.items() if k != "dataset"}
        ),
        environment=report.environment(device, settings["seed"]),
    )


def table(results: dict[str, Any]) -> Table:
    bounds = results["bounds"]
    out = Table(
        title=f"{results['data']['name']}, {results['data']['num_test']:,} test images, "
        f"{results['data']['transform']}",
        title_justify="left",
    )
    out.add_column("")
    out.add_column("nats per image", justify="right")
    out.add_column("± SE", justify="right")
    out.add_row("ELBO", f"{bounds['elbo']['mean']:.2f}", f"{bounds['elbo']['se']:.2f}")
    out.add_row(
        f"IWAE-{bounds['iwae']['num_samples']}",
        f"{bounds['iwae']['mean']:.2f}",
        f"{bounds['iwae']['se']:.2f}",
    )
    for name in ("rate", "distortion"):
        out.add_row(name, f"{results[name]['mean']:.2f}", f"{results[name]['se']:.2f}")
    out.add_row("active units", f"{results['active_units']} of {results['latent']}", "")
    out.add_row("images/s in training", f"{results['images_per_second']:,.0f}", "")
    return out


def begin(settings: dict[str, Any]) -> tuple[VAE, Dataset]:
    """The model before its training, and the data; completes the settings.

    Raises:
        SystemExit: the data of the resumed run are not available now.
    """
    # A Gaussian likelihood is a density of grey levels; a Bernoulli likelihood needs 0 and 1.
    transform = None if settings["likelihood"] == "gaussian" else DynamicBinarisation()
    data = dataset_of_run(settings, transform)
    settings["epochs"] = settings["epochs"] or (30 if data.name == "mnist" else 200)
    torch.manual_seed(settings["seed"])
    lvm = VAE(
        data.train.x.shape[1],
        settings["latent"],
        settings["likelihood"],
        encoder_hidden=(400, 200),
        decoder_hidden=(200, 400),
    )
    return lvm.start_at(data.train.x.mean(0)), data


def train(
    lvm: VAE, data: Dataset, settings: dict[str, Any], folder: Path, resume: bool
) -> vilvm.Fit:
    """Trains the model in its run folder; loads the parameters of a finished run."""
    total = settings["epochs"] * -(-len(data.train) // settings["batch_size"])
    return vilvm.fit(
        lvm,
        data.train,
        objective=objective_of(settings, total),
        **one_cycle(settings["lr"], total),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        validation=data.validation,
        clip=100.0,
        compile=COMPILE[settings["compile"]],
        precision=settings["precision"],
        device=device_of(settings["device"]),
        seed=settings["seed"],
        run_dir=folder,
        resume=resume,
    )


def report_of(
    lvm: VAE,
    data: Dataset,
    settings: dict[str, Any],
    folder: Path,
    found: tuple[vilvm.Fit, vilvm.Evaluation],
) -> dict[str, Any]:
    """Writes figures and page, and then the results, which mark the report as complete."""
    fitted, evaluation = found
    results = {
        "data": {
            "name": data.name,
            "num_test": len(data.test),
            "transform": getattr(data.test.transform, "name", "no transform"),
        },
        **evaluation.to_dict(),
        "latent": settings["latent"],
        "active_units": int(active_units(lvm, data.test)["z"].sum()),
        "parameters": sum(p.numel() for p in lvm.parameters()),
        "best_step": fitted.best_step,
        "seconds": {"train": fitted.seconds, "evaluate": evaluation.seconds},
        "images_per_second": settings["epochs"] * len(data.train) / fitted.seconds,
    }
    lvm.to("cpu")
    # The quick diagnostics; posterior_diagnostics runs the others, in minutes.
    diagnostics = {
        "collapse": collapse(lvm, data.test, num_data=300, seed=settings["seed"]),
        "convergence": convergence(fitted),
    }
    pictures = figures(lvm, data)
    save({**pictures, "elbo": plots.elbo_curves(fitted.history)}, folder / "figures")
    page(
        settings,
        results,
        data,
        fitted=fitted,
        evaluation=evaluation,
        diagnostics=diagnostics,
        pictures=pictures,
    ).write(folder / "page.html")
    write_json(folder / "results.json", results)
    return results


def reported(folder: Path) -> dict[str, Any] | None:
    """The results of a run with a complete report, or None."""
    try:
        results = json.loads(read(folder / "results.json"))
        table(results)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return results if (folder / "page.html").exists() else None


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with ExitStack() as held:
        with vilvm.distributed() as ranks:
            folder, settings = held.enter_context(
                run_folder(args, arguments, "vae_mnist", ranks.is_main)
            )
            results = (
                reported(folder) if ranks.is_main and args.resume is not None else None
            )
            lvm, data = begin(settings)
            if ranks.is_main:
                write_settings(folder, settings)
                console.print(
                    f"Training on {data.name} ({len(data.train):,} images), run folder {folder}",
                    highlight=False,
                )
            fitted = train(lvm, data, settings, folder, args.resume is not None)
            if fitted.stopped == "interrupted":
                if ranks.is_main:
                    console.print(
                        f"Resume with: python -m examples.vae_mnist --resume {folder}",
                        highlight=False,
                    )
                return 130
            evaluation = None
            if not ranks.any(results is not None, device_of(settings["device"])):
                evaluation = vilvm.evaluate(
                    lvm,
                    data.test,
                    num_samples=settings["samples"],
                    precision=settings["precision"],
                    seed=settings["seed"],
                )
        if not ranks.is_main:
            return 0
        if evaluation is not None:
            results = report_of(lvm, data, settings, folder, (fitted, evaluation))
    assert results is not None
    console.print(table(results))
    seconds = results["seconds"]
    console.print(
        f"Trained in {seconds['train']:.0f} s, evaluated in {seconds['evaluate']:.0f} s; open "
        f"{folder / 'page.html'}; figures and numbers are beside it",
        highlight=False,
    )
    console.print(
        f"Can its posterior be trusted? python -m examples.posterior_diagnostics {folder}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    run(main)
