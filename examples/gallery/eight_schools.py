"""Fits eight schools, and pictures each school's measurement beside the posterior of its effect.

python -m examples.gallery.eight_schools docs/images/eight_schools.png
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor

import vilvm
from examples._options import console, run
from examples._prescribed import MODELS, SCHOOLS, fit_case
from examples.gallery._figures import GREY, INK, panels, save
from examples.gallery._options import parser_of

_NINETY = 1.645  # standard errors, half of a 90 % interval of a Gaussian


def figure(y: Tensor, sigma: Tensor, theta: Tensor, mu: Tensor) -> Figure:
    """Measurements and effects with 90 % intervals, sorted; the mean effect μ as a line."""
    out, (axes,) = panels(7.6, 3.9)
    order = y.argsort()
    y, sigma, theta = y[order], sigma[order], theta[:, order]
    low, high = theta.quantile(torch.tensor([0.05, 0.95]), 0)
    mean, rows = theta.mean(0), torch.arange(len(y))
    axes.axvline(
        mu.mean().item(), color=INK, linestyle="--", linewidth=1, label="E[μ | y]"
    )
    axes.errorbar(
        y,
        rows + 0.16,
        xerr=_NINETY * sigma,
        fmt="s",
        color=GREY,
        label="measured alone, y ± 1.64 σ",
    )
    axes.errorbar(
        mean,
        rows - 0.16,
        xerr=torch.stack([mean - low, high - mean]).numpy(),
        fmt="o",
        color=INK,
        linewidth=2.2,
        label="posterior of θ, 90 %",
    )
    axes.set_yticks(rows, [SCHOOLS[int(i)] for i in order])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("effect of coaching (points of the SAT-V score)")
    out.legend(frameon=False, loc="outside upper center", ncols=3)
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("eight_schools", __doc__, steps=1000).parse_args(argv)
    case = MODELS["eight_schools"]("full_rank")
    fit_case(case, args.seed, args.steps)
    y, sigma = case.data.x
    torch.manual_seed(args.seed)
    drawn = vilvm.posterior(case.lvm, case.data.x, 20_000)
    exact = case.lvm.exact_moments(case.data.x)
    means = torch.stack([exact.mean[f"theta[{j + 1}]"] for j in range(len(y))])
    worst = (drawn["theta"].mean(0) - means).abs().max().item()
    console.print(
        f"Means of θ are within {worst:.2f} points of the exact ones", highlight=False
    )
    save(figure(y, sigma, drawn["theta"], drawn["mu"]), args.out)
    return 0


if __name__ == "__main__":
    run(main)
