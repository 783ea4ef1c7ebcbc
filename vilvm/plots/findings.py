"""Plots of findings. Each takes plain arrays, as tensors or anything NumPy takes, and returns a
matplotlib Figure.

Bands of ranks are those of a calibrated posterior, all of which stay within with probability 1 −
false_alarm at least:

    histogram   the count of a bin is Binomial(L, p), p its share of the num_draws + 1 ranks; Bonferroni over bins and columns;
    ECDF        sup |F̂ − F| ≤ √(log(2 C / false_alarm) / (2 L)), the inequality of Dvoretzky, Kiefer and Wolfowitz, which holds for discrete
                ranks too; Bonferroni over the C columns.

References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration, Talts et
al., 2018 (rank histograms); Graphical Test for Discrete Uniformity, Säilynoja, Bürkner and
Vehtari, 2022 (ECDF difference); Massart, The Tight Constant in the Dvoretzky–Kiefer–Wolfowitz
Inequality, 1990; Sampling-Based Accuracy Testing of Posterior Estimators for General Inference,
Lemos et al., 2023 (coverage).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilvm._runtime.argument_checks import check_number, check_probability, optional
from vilvm.plots.palette import GREY, INK, SECOND
from vilvm.plots.plain import PlainFigure

__all__ = [
    "coverage_curve",
    "elbo_tail",
    "gap_bars",
    "kl_bars",
    "pareto_k",
    "predictive_check",
    "rank_ecdf",
    "rank_histograms",
]

_DOTS, _PANELS, _CYCLE = 2000, 12, (INK, SECOND, GREY)


def pareto_k(k: Any, threshold: float = 0.7, index: Any = None) -> Figure:
    """Pareto k̂ of every datum, those above the threshold coloured: dots by index, or a histogram
    of many. Those not finite stand at the top.

    Arguments:
        k: shape (num_data,).
        threshold: drawn as a line.
        index: which data these are, shape (num_data,); 0, 1, … by default.

    Raises:
        ValueError: not as many indices as values.
    """
    values = _array(k, 1, "pareto_k: k")
    data = np.arange(len(values)) if index is None else _array(index, 1, "pareto_k: index")
    if len(data) != len(values):
        raise ValueError(
            f"pareto_k: {len(values)} values of k̂ need as many indices; got {len(data)}."
        )
    above = ~(values <= threshold)  # NaN too, of which nothing is known
    figure, axes = _panel(5.4, 3.2)
    names = {
        False: f"{(~above).sum():,} at most {threshold:.2g}",
        True: f"{above.sum():,} above {threshold:.2g}",
    }
    finite = np.isfinite(values)
    top = max(threshold, values[finite].max(initial=threshold)) + 0.1
    shown = np.where(
        finite | (values == -np.inf),
        np.maximum(values, min(0.0, values[finite].min(initial=0.0))),
        top,
    )
    if len(values) > _DOTS:
        bins = np.histogram_bin_edges(shown, 60).tolist()
        axes.hist(
            [shown[~above], shown[above]],
            bins,
            stacked=True,
            color=[INK, SECOND],
            label=list(names.values()),
        )
        axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="Pareto k̂", ylabel="data")
    else:
        for side, colour in ((False, INK), (True, SECOND)):
            picked = above == side
            axes.scatter(
                data[picked], shown[picked], s=9, color=colour, linewidths=0, label=names[side]
            )
        axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="datum", ylabel="Pareto k̂")
    _legend_above(axes)
    return figure


def rank_histograms(
    ranks: Any,
    num_draws: int,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    false_alarm: float = 0.01,
) -> Figure:
    """Histograms of ranks, a panel a column (of the first 12), over the band in which a calibrated
    posterior's counts lie.

    Arguments:
        ranks: of the truth among the draws, 0 to num_draws, shape (num_simulations,
            num_quantities) or (num_simulations,).
        num_draws: of the posterior, for each simulation.
        names: of the columns.
        bins: by default at most 20, and few enough for ten simulations a bin.
        false_alarm: probability that a calibrated posterior leaves the band anywhere.

    Raises:
        ValueError: a rank is below 0 or above num_draws.
    """
    num_draws = check_number("rank_histograms: num_draws", num_draws)
    false_alarm = check_probability("rank_histograms: false_alarm", false_alarm)
    bins = optional(check_number, "rank_histograms: bins", bins)
    found = _ranks(ranks, num_draws)
    simulations, columns = found.shape
    bins = min(bins or max(2, min(20, simulations // 10)), num_draws + 1)
    edges = np.linspace(0, num_draws + 1, bins + 1).round()
    share = np.diff(edges) / (num_draws + 1)
    low, high = _binomial_interval(simulations, share, false_alarm / (bins * columns))
    shown = min(columns, _PANELS)
    across = min(shown, 4)
    down = math.ceil(shown / across)
    figure = PlainFigure(figsize=(max(5.4, 2.2 * across), 2.0 * down + 0.5), layout="constrained")
    panels = np.ravel(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False))
    for i, axes in enumerate(panels):
        if i >= shown:
            axes.set_visible(False)
            continue
        axes.fill_between(
            edges,
            [*low, low[-1]],
            [*high, high[-1]],
            step="post",
            color=GREY,
            alpha=0.3,
            linewidth=0,
        )
        counts = np.histogram(found[:, i], edges)[0]
        outside = (counts < low) | (counts > high)
        colours = [SECOND if out else INK for out in outside]
        axes.bar(
            edges[:-1],
            counts,
            np.diff(edges) * 0.85,
            align="edge",
            color=colours,
            alpha=0.75,
            linewidth=0,
        )
        axes.set_title(_name(names, i, columns), fontsize=10)
        _plain(axes)
    figure.supxlabel("rank of the truth", fontsize=10)
    figure.supylabel("simulations", fontsize=10)
    return figure


def rank_ecdf(
    ranks: Any, num_draws: int, names: Sequence[str] | None = None, false_alarm: float = 0.01
) -> Figure:
    """ECDF of the ranks less that of uniform ranks, a line a column, and the band in which a
    calibrated posterior's lie.

    Arguments:
        ranks, num_draws, names, false_alarm: as for ``rank_histograms``.

    Raises:
        ValueError: a rank is below 0 or above num_draws.
    """
    num_draws = check_number("rank_ecdf: num_draws", num_draws)
    false_alarm = check_probability("rank_ecdf: false_alarm", false_alarm)
    found = _ranks(ranks, num_draws)
    simulations, columns = found.shape
    band = math.sqrt(math.log(2 * columns / false_alarm) / (2 * simulations))
    levels = np.arange(num_draws + 1)
    uniform = (levels + 1) / (num_draws + 1)
    figure, axes = _panel(5.4, 3.2)
    axes.axhspan(
        -band,
        band,
        color=GREY,
        alpha=0.25,
        linewidth=0,
        label=f"calibrated ({100 * (1 - false_alarm):.3g} %)",
    )
    axes.axhline(0, color=GREY, linewidth=1)
    off = 0
    for i in range(columns):
        difference = (
            np.searchsorted(np.sort(found[:, i]), levels, side="right") / simulations - uniform
        )
        out = bool((np.abs(difference) > band).any())
        label = _name(names, i, columns) if out and off < 5 else None
        off += out
        axes.plot(
            uniform,
            difference,
            color=SECOND if out else INK,
            alpha=0.9 if out else 0.6,
            linewidth=1.3,
            label=label,
        )
    if off < columns:
        axes.plot([], [], color=INK, label="within" if columns > 1 else "ranks")
    axes.set(xlabel="fractional rank of the truth", ylabel="ECDF − uniform")
    _legend_above(axes)
    return figure


def coverage_curve(
    credibility: Any, coverage: Any, num_simulations: int | None = None, false_alarm: float = 0.01
) -> Figure:
    """Expected coverage against credibility; a calibrated posterior's is the diagonal, below which
    it is too sure of itself.

    Arguments:
        credibility: levels in [0, 1], shape (num_levels,).
        coverage: share of simulations whose truth lies within, shape (num_levels,).
        num_simulations: that the coverage was estimated from; adds the band about the diagonal.
        false_alarm: probability that a calibrated posterior leaves the band anywhere.
    """
    level, found = (
        _array(credibility, 1, "coverage_curve: credibility"),
        _array(coverage, 1, "coverage_curve: coverage"),
    )
    figure, axes = _panel(3.7, 3.6)
    if num_simulations:
        band = math.sqrt(math.log(2 / false_alarm) / (2 * num_simulations))
        grid = np.linspace(0, 1, 101)
        low, high = np.clip(grid - band, 0, 1), np.clip(grid + band, 0, 1)
        axes.fill_between(
            grid,
            low,
            high,
            color=GREY,
            alpha=0.25,
            linewidth=0,
            label=f"calibrated ({100 * (1 - false_alarm):.3g} %)",
        )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.plot(level, found, color=INK, label="coverage")
    axes.set(
        xlabel="credibility", ylabel="expected coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    _legend_above(axes)
    return figure


def gap_bars(gaps: Mapping[str, tuple[float, float]], unit: str = "nats per datum") -> Figure:
    """Gaps as bars, by name: mean and standard error of each."""
    names = list(gaps)
    means, errors = [mean for mean, _ in gaps.values()], [error for _, error in gaps.values()]
    figure, axes = _panel(5.4, 0.42 * len(names) + 0.9)
    axes.barh(names, means, xerr=errors, color=INK, alpha=0.6, height=0.6, capsize=3)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel=f"{unit}, ± 1 SE")
    return figure


def kl_bars(kl: Any, active: Any = None, unit: str = "nats per datum") -> Figure:
    """KL(q(z | x) ‖ p(z)) of each latent dimension, the largest first; those that are not active
    are grey.

    Arguments:
        kl: shape (num_dimensions,).
        active: Booleans, shape (num_dimensions,); all by default.
    """
    values = _array(kl, 1, "kl_bars: kl")
    alive = (
        np.ones(len(values), dtype=bool)
        if active is None
        else _array(active, 1, "kl_bars: active").astype(bool)
    )
    order = np.argsort(-values, kind="stable")
    figure, axes = _panel(5.4, 3.0)
    place = np.arange(len(values))
    for side, colour, name in ((True, INK, "active"), (False, GREY, "not active")):
        picked = alive[order] == side
        if picked.any():
            axes.bar(
                place[picked],
                values[order][picked],
                0.8,
                color=colour,
                label=f"{picked.sum()} {name}" if active is not None else None,
            )
    if len(values) <= 25:
        axes.set_xticks(place, [str(i) for i in order])
    axes.set(
        xlabel="latent dimension" + (" (by rank)" if len(values) > 25 else ""),
        ylabel=f"KL ({unit})",
    )
    if active is not None:
        _legend_above(axes)
    return figure


def elbo_tail(elbo: Any, tail: int, steps: Any = None) -> Figure:
    """The ELBO against steps; the tail, by which convergence is judged, is coloured, with its
    mean, and sets the scale.

    Arguments:
        elbo: shape (num_records,).
        tail: how many of the last records belong to it, at least 1.
        steps: of the records, shape (num_records,); 1, 2, … by default.
    """
    values = _array(elbo, 1, "elbo_tail: elbo")
    if not 1 <= tail <= len(values):
        raise ValueError(
            f"elbo_tail: the tail must be 1 to {len(values)} records long; got {tail}."
        )
    along = (
        np.arange(1, len(values) + 1) if steps is None else _array(steps, 1, "elbo_tail: steps")
    )
    figure, axes = _panel(5.4, 3.2)
    axes.plot(along, values, color=INK, linewidth=1, label="ELBO")
    axes.plot(
        along[-tail:], values[-tail:], color=SECOND, linewidth=1.3, label=f"tail, {tail:,} records"
    )
    finite = values[np.isfinite(values)]
    end = values[-tail:][np.isfinite(values[-tail:])]
    if len(end):
        axes.axhline(
            end.mean(),
            color=GREY,
            linestyle="--",
            linewidth=1,
            label=f"its mean, {end.mean():.4g}".replace("-", "−"),
        )
        # The first steps may be off by orders of magnitude; what is to be seen is the end.
        low, high = min(np.quantile(finite, 0.05), end.min()), max(finite.max(), end.max())
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.set(xlabel="step", ylabel="ELBO (nats)")
    _legend_above(axes)
    return figure


def predictive_check(replicated: Any, observed: float, name: str = "test statistic") -> Figure:
    """A statistic of replicated data as a histogram, and that of the data themselves as a line.

    Arguments:
        replicated: shape (num_replications,).
        observed: the statistic of the data.
        name: of the statistic.
    """
    values = _array(replicated, 1, "predictive_check: replicated")
    figure, axes = _panel(5.4, 2.8)
    axes.hist(
        values[np.isfinite(values)], 40, color=INK, alpha=0.75, linewidth=0, label="replicated"
    )
    axes.axvline(
        float(observed),
        color=SECOND,
        linewidth=2,
        label=f"observed, {float(observed):.4g}".replace("-", "−"),
    )
    axes.set(xlabel=name, ylabel="replications")
    _legend_above(axes)
    return figure


def _array(values: Any, dims: int, what: str) -> np.ndarray:
    array = (
        values.detach().cpu().double().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values, dtype=float)
    )
    if array.ndim != dims or not len(array):
        raise ValueError(
            f"{what} must have {dims} dimension{'s' if dims > 1 else ''} and not be empty; its "
            f"shape is {array.shape}."
        )
    return array


def _ranks(ranks: Any, num_draws: int) -> np.ndarray:
    found = ranks.detach().cpu().numpy() if isinstance(ranks, torch.Tensor) else np.asarray(ranks)
    found = _array(found[:, None] if found.ndim == 1 else found, 2, "ranks")
    if found.min() < 0 or found.max() > num_draws:
        raise ValueError(
            f"Ranks among {num_draws} draws are 0 to {num_draws}; got {found.min():g} to "
            f"{found.max():g}."
        )
    return found


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


def _name(names: Sequence[str] | None, i: int, columns: int) -> str:
    return names[i] if names is not None else "" if columns == 1 else f"quantity {i}"


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = PlainFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0,
        columnspacing=1.4,
        fontsize=9,
        markerscale=1.6,
    )
