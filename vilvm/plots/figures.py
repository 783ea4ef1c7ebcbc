"""Pictures of a trained model. Each function returns a matplotlib Figure, and works for any model
of one vector-valued latent.

`data` are those that ``vilvm.fit`` and ``vilvm.evaluate`` take; rows are shown as pictures of
their ``image_shape``.

The backend is matplotlib's object interface, so no window is opened and no global state
(``pyplot``) is touched.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import as_data
from vilvm.evaluation.interpolation import Path, interpolate, line
from vilvm.lvm import LatentVariableModel, device_of
from vilvm.plots.grid import grid, picture_rows, spread
from vilvm.plots.palette import GREY, INK, SECOND
from vilvm.plots.plain import PlainFigure
from vilvm.weights import find_layout, posterior_mean, predict, sample

__all__ = [
    "curves",
    "elbo_curves",
    "interpolations",
    "interpolations_by_model",
    "latent_scatter",
    "manifold",
    "planes",
    "prior_samples",
    "reconstructions",
    "restorations",
    "samples_by_model",
]


def reconstructions(lvm: LatentVariableModel, data: Any, count: int = 12) -> Figure:
    """Data above, and below them E[x | z] at the posterior mean of z."""
    count = check_number("reconstructions: count", count)
    seen = spread(data, count).fixed()
    rows = {"data": seen.x, "model": _pictures(lvm, posterior_mean(lvm, seen.x))}
    return picture_rows(rows, seen.image_shape, "Reconstructions")


def prior_samples(lvm: LatentVariableModel, data: Any, count: int = 64, seed: int = 0) -> Figure:
    """E[x | z] for z drawn from the prior; `data` say what a picture looks like."""
    count = check_number("prior_samples: count", count)
    seed = check_seed("prior_samples: seed", seed)
    with seeded(seed, device_of(lvm)):
        drawn = next(iter(_observed(sample(lvm, count, mean=True), lvm, data).values()))
    return grid(
        drawn,
        round(math.sqrt(count)),
        as_data(data).image_shape,
        None,
        "Samples from the prior (means)",
    )


def interpolations(
    lvm: LatentVariableModel, data: Any, pairs: int = 6, steps: int = 11, path: Path = line
) -> Figure:
    """E[x | z] on a way between the posterior means of two data, a straight line by default, a
    pair a row.
    """
    pairs = check_number("interpolations: pairs", pairs)
    steps = check_number("interpolations: steps", steps, 2)
    first, second, shape = _ends(data, pairs)
    decoded = interpolate(lvm, first, second, steps, path).reshape(len(first), steps, -1)
    rows = torch.cat(
        [first.reshape(len(first), 1, -1), decoded, second.reshape(len(first), 1, -1)], 1
    ).flatten(0, 1)
    return grid(
        rows, steps + 2, shape, None, "Between two data: the data at the ends, the model between"
    )


def interpolations_by_model(
    ways: Mapping[str, tuple[LatentVariableModel, Path]], data: Any, steps: int = 11
) -> Figure:
    """Between the same two data, a model and path a row, by name; last the strawman, a cross-fade
    of their pixels.
    """
    steps = check_number("interpolations_by_model: steps", steps, 2)
    first, second, shape = _ends(data, 1)
    rows = {
        name: interpolate(lvm, first, second, steps, path)[0] for name, (lvm, path) in ways.items()
    }
    rows["pixels"] = line(first, second, steps)[0]
    ended = {
        name: torch.cat([first.flatten(1), row.flatten(1), second.flatten(1)])
        for name, row in rows.items()
    }
    return picture_rows(ended, shape, "Between two data: the data at the ends")


def samples_by_model(
    models: Mapping[str, LatentVariableModel], data: Any, count: int = 16, seed: int = 0
) -> Figure:
    """E[x | z] for z drawn from each model's prior, a model a row, by name; data above."""
    count = check_number("samples_by_model: count", count)
    seed = check_seed("samples_by_model: seed", seed)
    shown = spread(data, count).fixed()
    rows = {"data": shown.x}
    for name, lvm in models.items():
        with seeded(seed, device_of(lvm)):
            rows[name] = next(
                iter(_observed(sample(lvm, len(shown), mean=True), lvm, shown).values())
            )
    return picture_rows(rows, shown.image_shape, "Draws from the priors (means)")


def restorations(lvm: LatentVariableModel, data: Any, count: int = 12) -> Figure:
    """What a denoising model makes of corrupted data: corrupted, restored, original. `data` are
    pairs of the two (``Corrupted``).

    Raises:
        ValueError: the data are not pairs.
    """
    count = check_number("restorations: count", count)
    seen = spread(data, count).fixed()
    if not (isinstance(seen.x, tuple | list) and len(seen.x) == 2):
        raise ValueError(
            "restorations: the data must be pairs (corrupted, clean), as the transform Corrupted "
            "makes them."
        )
    corrupted, clean = seen.x
    rows = {
        "corrupted": corrupted,
        "restored": _pictures(lvm, posterior_mean(lvm, seen.x)),
        "original": clean,
    }
    return picture_rows(rows, seen.image_shape, "Restorations")


