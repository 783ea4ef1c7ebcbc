"""Lines: the history of a training, and quantities against x."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm.plots._style import GREY, INK, SECOND, PlainFigure, hide_spines, panel

__all__ = ["curves", "elbo_curves"]

_COLOURS = (SECOND, INK, "#2d7d5a", GREY)
_FEW = 30  # points of a line that are marked; a line of one point would be invisible


def elbo_curves(history: Any) -> Figure:
    """The objective and the validation ELBO, rate and distortion against epochs.

    Arguments:
        history: of ``fit``; `history[column]` is an array of shape (num_records,).

    Returns:
        The figure; all quantities are in nats per datum.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import elbo_curves
        >>> fitted = vilvm.fit(VAE(data_dim=6, latent_dim=2), torch.zeros(8, 6), steps=3)
        >>> [axes.get_ylabel() for axes in elbo_curves(fitted.history).axes]
        ['ELBO (nats per datum)', 'nats per datum']
    """
    figure = PlainFigure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    style = {"marker": "o", "markersize": 3} if len(epochs) < _FEW else {}
    left.plot(
        epochs, history["elbo"], color=INK, label="training (the objective)", **style
    )
    validation, error = history["validation_elbo"], history["validation_se"]
    if np.isfinite(validation).any():
        left.plot(epochs, validation, color=SECOND, label="validation ± 1 SE", **style)
        _band(left, epochs, validation, error, SECOND)
    left.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
    right.plot(epochs, history["rate"], color=INK, label="rate", **style)
    right.plot(epochs, history["distortion"], color=SECOND, label="distortion", **style)
    right.set(xlabel="epoch", ylabel="nats per datum")
    for axes in (left, right):
        axes.legend(frameon=False)
        hide_spines(axes)
    return figure


def curves(
    x: Sequence[float],
    rows: Mapping[str, Sequence[float]],
    spread: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    title: str = "",
    *,
    log_x: bool = False,
) -> Figure:
    """Quantities against x, one line a name, each with a band of its spread on either side.

    Arguments:
        x: shape (num_points,).
        rows: values by name, shape (num_points,) each.
        spread: half the width of the bands, by the same names and of the same shapes.
        labels: of the axes.
        title: above the axes.
        log_x: whether x is on a logarithmic scale.

    Returns:
        The figure.

    Examples:
        >>> from vilvm.plots import curves
        >>> figure = curves([1, 10], {"ELBO": [-3, -2]}, {"ELBO": [0.1, 0.1]}, ("draws", "nats"))
        >>> figure.axes[0].get_xlabel()
        'draws'
    """
    figure, axes = panel(6.4, 4.2)
    for (name, y), colour in zip(rows.items(), _COLOURS, strict=False):
        axes.plot(x, y, color=colour, marker="o", markersize=3, label=name)
        _band(axes, x, np.asarray(y), np.asarray(spread[name]), colour)
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(list(x), [f"{value:g}" for value in x], minor=False)
        axes.set_xticks([], minor=True)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend(frameon=False)
    return figure


def _band(
    axes: Axes,
    x: Sequence[float],
    centre: np.ndarray,
    half_width: np.ndarray,
    colour: str,
) -> None:
    axes.fill_between(
        x,
        centre - half_width,
        centre + half_width,
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
