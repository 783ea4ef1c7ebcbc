"""Fits factor analysis to the wine data, and pictures each variable's noise and the factors.

python -m examples.gallery.factor_analysis docs/images/factor_analysis.png
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_wine
from torch import Tensor

from examples._options import console, run
from examples.gallery._figures import (
    CLASSES,
    GREY,
    INK,
    MARKERS,
    SECOND,
    panels,
    save,
)
from examples.gallery._options import parser_of
from vilvm._runtime.random import seeded
from vilvm.models.factor_analysis import FactorAnalysis
from vilvm.models.ppca import PPCA
from vilvm.weights import posterior_mean

_SHORT = {"od280/od315_of_diluted_wines": "dilution (OD ratio)"}


@torch.no_grad()
def figure(lvm: FactorAnalysis, ppca: PPCA, x: Tensor, wine: Any) -> Figure:
    """Left the variance of each variable by source, right the wines in the plane of factors."""
    out, (left, right) = panels(8.8, 4.2, columns=2, width_ratios=(1.35, 1))
    order = lvm.psi.argsort()
    noise = lvm.psi[order].numpy()
    common = lvm.W.square().sum(1)[order].numpy()
    names = [
        str(_SHORT.get(n, n.replace("_", " ")))
        for n in (wine.feature_names[i] for i in order)
    ]
    left.barh(names, noise, color=SECOND, label="own noise ψ")
    left.barh(names, common, left=noise, color=INK, label="common factors")
    shared = (2 * ppca.log_sigma).exp().item()
    left.axvline(
        shared, color="black", linestyle="--", linewidth=1.5, label="PPCA's one σ²"
    )
    left.set(xlabel="share of the variable's variance", xlim=(0, 1.0))
    left.tick_params(axis="y", length=0)
    left.legend(
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.35, 1),
        ncols=3,
        columnspacing=1.0,
    )
    z = posterior_mean(lvm, x)["z"]
    for k, (colour, marker) in enumerate(zip(CLASSES, MARKERS, strict=True)):
        chosen = z[torch.from_numpy(wine.target) == k]
        right.scatter(
            *chosen.T, s=16, color=colour, marker=marker, label=f"cultivar {k + 1}"
        )
    right.axhline(0, color=GREY, linewidth=0.5, zorder=0)
    right.axvline(0, color=GREY, linewidth=0.5, zorder=0)
    right.set(xlabel="factor z₁, posterior mean", ylabel="factor z₂, posterior mean")
    right.legend(
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=3,
        handletextpad=0,
        columnspacing=0.6,
    )
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("factor_analysis", __doc__).parse_args(argv)
    wine: Any = load_wine()
    x = torch.tensor(wine.data)
    x = ((x - x.mean(0)) / x.std(0, correction=0)).float()
    with seeded(0):  # EM starts at random
        lvm = FactorAnalysis(data_dim=13, latent_dim=2).maximise(x)
    ppca = PPCA(data_dim=13, latent_dim=2).maximise(x)
    found = [m.exact_log_evidence(x).mean().item() for m in (lvm, ppca)]
    console.print(
        f"log p(x), nats per datum: factor analysis {found[0]:.4f}, PPCA {found[1]:.4f}",
        highlight=False,
    )
    save(figure(lvm, ppca, x, wine), args.out)
    return 0


if __name__ == "__main__":
    run(main)
