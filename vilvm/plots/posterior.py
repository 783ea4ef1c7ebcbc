"""Plots of a posterior: the interval of every scalar, and the worst of them in pairs."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vilvm.diagnostics.posterior_table import PosteriorTable
from vilvm.plots._style import GREY, INK, SECOND, PlainFigure, hide_spines

__all__ = ["forest", "pairs"]

_LEVELS = (0.05, 0.25, 0.75, 0.95)
_ONE_SCALE = 40  # the widest range of all intervals on one axis, in shortest intervals
_ROW, _BETWEEN = 0.23, 0.45  # inches a row, and for each axis
_POINTS = 1000  # of a scatter plot


def forest(table: PosteriorTable) -> Figure:
    """A forest plot: the mean of every scalar, with its 50 % and 90 % interval.

    Scalars of one scale share an axis; otherwise each latent has an axis of its own. Scalars that
    a diagnostic objects to are coloured.

    Arguments:
        table: of a ``Diagnosis``.

    Returns:
        The figure.

    Raises:
        ValueError: the table has no rows.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import PosteriorTable, Scalar
        >>> from vilvm.plots import forest
        >>> rows = Scalar("mu", 0.0, 1.0, -1.6, 1.6), Scalar("tau", 0.0, 1.0, -1.6, 1.6)
        >>> table = PosteriorTable(rows, torch.randn(100, 2), torch.zeros(2), "draws")
        >>> [label.get_text() for label in forest(table).axes[0].get_yticklabels()]
        ['mu', 'tau']
    """
    _check_rows("forest", table)
    draws = table.draws.numpy()
    edges = np.quantile(draws, _LEVELS, axis=0)
    groups = list(_groups(table, edges))
    sizes = [len(group) for group in groups]
    height = 0.3 + _ROW * sum(sizes) + _BETWEEN * len(sizes)
    figure = PlainFigure(figsize=(6.2, height), layout="constrained")
    rows = figure.subplots(len(groups), 1, squeeze=False, height_ratios=sizes)
    for axes, group in zip(rows[:, 0], groups, strict=True):
        _intervals(axes, table, group, edges)
    return figure


def pairs(table: PosteriorTable, count: int = 4) -> Figure | None:
    """Draws of the scalars that look worst, two at a time, beside their histograms.

    If each datum has latents of its own, they are those of the worst datum, because the latents of
    different data are independent.

    Arguments:
        table: of a ``Diagnosis``.
        count: number of scalars, at least 2.

    Returns:
        The figure; None if fewer than two scalars vary.

    Raises:
        ValueError: count is below 2.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import PosteriorTable, Scalar
        >>> from vilvm.plots import pairs
        >>> rows = Scalar("mu", 0.0, 1.0, -1.6, 1.6), Scalar("tau", 0.0, 1.0, -1.6, 1.6)
        >>> table = PosteriorTable(rows, torch.randn(100, 2), torch.zeros(2), "draws")
        >>> len(pairs(table).axes)
        3
    """
    if count < 2:
        raise ValueError(f"pairs: count must be at least 2; got {count}.")
    varying = [i for i in table.worst(len(table.rows)) if table.rows[i].sd > 0]
    same = [i for i in varying if table.rows[i].datum == table.rows[varying[0]].datum]
    chosen = sorted(same[:count])
    if len(chosen) < 2:
        return None
    every = max(1, len(table.draws) // _POINTS)
    draws, size = table.draws[::every][:_POINTS].numpy(), len(chosen)
    figure = PlainFigure(figsize=(1.75 * size, 1.6 * size), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False, sharex="col")
    for axes in grid[np.triu_indices(size, 1)]:
        axes.remove()
    for row, column in zip(*np.tril_indices(size), strict=True):
        axes, i, j = grid[row, column], chosen[row], chosen[column]
        _cell(axes, draws[:, j], None if i == j else draws[:, i])
        _label(axes, table, (i, j), row == size - 1, column == 0)
    return figure


def _cell(axes: Axes, x: np.ndarray, y: np.ndarray | None) -> None:
    """A scatter plot; a histogram without y."""
    hide_spines(axes)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if y is None:
        axes.hist(x, 30, color=GREY)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    else:
        axes.scatter(x, y, s=4, alpha=0.35, color=INK, linewidths=0)


def _label(
    axes: Axes,
    table: PosteriorTable,
    of: tuple[int, int],
    is_last: bool,
    is_first: bool,
) -> None:
    """Names the outer axes."""
    up, across = (table.rows[i].name for i in of)
    if is_last:
        axes.set_xlabel(across, fontsize=8)
    else:
        axes.tick_params(labelbottom=False)
    if is_first and up != across:
        axes.set_ylabel(up, fontsize=8)
    elif up != across:
        axes.tick_params(labelleft=False)


def _groups(table: PosteriorTable, edges: np.ndarray) -> Iterator[list[int]]:
    """The rows of each axis: all, or those of one latent if scales differ."""
    low, high = edges[0], edges[-1]
    widths = high - low
    narrow = widths[widths > 0].min(initial=np.inf)
    if high.max() - low.min() <= _ONE_SCALE * narrow:
        yield list(range(len(table.rows)))
        return
    for _, rows in groupby(
        enumerate(table.rows), key=lambda row: row[1].name.split("[")[0]
    ):
        yield [i for i, _ in rows]


def _intervals(
    axes: Axes, table: PosteriorTable, group: list[int], edges: np.ndarray
) -> None:
    hide_spines(axes)
    for place, i in enumerate(group):
        colour = SECOND if table.badness[i] > 1 else INK
        low, first, third, high = edges[:, i]
        axes.plot([low, high], [place, place], color=colour, linewidth=1)
        axes.plot([first, third], [place, place], color=colour, linewidth=3.2)
        axes.plot([table.rows[i].mean], [place], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(group)), [table.rows[i].name for i in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.7)


def _check_rows(who: str, table: Any) -> None:
    if not len(table.rows):
        raise ValueError(f"{who}: the table has no rows, so there is nothing to draw.")
