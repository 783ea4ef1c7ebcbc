"""Trains a variational auto-encoder on MNIST, evaluates it on the test images, and writes a run folder.

    python -m examples.vae_mnist
    python -m examples.vae_mnist --latent 2 --epochs 20 --out runs/plane
    python -m examples.vae_mnist --resume runs/plane

Without MNIST on disk or on the network it takes scikit-learn's digits, and says so.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import OneCycleLR

import vilvm
from models.vae import VAE
from vilvm import report
from vilvm.datasets import Dataset, digits, mnist
from vilvm.diagnostics import active_units
from vilvm.files import write_json
from vilvm.objectives import Annealed
from vilvm.training import CheckpointError

OBJECTIVES = {"elbo": Trace_ELBO, "mean-field": TraceMeanField_ELBO}
console = Console()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.vae_mnist", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", choices=["auto", "mnist", "digits"], default="auto", help="auto: MNIST if it can be had, else digits"
    )
    parser.add_argument("--likelihood", choices=["bernoulli", "gaussian"], default="bernoulli")
    parser.add_argument("--latent", type=positive, default=20, help="dimensions of z")
    parser.add_argument("--epochs", type=positive, help="default: 12 on MNIST, 200 on digits")
    parser.add_argument("--batch-size", type=positive, default=200)
    parser.add_argument("--lr", type=rate, default=4e-3, help="peak learning rate of a one-cycle schedule")
    parser.add_argument("--objective", choices=OBJECTIVES, default="elbo")
    parser.add_argument(
        "--warmup", type=share, default=0.25, help="share of training over which the KL term is phased in; 0 for none"
    )
    parser.add_argument("--samples", type=positive, default=5000, help="importance samples for each test image")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="run folder; default: runs/vae_mnist-DATE-TIME")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder, with its own settings")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {value}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {value}")
    return value


def settings_of(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The run folder and what the run is: its own settings if it is resumed, else the arguments."""
    if args.resume is not None:
        return args.resume, settings_in(args.resume / "settings.json")
    folder = args.out or Path("runs") / time.strftime("vae_mnist-%Y%m%d-%H%M%S")
    if (folder / "checkpoint").exists():
        raise SystemExit(f"{folder} holds a run already; continue it with --resume {folder}, or choose another --out.")
    return folder, own(args)


def own(args: argparse.Namespace) -> dict[str, Any]:
    """Of the arguments, those that say what the run is."""
    return {k: v for k, v in vars(args).items() if k not in ("out", "resume")}


