"""A Gaussian fitted to batches, for data too many to see at every gradient.

The draws ε are fixed, as in ``vilvm.inference._best_gaussian``. A pass over all data, a batch at a
time, gives the gradients g at an anchor. After it, each step draws a batch of B of the N data,
whose log-likelihood counts N / B times, and estimates the gradients at the present Gaussian by

    g(anchor) + g_batch(now) − g_batch(anchor),

whose noise vanishes as the Gaussian comes near the anchor. The mean of the last iterates is the
next anchor. The fit ends when the anchor hardly moves, and the R̂ of the iterates' means says that
they are stationary. The weights of the final draws see all data once more.

References: Robust, Accurate Stochastic Optimization for Variational Inference, Dhaka et al., 2020
(R̂ and mean of iterates); Accelerating Stochastic Gradient Descent using Predictive Variance
Reduction, Johnson and Zhang, 2013.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vilvm.data.data import Data
from vilvm.inference._approximations import Approximation, Chain, Gaussian, Mixture
from vilvm.inference._best_gaussian import best_gaussian, gaussian_step
from vilvm.inference._candidates import NOWHERE, check_proper
from vilvm.inference._clock import Clock
from vilvm.inference._fixed_draws import base_draws, numbers_of_draws
from vilvm.inference._ladder import Found, mixed, widened
from vilvm.inference._paths import find_modes
from vilvm.inference._preparation import check_global, target_of
from vilvm.inference._target import Target
from vilvm.inference._weighted import Weighted, smoothed
from vilvm.lvm import ContractError

__all__ = ["R_HAT", "climb_in_batches"]

_FEWEST, _FIRST = 200, 4000  # draws with weights

_LENGTH = 0.3  # ρ
_STEPS = 40  # between two anchors
_ANCHORS = 20
R_HAT = 1.1  # below which iterates are stationary
_MOVED = 0.05  # of the anchor's means, in posterior standard deviations


def climb_in_batches(
    model: Callable[[Any], Any], data: Data, size: int, clock: Clock
) -> tuple[Found, float]:
    """The rungs for data that are seen a batch at a time, and the R̂ of the iterates.

    Arguments:
        model: see ``own_model``.
        data: all data, in float64.
        size: data of a batch.
        clock: the budget.

    Raises:
        ContractError: the model cannot be used, or its data are not in a plate of their own.
    """
    first = data.take(torch.randperm(len(data))[:size])
    check_global(model, first.x)
    target = target_of(model, first.x)
    target.see(first.x, len(data) / size)
    found = find_modes(target, is_over=clock.within(0.2))
    check_proper(target, found)
    if not found:
        raise ContractError(NOWHERE)
    start, _ = best_gaussian(
        target, found[0].gaussian, 0, clock.within(0.2), rough=True
    )
    clock.record("Gaussian, of one batch", target.gradients)
    best, r_hat = _fit(target, data, size, start, clock.within(0.6))
    clock.record("Gaussian, of batches", target.gradients, note=f"R̂ {r_hat:.2f}")
    one = torch.zeros(1, dtype=torch.float64)
    components = mixed([best], ([widened(best)], one))
    remainder = len(data) % size
    rest = None
    if remainder:
        last = torch.arange(len(data) - remainder, len(data))
        rest = target_of(model, data.take(last).x)
    q = Mixture(*components)
    part, each = data.subset(slice(0, size)), 0.0
    for _ in range(2):  # the first is slower
        began = clock.elapsed
        _weigh(target, q, part, rest=rest, size=size, num=_FEWEST)
        each = (clock.elapsed - began) * len(data) / (size * _FEWEST)
    num = min(_FIRST, max(_FEWEST, int(clock.left / max(each, 1e-9))))
    weighted = _weigh(target, q, data, rest=rest, size=size, num=num)
    clock.record("weights, of all data", target.gradients, weighted.k)
    return Found(model, target, found, *components, weighted, None), r_hat


def _fit(
    target: Target,
    data: Data,
    size: int,
    start: Approximation,
    is_over: Callable[[], bool],
) -> tuple[Approximation, float]:
    """The mean of stationary iterates, and their R̂.

    Arguments:
        target: the log-density of a batch.
        data: all data, in float64; the last ``len(data) % size`` do not count at anchors.
        size: B.
        start: a Gaussian near the maximum.
        is_over: whether the time is up.
    """
    dim, chunks = target.dim, len(data) // size
    zero = torch.zeros(dim, dtype=torch.float64)
    anchor = Gaussian(zero, torch.eye(dim, dtype=torch.float64))
    eps = base_draws(numbers_of_draws(target)[0], dim, 0)
    r_hat = math.inf

    def gradient(at: Gaussian) -> Tensor:
        return target.pulled_back(start, at(eps)[0].detach())[1]

    for _ in range(_ANCHORS):
        target.see(data.take(torch.arange(size)).x, 0.0)
        prior = gradient(anchor)
        total = torch.zeros_like(prior)
        for first in range(0, chunks * size, size):
            target.see(data.take(torch.arange(first, first + size)).x, 1.0)
            total += gradient(anchor) - prior
        total = prior + total * len(data) / (chunks * size)
        now, path = anchor, []
        for _ in range(_STEPS):
            index = torch.randperm(len(data))[:size]
            target.see(data.take(index).x, len(data) / size)
            estimate = total + gradient(now) - gradient(anchor)
            now, _ = gaussian_step(now, eps, estimate @ now.scale.detach(), _LENGTH)
            path.append(now)
        last = path[_STEPS // 2 :]
        before, anchor = anchor, _average(last)
        r_hat = _r_hat(
            torch.stack([before.inverse(g.loc[None])[0].detach() for g in last])
        )
        moved = before.inverse(anchor.loc[None]).abs().max().item()
        if is_over() or (moved < _MOVED and r_hat < R_HAT):
            break
    return Chain(anchor, start), r_hat


@torch.no_grad()
def _average(path: list[Gaussian]) -> Gaussian:
    """The mean of the means, and of the covariances."""
    loc = torch.stack([g.loc for g in path]).mean(0)
    covariance = torch.stack([g.scale @ g.scale.mT for g in path]).mean(0)
    return Gaussian(loc, torch.linalg.cholesky(covariance))


def _r_hat(iterates: Tensor) -> float:
    """The largest split-R̂ of iterates, shape (T, D), in posterior standard deviations.

    Iterates that differ by less than some hundredths have converged, whatever their R̂.
    """
    halves = torch.stack(iterates.chunk(2))
    within = halves.var(1).mean(0).clamp(min=_MOVED**2)
    between = halves.mean(1).var(0)
    return (1 + between / within).sqrt().max().item()


@torch.no_grad()
def _weigh(
    target: Target,
    q: Mixture,
    data: Data,
    *,
    rest: Target | None,
    size: int,
    num: int,
) -> Weighted:
    """Draws of q, with weights by the density of all data.

    Arguments:
        target: the log-density of a batch of `size` data.
        q: the approximation.
        data: all data, in float64.
        rest: the log-density of the last ``len(data) % size``; None if there are none.
        size: data at a time.
        num: draws.
    """
    u = q.sample((num,))
    target.see(data.take(torch.arange(size)).x, 0.0)
    prior = target(u)
    total = prior.clone()
    for first in range(0, len(data) - size + 1, size):
        target.see(data.take(torch.arange(first, first + size)).x, 1.0)
        total += target(u) - prior
    if rest is not None:
        total += rest(u) - prior
    return smoothed(u, total - q.log_prob(u))
