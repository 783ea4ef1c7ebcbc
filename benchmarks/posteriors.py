"""Six posteriors of posteriordb: the error of fitted guides against the reference draws, and the
verdict of their diagnosis.

    VILVM_DATA=... uv run python -m benchmarks.posteriors [NAME ...]

A guide is right if no mean is off by more than 0.1 posterior standard deviations and no standard
deviation by more than 10 %. The diagnosis does not use the reference draws. It is right if its
verdict is "do not trust" exactly for the guides that are wrong.
"""

import sys
import time

import torch

import vilvm
from examples._prescribed import MODELS, Case, fit_case

# A guide that should be right, and one that should be wrong: its family is too small, or its
# coordinates are too hard.
CASES = [
    ("eight_schools", "flow"),
    ("eight_schools", "full_rank"),
    ("eight_schools_centred", "mean_field"),
    ("hidden_markov", "full_rank"),
    ("hidden_markov", "mean_field"),
    ("gaussian_mixture", "full_rank"),
    ("gaussian_mixture", "mean_field"),
    ("kidiq", "full_rank"),
    ("kidiq_raw", "mean_field"),
    ("bayesian_regression", "full_rank"),
    ("bayesian_regression_raw", "mean_field"),
    ("autoregression", "full_rank"),
    ("autoregression_raw", "mean_field"),
]


def errors(case: Case, num_samples: int = 50_000) -> dict[str, tuple[float, float]]:
    """The error of the mean in posterior standard deviations, and the ratio of standard
    deviations, by scalar parameter.
    """
    assert case.reference is not None
    assert case.scalars is not None
    torch.manual_seed(0)
    with torch.no_grad():
        ours = case.scalars(vilvm.posterior(case.lvm, case.data.x, num_samples))
    of = case.reference
    return {
        n: (
            (v.double().mean().item() - of.mean(n)) / of.sd(n),
            v.double().std().item() / of.sd(n),
        )
        for n, v in ours.items()
        if n in of.draws
    }


def judge(name: str, guide: str, seed: int = 0) -> str:
    began = time.perf_counter()
    case = MODELS[name](guide)
    fitted = fit_case(case, seed)
    trained = time.perf_counter() - began
    found = errors(case)
    mean = max(found, key=lambda n: abs(found[n][0]))
    sd = max(found, key=lambda n: abs(found[n][1] - 1))
    good = abs(found[mean][0]) <= 0.1 and abs(found[sd][1] - 1) <= 0.1
    # The budget also suffices on a busy machine: an unfinished diagnosis trusts nothing.
    diagnosis = vilvm.diagnose(
        case.lvm, case.data, history=fitted, budget=600, seed=seed, progress=False
    )
    why = "; ".join(
        f"{f.name}: {f.severity.name}" for f in diagnosis.findings if f.severity >= 2
    )
    k = diagnosis.results["Pareto k̂"].k[0].item()
    verdict = "trust" if diagnosis.trusted else "do not trust"
    right = "yes" if diagnosis.trusted == good else "NO"
    return (
        f"| {name} | {guide} | {found[mean][0]:+.3f} ({mean}) | {found[sd][1]:.3f} ({sd}) | "
        f"{'good' if good else 'misses'} | {k:.2f} | {verdict} | {right} "
        f"| {why} | {trained:.0f} + {diagnosis.seconds:.0f} s |"
    )


def main() -> None:
    print(
        "| posterior | guide | worst mean (sd) | worst sd (ratio) | guide | k̂ | verdict | right "
        "| because of | fit + diagnosis |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, guide in CASES:
        if not sys.argv[1:] or name in sys.argv[1:]:
            print(judge(name, guide), flush=True)


if __name__ == "__main__":
    main()
