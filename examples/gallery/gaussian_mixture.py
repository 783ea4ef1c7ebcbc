"""Fits a mixture of two normals, and pictures its components and to which a datum belongs.

python -m examples.gallery.gaussian_mixture docs/images/gaussian_mixture.png
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

import vilvm
from examples._options import console, run
from examples.gallery._figures import GREY, INK, SECOND, panels, save
from examples.gallery._options import parser_of
from vilvm._runtime.random import seeded
from vilvm.models.gaussian_mixture import GaussianMixture, objective
from vilvm.training import one_cycle


@torch.no_grad()
def figure(lvm: GaussianMixture, x: Tensor, draws: dict[str, Tensor]) -> Figure:
    """Above data and components with 90 % bands, below the probability of the right component."""
    out, (above, below) = panels(7.6, 4.4, rows=2, sharex=True, height_ratios=(1.5, 1))
    at = torch.linspace(-3.8, 6, 300)
    edges = torch.tensor([0.05, 0.95])
    above.hist(x.numpy(), 30, density=True, color=GREY, alpha=0.4, label="data")
    parts = (
        draws["pi"][:, None]
        * Normal(draws["mu"][:, None], draws["sigma"][:, None])
        .log_prob(at[:, None])
        .exp()
    )
    for k, (colour, style) in enumerate(((INK, "-"), (SECOND, "--"))):
        low, high = parts[..., k].quantile(edges, 0)
        above.fill_between(at, low, high, color=colour, alpha=0.3, linewidth=0)
        label = ("π₁ N(x | μ₁, σ₁)", "π₂ N(x | μ₂, σ₂)")[k]
        above.plot(at, parts[..., k].mean(0), style, color=colour, label=label)
    above.set(ylabel="density")
    above.legend(frameon=False, loc="upper right")
    right = lvm.responsibilities(at, draws)[..., 1]
    low, high = right.quantile(edges, 0)
    below.fill_between(at, low, high, color=SECOND, alpha=0.3, linewidth=0)
    below.plot(at, right.mean(0), "--", color=SECOND)
    below.plot(
        x, torch.full_like(x, -0.08), "|", color="black", alpha=0.4, markersize=6
    )
    below.set(xlabel="x", ylabel="p(z = 2 | x)", ylim=(-0.15, 1.05), yticks=(0, 0.5, 1))
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("gaussian_mixture", __doc__, steps=1000).parse_args(argv)
    with seeded(0):
        x = torch.cat([0.8 * torch.randn(90) - 1.0, 1.3 * torch.randn(60) + 2.5])
    lvm = GaussianMixture(num_components=2)
    vilvm.fit(
        lvm,
        x,
        steps=args.steps,
        objective=objective(),
        seed=args.seed,
        **one_cycle(0.03, args.steps),
    )
    torch.manual_seed(args.seed)
    draws = vilvm.posterior(lvm, x, 1000)
    for name, true in (("pi", (0.6, 0.4)), ("mu", (-1.0, 2.5)), ("sigma", (0.8, 1.3))):
        mean, sd = draws[name].mean(0).tolist(), draws[name].std(0).tolist()
        console.print(
            f"{name}: {mean[0]:.2f} ± {sd[0]:.2f} and {mean[1]:.2f} ± {sd[1]:.2f}; data were "
            f"drawn with {true[0]} and {true[1]}",
            highlight=False,
        )
    save(figure(lvm, x, draws), args.out)
    return 0


if __name__ == "__main__":
    run(main)
