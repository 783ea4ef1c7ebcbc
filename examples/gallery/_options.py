"""The arguments of a figure, and a line of results."""

import argparse
from pathlib import Path

import vilvm
from examples._options import console, positive


def parser_of(
    name: str, doc: str | None, steps: int | None = None
) -> argparse.ArgumentParser:
    """A parser of `out` for ``python -m examples.gallery.NAME``.

    With `steps` also of `steps` and `seed`; a fit in closed form has neither.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.gallery.{name}",
        description=(doc or "").split("\n")[0],
    )
    parser.add_argument("out", type=Path, help="the picture, a PNG")
    if steps is not None:
        parser.add_argument("--steps", type=positive, default=steps, help="of training")
        parser.add_argument("--seed", type=int, default=0)
    return parser


def print_bounds(fitted: vilvm.Fit, found: vilvm.Evaluation) -> None:
    """Prints seconds of training, ELBO and IWAE with their standard errors."""
    elbo, iwae = found.bounds["elbo"], found.bounds["iwae"]
    console.print(
        f"Trained in {fitted.seconds:.0f} s. Test data, nats per datum: ELBO {elbo.mean:.2f} ± "
        f"{elbo.se:.2f}, IWAE-{found.num_samples} {iwae.mean:.2f} ± {iwae.se:.2f}",
        highlight=False,
    )
