"""Plots of calibration: ranks of a calibrated posterior stay within their bands."""

import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.colors import to_hex

from vilvm import plots
from vilvm.plots._style import SECOND
from vilvm.plots.calibration import _binomial_interval


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_binomial_interval_equals_scipy():
    share = np.array([0.05, 0.2, 0.9])
    low, high = _binomial_interval(200, share, 0.01)
    np.testing.assert_array_equal(low, scipy.stats.binom.ppf(0.005, 200, share))
    np.testing.assert_array_equal(high, scipy.stats.binom.ppf(0.995, 200, share))


def bars(figure, colour):
    return sum(
        to_hex(patch.get_facecolor()) == colour
        for axes in figure.axes
        for patch in axes.patches
    )


@pytest.mark.slow
def test_only_miscalibrated_ranks_leave_the_band():
    alarms, runs = np.zeros(2), 20
    for _ in range(runs):
        uniform = torch.randint(0, 31, (300, 2))
        alarms[0] += (
            bars(plots.rank_histograms(uniform, 30, false_alarm=0.05), SECOND) > 0
        )
        lines = plots.rank_ecdf(uniform, 30, false_alarm=0.05).axes[0].lines
        alarms[1] += any(line.get_color() == SECOND for line in lines)
    # at most 5 % but for five standard errors
    assert (alarms < runs * 0.05 + 5 * np.sqrt(runs * 0.05 * 0.95)).all()
    narrow = torch.where(torch.rand(300, 1) < 0.4, 0, torch.randint(0, 31, (300, 1)))
    ranks = torch.cat([uniform, narrow], 1)
    figure = plots.rank_histograms(ranks, 30, ["a", "b", "c"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert any(
        to_hex(patch.get_facecolor()) == SECOND for patch in figure.axes[2].patches
    )
    assert sum(patch.get_height() for patch in figure.axes[2].patches) == 300
    assert "c" in legend(plots.rank_ecdf(ranks, 30, ["a", "b", "c"]))


def test_at_most_twelve_panels_are_visible():
    figure = plots.rank_histograms(torch.randint(0, 11, (40, 30)), 10)
    assert sum(axes.get_visible() for axes in figure.axes) == 12


def test_ranks_out_of_range_raise():
    with pytest.raises(
        ValueError, match="Ranks among 10 draws are 0 to 10; got 0 to 11"
    ):
        plots.rank_histograms([0, 11], 10)


def test_coverage_curve_shows_levels_and_band():
    levels = torch.linspace(0, 1, 11)
    figure = plots.coverage_curve(levels, levels**2, num_simulations=100)
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), levels**2)
    assert legend(figure) == ["calibrated (99 %)", "coverage"]
    assert legend(plots.coverage_curve(levels, levels)) == ["coverage"]
