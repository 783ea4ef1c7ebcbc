"""Ranks of the truth among posterior draws, and exact tests that they are uniform.

If θ* and S draws of a posterior are exchangeable, the rank r = #{s : θ_s < θ*} is uniform on {0,
…, S}. For L independent ranks let N_i = #{l : r_l < i}, i = 1, …, S, which is Binomial(L, i / (S +
1)). The statistic of the ECDF test is the probability of the least likely of them,

    γ = min_i 2 min(P(N_i ≤ n_i), P(N_i ≥ n_i)),

and its p-value is the probability of a γ as small: that the path n_1 ≤ … ≤ n_S leaves the
simultaneous envelope of level γ. Given their sum, independent Poisson counts are multinomial; so a
walk with Poisson steps is followed from i = 1 to S + 1, its mass outside the envelope is dropped
at each step, and the mass that ends at L is divided by P(Poisson(L) = L). This is exact for all S
and L; nothing is simulated.

The test of symmetry asks only whether u = (r + ½) / (S + 1) and 1 − u have one distribution. Its
statistic is that of the two-sample Kolmogorov-Smirnov test of u against 1 − u. The two are not
independent, so its tables do not hold; but given |u − ½| the sides are fair coins, and L · KS is
the largest excursion of a walk whose steps they are, from the outermost u to the innermost.

References: Graphical test for discrete uniformity and its applications in goodness-of-fit
evaluation and multiple sample comparison, Säilynoja, Bürkner and Vehtari, 2022; Fast calculation
of boundary crossing probabilities for Poisson processes, Moscovich and Nadler, 2017; Yes, but did
it work?, Yao, Vehtari, Simpson and Gelman, 2018 (symmetry); A simple sequentially rejective
multiple test procedure, Sture Holm, 1979.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number

__all__ = [
    "Coverage",
    "holm",
    "interval_coverage",
    "rank_among",
    "symmetry_p_values",
    "uniformity_p_values",
]


class Coverage(NamedTuple):
    """How often central intervals contain the truth.

    Arguments:
        levels: nominal levels of the intervals, shape (M,).
        shares: shares of simulations whose interval contains the truth, shape (M, K).
        errors: standard errors of the shares, shape (M, K).
    """

    levels: Tensor
    shares: Tensor
    errors: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The shares by level, "coverage_50" and so on, shape (K,) each."""
        levels = [round(100 * level) for level in self.levels.tolist()]
        return {f"coverage_{x}": s for x, s in zip(levels, self.shares, strict=True)}


def rank_among(truth: Tensor, draws: Tensor) -> Tensor:
    """The number of draws below the truth; ties are broken at random, by torch's generator.

    Arguments:
        truth: true values, shape (...).
        draws: posterior draws, shape (S, ...).

    Returns:
        Whole numbers from 0 to S, shape (...).
    """
    ties = (draws == truth).sum(0)
    return (draws < truth).sum(0) + (
        torch.rand(ties.shape, dtype=torch.float64, device=ties.device) * (ties + 1)
    ).long()


def uniformity_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Exact p-values of the ECDF test that ranks are uniform on {0, …, num_draws}.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K): L independent simulations of K quantities.
        num_draws: S, the number of draws that each truth was ranked among.

    Returns:
        p-values, float64, shape () or (K,); P(p ≤ α) is α, or the nearest smaller value that
        whole numbers allow.

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Reference: Graphical test for discrete uniformity, Säilynoja, Bürkner and Vehtari, 2022.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics._uniformity import uniformity_p_values
        >>> even, low = torch.arange(100) % 10, torch.arange(100) % 5
        >>> ranks = torch.stack([even, low], 1)
        >>> tuple(f"{p:.2g}" for p in uniformity_p_values(ranks, num_draws=9))
        ('1', '1.4e-29')
    """
    columns = _columns(ranks, num_draws)
    size = len(columns)
    tails = _tails(size, num_draws)
    counts = np.stack([np.bincount(c, minlength=num_draws + 1) for c in columns.T])
    paths = counts.cumsum(1)[:, :-1]  # (K, S)
    levels = np.take_along_axis(tails[None], paths[..., None], 2)[..., 0].min(1)
    p = torch.tensor([_crossing(tails, level) for level in levels], dtype=torch.float64)
    return p.reshape(ranks.shape[1:])


@lru_cache(maxsize=4)
def _tails(size: int, num_draws: int) -> np.ndarray:
    """2 min(P(N_i ≤ n), P(N_i ≥ n)) for i = 1, …, S and n = 0, …, L."""
    from scipy import stats  # takes a second to import

    n, share = (
        np.arange(size + 1),
        np.arange(1, num_draws + 1)[:, None] / (num_draws + 1),
    )
    return 2 * np.minimum(
        stats.binom.cdf(n, size, share), stats.binom.sf(n - 1, size, share)
    )


def _crossing(tails: np.ndarray, level: float) -> float:
    """The probability that the path of N_i touches a point whose tail is at most `level`."""
    from scipy import stats  # takes a second to import

    num_draws, size = tails.shape[0], tails.shape[1] - 1
    # a point and its mirror image have the same tail up to rounding
    inside = tails > level * (1 + 1e-9)
    if not inside.any(1).all():
        return 1.0
    lows, highs = inside.argmax(1), size - inside[:, ::-1].argmax(1)
    step = stats.poisson.pmf(np.arange(size + 1), size / (num_draws + 1))
    mass, low = np.ones(1), 0  # of the walk, at low, low + 1, …
    for to_low, to_high in zip(lows, highs, strict=True):
        mass = np.convolve(mass, step[: to_high - low + 1])[
            to_low - low : to_high - low + 1
        ]
        low = to_low
    stays = (
        mass @ step[size - low - np.arange(len(mass))] / stats.poisson.pmf(size, size)
    )
    # A tiny p-value is bounded by the tail of one point and the sum of all tails.
    return float(np.clip(1 - stays, level / 2, min(1.0, num_draws * level)))


def symmetry_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Exact p-values of the test that ranks are symmetric about their middle, num_draws / 2.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K): L independent simulations of K quantities.
        num_draws: S, the number of draws that each truth was ranked among.

    Returns:
        p-values, float64, shape () or (K,).

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
    Gelman, 2018. They use the p-value of two independent samples, which is too small.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics._uniformity import symmetry_p_values
        >>> # all five on one side: p = 2 / 2⁵
        >>> symmetry_p_values(torch.tensor([0, 0, 0, 1, 1]), num_draws=9)
        tensor(0.0625, dtype=torch.float64)
    """
    columns = _columns(ranks, num_draws)
    p = torch.tensor(
        [_excursion(2 * column - num_draws) for column in columns.T],
        dtype=torch.float64,
    )
    return p.reshape(ranks.shape[1:])


