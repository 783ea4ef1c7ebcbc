"""Pictures the rungs of ``vilvm.infer`` on a posterior of two dimensions.

    python -m benchmarks.inference.ladder_figure docs/images/ladder.png

The posterior is that of the mean and the standard deviation of six data. Grey contours enclose
50 %, 90 % and 99 % of it; what a rung makes is blue, and one chain orange.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm.inference._approximations import Gaussian, Mixture
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._chains import SUPERCHAINS, run_chains
from vilvm.inference._fixed_draws import best_skewed
from vilvm.inference._modes import modes
from vilvm.inference._newton import newton
from vilvm.inference._paths import starts
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.inference._weighted import weigh

BLUE, ORANGE, GREY = "#1f4e79", "#c2571a", "#8c959d"
_BOX = ((-3.7, 4.3), (-1.0, 2.3))  # of mu and log sigma
_SHARES = (0.99, 0.9, 0.5)
_TITLES = (
    "1  Paths to the modes",
    "2  Gaussian of largest ELBO",
    "3  Weights",
    "4  Skewed margins",
    "5  Chains",
)
_NOTES = (
    "Newton's method from a wide box,\nalso in standard units;\nno mode: not proper, it says so",
    "fixed draws, no learning rate;\nfull rank up to 250 dimensions",
    "k̂ ≤ 0.6 and 2,000 effective draws:\nstop here; else add wider Gaussians\n"
    "and try again",
    "up to 15 dimensions;\nthen weights again:\nstop if they are good",
    "from the weighted draws,\nuntil nested R̂ ≤ 1.01\nand 1,500 effective draws",
)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def figure() -> Figure:
    """The five rungs side by side."""
    with seeded(0):
        target = target_of(
            own_model(model),
            prepare_data(torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])),
        )
        paths = newton(target, starts(target, 6), steps=40)
        best, _ = best_gaussian(target, modes(target, paths)[0].gaussian)
        one = torch.zeros(1, dtype=torch.float64)
        weighted = weigh(target, Mixture([best], one), 4000)
        assert isinstance(best, Gaussian)
        skewed, _ = best_skewed(target, best)
        chains = run_chains(
            target, skewed, weighted.resampled(SUPERCHAINS), lambda: False
        )
        out = Figure(figsize=(15, 4.3), layout="constrained")
        panels: list[Any] = list(out.subplots(1, 5))
        for axes, title, note in zip(panels, _TITLES, _NOTES, strict=True):
            _prepare(axes, title, note, target)
        for path in paths.u.unbind(1):
            panels[0].plot(*path.T, "o-", color=BLUE, markersize=3, linewidth=1)
        _contours(panels[1], Mixture([best], one).log_prob, BLUE)
        size = weighted.weight / weighted.weight.max()
        some = slice(0, 700)
        panels[2].scatter(
            *weighted.u[some].T, s=60 * size[some], color=BLUE, linewidths=0
        )
        _contours(panels[3], Mixture([skewed], one).log_prob, BLUE)
        draws = chains.u[::10].flatten(0, 1)[:700]
        panels[4].scatter(*draws.T, s=5, color=BLUE, linewidths=0)
        panels[4].plot(*chains.u[:20, 0].T, "o-", color=ORANGE, markersize=3, lw=1)
    return out


def _prepare(axes: Axes, title: str, note: str, target: Any) -> None:
    _contours(axes, target, GREY)
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(note, fontsize=10)
    axes.set(xlim=_BOX[0], ylim=_BOX[1], xticks=[], yticks=[])
    axes.spines[:].set_color(GREY)


def _contours(axes: Axes, log_density: Callable[[Tensor], Tensor], colour: str) -> None:
    """Contours that enclose shares of the probability."""
    x, y = (torch.linspace(*ends, 160, dtype=torch.float64) for ends in _BOX)
    grid = torch.cartesian_prod(x, y)
    with torch.no_grad():
        density = log_density(grid).exp()
    sorted_, _ = density.sort(descending=True)
    mass = sorted_.cumsum(0) / density.sum()
    levels = [sorted_[(mass < share).sum()].item() for share in _SHARES]
    axes.contour(
        x, y, density.reshape(160, 160).T, levels, colors=colour, linewidths=1.2
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    figure().savefig(sys.argv[1], dpi=110)
