"""Stein's identity: whether draws have the density that they should, without its normaliser.

For a density p on ℝᴰ that vanishes at infinity, and a smooth f, E_p[f ∂ᵢ log p + ∂ᵢ f] = 0,
because p times its argument is ∂ᵢ(f p). With f = 1 and f = uᵢ − mᵢ, mᵢ the mean of the draws,

    E[∂ᵢ log p(u)] = 0,        E[(uᵢ − mᵢ) ∂ᵢ log p(u)] + 1 = 0        for i = 1 … D.

For draws of N(m, r² σ²) and p = N(μ, σ²), the first is (μ − m) / σ² and the second 1 − r²: a shift
and a wrong width. In several dimensions both refer to the distribution of uᵢ given the others, so
missing correlations show too. Only ∇ log p is needed: no normaliser of p, and no density of the
draws. These 2 D averages are a Stein discrepancy without a kernel. They cannot show everything: a
mode that no draw visits changes none of them, as p is compared only where draws are.

An average counts as different from zero beyond five Monte Carlo standard errors, or more where
Bonferroni's correction over the 2 D averages at the false-alarm rate requires it (Student's t,
with as many degrees of freedom as effective draws). Five, because averages of skewed terms are not
quite normal: with 10 coordinates log z, z ~ Gamma(0.3), 6 of 300 sets of 100 draws raised a false
alarm, 3 of 300 sets of 200 draws, and none of 600 larger sets. The error of each average uses its
own effective sample size, so draws of Markov chains are not taken for independent ones. A warning
also needs a size that matters: 0.1 for the first average, times the standard deviation of uᵢ, and
0.2 for the second, 10 % in the width.

Reference: Measuring Sample Quality with Stein's Method, Jackson Gorham and Lester Mackey, 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._verdicts.stein import stein_finding
from vilvm.diagnostics.finding import Finding

__all__ = ["Stein", "stein"]

_LEAST = 100  # fewest draws
_FIVE = 5.0  # standard errors
_SHIFT, _WIDTH = 0.1, 0.2  # sizes that matter


@dataclass(frozen=True, repr=False)
class Stein(Result):
    """Averages that are zero for draws of p, by unconstrained coordinate.

    Arguments:
        names: names of the D coordinates.
        shift: mean of ∂ᵢ log p times the standard deviation of uᵢ, shape (D,).
        width: mean of (uᵢ − mᵢ) ∂ᵢ log p + 1, shape (D,).
        shift_se: Monte Carlo standard errors of `shift`, shape (D,).
        width_se: Monte Carlo standard errors of `width`, shape (D,).
        ess: effective sample sizes of both averages, shape (2, D).
        num_draws: number of draws.
        impossible: number of draws where p or its gradient is zero, infinite or not a number.
        false_alarm: probability of a warning for draws of p, at most, from 400 draws on.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import stein
        >>> u = torch.randn(1000, 2, dtype=torch.float64)
        >>> stein(u, -u).shift.shape
        torch.Size([2])
    """

    names: tuple[str, ...]
    shift: Tensor
    width: Tensor
    shift_se: Tensor
    width_se: Tensor
    ess: Tensor
    num_draws: int
    impossible: int = 0
    false_alarm: float = 0.01

    @property
    def z(self) -> Tensor:
        """`shift` and `width` in standard errors, shape (2, D)."""
        value = torch.stack([self.shift, self.width])
        error = torch.stack([self.shift_se, self.width_se])
        return torch.where(value == 0, 0.0, value / error)

    @property
    def limit(self) -> Tensor:
        """The standard errors beyond which an average differs from zero, shape (2, D)."""
        tail = self.false_alarm / (2 * max(self.ess.numel(), 1))
        least = stdtrit((self.ess.numpy() - 1).clip(min=1), 1 - tail)
        return torch.from_numpy(np.maximum(least, _FIVE))

    @property
    def differs(self) -> Tensor:
        """Which averages differ from zero beyond noise, shape (2, D)."""
        return self.z.abs() > self.limit

    @property
    def matters(self) -> Tensor:
        """Which averages differ from zero by a size that matters, shape (2, D)."""
        large = torch.stack([self.shift.abs() > _SHIFT, self.width.abs() > _WIDTH])
        return self.differs & large

    @property
    def resolution(self) -> tuple[float, float]:
        """The least shift, in standard deviations, and the least error of a width, as a share,
        that would show in every coordinate if it were Gaussian and independent of the others.
        """
        if not self.names:
            return 0.0, 0.0
        shift, width = self.limit
        return (
            (shift * self.shift_se).max().item(),
            (width * self.width_se).max().item() / 2,
        )

    @property
    def finding(self) -> Finding:
        """WARNING if the draws are not of p; NOTE if they differ by little; else OK."""
        return stein_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row an unconstrained coordinate.

        Columns: name; the averages shift (in standard deviations) and width (a share), each with
        its Monte Carlo error and its effective sample size (draws).
        """
        columns: dict[str, Any] = {"name": self.names}
        for i, name in enumerate(("shift", "width")):
            columns[name] = getattr(self, name)
            columns |= {f"{name}_se": getattr(self, f"{name}_se")}
            columns |= {f"{name}_ess": self.ess[i]}
        return frame_of(columns)


