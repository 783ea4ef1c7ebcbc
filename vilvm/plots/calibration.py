"""Plots of calibration: ranks of the truth among posterior draws, and expected coverage.

Bands of ranks are those of a calibrated posterior: all ranks stay within with probability at
least 1 − false_alarm:

    histogram   the count of a bin is Binomial(L, p), with p its share of the num_draws + 1 ranks;
                Bonferroni over bins and columns;
    ECDF        sup |F̂ − F| ≤ √(log(2 C / false_alarm) / (2 L)), the inequality of Dvoretzky,
                Kiefer and Wolfowitz, which holds for discrete ranks too; Bonferroni over the C
                columns.

References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration, Talts et
al., 2018 (rank histograms); Graphical Test for Discrete Uniformity, Säilynoja, Bürkner and
Vehtari, 2022 (ECDF difference); Massart, The Tight Constant in the Dvoretzky–Kiefer–Wolfowitz
Inequality, 1990; Sampling-Based Accuracy Testing of Posterior Estimators for General Inference,
Lemos et al., 2023 (coverage).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm._runtime.argument_checks import check_number, check_probability, optional
from vilvm.plots._arrays import as_array
from vilvm.plots._style import (
    GREY,
    INK,
    SECOND,
    PlainFigure,
    hide_spines,
    legend_above,
    panel,
)

__all__ = ["coverage_curve", "rank_ecdf", "rank_histograms"]

_MAX_PANELS, _MAX_LABELS = 12, 5


def rank_histograms(
    ranks: Any,
    num_draws: int,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    false_alarm: float = 0.01,
) -> Figure:
    """Histograms of ranks over the band of a calibrated posterior's counts.

    The first 12 columns are shown, one panel each; bins outside the band are coloured.

    Arguments:
        ranks: of the truth among the draws, 0 to num_draws, shape (num_simulations,
            num_quantities) or (num_simulations,).
        num_draws: of the posterior, for each simulation.
        names: of the columns.
        bins: by default at most 20, and few enough for ten simulations a bin.
        false_alarm: probability that a calibrated posterior leaves the band anywhere.

    Returns:
        The figure.

    Raises:
        ValueError: a rank is below 0 or above num_draws.

    Reference: Validating Bayesian Inference Algorithms with Simulation-Based Calibration, Talts,
    Betancourt, Simpson, Vehtari and Gelman, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.plots import rank_histograms
        >>> len(rank_histograms(torch.randint(0, 51, (200, 3)), num_draws=50).axes)
        3
    """
    num_draws = check_number("rank_histograms: num_draws", num_draws)
    false_alarm = check_probability("rank_histograms: false_alarm", false_alarm)
    bins = optional(check_number, "rank_histograms: bins", bins)
    found = _checked_ranks(ranks, num_draws)
    simulations, columns = found.shape
    bins = min(bins or max(2, min(20, simulations // 10)), num_draws + 1)
    edges = np.linspace(0, num_draws + 1, bins + 1).round()
    share = np.diff(edges) / (num_draws + 1)
    band = _binomial_interval(simulations, share, false_alarm / (bins * columns))
    figure, panels = _panels(min(columns, _MAX_PANELS))
    for i, axes in enumerate(panels):
        _histogram(axes, found[:, i], edges, band)
        axes.set_title(_name(names, i, columns), fontsize=10)
    figure.supxlabel("rank of the truth", fontsize=10)
    figure.supylabel("simulations", fontsize=10)
    return figure


def rank_ecdf(
    ranks: Any,
    num_draws: int,
    names: Sequence[str] | None = None,
    false_alarm: float = 0.01,
) -> Figure:
    """ECDF of the ranks minus that of uniform ranks, one line a column, with the band of a
    calibrated posterior.

    Arguments:
        ranks: of the truth among the draws, 0 to num_draws, shape (num_simulations,
            num_quantities) or (num_simulations,).
        num_draws: of the posterior, for each simulation.
        names: of the columns.
        false_alarm: probability that a calibrated posterior leaves the band anywhere.

    Returns:
        The figure.

    Raises:
        ValueError: a rank is below 0 or above num_draws.

    Reference: Graphical Test for Discrete Uniformity and Its Applications in Goodness-of-Fit
    Evaluation and Multiple Sample Comparison, Säilynoja, Bürkner and Vehtari, 2022.

    Examples:
        >>> import torch
        >>> from vilvm.plots import rank_ecdf
        >>> rank_ecdf(torch.randint(0, 51, (200, 3)), num_draws=50).axes[0].get_ylabel()
        'ECDF − uniform'
    """
    num_draws = check_number("rank_ecdf: num_draws", num_draws)
    false_alarm = check_probability("rank_ecdf: false_alarm", false_alarm)
    found = _checked_ranks(ranks, num_draws)
    simulations, columns = found.shape
    band = math.sqrt(math.log(2 * columns / false_alarm) / (2 * simulations))
    levels = np.arange(num_draws + 1)
    uniform = (levels + 1) / (num_draws + 1)
    figure, axes = panel(5.4, 3.2)
    axes.axhspan(
        -band, band, color=GREY, alpha=0.25, linewidth=0, label=_band_label(false_alarm)
    )
    axes.axhline(0, color=GREY, linewidth=1)
    outside = 0
    for i in range(columns):
        ecdf = np.searchsorted(np.sort(found[:, i]), levels, side="right") / simulations
        if (np.abs(ecdf - uniform) <= band).all():
            axes.plot(uniform, ecdf - uniform, color=INK, alpha=0.6, linewidth=1.3)
            continue
        (line,) = axes.plot(
            uniform, ecdf - uniform, color=SECOND, alpha=0.9, linewidth=1.3
        )
        if outside < _MAX_LABELS:
            line.set_label(_name(names, i, columns))
        outside += 1
    if outside < columns:
        axes.plot([], [], color=INK, label="within" if columns > 1 else "ranks")
    axes.set(xlabel="fractional rank of the truth", ylabel="ECDF − uniform")
    legend_above(axes)
    return figure


def coverage_curve(
    credibility: Any,
    coverage: Any,
    num_simulations: int | None = None,
    false_alarm: float = 0.01,
) -> Figure:
    """Expected coverage against credibility.

    A calibrated posterior gives the diagonal; an overconfident one gives a curve below it.

    Arguments:
        credibility: levels in [0, 1], shape (num_levels,).
        coverage: share of simulations whose truth lies within, shape (num_levels,).
        num_simulations: that the coverage was estimated from; adds the band about the diagonal.
        false_alarm: probability that a calibrated posterior leaves the band anywhere.

    Returns:
        The figure.

    Raises:
        ValueError: an array is empty or has more than one dimension.

    Reference: Sampling-Based Accuracy Testing of Posterior Estimators for General Inference,
    Lemos, Coogan, Hezaveh and Perreault-Levasseur, 2023.

    Examples:
        >>> from vilvm.plots import coverage_curve
        >>> coverage_curve([0.0, 0.5, 1.0], [0.0, 0.4, 1.0], 100).axes[0].get_ylabel()
        'expected coverage'
    """
    level = as_array(credibility, 1, "coverage_curve: credibility")
    found = as_array(coverage, 1, "coverage_curve: coverage")
    figure, axes = panel(3.7, 3.6)
    if num_simulations:
        band = math.sqrt(math.log(2 / false_alarm) / (2 * num_simulations))
        grid = np.linspace(0, 1, 101)
        low, high = np.clip(grid - band, 0, 1), np.clip(grid + band, 0, 1)
        label = _band_label(false_alarm)
        axes.fill_between(
            grid, low, high, color=GREY, alpha=0.25, linewidth=0, label=label
        )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.plot(level, found, color=INK, label="coverage")
    axes.set(
        xlabel="credibility",
        ylabel="expected coverage",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    legend_above(axes)
    return figure


def _checked_ranks(ranks: Any, num_draws: int) -> np.ndarray:
    """Ranks of shape (num_simulations, num_quantities)."""
    if isinstance(ranks, torch.Tensor):
        ranks = ranks.detach().cpu().numpy()
    found = np.asarray(ranks)
    if found.ndim == 1:
        found = found[:, None]
    found = as_array(found, 2, "ranks")
    if found.min() < 0 or found.max() > num_draws:
        raise ValueError(
            f"Ranks among {num_draws} draws are 0 to {num_draws}; got {found.min():g} to "
            f"{found.max():g}."
        )
    return found


def _panels(shown: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `shown` panels in rows of at most four, and its axes."""
    across = min(shown, 4)
    down = math.ceil(shown / across)
    figure = PlainFigure(
        figsize=(max(5.4, 2.2 * across), 2.0 * down + 0.5), layout="constrained"
    )
    panels = np.ravel(
        figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    )
    for axes in panels[shown:]:
        axes.set_visible(False)
    return figure, panels[:shown].tolist()


