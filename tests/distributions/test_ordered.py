"""OrderedNormal is normalised on the ordered set, and draws what it says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.distributions import Normal, biject_to

from vilvm.distributions.ordered import OrderedNormal

CASES = [
    ([0.0, 0.0], [2.0, 2.0]),
    ([3.0, 10.0], [1.0, 1.0]),
    ([1.0, 0.2], [0.5, 1.5]),
    ([1.0] * 3, [0.7] * 3),
    ([0.0] * 5, [1.0] * 5),
]


def normal(loc, scale):
    return OrderedNormal(
        torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    )


@pytest.mark.parametrize(("loc", "scale"), CASES)
def test_normaliser_is_the_probability_of_ordered_draws(loc, scale):
    fn = normal(loc, scale)
    drawn = fn.loc + fn.scale * torch.randn(200_000, len(loc), dtype=torch.float64)
    ordered = (drawn.diff(dim=-1) > 0).all(-1).double().mean().item()
    p = fn.log_normaliser.exp().item()
    assert abs(ordered - p) < 5 * math.sqrt(p * (1 - p) / 200_000) + 1e-6


@pytest.mark.parametrize(("loc", "scale"), CASES[:3])
def test_the_density_of_two_integrates_to_one(loc, scale):
    fn = normal(loc, scale)
    first, step = (
        torch.linspace(-13, 16, 1500, dtype=torch.float64),
        torch.linspace(-18, 3.5, 1500, dtype=torch.float64),
    )
    unconstrained = torch.stack(torch.meshgrid(first, step, indexing="ij"), -1)
    to_ordered = biject_to(fn.support)
    x = to_ordered(unconstrained)
    log_density = fn.log_prob(x) + to_ordered.log_abs_det_jacobian(unconstrained, x)
    mass = log_density.exp().sum() * (first[1] - first[0]) * (step[1] - step[0])
    assert mass.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), CASES)
def test_draws_match_ordered_independent_draws(loc, scale):
    fn = normal(loc, scale)
    drawn = fn.sample((4000,))
    assert (drawn.diff(dim=-1) > 0).all()
    proposals = fn.loc + fn.scale * torch.randn(
        1_000_000, len(loc), dtype=torch.float64
    )
    kept = proposals[(proposals.diff(dim=-1) > 0).all(-1)]
    for read in [
        lambda x: x[:, 1] - x[:, 0],
        *(lambda x, k=k: x[:, k] for k in range(len(loc))),
    ]:
        result: Any = ks_2samp(np.asarray(read(drawn)), np.asarray(read(kept)))
        assert result.pvalue > 1e-6


@pytest.mark.parametrize(("loc", "scale"), CASES)
def test_the_mean_is_that_of_the_draws(loc, scale):
    fn = normal(loc, scale)
    drawn = fn.sample((20_000,))
    assert (
        (drawn.mean(0) - fn.mean).abs() < 5 * drawn.std(0) / math.sqrt(20_000)
    ).all()


def test_mean_of_two_and_three_is_exact():
    torch.testing.assert_close(
        normal([1.0, 1.0], [3.0, 3.0]).mean,
        1 + 3 / math.sqrt(math.pi) * torch.tensor([-1.0, 1.0]).double(),
    )
    three = 1.5 / math.sqrt(math.pi)
    torch.testing.assert_close(
        normal([0.0] * 3, [1.0] * 3).mean, torch.tensor([-three, 0.0, three]).double()
    )


def test_a_rare_order_is_drawn_too():
    drawn = OrderedNormal(torch.tensor([6.0, -6.0]), 1.0).sample(
        (1000,)
    )  # Φ(−8.5) = 1e−17
    assert torch.isfinite(drawn).all()
    assert (drawn.diff(dim=-1) >= 0).all()
    assert drawn.mean().item() == pytest.approx(0, abs=0.2)


def test_batch_shapes_and_expansion():
    loc = torch.tensor([[0.0, 0.0], [3.0, 10.0]])
    fn = OrderedNormal(loc, 1.0)
    wide = fn.expand((4, 2))
    x = wide.sample((3,))
    assert x.shape == (3, 4, 2, 2)
    assert wide.mean.shape == (4, 2, 2)
    expected = (
        Normal(loc, 1.0).log_prob(x).sum(-1)
        - torch.tensor(
            [0.5, Normal(0.0, 1.0).cdf(torch.tensor(7 / math.sqrt(2)))]
        ).log()
    )
    torch.testing.assert_close(wide.log_prob(x), expected)


def test_what_is_refused():
    with pytest.raises(ValueError, match="the 3 means or scales differ"):
        OrderedNormal(torch.tensor([0.0, 1.0, 2.0]), 1.0)
    with pytest.raises(ValueError, match="at least two means"):
        OrderedNormal(torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="support"):
        OrderedNormal(torch.zeros(2), 1.0, validate_args=True).log_prob(
            torch.tensor([1.0, 0.0])
        )