def stein(
    u: Tensor,
    score: Tensor,
    *,
    names: Sequence[str] | None = None,
    num_chains: int = 1,
    false_alarm: float = 0.01,
) -> Stein:
    """Averages over draws that are zero if the draws are of the density p.

    Arguments:
        u: draws in unconstrained coordinates, shape (S, D), chain by chain; S at least 100.
        score: ∇ log p at the draws, shape (S, D).
        names: names of the D coordinates; by default "u[0]", "u[1]" and so on.
        num_chains: number of chains of equal length.
        false_alarm: probability of a warning for draws of p, at most, from 400 draws on.

    Returns:
        Stein, with averages of shape (D,). Draws where the score is not finite are counted and
        left out.

    Raises:
        ValueError: the shapes differ, there are too few draws, or `num_chains` does not divide
            them.

    Reference: Measuring Sample Quality with Stein's Method, Gorham and Mackey, 2015.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import stein
        >>> u = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> stein(u, -u).finding.severity.name  # draws of N(0, I)
        'OK'
        >>> stein(u, -u / 4).finding.severity.name  # not of N(0, 4 I)
        'WARNING'
    """
    false_alarm = check_probability("stein: false_alarm", false_alarm)
    num_chains = check_number("stein: num_chains", num_chains)
    _check(u, score, num_chains)
    if names is None:
        names = [f"u[{i}]" for i in range(u.shape[1])]
    if len(names) != u.shape[1]:
        raise ValueError(
            f"stein: names must name {u.shape[1]} coordinates; got {len(names)}."
        )
    u, score = u.detach().double().cpu(), score.detach().double().cpu()
    finite = score.isfinite().all(1)
    impossible = int((~finite).sum())
    if impossible:  # then the averages only illustrate
        u, score, num_chains = u[finite], score[finite], 1
    sd = u.std(0, correction=0)
    terms = torch.cat([score * sd, (u - u.mean(0)) * score + 1], 1)
    ess = _ess(terms, num_chains)
    mean, error = terms.mean(0), terms.std(0) / ess.sqrt()
    (shift, width), (shift_se, width_se) = mean.chunk(2), error.chunk(2)
    return Stein(
        tuple(names),
        shift,
        width,
        shift_se,
        width_se,
        ess.reshape(2, -1),
        len(u) + impossible,
        impossible,
        false_alarm,
    )


def _check(u: Tensor, score: Tensor, num_chains: int) -> None:
    if u.dim() != 2 or u.shape != score.shape:
        raise ValueError(
            "stein: u and score must both have shape (S, D); got "
            f"{tuple(u.shape)} and {tuple(score.shape)}."
        )
    if len(u) < _LEAST or len(u) % num_chains:
        raise ValueError(
            f"stein: needs at least {_LEAST} draws, in chains of equal length; got {len(u)} in "
            f"{num_chains}."
        )


def _ess(terms: Tensor, num_chains: int) -> Tensor:
    """Effective sample size of the mean of each column, at most the number of draws."""
    from arviz_stats.base import array_stats  # takes a second to import

    num = len(terms)
    if num < 4 * num_chains or not terms.shape[1]:
        return torch.full((terms.shape[1],), float(num), dtype=torch.float64)
    by_chain = terms.reshape(num_chains, -1, terms.shape[1]).numpy()
    with np.errstate(all="ignore"):
        found = array_stats.ess(by_chain, chain_axis=0, draw_axis=1, method="mean")
    ess = torch.from_numpy(np.array(found, dtype=np.float64))
    return ess.nan_to_num(num).clamp(1, num)
