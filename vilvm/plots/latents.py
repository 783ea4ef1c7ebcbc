"""Points in the plane: latent codes, and samples of two-dimensional data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.lvm import LatentVariableModel
from vilvm.plots._model import spread, vector_latent
from vilvm.plots._style import SECOND, PlainFigure, hide_spines, panel
from vilvm.weights import posterior_mean

__all__ = ["latent_scatter", "planes"]


def latent_scatter(lvm: LatentVariableModel, data: Any, count: int = 3000) -> Figure:
    """Posterior means in the plane, coloured by label.

    Of more than two latent dimensions, the first two principal components are shown.

    Arguments:
        lvm: the model and guide; its only latent is a vector for each datum.
        data: the data, of which `count` at equal distances are shown.
        count: number of data.

    Returns:
        The figure.

    Raises:
        ValueError: the model has several latents, or its latent is not a vector; `count` is
            below 1.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import latent_scatter
        >>> x = torch.rand(9, 6).round()
        >>> latent_scatter(VAE(data_dim=6, latent_dim=2), x).axes[0].get_xlabel()
        'z₁'
    """
    count = check_number("latent_scatter: count", count)
    seen = spread(data, count).fixed()
    _, codes = vector_latent(posterior_mean(lvm, seen.x))
    points, names = _in_the_plane(codes.cpu().double())
    figure, axes = panel(6.4, 5.4)
    _scatter(axes, points, seen.labels)
    axes.set(xlabel=names[0], ylabel=names[1], title="Posterior means")
    if not names[1]:
        axes.set_yticks([])
    return figure


def planes(
    panels: Mapping[str, Tensor],
    background: Tensor,
    labels: tuple[str, str] = ("x₁", "x₂"),
) -> Figure:
    """Points in the plane, one panel a name, over a grey background that all panels share.

    Arguments:
        panels: points by name, shape (num_points, 2) each.
        background: grey points, shape (num_points, 2).
        labels: of the two axes.

    Returns:
        The figure.

    Examples:
        >>> import torch
        >>> from vilvm.plots import planes
        >>> figure = planes({"a": torch.randn(5, 2), "b": torch.randn(6, 2)}, torch.randn(9, 2))
        >>> [axes.get_title() for axes in figure.axes]
        ['a', 'b']
    """
    figure = PlainFigure(figsize=(3.4 * len(panels), 3.6), layout="constrained")
    columns = np.ravel(figure.subplots(1, len(panels), sharex=True, sharey=True))
    for axes, (name, points) in zip(columns, panels.items(), strict=True):
        axes.scatter(*background.T.cpu(), s=3, color="0.8", linewidths=0)
        axes.scatter(*points.T.cpu(), s=4, color=SECOND, alpha=0.6, linewidths=0)
        axes.set(title=name, xlabel=labels[0])
        hide_spines(axes)
    figure.axes[0].set_ylabel(labels[1])
    return figure


def _in_the_plane(codes: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Codes as points in the plane, shape (num_data, 2), and the names of the axes."""
    if codes.shape[1] == 1:  # one dimension has no second axis
        return torch.cat([codes, torch.zeros_like(codes)], 1), ("z₁", "")
    if codes.shape[1] == 2:
        return codes, ("z₁", "z₂")
    centred = codes - codes.mean(0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    share = singular.square() / singular.square().sum()
    first, second = (
        f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in range(2)
    )
    return centred @ components[:2].T, (first, second)


def _scatter(axes: Axes, points: Tensor, labels: Any) -> None:
    """Points in one colour, or in a colour for each label, with a legend."""
    style = {"s": 6, "alpha": 0.7, "linewidths": 0}
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], **style)
        return
    colours = torch.as_tensor(labels).cpu()
    drawn = axes.scatter(points[:, 0], points[:, 1], c=colours, cmap="tab10", **style)
    axes.legend(
        *drawn.legend_elements(),
        title="label",
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
