"""The diagnostics of importance weights, for draws and log-weights that are given.

They are those of ``pareto_k``, ``correction`` and ``rates``, with the same criteria. Nothing can
be drawn afresh, so the alarm of k̂ is a test on the given draws: in parts of 10,000, as in a
re-examination, or all at once if there are fewer than two such parts. There is one weight, of all
data jointly, and so no choice of the worst that could bias the test.
"""

import torch
from torch import Tensor

from vilvm.diagnostics._moments import weighted_moments
from vilvm.diagnostics.correction import Correction
from vilvm.diagnostics.pareto_k import REPEAT, ParetoK, Recheck
from vilvm.diagnostics.psis import psis
from vilvm.diagnostics.rates import Rates
from vilvm.evaluation import Estimate

__all__ = ["correction_of", "pareto_k_of", "rates_of"]

_HALF = 0.5  # k above which weights have no variance, and are tested


def pareto_k_of(log_w: Tensor, false_alarm: float) -> ParetoK:
    """``pareto_k`` of given log-weights, shape (S,)."""
    num_draws, place = len(log_w), torch.zeros(1, dtype=torch.long)
    whole, rechecks = psis(log_w[:, None]), ()
    if whole.k.item() > _HALF:
        repeats = max(1, num_draws // REPEAT)
        size = num_draws // repeats
        # strided, so that each part has draws of all chains
        parts = psis(log_w[: repeats * size].reshape(size, repeats))
        k, ess = parts.k.mean(0, keepdim=True), parts.ess.mean(0, keepdim=True)
        rechecks = (Recheck(k, ess, place, size, repeats),)
    return ParetoK(
        whole.k,
        whole.ess,
        place,
        num_draws,
        True,
        false_alarm,
        rechecks,
        given=True,
    )


def correction_of(
    log_w: Tensor, names: tuple[str, ...], z: Tensor, false_alarm: float
) -> Correction:
    """``correction`` of given draws of K components, shape (S, K), by log-weights, shape (S,)."""
    smoothed = psis(log_w[:, None])
    is_probability = torch.zeros(len(names), dtype=torch.bool)
    moments = weighted_moments(
        log_w[:, None],
        smoothed.log_weights.exp(),
        smoothed.k,
        z[:, None],
        is_probability,
    )
    return Correction(
        names=names,
        **moments._asdict(),
        num_samples=torch.tensor([len(z)]),
        index=torch.zeros(1, dtype=torch.long),
        joint=True,
        probabilities=is_probability,
        false_alarm=false_alarm,
        given=True,
    )


def rates_of(log_q: Tensor, log_prior: Tensor, false_alarm: float) -> Rates:
    """``rates`` of given draws, from log q(z) and log p(z), shape (S,) each."""
    difference = log_q - log_prior
    error = difference.std() / len(difference) ** 0.5
    rate = Estimate(difference.mean()[None], error[None])
    return Rates(rate, torch.zeros(1, dtype=torch.long), false_alarm=false_alarm)
