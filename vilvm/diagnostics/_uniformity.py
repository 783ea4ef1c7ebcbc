"""Ranks of the truth among posterior draws, and exact tests that they are uniform.

If θ* and S draws of a posterior are exchangeable, the rank r = #{s : θ_s < θ*} is uniform on {0,
…, S}. Of L independent ranks let N_i = #{l : r_l < i}, i = 1, …, S, which is Binomial(L, i / (S +
1)). The ECDF test looks at the least likely of them,

    γ = min_i 2 min(P(N_i ≤ n_i), P(N_i ≥ n_i)),

and its p-value is the probability of a γ as small: that the path n_1 ≤ … ≤ n_S leaves the
simultaneous envelope of level γ. Given their sum, independent Poisson counts are multinomial; so a
walk with Poisson steps is followed from i = 1 to S + 1, its mass outside the envelope dropped at
each, and what ends at L is divided by P(Poisson(L) = L). That is exact, whatever S and L; nothing
is simulated.

The test of symmetry asks less: whether u = (r + ½) / (S + 1) and 1 − u have one distribution. Its
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
    """How often central intervals hold the truth.

    Arguments:
        levels: the intervals' nominal levels, shape (M,).
        shares: of the simulations, whose interval of a level holds the truth, shape (M, K).
        errors: standard errors of the shares, shape (M, K).
    """

    levels: Tensor
    shares: Tensor
    errors: Tensor


def rank_among(truth: Tensor, draws: Tensor) -> Tensor:
    """How many draws are below the truth; among draws equal to it (a discrete latent) the place is
    drawn from torch's generator.

    Arguments:
        truth: shape (...).
        draws: shape (S, ...).

    Returns:
        Whole numbers from 0 to S, shape (...).
    """
    ties = (draws == truth).sum(0)
    return (draws < truth).sum(0) + (
        torch.rand(ties.shape, dtype=torch.float64, device=ties.device) * (ties + 1)
    ).long()


def uniformity_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Exact p-values of the ECDF test that ranks are uniform on {0, …, num_draws}, against any
    alternative.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K): L independent simulations of K quantities.
        num_draws: S, draws each truth was ranked among.

    Returns:
        p-values, float64, shape () or (K,); P(p ≤ α) is α, or as close below it as whole numbers
        allow.

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Reference: Graphical test for discrete uniformity, Säilynoja, Bürkner and Vehtari, 2022.

    Example:
        >>> import torch
        >>> even, low = torch.arange(100) % 10, torch.arange(100) % 5
        >>> tuple(f"{p:.2g}" for p in uniformity_p_values(torch.stack([even, low], 1), num_draws=9))
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
    from scipy import stats  # here, for it takes a second to import

    n, share = np.arange(size + 1), np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    return 2 * np.minimum(stats.binom.cdf(n, size, share), stats.binom.sf(n - 1, size, share))


def _crossing(tails: np.ndarray, level: float) -> float:
    """The probability that the path of N_i touches a place whose tail is no larger than `level`."""
    from scipy import stats  # here, for it takes a second to import

    num_draws, size = tails.shape[0], tails.shape[1] - 1
    # a place and its mirror image have one tail, but for rounding
    inside = tails > level * (1 + 1e-9)
    if not inside.any(1).all():
        return 1.0
    lows, highs = inside.argmax(1), size - inside[:, ::-1].argmax(1)
    step = stats.poisson.pmf(np.arange(size + 1), size / (num_draws + 1))
    mass, low = np.ones(1), 0  # of the walk, at low, low + 1, …
    for to_low, to_high in zip(lows, highs, strict=True):
        mass = np.convolve(mass, step[: to_high - low + 1])[to_low - low : to_high - low + 1]
        low = to_low
    stays = mass @ step[size - low - np.arange(len(mass))] / stats.poisson.pmf(size, size)
    # A p-value near rounding's reach is held between the tail of one place and the sum over all of
    # them.
    return float(np.clip(1 - stays, level / 2, min(1.0, num_draws * level)))


def symmetry_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """Exact p-values of the test that ranks are symmetric about their middle, num_draws / 2: that
    truths lie neither high nor low.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K): L independent simulations of K quantities.
        num_draws: S, draws each truth was ranked among.

    Returns:
        p-values, float64, shape () or (K,).

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
    Gelman, 2018; there the p-value is that of two independent samples, which is too small.

    Example:
        >>> import torch
        >>> symmetry_p_values(torch.tensor([0, 0, 0, 1, 1]), num_draws=9)  # five of five on one side: 2 / 2⁵
        tensor(0.0625, dtype=torch.float64)
    """
    columns = _columns(ranks, num_draws)
    p = torch.tensor(
        [_excursion(2 * column - num_draws) for column in columns.T], dtype=torch.float64
    )
    return p.reshape(ranks.shape[1:])


def _excursion(sides: np.ndarray) -> float:
    """The probability that coins for the signs of `sides`, taken from the largest in size on, lead
    as far away from even.
    """
    sizes = np.unique(np.abs(sides[sides != 0]))[::-1]
    ups, downs = ((sides[:, None] == sign * sizes).sum(0) for sign in (1, -1))
    furthest = np.abs((ups - downs).cumsum()).max(initial=0)
    if furthest == 0:
        return 1.0
    mass = np.zeros(2 * furthest - 1)  # of the walk, strictly within `furthest` of even
    mass[furthest - 1] = 1
    for group in ups + downs:  # equal sizes are looked at together
        mass = np.convolve(mass, _coins(int(group)))[group : group + len(mass)]
    return float(np.clip(1 - mass.sum(), 0, 1))


@lru_cache(maxsize=1024)
def _coins(number: int) -> np.ndarray:
    """The distribution of heads less tails of so many fair coins, from −number to number."""
    from scipy import stats  # here, for it takes a second to import

    law = np.zeros(2 * number + 1)
    law[::2] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
    return law


def holm(p_values: Tensor) -> Tensor:
    """p-values adjusted for their number: below α with probability at most α if all that is tested
    is true.

    As safe as Bonferroni's (K times the p-value), and never larger.

    Arguments:
        p_values: shape (K,); the tests may depend on each other.

    Returns:
        Shape (K,).

    Reference: A simple sequentially rejective multiple test procedure, Sture Holm, 1979.

    Example:
        >>> import torch
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
    """How often central intervals hold the truth, by its ranks; if these are uniform, as often as
    each level says, without bias.

    A rank r stands for the stretch from r / (S + 1) to (r + 1) / (S + 1) of the distribution
    function, and counts as covered in part if an interval's end falls within it.

    Arguments:
        ranks: whole numbers, shape (L,) or (L, K).
        num_draws: S, draws each truth was ranked among.
        levels: of the intervals.

    Raises:
        ValueError: ranks are not whole numbers from 0 to num_draws, or there are none.

    Example:
        >>> import torch
        >>> interval_coverage(torch.arange(10), num_draws=9, levels=(0.8,)).shares
        tensor([[0.8000]], dtype=torch.float64)
    """
    columns = torch.from_numpy(_columns(ranks, num_draws))
    nominal = torch.tensor(levels, dtype=torch.float64)
    low, high = ((1 + side * nominal[:, None, None]) / 2 * (num_draws + 1) for side in (-1, 1))
    # (M, L, K)
    covered = (torch.minimum(columns + 1, high) - torch.maximum(columns, low)).clamp(0, 1)
    return Coverage(nominal, covered.mean(1), covered.std(1, correction=0) / len(columns) ** 0.5)


def _columns(ranks: Tensor, num_draws: int) -> np.ndarray:
    num_draws = check_number("num_draws", num_draws)
    if (
        not ranks.dim()
        or not ranks.numel()
        or ranks.is_floating_point()
        or ranks.min() < 0
        or ranks.max() > num_draws
    ):
        values = f"from {ranks.min()} to {ranks.max()}" if ranks.numel() else "none"
        raise ValueError(
            f"ranks must be whole numbers from 0 to num_draws = {num_draws}, one a simulation; "
            f"got {values}, of shape {tuple(ranks.shape)}."
        )
    return ranks.reshape(len(ranks), -1).cpu().numpy()
