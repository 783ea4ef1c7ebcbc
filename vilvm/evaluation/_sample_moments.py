"""Moments over Monte Carlo samples, from running sums: memory does not grow with the samples."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.evaluation.estimates import Estimate, log_mean_error

__all__ = ["DISTORTION", "LOG_WEIGHT", "RATE", "SampleMoments", "moments_of"]

LOG_WEIGHT, RATE, DISTORTION = range(3)
_LOGS, _MEANS, _SQUARES = slice(0, 2), slice(2, 5), slice(5, 8)


class SampleMoments(NamedTuple):
    """Moments over samples of log w, rate and distortion, of every datum.

    Arguments:
        rows: log Σ w and log Σ w², the means of the three terms, and their sums of squared
            deviations; float64, shape (num_data, 8).
        num_samples: Monte Carlo samples per datum, S.
    """

    rows: Tensor
    num_samples: int

    def mean(self, term: int) -> Estimate:
        """The mean of a term; its standard error is NaN for a single sample."""
        means, squares = self.rows[:, _MEANS][:, term], self.rows[:, _SQUARES][:, term]
        errors = torch.full_like(means, math.nan)
        if self.num_samples > 1:
            errors = (squares / (self.num_samples - 1) / self.num_samples).sqrt()
        return Estimate(means.cpu(), errors.cpu())

    def ess(self) -> Tensor:
        """Effective sample size of the weights, shape (num_data,); 0 if every weight is zero."""
        log_w, log_w2 = self.rows[:, _LOGS].unbind(-1)
        return (2 * log_w - log_w2).exp().nan_to_num(0.0).cpu()

    def iwae(self) -> Estimate:
        """log (1/S) Σ w, with the standard error of the delta method."""
        values = self.rows[:, 0] - math.log(self.num_samples)
        return Estimate(values.cpu(), log_mean_error(self.ess(), self.num_samples))


class _Sums(NamedTuple):
    """Sums over samples: logs (2, N) of Σ w and Σ w²; others (3, N), centred at an origin."""

    logs: Tensor
    sums: Tensor
    squares: Tensor

    def plus(self, other: "_Sums") -> "_Sums":
        # Row by row: a vectorised logaddexp of both rows at once rounds some elements otherwise.
        pairs = zip(self.logs, other.logs, strict=True)
        logs = torch.stack([torch.logaddexp(a, b) for a, b in pairs])
        return _Sums(logs, self.sums + other.sums, self.squares + other.squares)


def moments_of(passes: Iterable[list[Tensor]], num_samples: int) -> Tensor:
    """The rows of ``SampleMoments`` of one batch.

    Arguments:
        passes: log w, rate and distortion by pass, each of shape (samples, num_data).
        num_samples: samples of all passes.
    """
    total, origin = None, torch.empty(0)
    for terms in passes:
        if total is None:
            # Sums of squares about zero would lose the digits of their difference, so they are
            # taken about a first estimate of the mean. The log of a zero weight is −inf.
            origin = torch.stack(
                [term.mean(0).nan_to_num(0.0, 0.0, 0.0) for term in terms]
            )
        new = _sums(terms, origin)
        total = new if total is None else total.plus(new)
    assert total is not None
    means = total.sums / num_samples + origin
    squares = (total.squares - total.sums.square() / num_samples).clamp(min=0)
    return torch.cat([total.logs, means, squares]).T


def _sums(terms: list[Tensor], origin: Tensor) -> _Sums:
    log_w = terms[LOG_WEIGHT]
    centred = [term - start for term, start in zip(terms, origin, strict=True)]
    return _Sums(
        torch.stack([torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0)]),
        torch.stack([term.sum(0) for term in centred]),
        torch.stack([term.square().sum(0) for term in centred]),
    )
