"""Plots of diagnostics. Each function takes plain arrays: tensors, or anything NumPy accepts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm.plots._arrays import as_array
from vilvm.plots._style import GREY, INK, SECOND, legend_above, minus, panel

__all__ = ["elbo_tail", "gap_bars", "kl_bars", "pareto_k", "predictive_check"]

_MAX_DOTS = 2000  # of pareto_k; more are a histogram
_MAX_NAMES = 25  # of dimensions in kl_bars; more are numbered by rank


def pareto_k(k: Any, threshold: float = 0.7, index: Any = None) -> Figure:
    """Pareto k̂ of every datum; values above the threshold are coloured.

    Up to 2,000 data are dots by index, more are a histogram. Values of +∞ and NaN are drawn at
    the top.

    Arguments:
        k: shape (num_data,).
        threshold: drawn as a line.
        index: index of each datum in the full data set, shape (num_data,); 0, 1, … by default.

    Returns:
        The figure.

    Raises:
        ValueError: there are not as many indices as values.

    Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.

    Examples:
        >>> from vilvm.plots import pareto_k
        >>> pareto_k([0.2, 0.9]).axes[0].get_ylabel()
        'Pareto k̂'
    """
    values = as_array(k, 1, "pareto_k: k")
    if index is None:
        index = np.arange(len(values))
    data = as_array(index, 1, "pareto_k: index")
    if len(data) != len(values):
        raise ValueError(
            f"pareto_k: {len(values)} values of k̂ need as many indices; got {len(data)}."
        )
    above = ~(values <= threshold)  # NaN too
    labels = [
        f"{(~above).sum():,} at most {threshold:.2g}",
        f"{above.sum():,} above {threshold:.2g}",
    ]
    shown = _within_axes(values, threshold)
    figure, axes = panel(5.4, 3.2)
    if len(values) > _MAX_DOTS:
        bins = np.histogram_bin_edges(shown, 60).tolist()
        parts = [shown[~above], shown[above]]
        axes.hist(parts, bins, stacked=True, color=[INK, SECOND], label=labels)
        axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="Pareto k̂", ylabel="data")
    else:
        for part, colour, label in zip(
            (~above, above), (INK, SECOND), labels, strict=True
        ):
            axes.scatter(
                data[part], shown[part], s=9, color=colour, linewidths=0, label=label
            )
        axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="datum", ylabel="Pareto k̂")
    legend_above(axes)
    return figure


def gap_bars(
    gaps: Mapping[str, tuple[float, float]], unit: str = "nats per datum"
) -> Figure:
    """Gaps as bars with their standard errors.

    Arguments:
        gaps: mean and standard error, by name.
        unit: of the gaps.

    Returns:
        The figure.

    Examples:
        >>> from vilvm.plots import gap_bars
        >>> gap_bars({"inference gap": (1.2, 0.1)}).axes[0].get_xlabel()
        'nats per datum, ± 1 SE'
    """
    names = list(gaps)
    means, errors = (
        [mean for mean, _ in gaps.values()],
        [error for _, error in gaps.values()],
    )
    figure, axes = panel(5.4, 0.42 * len(names) + 0.9)
    axes.barh(names, means, xerr=errors, color=INK, alpha=0.6, height=0.6, capsize=3)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel=f"{unit}, ± 1 SE")
    return figure


def kl_bars(kl: Any, active: Any = None, unit: str = "nats per datum") -> Figure:
    """KL(q(z | x) ‖ p(z)) of each latent dimension, in decreasing order.

    Dimensions that are not active are grey.

    Arguments:
        kl: shape (num_dimensions,).
        active: Booleans, shape (num_dimensions,); all true by default.
        unit: of the divergences.

    Returns:
        The figure.

    Raises:
        ValueError: an array is empty or has more than one dimension.

    Examples:
        >>> from vilvm.plots import kl_bars
        >>> figure = kl_bars([0.0, 2.0], [False, True])
        >>> [label.get_text() for label in figure.axes[0].get_legend().get_texts()]
        ['1 active', '1 not active']
    """
    values = as_array(kl, 1, "kl_bars: kl")
    order = np.argsort(-values, kind="stable")
    place = np.arange(len(values))
    figure, axes = panel(5.4, 3.0)
    if active is None:
        axes.bar(place, values[order], 0.8, color=INK)
    else:
        alive = as_array(active, 1, "kl_bars: active").astype(bool)[order]
        for part, colour, name in (
            (alive, INK, "active"),
            (~alive, GREY, "not active"),
        ):
            if part.any():
                label = f"{part.sum()} {name}"
                axes.bar(
                    place[part], values[order][part], 0.8, color=colour, label=label
                )
        legend_above(axes)
    axes.set(xlabel="latent dimension (by rank)", ylabel=f"KL ({unit})")
    if len(values) <= _MAX_NAMES:
        axes.set_xticks(place, [str(i) for i in order])
        axes.set(xlabel="latent dimension")
    return figure


def elbo_tail(elbo: Any, tail: int, steps: Any = None) -> Figure:
    """The ELBO against steps, with the tail from which convergence is judged, and its mean.

    Arguments:
        elbo: in nats, shape (num_records,).
        tail: number of the last records in the tail, at least 1.
        steps: of the records, shape (num_records,); 1, 2, … by default.

    Returns:
        The figure.

    Raises:
        ValueError: the tail is empty or longer than the records.

    Examples:
        >>> from vilvm.plots import elbo_tail
        >>> elbo_tail([-9.0, -3.0, -3.1], tail=2).axes[0].get_ylabel()
        'ELBO (nats)'
    """
    values = as_array(elbo, 1, "elbo_tail: elbo")
    if not 1 <= tail <= len(values):
        raise ValueError(
            f"elbo_tail: the tail must be 1 to {len(values)} records long; got {tail}."
        )
    if steps is None:
        steps = np.arange(1, len(values) + 1)
    along = as_array(steps, 1, "elbo_tail: steps")
    figure, axes = panel(5.4, 3.2)
    axes.plot(along, values, color=INK, linewidth=1, label="ELBO")
    axes.plot(
        along[-tail:],
        values[-tail:],
        color=SECOND,
        linewidth=1.3,
        label=f"tail, {tail:,} records",
    )
    _show_end(axes, values, tail)
    axes.set(xlabel="step", ylabel="ELBO (nats)")
    legend_above(axes)
    return figure


def predictive_check(
    replicated: Any, observed: float, name: str = "test statistic"
) -> Figure:
    """A histogram of a statistic of replicated data, and a line at its observed value.

    Arguments:
        replicated: shape (num_replications,).
        observed: the statistic of the data.
        name: of the statistic.

    Returns:
        The figure.

    Raises:
        ValueError: `replicated` is empty or has more than one dimension.

    Examples:
        >>> from vilvm.plots import predictive_check
        >>> predictive_check([0.1, 0.2, 0.4], 0.3, "mean").axes[0].get_xlabel()
        'mean'
    """
    values = as_array(replicated, 1, "predictive_check: replicated")
    finite = values[np.isfinite(values)]
    figure, axes = panel(5.4, 2.8)
    axes.hist(finite, 40, color=INK, alpha=0.75, linewidth=0, label="replicated")
    label = minus(f"observed, {float(observed):.4g}")
    axes.axvline(float(observed), color=SECOND, linewidth=2, label=label)
    axes.set(xlabel=name, ylabel="replications")
    legend_above(axes)
    return figure


def _within_axes(k: np.ndarray, threshold: float) -> np.ndarray:
    """k̂ as it is drawn: +∞ and NaN above all others, −∞ at the bottom."""
    finite = k[np.isfinite(k)]
    bottom = min(0.0, finite.min(initial=0.0))
    top = max(threshold, finite.max(initial=threshold)) + 0.1
    drawable = np.isfinite(k) | (k == -np.inf)
    return np.where(drawable, np.maximum(k, bottom), top)


def _show_end(axes: Axes, values: np.ndarray, tail: int) -> None:
    """Draws the mean of the tail, and scales the axis to the end of the curve.

    The first steps may be off by orders of magnitude.
    """
    finite, end = (part[np.isfinite(part)] for part in (values, values[-tail:]))
    if not len(end):
        return
    label = minus(f"its mean, {end.mean():.4g}")
    axes.axhline(end.mean(), color=GREY, linestyle="--", linewidth=1, label=label)
    low, high = min(np.quantile(finite, 0.05), end.min()), max(finite.max(), end.max())
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
