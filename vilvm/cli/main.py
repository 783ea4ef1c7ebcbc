"""``main``: parses a command line and runs the command; its errors are one sentence.

The commands and the libraries that they need are imported after the command line is parsed, so
that ``--help`` answers at once.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vilvm.cli._parser import parser_of

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command ``vilvm``.

    Arguments:
        argv: the words after ``vilvm``; by default those of the process.

    Returns:
        The exit status: 0; 2 for bad input, after one sentence on standard error; 130 after
        Ctrl-C; 141 if its output is no longer read.

    Raises:
        SystemExit: the command line cannot be parsed (status 2), or ``--help`` was given.

    Examples:
        >>> import pathlib, tempfile, numpy as np
        >>> from vilvm.cli import main
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "x.npy")
        ...     np.save(path, np.random.default_rng(0).normal(size=(40, 5)))
        ...     main(["train", "ppca", str(path), "--set", "latent_dim=2", "--steps", "20",
        ...           "--out", f"{folder}/run"])  # doctest: +ELLIPSIS
        Trained PPCA ...
        0
    """
    args = parser_of().parse_args(argv)
    try:
        _run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        message = " ".join(str(error).split())
        print(f"vilvm {args.command}: {message}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    commands = importlib.import_module("vilvm.cli._commands")
    getattr(commands, args.command)(args)