def _histogram(
    axes: Axes,
    ranks: np.ndarray,
    edges: np.ndarray,
    band: tuple[np.ndarray, np.ndarray],
) -> None:
    """Counts of the ranks over their band; bins outside it are coloured."""
    low, high = band
    axes.fill_between(
        edges,
        [*low, low[-1]],
        [*high, high[-1]],
        step="post",
        color=GREY,
        alpha=0.3,
        linewidth=0,
    )
    counts = np.histogram(ranks, edges)[0]
    outside = (counts < low) | (counts > high)
    axes.bar(
        edges[:-1],
        counts,
        np.diff(edges) * 0.85,
        align="edge",
        color=np.where(outside, SECOND, INK).tolist(),
        alpha=0.75,
        linewidth=0,
    )
    hide_spines(axes)


def _binomial_interval(
    trials: int, share: np.ndarray, outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest central intervals of Binomial(trials, share) that leave at most outside / 2 on
    either side.
    """
    counts = torch.arange(trials + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(
        trials, torch.as_tensor(share, dtype=torch.float64)[:, None]
    )
    below = law.log_prob(counts).exp().cumsum(-1)
    low = (below <= outside / 2).sum(-1)
    high = (below < 1 - outside / 2).sum(-1)
    return low.numpy(), high.clamp(max=trials).numpy()


def _band_label(false_alarm: float) -> str:
    return f"calibrated ({100 * (1 - false_alarm):.3g} %)"


def _name(names: Sequence[str] | None, i: int, columns: int) -> str:
    if names is not None:
        return names[i]
    return f"quantity {i}" if columns > 1 else ""
