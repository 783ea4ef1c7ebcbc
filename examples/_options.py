"""The common parts of the examples' command lines.

These are types of arguments, the data set, the run folder and the settings of a resumed run.
"""

import argparse
import io
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

import vilvm
from vilvm import report
from vilvm._runtime.files import NotWritten, locked, read, write_atomic, write_json
from vilvm.cli._parser import above_zero
from vilvm.cli._parser import positive as positive
from vilvm.cli._parser import share as share
from vilvm.data import Data, Transform
from vilvm.data.datasets import Dataset, digits, mnist
from vilvm.training import CheckpointError

console = Console()
Parse = Callable[[list[str] | None], argparse.Namespace]
rate = above_zero


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """--data, --device, --seed and --out."""
    parser.add_argument(
        "--data",
        choices=["auto", "mnist", "digits"],
        default="auto",
        help="auto: MNIST if it can be had, else digits",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help=f"run folder; default: runs/{name}-DATE-TIME"
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume, which ``run_folder`` reads."""
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue the run in this folder, with its own settings",
    )


def own(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that define the run."""
    return {k: v for k, v in vars(args).items() if k not in ("out", "resume")}


@contextmanager
def run_folder(
    args: argparse.Namespace, parse: Parse, name: str, is_main: bool = True
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run folder, locked by this process, and the settings of the run.

    A resumed run has its own settings; a new run has those of the arguments. Only the main rank
    locks the folder and writes.

    Raises:
        SystemExit: another process holds the folder, it contains a run already, it cannot be
            made, or its run cannot be resumed.
    """
    resumed = getattr(args, "resume", None)
    if resumed is None:
        folder = args.out or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
        settings = own(args)
    else:
        _check_no_other_options(args, parse)
        folder, settings = resumed, settings_in(resumed / "settings.json", parse, name)
    with ExitStack() as stack:
        if is_main:
            _lock(stack, folder)
            if resumed is None and (folder / "settings.json").exists():
                also = ", or --resume it" if "resume" in args else ""
                raise SystemExit(
                    f"{folder} holds a run already; choose another --out{also}."
                )
        yield folder, settings


def _check_no_other_options(args: argparse.Namespace, parse: Parse) -> None:
    defaults = vars(parse([]))
    given = sorted(
        k for k, v in vars(args).items() if v != defaults[k] and k != "resume"
    )
    if given:
        raise SystemExit(
            f"A resumed run keeps its own settings; leave out --{given[0].replace('_', '-')}."
        )


def _lock(stack: ExitStack, folder: Path) -> None:
    """Locks the folder until the stack closes."""
    try:
        stack.enter_context(locked(folder))
    except BlockingIOError:
        raise SystemExit(
            f"Another process works in {folder}; wait for it, or choose another --out."
        ) from None
    except OSError as error:
        raise SystemExit(
            f"The run folder {folder} cannot be written ({error.strerror}); choose another --out."
        ) from None


def settings_in(file: Path, parse: Parse, name: str) -> dict[str, Any]:
    """The settings of a run, checked by the rules of the command line."""
    try:
        settings = json.loads(read(file))
        dataset = {"dataset": settings.pop("dataset")}
        options = shlex.split(report.command(name, settings))[3:]
        parsed = own(parse(options))
    except (OSError, ValueError, RecursionError):
        raise SystemExit(
            f"{file.parent} holds no readable settings.json, so no run of {name} can be resumed "
            "from it."
        ) from None
    except (AttributeError, TypeError, KeyError, SystemExit):
        raise SystemExit(
            f"{file} was changed after {name} wrote it, so the run cannot be resumed; restore "
            "it, or start a new run."
        ) from None
    return {**parsed, **dataset}


def dataset_of(choice: str, transform: Transform | None) -> Dataset:
    """MNIST, or scikit-learn's digits, with a warning unless the user chose them."""
    if choice == "digits":
        return digits(transform=transform)
    try:
        return mnist(transform=transform)
    except FileNotFoundError as error:
        if choice == "mnist":
            raise SystemExit(str(error)) from None
        console.rule(
            "[bold red]NOT MNIST: scikit-learn's digits are used (1,797 images, 8 × 8)",
            style="red",
        )
        console.print(str(error), highlight=False)
        return digits(transform=transform)


def dataset_of_run(settings: dict[str, Any], transform: Transform | None) -> Dataset:
    """The data set of a run, new or resumed; the settings have its name afterwards.

    Raises:
        SystemExit: the data of the resumed run are not available now.
    """
    data = dataset_of(settings["data"], transform)
    if settings.setdefault("dataset", data.name) != data.name:
        raise SystemExit(
            f"The run was trained on {settings['dataset']}, and only {data.name} is available now."
        )
    return data


def labels_of(data: Data) -> Tensor:
    """The labels of data that have them."""
    assert data.labels is not None
    return data.labels


def device_of(choice: str) -> str:
    """The device of an option; "auto" is a GPU if there is one."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda was given, but torch finds no GPU here; choose --device cpu."
        )
    if choice != "auto":
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"


def finished(fitted: vilvm.Fit) -> vilvm.Fit:
    """The result of a training; raises KeyboardInterrupt if Ctrl-C or SIGTERM stopped it."""
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    return fitted


def run(main: Callable[[], int]) -> None:
    """Ends the process with the status of `main`, or with the message of an expected error."""
    try:
        sys.exit(main())
    except (ValueError, NotWritten, CheckpointError, vilvm.NonFiniteLossError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    write_json(folder / "settings.json", settings)


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Writes figures as PNG, each atomically."""
    for name, figure in figures.items():
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
        write_atomic(folder / f"{name}.png", out.getvalue())
