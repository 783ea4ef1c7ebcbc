"""Tests of uniformity against enumeration of every outcome, their level and their power."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from vilvm.diagnostics._uniformity import (
    holm,
    interval_coverage,
    rank_among,
    symmetry_p_values,
    uniformity_p_values,
)


def least_tail(ranks, num_draws):
    """γ, from its definition, for many outcomes at once."""
    below = (ranks[..., None] < torch.arange(1, num_draws + 1)).sum(-2).numpy()
    law = stats.binom(
        ranks.shape[-1], [i / (num_draws + 1) for i in range(1, num_draws + 1)]
    )
    return torch.from_numpy(2 * np.minimum(law.cdf(below), law.sf(below - 1)).min(-1))


def ks_of_mirror(ranks, num_draws):
    """The two-sample Kolmogorov-Smirnov statistic of ranks against their mirror image."""
    return max(
        abs(sum(r <= t for r in ranks) - sum(num_draws - r <= t for r in ranks))
        for t in range(num_draws)
    ) / len(ranks)


@pytest.mark.parametrize(("size", "num_draws"), [(4, 3), (5, 2), (3, 6), (1, 4)])
def test_p_value_counts_outcomes_as_unlikely(size, num_draws):
    outcomes = torch.tensor(list(itertools.product(range(num_draws + 1), repeat=size)))
    levels = least_tail(outcomes, num_draws)
    expected = (levels[None] <= levels[:, None] * (1 + 1e-9)).double().mean(1)
    found = uniformity_p_values(outcomes.T, num_draws)
    torch.testing.assert_close(found, expected)


def test_symmetry_p_value_counts_sides_as_uneven():
    generator = torch.Generator().manual_seed(0)
    for num_draws in (5, 8):
        ranks = torch.randint(0, num_draws + 1, (7,), generator=generator).tolist()
        flips = itertools.product((False, True), repeat=7)
        worlds = [
            [num_draws - r if f else r for r, f in zip(ranks, flip, strict=True)]
            for flip in flips
        ]
        here = ks_of_mirror(ranks, num_draws)
        expected = sum(ks_of_mirror(w, num_draws) >= here - 1e-9 for w in worlds) / len(
            worlds
        )
        assert symmetry_p_values(
            torch.tensor(ranks), num_draws
        ).item() == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [uniformity_p_values, symmetry_p_values])
@pytest.mark.parametrize(("size", "num_draws"), [(100, 19), (300, 99)])
def test_uniform_ranks_are_rejected_as_often_as_stated(p_values, size, num_draws):
    ranks = torch.randint(
        0, num_draws + 1, (size, 1000), generator=torch.Generator().manual_seed(size)
    )
    p = p_values(ranks, num_draws)
    for level in (0.01, 0.05, 0.2):
        rejected, error = (
            (p <= level).double().mean().item(),
            math.sqrt(level * (1 - level) / 1000),
        )
        assert rejected < level + 5 * error
        assert (
            rejected > 0.7 * level - 5 * error
        )  # somewhat below the level, because ranks are discrete


@pytest.mark.parametrize(
    ("shift", "scale", "seen_by_symmetry"),
    [(0.3, 1.0, True), (-0.3, 1.0, True), (0.0, 1.3, False), (0.0, 0.75, False)],
)
def test_departures_are_detected(shift, scale, seen_by_symmetry):
    generator = torch.Generator().manual_seed(0)
    truth = shift + scale * torch.randn(500, 100, generator=generator)
    # among very many draws of N(0, 1), in a hundred classes
    ranks = (torch.special.ndtr(truth) * 100).long().clamp(max=99)
    assert (uniformity_p_values(ranks, 99) < 0.01).double().mean() > 0.9
    rejected = (symmetry_p_values(ranks, 99) < 0.01).double().mean()
    assert (
        rejected > 0.9
        if seen_by_symmetry
        else rejected < 0.01 + 5 * math.sqrt(0.01 / 100)
    )


def test_tiny_p_values_stay_positive_and_in_order():
    few, many = (torch.full((n,), 0) for n in (50, 100))
    p = [uniformity_p_values(r, 99).item() for r in (few, many)]
    assert 0 < p[1] < p[0] < 1e-40


def test_random_tie_breaks_make_discrete_ranks_uniform():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 3, (20, 5000), generator=generator)
    torch.manual_seed(1)
    assert uniformity_p_values(rank_among(values[0], values[1:]), 19) > 1e-6
    # Without tie breaks they are not uniform.
    assert uniformity_p_values((values[1:] < values[0]).sum(0), 19) < 1e-6


def test_holm_keeps_the_rate_of_any_false_alarm():
    p = torch.rand(5000, 5, generator=torch.Generator().manual_seed(0))
    alarms = torch.stack([holm(row).min() < 0.05 for row in p]).double().mean().item()
    exact = 1 - (1 - 0.01) ** 5  # P(the smallest of five is below 0.05 / 5)
    assert alarms == pytest.approx(exact, abs=5 * math.sqrt(0.05 / 5000))


def test_coverage_of_a_posterior_half_as_wide():
    truth = 2 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    found = interval_coverage(
        (torch.special.ndtr(truth) * 100).long().clamp(max=99), 99
    )
    exact = torch.tensor(
        [
            2 * stats.norm.cdf(stats.norm.ppf((1 + c) / 2) / 2) - 1
            for c in found.levels.tolist()
        ]
    )
    # At 95 %, an end of the interval falls within a class.
    assert ((found.shares[:, 0] - exact).abs() < 5 * found.errors[:, 0] + 0.003).all()


def test_invalid_ranks_are_refused():
    for ranks in (
        torch.tensor([0, 11]),
        torch.tensor([-1]),
        torch.rand(5),
        torch.empty(0, 2, dtype=torch.long),
    ):
        with pytest.raises(
            ValueError, match="ranks must be whole numbers from 0 to num_draws = 10"
        ):
            uniformity_p_values(ranks, 10)