def _excursion(sides: np.ndarray) -> float:
    """The probability of an excursion at least as large if the signs of `sides` are fair coins.

    The walk takes the sides in decreasing order of size.
    """
    sizes = np.unique(np.abs(sides[sides != 0]))[::-1]
    ups, downs = ((sides[:, None] == sign * sizes).sum(0) for sign in (1, -1))
    furthest = np.abs((ups - downs).cumsum()).max(initial=0)
    if furthest == 0:
        return 1.0
    mass = np.zeros(2 * furthest - 1)  # of the walk, within `furthest` of zero
    mass[furthest - 1] = 1
    for group in ups + downs:  # equal sizes make one step
        mass = np.convolve(mass, _coins(int(group)))[group : group + len(mass)]
    return float(np.clip(1 - mass.sum(), 0, 1))


@lru_cache(maxsize=1024)
def _coins(number: int) -> np.ndarray:
    """The distribution of heads minus tails of `number` fair coins, from −number to number."""
    from scipy import stats  # takes a second to import

    law = np.zeros(2 * number + 1)
    law[::2] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
    return law


def holm(p_values: Tensor) -> Tensor:
    """p-values adjusted for multiple testing by Holm's method, for dependent tests too.

    If all hypotheses are true, the smallest is below α with probability at most α. They are never
    larger than Bonferroni's (K times the p-value).

    Arguments:
        p_values: shape (K,).

    Returns:
        Adjusted p-values, shape (K,).

    Reference: A simple sequentially rejective multiple test procedure, Sture Holm, 1979.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics._uniformity import holm
        >>> tuple(round(p, 3) for p in holm(torch.tensor([0.01, 0.04, 0.03])).tolist())
        (0.03, 0.06, 0.06)
    """
    order = p_values.argsort()
    factors = torch.arange(len(p_values), 0, -1, device=p_values.device)
    adjusted = torch.empty_like(p_values)
    adjusted[order] = (p_values[order] * factors).cummax(0).values.clamp(max=1)
    return adjusted


def interval_coverage(
    ranks: Tensor, num_draws: int, levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
) -> Coverage:
    """How often central intervals contain the truth, computed from its ranks.

    A rank r stands for the part of the distribution function from r / (S + 1) to (r + 1) / (S +
    1). It counts as partly covered if an interval ends within it, so that uniform ranks give each
    level without bias.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K).
        num_draws: S, the number of draws that each truth was ranked among.
        levels: nominal levels of the intervals.

    Returns:
        Coverage, with shares of shape (M, K).

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics._uniformity import interval_coverage
        >>> interval_coverage(torch.arange(10), num_draws=9, levels=(0.8,)).shares
        tensor([[0.8000]], dtype=torch.float64)
    """
    columns = torch.from_numpy(_columns(ranks, num_draws))
    nominal = torch.tensor(levels, dtype=torch.float64)
    low, high = (
        (1 + side * nominal[:, None, None]) / 2 * (num_draws + 1) for side in (-1, 1)
    )
    # (M, L, K)
    covered = (torch.minimum(columns + 1, high) - torch.maximum(columns, low)).clamp(
        0, 1
    )
    return Coverage(
        nominal, covered.mean(1), covered.std(1, correction=0) / len(columns) ** 0.5
    )


def _columns(ranks: Tensor, num_draws: int) -> np.ndarray:
    num_draws = check_number("num_draws", num_draws)
    if not ranks.dim() or not ranks.numel():
        raise ValueError(
            f"ranks must be whole numbers from 0 to num_draws = {num_draws}, one per simulation; "
            f"got none, of shape {tuple(ranks.shape)}."
        )
    if ranks.is_floating_point() or ranks.min() < 0 or ranks.max() > num_draws:
        raise ValueError(
            f"ranks must be whole numbers from 0 to num_draws = {num_draws}, one per simulation; "
            f"got {ranks.dtype} from {ranks.min()} to {ranks.max()}, "
            f"of shape {tuple(ranks.shape)}."
        )
    return ranks.reshape(len(ranks), -1).cpu().numpy()
