"""Importance weights of an approximation, and draws of the posterior from them.

Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.diagnostics.psis import psis
from vilvm.inference._approximations import Mixture
from vilvm.inference._target import Target

__all__ = ["RELIABLE_K", "Weighted", "elbo", "smoothed", "weigh"]

RELIABLE_K = 0.7  # k̂ up to which weights correct an approximation


class Weighted(NamedTuple):
    """Draws u of an approximation, with their Pareto-smoothed weights.

    Arguments:
        u: shape (S, D).
        log_ratio: log p(x, u) − log q(u) in nats, shape (S,).
        weight: smoothed, normalised to one, shape (S,).
        k: Pareto k̂.
    """

    u: Tensor
    log_ratio: Tensor
    weight: Tensor
    k: float

    @property
    def ess(self) -> float:
        """The effective sample size of the weights."""
        return 1 / self.weight.square().sum().item()

    @property
    def log_evidence(self) -> Tensor:
        """log of the mean weight, in nats."""
        return self.log_ratio.logsumexp(0) - math.log(len(self.u))

    @property
    def elbo(self) -> float:
        """The mean log-ratio, in nats."""
        return self.log_ratio.mean().item()

    def resampled(self, num: int) -> Tensor:
        """Draws with equal weights, by systematic resampling, in random order; shape (num, D)."""
        edges = self.weight.cumsum(0)
        comb = (
            torch.arange(num, dtype=edges.dtype) + torch.rand((), dtype=edges.dtype)
        ) / num
        index = torch.searchsorted(edges, comb).clamp(max=len(edges) - 1)
        return self.u[index[torch.randperm(num)]]

    def distinct(self, num: int) -> Tensor:
        """Different draws, each taken in proportion to its weight among those left, (num, D).

        A draw is repeated only if fewer than `num` have a weight.
        """
        count = min(num, int((self.weight > 0).sum()))
        index = torch.multinomial(self.weight, count)
        return self.u[index.repeat(-(-num // count))[:num]]

    def joined(self, other: "Weighted") -> "Weighted":
        """Both sets of draws, of one approximation."""
        return smoothed(
            torch.cat([self.u, other.u]), torch.cat([self.log_ratio, other.log_ratio])
        )


def weigh(target: Target, q: Mixture, num: int) -> Weighted:
    """Draws of q and their weights.

    Arguments:
        target: the log-density.
        q: the approximation.
        num: draws.
    """
    with torch.no_grad():
        u = q.sample((num,))
        return smoothed(u, target(u) - q.log_prob(u))


def smoothed(u: Tensor, log_ratio: Tensor) -> Weighted:
    """Draws with their Pareto-smoothed weights; a ratio that is not finite counts as zero."""
    log_ratio = torch.where(log_ratio.isfinite(), log_ratio, -math.inf)
    smoothed = psis(log_ratio)
    return Weighted(u, log_ratio, smoothed.log_weights.exp(), smoothed.k.item())


def elbo(target: Target, q: Mixture, num: int) -> float:
    """The mean of log p(x, u) − log q(u) over draws of q, in nats."""
    with torch.no_grad():
        u = q.sample((num,))
        return (target(u) - q.log_prob(u)).mean().item()
