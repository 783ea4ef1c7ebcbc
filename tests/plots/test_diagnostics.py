"""Plots of diagnostics: values beyond a threshold are coloured."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from vilvm import plots
from vilvm.plots._style import GREY, INK


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("count", [5, 5000])
def test_k_above_threshold_or_unknown_is_coloured(count):
    k = torch.full((count,), 0.3)
    k[0], k[1], k[2], k[3] = 0.71, float("inf"), float("nan"), float("-inf")
    figure = plots.pareto_k(k)
    assert legend(figure) == [f"{count - 3:,} at most 0.7", "3 above 0.7"]
    if count == 5:
        low, high = (
            np.asarray(cloud.get_offsets()) for cloud in figure.axes[0].collections
        )
        assert sorted(high[:, 0]) == [0, 1, 2]
        assert np.isfinite(low).all()
        assert np.isfinite(high).all()
        assert high[:, 1].min() > 0.7 > low[:, 1].max()
    else:
        heights = sum(patch.get_height() for patch in figure.axes[0].patches[:60])
        assert heights == count - 3


def test_k_is_drawn_at_its_index():
    figure = plots.pareto_k([0.3, 0.9, 0.4], index=torch.tensor([7, 577, 12]))
    low, high = (
        np.asarray(cloud.get_offsets())[:, 0].tolist()
        for cloud in figure.axes[0].collections
    )
    assert (low, high) == ([7, 12], [577])
    with pytest.raises(ValueError, match="as many indices"):
        plots.pareto_k([0.3, 0.9], index=[7])


def bars(figure, colour):
    return sum(
        to_hex(patch.get_facecolor()) == colour
        for axes in figure.axes
        for patch in axes.patches
    )


def test_kl_bars_are_in_decreasing_order():
    figure = plots.kl_bars(
        torch.tensor([0.1, 2.0, 0.0]), torch.tensor([True, True, False])
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        "1",
        "0",
        "2",
    ]
    assert legend(figure) == ["2 active", "1 not active"]
    assert (bars(figure, INK), bars(figure, GREY)) == (2, 1)


def test_tail_sets_the_scale():
    elbo = np.concatenate([[-1e6, -1e5, -500.0], np.full(97, -90.0)])
    axes = plots.elbo_tail(elbo, 20).axes[0]
    assert axes.get_ylim()[0] > -1e4
    assert "its mean, −90" in legend(axes.figure)
    with pytest.raises(ValueError, match="1 to 100 records long; got 101"):
        plots.elbo_tail(elbo, 101)


def test_gap_bars_and_predictive_check_draw():
    figure = plots.gap_bars(
        {"approximation gap": (1.5, 0.1), "amortisation gap": (0.5, 0.2)}
    )
    assert [patch.get_width() for patch in figure.axes[0].patches] == [1.5, 0.5]
    figure = plots.predictive_check(torch.randn(100), -1.5, "mean")
    assert legend(figure) == ["replicated", "observed, −1.5"]
    with pytest.raises(
        ValueError, match="replicated must have 1 dimension and not be empty"
    ):
        plots.predictive_check([], 1.0)
