"""The command line: commands, options, and help that teaches. Imports nothing but argparse."""

import argparse
import ast
from pathlib import Path
from typing import Any

__all__ = ["parser_of"]

_ABOUT = """\
Variational inference for latent variable models.

Train a model of the gallery, see how good it is, and whether its posterior can be trusted:

    vilvm train vae x.npy --set latent_dim=5 --epochs 50 --out run
    vilvm evaluate run x_test.npy
    vilvm diagnose run x_test.npy
    vilvm report run x_test.npy --out page

Or write a Pyro model and let vilvm find its posterior:

    vilvm infer schools.py:model schools.csv --each
"""
_MODEL = """\
the model: a name of the gallery (vae, ppca, factor_analysis, ...; see the gallery in the
documentation), a class in a file of yours (path/to/file.py:Class), or a model that `vilvm train`
or vilvm.save has written (a file, or the folder of --out)"""
_DATA = "the data, one datum a row: a .npy, .csv, .parquet, .zarr or .h5ad file"
_ABOUT_COMMANDS = {
    "train": (
        "train a model and save it",
        """\
Trains a model by stochastic variational inference (vilvm.fit) and saves it (vilvm.save).

    vilvm train ppca measurements.csv --set latent_dim=3 --epochs 200 --out run
    vilvm train my_models.py:CountModel counts.h5ad --batch-size 500 --validation 0.1

The folder of --out holds model.safetensors (vilvm.load opens it), history.csv, settings.json,
results.json and the checkpoint from which --resume continues. The constructor's arguments are
given by --set; data_dim, num_genes, num_words, num_covariates and side are taken from the data
unless they are set.""",
    ),
    "evaluate": (
        "estimate evidence bounds with standard errors",
        """\
Estimates the ELBO and the importance-weighted bound in nats per datum, with standard errors
(vilvm.evaluate). Higher is better; the bounds lie below log p(x).

    vilvm evaluate run x_test.npy
    vilvm evaluate my_models.py:CountModel counts.h5ad --load run/model.safetensors --out scores

The folder of --out receives evaluation.json and per_datum.csv: the bounds of every row, by which
unusual data can be found.""",
    ),
    "diagnose": (
        "say whether the posterior can be trusted",
        """\
Runs all diagnostics that apply (vilvm.diagnose) and prints a verdict and the findings, the most
severe first, each with its threshold and what to try next.

    vilvm diagnose run x_test.npy --budget 60

The folder of --out receives diagnosis.json and findings.csv.""",
    ),
    "infer": (
        "find the posterior of a model without a guide",
        """\
Finds the posterior of a Pyro model, checks it, and prints a table of all latents (vilvm.infer).
The model is a function of the data, path/to/file.py:model, or a class with a method model.

    vilvm infer eight_schools schools.csv --each
    vilvm infer regression.py:model houses.csv --target price --budget 30

With --each the model receives a tuple with one vector a column, here model((y, sigma)); with
--target a tuple (x, y). The folder of --out receives posterior.json, summary.csv and
draws.csv.""",
    ),
    "report": (
        "write one HTML page about a model",
        """\
Evaluates and diagnoses a model, and writes one HTML page with numbers, findings and figures,
which needs no network. Needs the extra plots.

    vilvm report run x_test.npy --out page

The folder of --out receives page.html, evaluation.json, per_datum.csv, diagnosis.json and
findings.csv.""",
    ),
}


def parser_of() -> argparse.ArgumentParser:
    """The parser of the command ``vilvm``."""
    parser = argparse.ArgumentParser(
        prog="vilvm",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parts = {name: _add_command(commands, name) for name in _ABOUT_COMMANDS}
    _add_training(parts["train"])
    for name in ("evaluate", "report"):
        parts[name].add_argument(
            "--samples",
            type=positive,
            default=500,
            help="importance samples for each datum; more tighten the bound (default: 500)",
        )
    for name, seconds in (("diagnose", 120), ("infer", 60), ("report", 120)):
        parts[name].add_argument(
            "--budget",
            type=above_zero,
            default=float(seconds),
            metavar="SECONDS",
            help=f"time for the diagnostics or the inference (default: {seconds})",
        )
    for name in ("diagnose", "report"):
        parts[name].add_argument(
            "--num-data",
            type=positive,
            default=500,
            help="data to examine, drawn at random if there are more (default: 500)",
        )
    return parser


def _add_command(commands: Any, name: str) -> argparse.ArgumentParser:
    """A command with the options that all commands have."""
    brief, about = _ABOUT_COMMANDS[name]
    part = commands.add_parser(
        name,
        help=brief,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    part.add_argument("model", metavar="MODEL", help=_MODEL)
    part.add_argument("data", metavar="DATA", type=Path, help=_DATA)
    model = part.add_argument_group("the model")
    model.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model's constructor, such as latent_dim=5 or hidden=(200,100)",
    )
    if name != "train":
        model.add_argument(
            "--load",
            type=Path,
            metavar="FILE",
            help="a saved model, whose parameters a model of yours receives",
        )
    data = part.add_argument_group("the data")
    data.add_argument(
        "--columns",
        type=names,
        metavar="A,B,...",
        help="columns of a table to use; default: all numeric ones",
    )
    form = data.add_mutually_exclusive_group()
    form.add_argument(
        "--target",
        metavar="COLUMN",
        help="pass (x, y), where y is this column of a table",
    )
    form.add_argument(
        "--each",
        action="store_true",
        help="pass a tuple with one vector for each column",
    )
    part.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="default: auto",
    )
    part.add_argument("--seed", type=seed, default=0, help="of all draws (default: 0)")
    part.add_argument("--out", type=Path, metavar="FOLDER", help=_out(name))
    return part


def _out(name: str) -> str:
    if name in ("train", "report"):
        return f"folder of the results; default: runs/{name}-DATE-TIME"
    return "folder of the results; without it they are only printed"


def _add_training(part: argparse.ArgumentParser) -> None:
    training = part.add_argument_group("the training")
    length = training.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=positive, help="passes over the data (default: 100)"
    )
    length.add_argument("--steps", type=positive, help="steps, in place of --epochs")
    training.add_argument(
        "--batch-size", type=positive, default=200, help="data a step (default: 200)"
    )
    training.add_argument(
        "--lr",
        type=above_zero,
        default=1e-3,
        help="peak rate of Adam's one-cycle schedule (default: 0.001)",
    )
    training.add_argument(
        "--validation",
        type=share,
        default=0.0,
        help="fraction of the data that is held out, to keep the best parameters (default: 0)",
    )
    training.add_argument(
        "--patience",
        type=positive,
        help="stop after this many epochs without a better bound",
    )
    training.add_argument(
        "--resume", action="store_true", help="continue the run in the folder of --out"
    )


# Types of arguments
# ------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {value}")
    return value


def share(text: str) -> float:
    """A number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {value}")
    return value


def seed(text: str) -> int:
    """A whole number, at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def names(text: str) -> list[str]:
    """Names, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def setting(text: str) -> tuple[str, Any]:
    """A name and its value: a Python literal, or else the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE, such as latent_dim=5; got {text!r}"
        )
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