def settings_in(file: Path) -> dict[str, Any]:
    """The settings of a run, held to the same rules as the arguments they once were."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        dataset = {"dataset": settings.pop("dataset")}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
        parsed = own(arguments(words))
    except (OSError, ValueError):
        raise SystemExit(
            f"{file.parent} holds no readable settings.json, so it is no run of vae_mnist that could be resumed."
        ) from None
    except (AttributeError, TypeError, KeyError, SystemExit):
        raise SystemExit(f"{file} is not as vae_mnist wrote it, so the run cannot be resumed; restore it, or start anew.") from None
    return {**parsed, **dataset}


def dataset_of(settings: dict[str, Any]) -> Dataset:
    # A Gaussian likelihood is a density of the grey levels themselves; a Bernoulli needs them binarised.
    options: dict[str, Any] = {"transform": None} if settings["likelihood"] == "gaussian" else {}
    if settings["data"] == "digits":
        return digits(**options)
    try:
        return mnist(**options)
    except FileNotFoundError as error:
        if settings["data"] == "mnist":
            raise SystemExit(str(error)) from None
        console.rule("[bold red]NOT MNIST: scikit-learn's digits are used (1,797 images, 8 × 8)", style="red")
        console.print(str(error), highlight=False)
        return digits(**options)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        write_json(folder / "settings.json", settings)
    except OSError as error:
        raise SystemExit(f"The run folder {folder} cannot be written ({error.strerror}); choose another --out.") from None


def objective_of(settings: dict[str, Any], total: int) -> Any:
    # Without a warm-up the first steps switch units off for good, which costs some 2 nats.
    objective, warmup = OBJECTIVES[settings["objective"]](), round(settings["warmup"] * total)
    return Annealed(objective, warmup) if warmup else objective


def figures(lvm: VAE, data: Dataset, history: vilvm.History, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "reconstructions": report.reconstructions(lvm, data.test),
        "prior_samples": report.prior_samples(lvm, data.test),
        "interpolations": report.interpolations(lvm, data.test),
        "elbo": report.elbo_curves(history),
        "latents": report.latent_scatter(lvm, data.test),
    }
    if lvm.origin.numel() == 2:
        pictures["manifold"] = report.manifold(lvm, data.test)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)


def table(results: dict[str, Any]) -> Table:
    bounds = results["bounds"]
    out = Table(
        title=f"{results['data']['name']}, {results['data']['num_test']:,} test images, {results['data']['transform']}",
        title_justify="left",
    )
    out.add_column("")
    out.add_column("nats per image", justify="right")
    out.add_column("± SE", justify="right")
    out.add_row("ELBO", f"{bounds['elbo']['mean']:.2f}", f"{bounds['elbo']['se']:.2f}")
    out.add_row(f"IWAE-{bounds['iwae']['num_samples']}", f"{bounds['iwae']['mean']:.2f}", f"{bounds['iwae']['se']:.2f}")
    for name in ("rate", "distortion"):
        out.add_row(name, f"{results[name]['mean']:.2f}", f"{results[name]['se']:.2f}")
    out.add_row("active units", f"{results['active_units']} of {results['latent']}", "")
    out.add_row("images/s in training", f"{results['images_per_second']:,.0f}", "")
    return out


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    defaults = vars(arguments([]))
    given = sorted(k for k, v in vars(args).items() if v != defaults[k] and k != "resume")
    if args.resume is not None and given:
        raise SystemExit(f"A resumed run keeps its own settings; leave out --{given[0].replace('_', '-')}.")
    folder, settings = settings_of(args)
    data = dataset_of(settings)
    if args.resume is not None and data.name != settings["dataset"]:
        raise SystemExit(f"{folder} was trained on {settings['dataset']}, and only {data.name} can be had now.")
    settings["dataset"] = data.name
    settings["epochs"] = settings["epochs"] or (12 if data.name == "mnist" else 200)
    device = settings["device"] if settings["device"] != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, and torch finds no GPU here; take --device cpu.")
    write_settings(folder, settings)
    torch.manual_seed(settings["seed"])
    lvm = VAE(data.train.x.shape[1], settings["latent"], settings["likelihood"], decoder_hidden=(128, 96)).start_at(
        data.train.x.mean(0)
    )
    total = settings["epochs"] * -(-len(data.train) // settings["batch_size"])
    console.print(f"Training on {data.name} ({len(data.train):,} images), run folder {folder}", highlight=False)
    fitted = vilvm.fit(
        lvm,
        data.train,
        objective=objective_of(settings, total),
        optimizer=partial(torch.optim.Adam, lr=settings["lr"], fused=True),
        scheduler=partial(OneCycleLR, max_lr=settings["lr"], total_steps=total, pct_start=0.1),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        validation=data.validation,
        clip=100.0,
        device=device,
        seed=settings["seed"],
        run_dir=folder,
        resume=args.resume is not None,
    )
    if fitted.stopped == "interrupted":
        console.print(f"Resume with: python -m examples.vae_mnist --resume {folder}", highlight=False)
        return 130
    evaluation = vilvm.evaluate(lvm, data.test, num_samples=settings["samples"], seed=settings["seed"])
    results = {
        "data": {"name": data.name, "num_test": len(data.test), "transform": getattr(data.test.transform, "name", "no transform")},
        **evaluation.to_dict(),
        "latent": settings["latent"],
        "active_units": int(active_units(lvm, data.test)["z"].sum()),
        "parameters": sum(p.numel() for p in lvm.parameters()),
        "best_step": fitted.best_step,
        "seconds": {"train": fitted.seconds, "evaluate": evaluation.seconds},
        "images_per_second": settings["epochs"] * len(data.train) / fitted.seconds,
    }
    write_json(folder / "results.json", results)
    figures(lvm.to("cpu"), data, fitted.history, folder / "figures")
    console.print(table(results))
    console.print(
        f"Trained in {fitted.seconds:.0f} s, evaluated in {evaluation.seconds:.0f} s; figures and numbers are in {folder}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, CheckpointError, vilvm.NonFiniteLossError) as error:
        sys.exit(str(error))
