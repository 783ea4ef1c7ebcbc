"""Pareto-smoothed importance sampling: smoothed weights, and the shape k̂ of their tail.

The 3√S largest of S weights are replaced by the quantiles of a generalised Pareto distribution
that is fitted to them.

Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from vilvm.diagnostics._tail import tail_length

__all__ = ["Smoothed", "psis"]

_FEWEST = 25  # draws; a fifth of them, five, can still be fitted as a tail
_FLAT = 0.01  # a tail whose log-weights differ by less consists of equal weights and rounding
_LUMP = 0.1  # share of S; a tail of equal weights is harmless if the effective number is above


class Smoothed(NamedTuple):
    """Pareto-smoothed weights.

    Arguments:
        log_weights: logarithms of the weights, which sum to one over samples; float64 on the CPU,
            of the shape given to ``psis``; −inf if every weight is zero.
        k: k̂ of each column, shape (N,), or () for a single one. 0 where the largest weights are
            equal, so that there is no tail; ∞ where every weight is zero, or a few equal weights
            carry all.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.psis import psis
        >>> psis(torch.zeros(100)).ess.round()
        tensor(100., dtype=torch.float64)
    """

    log_weights: Tensor
    k: Tensor

    @property
    def ess(self) -> Tensor:
        """Effective sample size 1 / Σₛ wₛ², of the shape of `k`; 0 if every weight is zero."""
        squares = (2 * self.log_weights).exp().sum(0)
        return torch.where(squares > 0, 1 / squares, 0.0)


def psis(log_weights: Tensor) -> Smoothed:
    """Pareto-smoothed importance sampling (ArviZ's), for every column of log-weights.

    Arguments:
        log_weights: shape (S, N) or (S,), S at least 25, up to a constant for each column; −inf
            for a weight of zero.

    Returns:
        Smoothed: normalised log-weights of that shape, and k̂ of shape (N,) or ().

    Raises:
        ValueError: too few samples, or a log-weight is NaN or +∞.

    Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.psis import psis
        >>> smoothed = psis(torch.zeros(100, 3))
        >>> smoothed.k.tolist(), smoothed.ess.round().tolist()
        ([0.0, 0.0, 0.0], [100.0, 100.0, 100.0])
    """
    if not isinstance(log_weights, Tensor) or log_weights.is_complex():
        raise ValueError(
            "psis: log_weights must be a tensor of real log-weights; got a "
            f"{type(log_weights).__name__} that is not."
        )
    if log_weights.dim() not in (1, 2) or len(log_weights) < _FEWEST:
        raise ValueError(
            f"psis: log-weights must have shape (S, N) or (S,) with at least {_FEWEST} samples S; "
            f"got {tuple(log_weights.shape)}."
        )
    columns = (
        log_weights.detach().cpu().double().numpy().reshape(len(log_weights), -1).T
    )
    if np.isnan(columns).any() or np.isposinf(columns).any():
        raise ValueError(
            "psis: a log-weight is NaN or +inf; check the densities it comes from."
        )
    smoothed, k = _smooth(columns)
    return Smoothed(
        torch.from_numpy(smoothed.T.copy()).reshape(log_weights.shape),
        torch.from_numpy(k).reshape(log_weights.shape[1:]),
    )


def _smooth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``psis`` of rows (N, S); rows without a tail that can be fitted keep their weights."""
    from arviz_stats.base import array_stats  # takes a second to import

    length = tail_length(rows.shape[1])
    largest = rows.max(1)
    is_dead = np.isneginf(largest)
    is_flat = ~is_dead & (_spread(rows, largest, length + 1) < _FLAT)
    # No distribution can be fitted to a tail of equal values, such as discrete latents make.
    is_level = ~is_dead & ~is_flat & (_spread(rows, largest, length) < 1e-9)
    plain = rows - logsumexp(np.where(is_dead[:, None], 0.0, rows), 1, keepdims=True)
    plain[is_dead] = -np.inf
    smoothed, k = plain.copy(), np.where(is_dead, np.inf, 0.0)
    k[is_level] = np.nan
    has_tail = ~is_dead & ~is_flat & ~is_level
    if has_tail.any():
        with np.errstate(all="ignore"):
            # ArviZ takes negative log-weights
            smoothed[has_tail], k[has_tail] = array_stats.psislw(-rows[has_tail])
    failed = np.isnan(smoothed).any(1)
    smoothed[failed] = plain[failed]
    # A tail of mostly one value cannot be fitted: zero weights, or the few of a discrete latent.
    lumps = np.isnan(k)
    is_harmless = 1 / np.exp(2 * plain[lumps]).sum(1) >= _LUMP * rows.shape[1]
    k[lumps] = np.where(is_harmless, 0.0, np.inf)
    return smoothed, k


def _spread(rows: np.ndarray, largest: np.ndarray, count: int) -> np.ndarray:
    """The largest minus the `count`-th largest value of each row; NaN or ∞ without weights."""
    last = np.partition(rows, -count)[:, -count]
    return largest - np.where(np.isneginf(largest), 0.0, last)
