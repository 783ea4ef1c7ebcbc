"""What the examples' command lines have in common: kinds of arguments, the data set, the run folder, settings to resume from."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

import vilvm
from vilvm.data import Transform
from vilvm.datasets import Dataset, digits, mnist
from vilvm.files import write_json
from vilvm.training import CheckpointError

console = Console()
Parse = Callable[[list[str] | None], argparse.Namespace]


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


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """--data, --device, --seed and --out."""
    parser.add_argument(
        "--data", choices=["auto", "mnist", "digits"], default="auto", help="auto: MNIST if it can be had, else digits"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"run folder; default: runs/{name}-DATE-TIME")


def new_folder(args: argparse.Namespace, name: str) -> Path:
    """The folder of a run that is not resumed; none that holds one already."""
    folder = args.out or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
    if (folder / "settings.json").exists():
        raise SystemExit(f"{folder} holds a run already; choose another --out{', or --resume it' if 'resume' in args else ''}.")
    return folder


def own(args: argparse.Namespace) -> dict[str, Any]:
    """Of the arguments, those that say what the run is."""
    return {k: v for k, v in vars(args).items() if k not in ("out", "resume")}


def settings_of(args: argparse.Namespace, parse: Parse, name: str) -> tuple[Path, dict[str, Any]]:
    """The run folder and what the run is: its own settings if it is resumed, else the arguments."""
    if args.resume is None:
        return new_folder(args, name), own(args)
    given = sorted(k for k, v in vars(args).items() if v != vars(parse([]))[k] and k != "resume")
    if given:
        raise SystemExit(f"A resumed run keeps its own settings; leave out --{given[0].replace('_', '-')}.")
    return args.resume, settings_in(args.resume / "settings.json", parse, name)


def settings_in(file: Path, parse: Parse, name: str) -> dict[str, Any]:
    """The settings of a run, held to the same rules as the arguments they once were."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        dataset = {"dataset": settings.pop("dataset")}
        words = [f"--{key.replace('_', '-')}" for key, value in settings.items() if value is True]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in settings.items() if not isinstance(value, bool | None)]
        parsed = own(parse(words))
    except (OSError, ValueError):
        raise SystemExit(
            f"{file.parent} holds no readable settings.json, so it is no run of {name} that could be resumed."
        ) from None
    except (AttributeError, TypeError, KeyError, SystemExit):
        raise SystemExit(f"{file} is not as {name} wrote it, so the run cannot be resumed; restore it, or start anew.") from None
    return {**parsed, **dataset}


def dataset_of(choice: str, transform: Transform | None) -> Dataset:
    """MNIST, or scikit-learn's digits, said loudly if nobody asked for them."""
    if choice == "digits":
        return digits(transform=transform)
    try:
        return mnist(transform=transform)
    except FileNotFoundError as error:
        if choice == "mnist":
            raise SystemExit(str(error)) from None
        console.rule("[bold red]NOT MNIST: scikit-learn's digits are used (1,797 images, 8 × 8)", style="red")
        console.print(str(error), highlight=False)
        return digits(transform=transform)


def device_of(choice: str) -> str:
    """The device that an option stands for."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, and torch finds no GPU here; take --device cpu.")
    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def finished(fitted: vilvm.Fit) -> vilvm.Fit:
    """The result of a training that was not broken off; else Ctrl-C or SIGTERM ends the whole script."""
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    return fitted


def run(main: Callable[[], int]) -> None:
    """Ends the process with what `main` returns, or with one sentence about what went wrong."""
    try:
        sys.exit(main())
    except (ValueError, CheckpointError, vilvm.NonFiniteLossError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    try:
        write_json(folder / "settings.json", settings)
    except OSError as error:
        raise SystemExit(f"The run folder {folder} cannot be written ({error.strerror}); choose another --out.") from None


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
