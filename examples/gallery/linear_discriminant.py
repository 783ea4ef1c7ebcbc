"""Fits discriminant analysis to irises with and without labels, and pictures both.

python -m examples.gallery.linear_discriminant docs/images/linear_discriminant.png
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_iris
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._figures import CLASSES, MARKERS, panels, save
from examples.gallery._options import parser_of
from vilvm.models.linear_discriminant import LinearDiscriminant, objective
from vilvm.training import one_cycle

_LABELLED = 5  # irises a species, with whose labels the fit without labels starts


def figure(
    fits: dict[str, LinearDiscriminant], x: Tensor, y: Tensor, names: Any
) -> Figure:
    """A fit a panel: irises by species, the classes' ellipses and the regions between them."""
    out, axes = panels(8.2, 3.9, columns=2, sharex=True, sharey=True)
    for one, (name, lvm) in zip(axes, fits.items(), strict=True):
        _regions(one, lvm)
        for k, (colour, marker) in enumerate(zip(CLASSES, MARKERS, strict=True)):
            one.scatter(*x[y == k].T, s=14, color=colour, marker=marker, label=names[k])
        one.set(
            title=name, xlabel="petal length (cm)", xlim=(0.5, 7.3), ylim=(-0.2, 2.9)
        )
    axes[0].set_ylabel("petal width (cm)")
    axes[0].legend(frameon=False, loc="upper left", handletextpad=0.1)
    return out


@torch.no_grad()
def _regions(axes: Axes, lvm: LinearDiscriminant) -> None:
    """Where each class is the most probable, and the ellipses of two standard deviations."""
    across, up = torch.linspace(0.5, 7.3, 300), torch.linspace(-0.2, 2.9, 300)
    grid = torch.cartesian_prod(across, up)
    chosen = lvm.classify(grid).argmax(-1).reshape(300, 300).T
    axes.contourf(
        across,
        up,
        chosen,
        (-0.5, 0.5, 1.5, 2.5),
        cmap=ListedColormap(CLASSES),
        alpha=0.14,
    )
    angle = torch.linspace(0, 2 * np.pi, 100)
    circle = 2 * torch.stack([angle.cos(), angle.sin()], -1) @ lvm.L.T
    for mean, colour in zip(lvm.mu, CLASSES, strict=True):
        axes.plot(*(circle + mean).T, color=colour, linewidth=1.5)
        axes.plot(*mean, "+", color="black", markersize=9, markeredgewidth=1.5)


def main(argv: list[str] | None = None) -> int:
    args = parser_of("linear_discriminant", __doc__, steps=1500).parse_args(argv)
    iris: Any = load_iris()
    x = torch.tensor(iris.data[:, 2:], dtype=torch.float32)
    y = torch.from_numpy(iris.target)
    supervised = LinearDiscriminant(2, 3).maximise(x, y)
    few = torch.cat([(y == k).nonzero()[:_LABELLED, 0] for k in range(3)])
    without = deepcopy(supervised).maximise(x[few], y[few])
    vilvm.fit(
        without,
        x,
        steps=args.steps,
        objective=objective(),
        seed=args.seed,
        **one_cycle(0.02, args.steps),
    )
    fits = {"Fitted with labels": supervised, "Fitted without labels": without}
    for name, lvm in fits.items():
        wrong = int((lvm.classify(x).argmax(-1) != y).sum())
        evidence = lvm.exact_log_evidence(x).mean().item()
        console.print(
            f"{name}: log p(x) {evidence:.4f} nats per datum, {wrong} of {len(x)} errors",
            highlight=False,
        )
    save(figure(fits, x, y, iris.target_names), args.out)
    return 0


if __name__ == "__main__":
    run(main)
