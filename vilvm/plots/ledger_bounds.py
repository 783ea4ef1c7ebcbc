"""The bounds of a ledger, one panel for each group of comparable models."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm.evaluation.ledger_rows import Row, difference
from vilvm.plots._style import INK, PlainFigure, hide_spines

__all__ = ["ledger_bounds"]


def ledger_bounds(ledger: Any) -> Figure:
    """The bound of every model, the best of each group above.

    A bar is ± 1 standard error of the difference to the best, in which the data that are hard for
    both cancel. Models without a bound are placed by their distortion.

    Arguments:
        ledger: of ``vilvm.compare``.

    Returns:
        The figure.

    Raises:
        ValueError: the ledger is empty.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.plots import ledger_bounds
        >>> x = torch.randn(60, 4)
        >>> models = {"one": PPCA(4, 1).maximise(x), "two": PPCA(4, 2).maximise(x)}
        >>> ledger = vilvm.compare(models, x, num_samples=20, num_draws=0)
        >>> ledger_bounds(ledger).axes[0].get_xlabel()
        'IWAE-20, nats per datum'
    """
    groups = ledger.groups()
    if not groups:
        raise ValueError("ledger_bounds: the ledger has no row.")
    sizes = [len(rows) for rows in groups.values()]
    figure = PlainFigure(
        figsize=(6.4, 0.35 * sum(sizes) + 1.1 * len(sizes)), layout="constrained"
    )
    panels = figure.subplots(len(sizes), squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (protocol, rows) in zip(panels, groups.items(), strict=True):
        _group(axes, rows)
        axes.set_title(str(protocol), fontsize=8, loc="left", wrap=True)
    return figure


def _group(axes: Axes, rows: Sequence[Row]) -> None:
    best, errors = rows[0], [0.0]
    if best.bound is None:
        values = [row.evaluation.distortion.mean for row in rows]
        errors = [row.evaluation.distortion.se for row in rows]
        name = "distortion"
    else:
        bounds = [bound for row in rows if (bound := row.bound) is not None]
        values = [bound.mean for bound in bounds]
        errors += [difference(bounds[0], bound).se for bound in bounds[1:]]
        name = best.protocol.bound.upper()
        if name == "IWAE":
            name = f"IWAE-{best.protocol.num_samples}"
    places = range(len(rows))
    axes.errorbar(values, places, xerr=errors, fmt="o", color=INK, capsize=3)
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{name}, {best.protocol.unit}")
    hide_spines(axes)
