"""Finds a posterior by vilvm.infer, and prints its error against reference draws.

    python -m examples.infer                              # eight schools, centred
    python -m examples.infer radon --seed 1
    python -m examples.infer mesquite-mesquite --budget 20 --no-refine

NAME is any posterior of ``vilvm.models.hierarchical``, whose data are in the package, or of
``vilvm.models.posteriordb``, whose data are in the folder posteriordb/ of VILVM_DATA. The model is
a plain Pyro model, and all settings are defaults.

The table gives, for every scalar, the error of its mean in posterior standard deviations and the
ratio of standard deviations: good up to 0.1 and 10 %, usable up to 0.3 and 30 %. ``infer`` does
not see the reference.
"""

import argparse
from typing import Any

from rich.table import Table

import vilvm
from benchmarks.inference.child import known_posteriors
from benchmarks.inference.scores import grade, score
from examples._options import console, rate, run
from vilvm.models.hierarchical import names

_DEFAULT = "eight_schools_centred"
_MOST = 40  # rows of the table


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.infer", description=(__doc__ or "").split("\n")[0]
    )
    listed = ", ".join(known_posteriors())
    parser.add_argument(
        "name", nargs="?", default=_DEFAULT, metavar="NAME", help=f"one of {listed}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=rate, default=60.0, help="seconds")
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="whether chains may refine the approximation; by default if they are needed",
    )
    return parser.parse_args(argv)


def problem_of(name: str) -> tuple[Any, Any]:
    """The problem of a name, and its reference."""
    known = known_posteriors()
    if name not in known:
        raise SystemExit(f"There is no posterior {name!r}; choose from {list(known)}.")
    try:
        problem = known[name]()
        return problem, problem.reference()
    except FileNotFoundError as error:
        raise SystemExit(
            f"The data of posteriordb are missing. {error} Without them, run one of "
            f"{names()}."
        ) from None


def table(scalars: dict[str, Any], reference: Any) -> Table:
    """The error of every scalar, the first ones if there are many."""
    out = Table(title="Error against the reference", title_justify="left")
    for head in ("", "mean", "reference", "error, sd", "ratio of sd", ""):
        out.add_column(head, justify="right" if head else "left")
    for name, draws in list(scalars.items())[:_MOST]:
        mean, sd = draws.double().mean().item(), reference.sd(name)
        error = (mean - reference.mean(name)) / sd
        ratio = draws.double().std().item() / sd
        numbers = (f"{mean:.4g}", f"{reference.mean(name):.4g}")
        out.add_row(
            name, *numbers, f"{error:+.3f}", f"{ratio:.3f}", grade(error, ratio)
        )
    if len(scalars) > _MOST:
        out.add_row(f"… and {len(scalars) - _MOST} more")
    return out


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    problem, reference = problem_of(args.name)
    posterior = vilvm.infer(
        problem.model,
        problem.data,
        budget=args.budget,
        refine=args.refine,
        seed=args.seed,
    )
    print(posterior)
    scalars = problem.scalars(posterior.draws)
    console.print(table(scalars, reference))
    worst = score(scalars, reference)
    console.print(
        f"{problem.name}: {worst.grade}. Worst mean {worst.mean_error:+.3f} sd "
        f"({worst.mean_scalar}), worst ratio of sd {worst.sd_ratio:.3f} ({worst.sd_scalar}); "
        f"{'trusted' if posterior.trusted else 'not trusted'}; by {posterior.rung}, "
        f"{posterior.gradients:,} gradients, {posterior.seconds:.1f} s.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    run(main)
