"""Plots of findings: what is coloured is what is out, and a calibrated posterior's ranks stay
within their bands.
"""

import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.colors import to_hex

from vilvm import plots
from vilvm.plots.findings import _binomial_interval
from vilvm.plots.palette import GREY, INK, SECOND


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("count", [5, 5000])
def test_k_above_the_threshold_or_unknown_is_coloured(count):
    k = torch.full((count,), 0.3)
    k[0], k[1], k[2], k[3] = 0.71, float("inf"), float("nan"), float("-inf")
    figure = plots.pareto_k(k)
    assert legend(figure) == [f"{count - 3:,} at most 0.7", "3 above 0.7"]
    if count == 5:
        low, high = (np.asarray(cloud.get_offsets()) for cloud in figure.axes[0].collections)
        assert sorted(high[:, 0]) == [0, 1, 2]
        assert np.isfinite(low).all()
        assert np.isfinite(high).all()
        assert high[:, 1].min() > 0.7 > low[:, 1].max()
    else:
        heights = sum(patch.get_height() for patch in figure.axes[0].patches[:60])
        assert heights == count - 3


def test_k_stands_above_the_number_of_its_datum():
    figure = plots.pareto_k([0.3, 0.9, 0.4], index=torch.tensor([7, 577, 12]))
    low, high = (
        np.asarray(cloud.get_offsets())[:, 0].tolist() for cloud in figure.axes[0].collections
    )
    assert (low, high) == ([7, 12], [577])
    with pytest.raises(ValueError, match="as many indices"):
        plots.pareto_k([0.3, 0.9], index=[7])


def test_the_binomial_interval_is_that_of_scipy():
    share = np.array([0.05, 0.2, 0.9])
    low, high = _binomial_interval(200, share, 0.01)
    np.testing.assert_array_equal(low, scipy.stats.binom.ppf(0.005, 200, share))
    np.testing.assert_array_equal(high, scipy.stats.binom.ppf(0.995, 200, share))


def bars(figure, colour):
    return sum(
        to_hex(patch.get_facecolor()) == colour for axes in figure.axes for patch in axes.patches
    )


@pytest.mark.slow
def test_ranks_of_a_calibrated_posterior_stay_within_and_others_do_not():
    alarms, runs = np.zeros(2), 20
    for _ in range(runs):
        uniform = torch.randint(0, 31, (300, 2))
        alarms[0] += bars(plots.rank_histograms(uniform, 30, false_alarm=0.05), SECOND) > 0
        lines = plots.rank_ecdf(uniform, 30, false_alarm=0.05).axes[0].lines
        alarms[1] += any(line.get_color() == SECOND for line in lines)
    # at most 5 % but for five standard errors
    assert (alarms < runs * 0.05 + 5 * np.sqrt(runs * 0.05 * 0.95)).all()
    narrow = torch.where(torch.rand(300, 1) < 0.4, 0, torch.randint(0, 31, (300, 1)))
    ranks = torch.cat([uniform, narrow], 1)
    figure = plots.rank_histograms(ranks, 30, ["a", "b", "c"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert any(to_hex(patch.get_facecolor()) == SECOND for patch in figure.axes[2].patches)
    assert sum(patch.get_height() for patch in figure.axes[2].patches) == 300
    assert "c" in legend(plots.rank_ecdf(ranks, 30, ["a", "b", "c"]))


def test_many_quantities_share_twelve_panels():
    figure = plots.rank_histograms(torch.randint(0, 11, (40, 30)), 10)
    assert sum(axes.get_visible() for axes in figure.axes) == 12


def test_ranks_out_of_range_are_refused():
    with pytest.raises(ValueError, match="Ranks among 10 draws are 0 to 10; got 0 to 11"):
        plots.rank_histograms([0, 11], 10)


def test_coverage_of_levels():
    levels = torch.linspace(0, 1, 11)
    figure = plots.coverage_curve(levels, levels**2, num_simulations=100)
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), levels**2)
    assert legend(figure) == ["calibrated (99 %)", "coverage"]
    assert legend(plots.coverage_curve(levels, levels)) == ["coverage"]


def test_kl_by_dimension_the_largest_first():
    figure = plots.kl_bars(torch.tensor([0.1, 2.0, 0.0]), torch.tensor([True, True, False]))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "0", "2"]
    assert legend(figure) == ["2 active", "1 not active"]
    assert (bars(figure, INK), bars(figure, GREY)) == (2, 1)


def test_the_tail_sets_the_scale():
    elbo = np.concatenate([[-1e6, -1e5, -500.0], np.full(97, -90.0)])
    axes = plots.elbo_tail(elbo, 20).axes[0]
    assert axes.get_ylim()[0] > -1e4
    assert "its mean, −90" in legend(axes.figure)
    with pytest.raises(ValueError, match="1 to 100 records long; got 101"):
        plots.elbo_tail(elbo, 101)


def test_gaps_and_predictive_checks_draw():
    figure = plots.gap_bars({"approximation gap": (1.5, 0.1), "amortisation gap": (0.5, 0.2)})
    assert [patch.get_width() for patch in figure.axes[0].patches] == [1.5, 0.5]
    figure = plots.predictive_check(torch.randn(100), -1.5, "mean")
    assert legend(figure) == ["replicated", "observed, −1.5"]
    with pytest.raises(ValueError, match="replicated must have 1 dimension and not be empty"):
        plots.predictive_check([], 1.0)
