"""Regresses the progression of diabetes on body mass, and pictures lines of the posterior.

python -m examples.gallery.bayesian_regression docs/images/bayesian_regression.png
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_diabetes
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._figures import GREY, INK, SECOND, panels, save
from examples.gallery._options import parser_of
from vilvm.models.bayesian_regression import BayesianRegression
from vilvm.training import one_cycle

_PATIENTS, _LINES, _SHOWN, _DRAWS = 40, 30, 500, 4000


def figure(x: Tensor, y: Tensor, draws: dict[str, Tensor]) -> Figure:
    """Left data, lines and the band of predictions; right the same lines as points (α, β)."""
    out, (left, right) = panels(8.4, 3.7, columns=2, width_ratios=(1.25, 1))
    alpha, beta, sigma = draws["alpha"], draws["beta[1]"], draws["sigma"]
    at = torch.linspace(17, 43, 100)
    lines = alpha[:, None] + beta[:, None] * at
    predicted = lines + sigma[:, None] * torch.randn_like(alpha)[:, None]
    low, high = predicted.quantile(torch.tensor([0.05, 0.95]), 0)
    left.fill_between(
        at, low, high, color=GREY, alpha=0.25, linewidth=0, label="90 % of predictions"
    )
    left.plot(at, lines[:_LINES].T, color=INK, alpha=0.35, linewidth=0.8)
    left.plot([], [], color=INK, label=f"{_LINES} posterior lines")
    left.scatter(x, y, s=16, color="black", zorder=3, label="patients")
    left.set(
        xlabel="body mass index (kg/m²)",
        ylabel="progression after a year (score)",
        xlim=(17, 43),
        ylim=(-50, 480),
    )
    left.legend(frameon=False, loc="upper left", fontsize=9)
    right.scatter(
        alpha[:_SHOWN], beta[:_SHOWN], s=5, color=GREY, alpha=0.5, linewidths=0
    )
    right.scatter(alpha[:_LINES], beta[:_LINES], s=14, color=INK, label="the lines")
    right.axhline(0, color=SECOND, linestyle="--", linewidth=1)
    right.annotate("no effect", (-230, 0.3), color=SECOND)
    right.set(xlabel="intercept α (score)", ylabel="slope β (score per kg/m²)")
    right.legend(frameon=False, loc="upper right", handletextpad=0.1)
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("bayesian_regression", __doc__, steps=800).parse_args(argv)
    patients: Any = load_diabetes(scaled=False)
    x = torch.tensor(patients.data[:_PATIENTS, 2:3], dtype=torch.float32)
    y = torch.tensor(patients.target[:_PATIENTS], dtype=torch.float32)
    lvm = BayesianRegression.whitened(
        (x, y), beta_scale=50.0, alpha_scale=500.0, sigma_scale=100.0
    )
    vilvm.fit(
        lvm,
        (x, y),
        steps=args.steps,
        objective=Trace_ELBO(8, max_plate_nesting=1, vectorize_particles=True),
        seed=args.seed,
        **one_cycle(0.05, args.steps),
    )
    torch.manual_seed(args.seed)
    draws = lvm.scalars(vilvm.posterior(lvm, (x, y), _DRAWS))
    exact = lvm.exact_moments((x, y))
    for name in ("alpha", "beta[1]", "sigma"):
        console.print(
            f"{name}: {draws[name].mean():.2f} ± {draws[name].std():.2f}, exact "
            f"{exact.mean[name]:.2f} ± {exact.sd[name]:.2f}",
            highlight=False,
            markup=False,
        )
    save(figure(x[:, 0], y, draws), args.out)
    return 0


if __name__ == "__main__":
    run(main)
