"""Tail shapes of many columns: compared with ArviZ's, and with the shape they are drawn from."""

import math

import pytest
import torch
from arviz_stats.base import array_stats

from vilvm.diagnostics._tail import tail_shape


@pytest.mark.parametrize("num_samples", [200, 1000, 20_000])
def test_shape_equals_arviz(num_samples):
    log_x = torch.stack(
        [torch.randn(num_samples).double() * s for s in (0.1, 1.0, 3.0)], 1
    )
    theirs = [float(array_stats.psislw(-column.numpy())[1]) for column in log_x.T]
    assert tail_shape(log_x.exp()).tolist() == pytest.approx(theirs, abs=1e-6)


def test_shape_of_a_pareto_distribution_is_recovered():
    u = torch.rand(100_000, 3).double()
    k = torch.tensor([0.3, 0.6, 0.9])
    assert (tail_shape(u**-k) - k).abs().max() < 5 * 1.9 / (3 * 100_000**0.5) ** 0.5


def test_equal_values_have_no_tail():
    assert tail_shape(torch.ones(1000, 2)).tolist() == [0.0, 0.0]


def test_columns_without_a_tail_have_fixed_shapes():
    one, few = torch.zeros(1000), torch.zeros(1000)
    one[3], few[:300] = 1.0, 1.0
    assert tail_shape(
        torch.stack([torch.ones(1000), torch.zeros(1000), few, one], 1)
    ).tolist() == [0.0, 0.0, 0.0, math.inf]
