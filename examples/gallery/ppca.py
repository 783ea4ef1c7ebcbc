"""Fits probabilistic PCA to two measurements of irises, and pictures axis and posterior means.

python -m examples.gallery.ppca docs/images/ppca.png
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_iris
from torch import Tensor
from torch.distributions import Normal

from examples._options import console, run
from examples.gallery._figures import CLASSES, GREY, INK, MARKERS, panels, save
from examples.gallery._options import parser_of
from vilvm.models.ppca import PPCA
from vilvm.weights import posterior_mean

_SHOWN = 3  # data whose posterior is drawn


@torch.no_grad()
def figure(lvm: PPCA, x: Tensor) -> Figure:
    """Left data, axis and posterior means; right the prior and three posteriors of z."""
    out, (left, right) = panels(8.6, 3.2, columns=2, width_ratios=(1.7, 1))
    z = torch.linspace(-2.6, 2.6, 300)[:, None]
    mean = posterior_mean(lvm, x)["z"]
    axis, back = 0.85 * z @ lvm.W.T + lvm.b, mean @ lvm.W.T + lvm.b
    for datum, point in zip(x, back, strict=True):
        left.plot(*torch.stack([datum, point]).T, color=GREY, linewidth=0.6)
    left.plot(*axis.T, color="black", linewidth=1.5, label="W z + b")
    left.scatter(*x.T, s=12, color=GREY, label="data", zorder=2)
    left.scatter(*back.T, s=9, color="black", label="at E[z | x]", zorder=3)
    left.set(xlabel="petal length (cm)", ylabel="sepal length (cm)", aspect="equal")
    left.legend(frameon=False, loc="upper left")
    right.plot(z, Normal(0.0, 1.0).log_prob(z).exp(), color=GREY)
    right.annotate("p(z)", (-0.75, 0.4), color="#5a626a")
    order = x[:, 0].argsort()
    chosen = order[torch.linspace(0, len(x) - 1, _SHOWN).round().long()]
    for i, colour, marker in zip(chosen, CLASSES, MARKERS, strict=True):
        left.scatter(*x[i], s=60, color=colour, marker=marker, zorder=4)
        density = Normal(mean[i], lvm.log_s.exp()).log_prob(z).exp()
        right.plot(z, density, color=colour)
        peak = density.max()
        right.plot(mean[i], peak, marker, color=colour, markersize=8)
    right.annotate("q(z | x)", (mean[chosen[0]] + 0.3, 1.0), color=INK)
    right.set(xlabel="z", ylabel="density", ylim=(0, None), yticks=(0, 1, 2))
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("ppca", __doc__).parse_args(argv)
    iris: Any = load_iris()
    x = torch.tensor(iris.data[:, [2, 0]], dtype=torch.float32)
    lvm = PPCA(data_dim=2, latent_dim=1).maximise(x)
    with torch.no_grad():  # z and −z are equivalent: let it grow with size
        sign = lvm.W[0].sign()
        lvm.W.mul_(sign)
        lvm.V.mul_(sign)
    console.print(
        f"W = {lvm.W.flatten().tolist()}, σ = {lvm.log_sigma.exp():.3f}",
        highlight=False,
    )
    save(figure(lvm, x), args.out)
    return 0


if __name__ == "__main__":
    run(main)