def elbo_curves(history: Any) -> Figure:
    """The objective and the validation ELBO, rate and distortion against epochs; `history[column]`
    is an array, as of ``fit``.
    """
    figure = PlainFigure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    # a line of one point would not be seen
    style = {"marker": "o", "markersize": 3} if len(epochs) < 30 else {}
    left.plot(epochs, history["elbo"], color=INK, label="training (the objective)", **style)
    validation, error = history["validation_elbo"], history["validation_se"]
    if np.isfinite(validation).any():
        left.plot(epochs, validation, color=SECOND, label="validation ± 1 SE", **style)
        left.fill_between(
            epochs, validation - error, validation + error, color=SECOND, alpha=0.2, linewidth=0
        )
    left.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
    right.plot(epochs, history["rate"], color=INK, label="rate", **style)
    right.plot(epochs, history["distortion"], color=SECOND, label="distortion", **style)
    right.set(xlabel="epoch", ylabel="nats per datum")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def latent_scatter(lvm: LatentVariableModel, data: Any, count: int = 3000) -> Figure:
    """Posterior means in the plane, coloured by label; of more than two dimensions, their first
    two principal components.
    """
    count = check_number("latent_scatter: count", count)
    seen = spread(data, count).fixed()
    _, codes = _single(posterior_mean(lvm, seen.x))
    codes = codes.cpu().double()
    names = ["z₁", "z₂"]
    if codes.shape[1] > 2:
        centred = codes - codes.mean(0)
        _, singular, axes_ = torch.linalg.svd(centred, full_matrices=False)
        share = singular.square() / singular.square().sum()
        names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in range(2)]
        codes = centred @ axes_[:2].T
    figure = PlainFigure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    labels = None if seen.labels is None else torch.as_tensor(seen.labels).cpu()
    # One latent dimension has no second axis to spread along.
    across = codes[:, 1] if codes.shape[1] > 1 else torch.zeros(len(codes))
    points = axes.scatter(
        codes[:, 0],
        across,
        c=labels,
        cmap="tab10" if labels is not None else None,
        s=6,
        alpha=0.7,
        linewidths=0,
    )
    if labels is not None:
        axes.legend(
            *points.legend_elements(),
            title="label",
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    axes.set(
        xlabel=names[0], ylabel=names[1] if codes.shape[1] > 1 else "", title="Posterior means"
    )
    if codes.shape[1] == 1:
        axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(
    x: Sequence[float],
    rows: Mapping[str, Sequence[float]],
    spread: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    title: str = "",
    log_x: bool = False,
) -> Figure:
    """Quantities against x, a line a name, each with a band of its spread on either side."""
    figure = PlainFigure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, y), colour in zip(rows.items(), (SECOND, INK, "#2d7d5a", GREY), strict=False):
        low, high = (
            np.asarray(y) - np.asarray(spread[name]),
            np.asarray(y) + np.asarray(spread[name]),
        )
        axes.plot(x, y, color=colour, marker="o", markersize=3, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(list(x), [f"{value:g}" for value in x], minor=False)
        axes.set_xticks([], minor=True)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def planes(
    panels: Mapping[str, Tensor], background: Tensor, labels: tuple[str, str] = ("x₁", "x₂")
) -> Figure:
    """Points in the plane, a panel a name, over a grey background that all panels share; shape
    (num_points, 2) each.
    """
    figure = PlainFigure(figsize=(3.4 * len(panels), 3.6), layout="constrained")
    for axes, (name, points) in zip(
        np.ravel(figure.subplots(1, len(panels), sharex=True, sharey=True)),
        panels.items(),
        strict=True,
    ):
        axes.scatter(*background.T.cpu(), s=3, color="0.8", linewidths=0)
        axes.scatter(*points.T.cpu(), s=4, color=SECOND, alpha=0.6, linewidths=0)
        axes.set(title=name, xlabel=labels[0])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(labels[1])
    return figure


def manifold(lvm: LatentVariableModel, data: Any, side: int = 20) -> Figure:
    """E[x | z] on a grid of a two-dimensional standard normal latent, equal prior probability
    between neighbours.

    Raises:
        ValueError: the latent is not two-dimensional.
    """
    side = check_number("manifold: side", side)
    name, codes = _single(posterior_mean(lvm, spread(data, 1).fixed().x))
    if codes.shape[-1] != 2:
        raise ValueError(
            f"manifold: the latent {name!r} has {codes.shape[-1]} dimensions; a grid needs 2."
        )
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side).to(codes)
    down, across = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    decoded = _pictures(lvm, {name: torch.stack([across, down], -1).reshape(-1, 2)})
    return grid(
        decoded,
        side,
        as_data(data).image_shape,
        None,
        "The latent plane (equal steps of prior probability)",
        gap=0.0,
    )


def _ends(data: Any, pairs: int) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    """Data to interpolate between, and their image shape."""
    ends = spread(data, 2 * pairs).fixed()
    if len(ends) < 2:
        raise ValueError(f"interpolations: needs at least two data; got {len(ends)}.")
    half = len(ends) // 2
    return ends.x[:half], ends.x[half : 2 * half], ends.image_shape


def _single(latents: dict[str, Tensor]) -> tuple[str, Tensor]:
    name, codes = next(iter(latents.items()))
    if len(latents) != 1 or codes.dim() != 2:
        shapes = {n: tuple(v.shape) for n, v in latents.items()}
        raise ValueError(
            "This figure needs a model of one latent, a vector for each datum; this one has "
            f"{shapes}."
        )
    return name, codes


def _pictures(lvm: LatentVariableModel, latents: dict[str, Tensor]) -> Tensor:
    return next(iter(predict(lvm, latents).values()))


def _observed(draws: dict[str, Tensor], lvm: LatentVariableModel, data: Any) -> dict[str, Tensor]:
    names = find_layout(lvm, spread(data, 1).fixed().x).observed
    return {name: draws[name] for name in names}
